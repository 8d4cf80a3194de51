#include "common/transfer/lifeline.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/transfer/dial.h"

struct lifeline {
    struct watch watch;
    struct transfer_peer *peer;
    struct dial dial;
    int fd;           /* -1: it does not stand */
    bool local;       /* within this host: needs no beats */
    uint64_t beat_us; /* when the next one is due */
};

static void broken(struct lifeline *l, const char *why)
{
    char text[384];

    if (l->fd >= 0)
        watch_close(l->peer->t, l->fd);
    l->fd = -1;
    snprintf(text, sizeof(text), "lifeline: %s", why);
    l->peer->lost = true;
    peer_fail(l->peer, PEER_FAILED, ST_UNAVAILABLE, text);
}

static void lifeline_ready(struct watch *w, uint32_t events)
{
    struct lifeline *l = (struct lifeline *)w;
    char bytes[64];
    ssize_t n;

    (void)events;
    if (l->fd < 0)
        return;
    errno = 0;
    n = recv(l->fd, bytes, sizeof(bytes), 0);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        broken(l, errno != 0 ? strerror(errno) : "the peer has ended");
    else if (n > 0 && memchr(bytes, LIFELINE_STOP, (size_t)n) != NULL)
        peer_fail(l->peer, PEER_FAILED, ST_UNAVAILABLE, "it wants no more KV of this session");
}

static void on_dialled(struct dial *d, int fd, const char *why)
{
    struct lifeline *l = (struct lifeline *)((char *)d - offsetof(struct lifeline, dial));

    if (fd < 0) {
        broken(l, why);
        return;
    }
    l->fd = fd;
    if (!l->local)
        tcp_break_soon(fd);
    watch_change(l->peer->t, fd, EPOLLIN | EPOLLRDHUP, &l->watch);
}

enum status_code lifeline_new(struct transfer_peer *p, const struct descriptor *d,
                              struct status *st)
{
    struct lifeline *l = calloc(1, sizeof(*l));

    if (l == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a peer");
    p->lifeline = l;
    l->watch.ready = lifeline_ready;
    l->peer = p;
    l->fd = -1;
    l->local = d->tcp.host == tcp_host_id();
    l->dial = (struct dial){.t = p->t, .offer = d->tcp, .ended = on_dialled};
    l->dial.to[0] = tcp_address_local(d->incarnation);
    l->dial.n_to = l->local ? 1 : tcp_candidates(&d->tcp, tcp_host_id(), l->dial.to);
    if (l->dial.n_to == 0)
        return status_set(st, ST_UNAVAILABLE,
                          "the peer has no address but loopback ones, and is on another host: give "
                          "it a network interface (--kv-devices)");
    return status_ok(st);
}

void lifeline_start(struct lifeline *l)
{
    l->dial.kind = l->peer->tcp != NULL ? TCP_HELLO_LIFELINE : TCP_HELLO_LIFELINE_UCX;
    dial_start(&l->dial);
}

bool lifeline_stands(const struct lifeline *l)
{
    return l->fd >= 0;
}

int lifeline_tend(struct lifeline *l)
{
    uint64_t now;

    if (dial_is_under_way(&l->dial))
        return dial_tend(&l->dial);
    if (l->fd < 0 || l->local)
        return LANE_FOREVER;
    now = clock_now_us();
    if (now >= l->beat_us) {
        /* When the socket is full the beats in it will do. */
        (void)!send(l->fd, &(char){LIFELINE_BEAT}, 1, MSG_NOSIGNAL);
        l->beat_us = now + LIFELINE_BEAT_US;
    }
    return (int)((l->beat_us - now) / 1000 + 1);
}

void lifeline_bye(struct lifeline *l)
{
    dial_stop(&l->dial);
    if (l->fd < 0)
        return;
    (void)!send(l->fd, &(char){LIFELINE_BYE}, 1, MSG_NOSIGNAL);
    watch_close(l->peer->t, l->fd);
    l->fd = -1;
}

void lifeline_free(struct lifeline *l)
{
    if (l == NULL)
        return;
    lifeline_bye(l);
    free(l);
}
