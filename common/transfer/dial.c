#include "common/transfer/dial.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common/base/clock.h"

enum {
    CONNECT_US = 2000000, /* per address, greeting included */
    GIVE_UP_US = 8000000, /* for all addresses */
};

static void end(struct dial *d, int fd, const char *why)
{
    d->give_up_us = 0;
    d->fd = -1;
    d->ended(d, fd, why);
}

/* Notes why the current address did not do and closes its socket. */
static void address_failed(struct dial *d, const char *why)
{
    char text[64];
    size_t at = strlen(d->tried);

    tcp_address_text(&d->to[d->at_to], text, sizeof(text));
    snprintf(d->tried + at, sizeof(d->tried) - at, "%s%s: %s", at > 0 ? "; " : "", text, why);
    if (d->fd >= 0)
        watch_close(d->t, d->fd);
    d->fd = -1;
    d->at_to++;
}

static void connect_next(struct dial *d)
{
    char why[sizeof(d->tried) + 64];

    for (; d->at_to < d->n_to && clock_now_us() < d->give_up_us;
         address_failed(d, strerror(errno))) {
        struct sockaddr_storage ss;
        socklen_t len = tcp_sockaddr(&d->to[d->at_to], d->offer.port, &ss);

        d->greeted = false;
        d->in_len = 0;
        d->fd = socket(ss.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (d->fd < 0)
            continue;
        tcp_keep_alive(d->fd);
        if (!watch_add(d->t, d->fd, EPOLLOUT, &d->watch)) {
            close(d->fd);
            d->fd = -1;
            continue;
        }
        if (connect(d->fd, (struct sockaddr *)&ss, len) == 0 || errno == EINPROGRESS) {
            d->deadline_us = clock_now_us() + CONNECT_US;
            return;
        }
    }
    snprintf(why, sizeof(why), "no connection to port %u (%s): is it open between the workers?",
             d->offer.port, d->tried);
    end(d, -1, why);
}

/* May KV go by the interface that the kernel chose? (Nothing but puts is KV.) */
static bool device_allowed(const struct dial *d, char *device, size_t n)
{
    if (d->kind != TCP_HELLO_PUTS)
        return true;
    tcp_socket_device(d->fd, device, n);
    return tcp_device_listed(d->t->plan.devices, device);
}

static void greet(struct dial *d)
{
    struct tcp_hello hello = {
        .version = TCP_VERSION, .kind = d->kind, .incarnation = d->t->incarnation};
    socklen_t len = sizeof(int);
    char device[128];
    int err = 0;

    getsockopt(d->fd, SOL_SOCKET, SO_ERROR, &err, &len);
    memcpy(hello.magic, TCP_HELLO_MAGIC, sizeof(hello.magic));
    memcpy(hello.token, d->offer.token, sizeof(hello.token));
    if (err != 0) {
        address_failed(d, strerror(err));
    } else if (!device_allowed(d, device, 64)) {
        snprintf(device + strlen(device), sizeof(device) - strlen(device),
                 " is the way there, and not among the devices allowed");
        address_failed(d, device);
    } else if (send(d->fd, &hello, sizeof(hello), MSG_NOSIGNAL) != sizeof(hello)) {
        address_failed(d, "the greeting does not go out");
    } else {
        d->greeted = true;
        watch_change(d->t, d->fd, EPOLLIN | EPOLLRDHUP, &d->watch);
        return;
    }
    connect_next(d);
}

static const char *refusal(const struct tcp_greeting *g)
{
    if (memcmp(g->magic, TCP_WELCOME_MAGIC, sizeof(g->magic)) != 0)
        return "something else listens there";
    switch ((enum tcp_welcome)g->code) {
    case TCP_COME_IN:
        return NULL;
    case TCP_OTHER_VERSION:
        return "the peer runs another version";
    case TCP_NO_PUTS:
        return "the peer takes no KV over TCP: its --kv-transport forbids it";
    default:
        return "the peer does not know our token: it has restarted since";
    }
}

static void welcome(struct dial *d)
{
    const char *why;
    ssize_t got = recv(d->fd, (char *)&d->in + d->in_len, sizeof(d->in) - d->in_len, 0);

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got > 0)
        d->in_len += (size_t)got;
    if (got > 0 && d->in_len < sizeof(d->in))
        return;
    why = got <= 0 ? "hung up during the greeting" : refusal(&d->in);
    if (why == NULL) {
        end(d, d->fd, NULL);
        return;
    }
    address_failed(d, why);
    connect_next(d);
}

static void dial_ready(struct watch *w, uint32_t events)
{
    struct dial *d = (struct dial *)w;

    (void)events;
    if (!dial_is_under_way(d))
        return; /* stopped by what was handled just before */
    if (d->greeted)
        welcome(d);
    else
        greet(d);
}

void dial_start(struct dial *d)
{
    d->watch.ready = dial_ready;
    d->fd = -1;
    d->at_to = 0;
    d->tried[0] = '\0';
    d->give_up_us = clock_now_us() + GIVE_UP_US;
    connect_next(d);
}

bool dial_is_under_way(const struct dial *d)
{
    return d->give_up_us != 0;
}

int dial_tend(struct dial *d)
{
    uint64_t now;

    if (!dial_is_under_way(d))
        return LANE_FOREVER;
    now = clock_now_us();
    if (now < d->deadline_us)
        return (int)((d->deadline_us - now) / 1000 + 1);
    address_failed(d, "no answer in 2 s");
    connect_next(d);
    return 0;
}

void dial_stop(struct dial *d)
{
    if (dial_is_under_way(d) && d->fd >= 0)
        watch_close(d->t, d->fd);
    d->give_up_us = 0;
    d->fd = -1;
}
