/* The lane over a socket, the receiving side: bytes are read from the network straight into slabs.
 * Whoever connects is a stranger until it has shown the token of our descriptor; after that, every
 * entry is held against the slabs' bounds. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/transfer/internal.h"
#include "common/transfer/tcp_wire.h"

enum {
    STRANGERS_MAX = 64, /* connections that have not greeted; more are turned away */
    LOG_US = 1000000,
    PAUSE_US = 1000000,       /* without accepting, when descriptors have run out */
    GREETING_US = 5000000,    /* for a greeting to come */
    TURN_BYTES = 1 << 20,     /* of one connection before others have their turn */
    ACKS_BYTES_MAX = 1 << 16, /* acks that a sender does not read: it is not one of ours */
};

enum inbound_state { GREETING, HEADER, ENTRIES, PAYLOAD };

/* A writer with a token of its own. */
struct grant {
    struct grant *next;
    uint64_t writer;
    uint8_t token[TCP_TOKEN_BYTES];
    bool used; /* it has greeted */
};

/* A connection. */
struct inbound {
    struct watch watch;
    struct tcp_server *server;
    struct inbound *next, **link; /* list, and where it points to this one */
    int fd;
    enum inbound_state state;
    uint64_t deadline_us; /* of GREETING */
    uint64_t incarnation; /* of the sender */
    uint64_t writer;      /* 0: it came with the shared token */
    struct tcp_hello hello;
    struct tcp_header header;
    struct tcp_entry entries[TCP_ENTRIES_MAX];
    struct iovec iov[TCP_ENTRIES_MAX + 1]; /* what is still to be read; the last one: next header */
    int n_iov, at_iov;
    bool leaving; /* said goodbye */
    struct buf out;
};

struct tcp_server {
    struct watch watch;
    struct transfer *t;
    int fd;
    uint16_t port;
    uint8_t token[TCP_TOKEN_BYTES]; /* of whoever was told it */
    struct grant *grants;
    struct inbound *inbounds;
    uint32_t n_strangers;
    uint64_t logged_us;  /* when a refusal was last logged */
    uint32_t n_unlogged; /* refusals since */
    uint64_t
        resume_us; /* when to accept again after the process ran out of descriptors; 0: accepting */
};

/* Logs why somebody was refused, at most once a second: whoever connects can cause it. */
static void refusal(struct tcp_server *s, const char *who, const char *why)
{
    uint64_t now = clock_now_us();

    if (s->logged_us + LOG_US > now) {
        s->n_unlogged++;
        return;
    }
    log_warn("transfer: %s refused: %s (and %u others since the last such line)", who, why,
             s->n_unlogged);
    s->logged_us = now;
    s->n_unlogged = 0;
}

static void inbound_end(struct inbound *c)
{
    *c->link = c->next;
    if (c->next != NULL)
        c->next->link = c->link;
    c->server->n_strangers -= c->state == GREETING;
    watch_close(c->server->t, c->fd);
    buf_deinit(&c->out);
    free(c);
}

/* Expects n bytes at p next. */
static void expect(struct inbound *c, enum inbound_state state, void *p, size_t n)
{
    c->state = state;
    c->iov[0] = (struct iovec){p, n};
    c->at_iov = 0;
    c->n_iov = 1;
}

/* Sends what is due. @return false when the connection is over */
static bool write_out(struct inbound *c)
{
    while (c->out.len > 0) {
        ssize_t n = send(c->fd, c->out.data, c->out.len, MSG_NOSIGNAL);

        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0 && errno != EINTR)
            return false;
        if (n > 0) {
            memmove(c->out.data, c->out.data + n, c->out.len - (size_t)n);
            c->out.len -= (size_t)n;
        }
    }
    watch_change(c->server->t, c->fd, EPOLLIN | (c->out.len > 0 ? (uint32_t)EPOLLOUT : 0),
                 &c->watch);
    return c->out.len <= ACKS_BYTES_MAX;
}

/* Equal, in a time that does not tell where they differ? */
static bool same_token(const uint8_t *a, const uint8_t *b)
{
    uint8_t differ = 0;

    for (int i = 0; i < TCP_TOKEN_BYTES; i++)
        differ |= a[i] ^ b[i];
    return differ == 0;
}

/* Whose token is it? All are compared, whichever fits. */
static bool admit(struct inbound *c)
{
    bool known = same_token(c->hello.token, c->server->token);

    for (struct grant *g = c->server->grants; g != NULL; g = g->next)
        if (same_token(c->hello.token, g->token)) {
            known = true;
            g->used = true;
            c->writer = g->writer;
        }
    return known;
}

static bool on_hello(struct inbound *c)
{
    struct tcp_greeting g = {.version = TCP_VERSION, .incarnation = c->server->t->incarnation};

    if (memcmp(c->hello.magic, TCP_HELLO_MAGIC, sizeof(c->hello.magic)) != 0)
        return false; /* not for us: a port scanner, perhaps */
    g.code = c->hello.version != TCP_VERSION ? TCP_OTHER_VERSION
             : !admit(c)                     ? TCP_OTHER_TOKEN
                                             : TCP_COME_IN;
    memcpy(g.magic, TCP_WELCOME_MAGIC, sizeof(g.magic));
    buf_append(&c->out, &g, sizeof(g));
    if (!write_out(c))
        return false;
    if (g.code != TCP_COME_IN) {
        refusal(c->server, "a sender",
                g.code == TCP_OTHER_VERSION
                    ? "it speaks another version"
                    : "its token is not ours (is it using an old descriptor?)");
        return false;
    }
    c->incarnation = c->hello.incarnation;
    c->server->n_strangers--;
    expect(c, HEADER, &c->header, sizeof(c->header));
    return true;
}

static bool bad_frame(const struct inbound *c, const char *why)
{
    char who[32];

    snprintf(who, sizeof(who), "sender %016" PRIx64, c->incarnation);
    refusal(c->server, who, why);
    return false;
}

static bool on_flush(struct inbound *c)
{
    struct tcp_ack ack = {.type = c->header.type, .seq = c->header.seq};

    if (c->header.crc != tcp_frame_crc(&c->header, NULL))
        return bad_frame(c, "damaged header");
    c->leaving |= c->header.type == TCP_BYE;
    buf_append(&c->out, &ack, sizeof(ack));
    expect(c, HEADER, &c->header, sizeof(c->header));
    return write_out(c);
}

static bool on_header(struct inbound *c)
{
    const struct tcp_header *h = &c->header;

    if (c->leaving)
        return bad_frame(c, "sends after its goodbye");
    if ((h->type == TCP_FLUSH || h->type == TCP_BYE) && h->n_entries == 0)
        return on_flush(c);
    if (h->type != TCP_PUT || h->n_entries == 0 || h->n_entries > TCP_ENTRIES_MAX ||
        h->bytes > TCP_FRAME_BYTES_MAX)
        return bad_frame(c, "a frame that is none");
    expect(c, ENTRIES, c->entries, h->n_entries * sizeof(c->entries[0]));
    return true;
}

/* Lays out where the payload goes; all of it is known to lie in our slabs before a byte is read. */
static bool on_entries(struct inbound *c)
{
    const struct tcp_header *h = &c->header;
    uint64_t sum = 0;

    if (h->crc != tcp_frame_crc(h, c->entries))
        return bad_frame(c, "damaged header");
    c->n_iov = c->at_iov = 0;
    for (uint32_t i = 0; i < h->n_entries; i++) {
        const struct tcp_entry *e = &c->entries[i];
        const struct slab_region *s;

        if (e->slab >= TRANSFER_SLABS_MAX)
            return bad_frame(c, "a slab that is none");
        s = &c->server->t->slabs[e->slab];
        if (e->bytes > s->bytes || e->offset > s->bytes - e->bytes)
            return bad_frame(c, "bytes outside a slab");
        sum += e->bytes; /* no wrap: at most 512 slab lengths */
        if (e->bytes > 0)
            c->iov[c->n_iov++] = (struct iovec){(char *)s->base + e->offset, e->bytes};
    }
    if (sum != h->bytes)
        return bad_frame(c, "lengths that do not add up");
    c->state = PAYLOAD;
    /* The next header comes with the payload's end: one system call less. */
    c->iov[c->n_iov++] = (struct iovec){&c->header, sizeof(c->header)};
    return true;
}

/* All that was expected has come. */
static bool on_complete(struct inbound *c)
{
    switch (c->state) {
    case GREETING:
        return on_hello(c);
    case HEADER:
    case PAYLOAD:
        return on_header(c);
    case ENTRIES:
        return on_entries(c);
    }
    return false;
}

/* Reads once. @return bytes; 0 nothing there now; -1 the connection is over */
static ssize_t read_some(struct inbound *c)
{
    ssize_t n = readv(c->fd, c->iov + c->at_iov, c->n_iov - c->at_iov);
    size_t left = n > 0 ? (size_t)n : 0;

    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    if (n == 0)
        return -1;
    while (c->at_iov < c->n_iov && left >= c->iov[c->at_iov].iov_len)
        left -= c->iov[c->at_iov++].iov_len;
    if (c->at_iov < c->n_iov) {
        c->iov[c->at_iov].iov_base = (char *)c->iov[c->at_iov].iov_base + left;
        c->iov[c->at_iov].iov_len -= left;
    }
    return n;
}

static bool inbound_read(struct inbound *c)
{
    ssize_t n = 0;

    for (size_t had = 0; had < TURN_BYTES; had += (size_t)n) {
        n = read_some(c);
        if (n <= 0)
            return n == 0;
        if (c->at_iov == c->n_iov && !on_complete(c))
            return false;
    }
    return true;
}

static void inbound_ready(struct watch *w, uint32_t events)
{
    struct inbound *c = (struct inbound *)w;

    if (((events & EPOLLOUT) && !write_out(c)) ||
        ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && !inbound_read(c)))
        inbound_end(c);
}

static void inbound_new(struct tcp_server *s, int fd)
{
    struct inbound *c = s->n_strangers < STRANGERS_MAX ? calloc(1, sizeof(*c)) : NULL;
    const int one = 1, idle_s = 1, between_s = 1, count = 3;

    if (c == NULL) {
        refusal(s, "a connection", "too many others have not greeted yet");
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &between_s, sizeof(between_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
    c->watch.ready = inbound_ready;
    c->server = s;
    c->fd = fd;
    c->deadline_us = clock_now_us() + GREETING_US;
    expect(c, GREETING, &c->hello, sizeof(c->hello));
    if (!watch_add(s->t, fd, EPOLLIN, &c->watch)) {
        close(fd);
        free(c);
        return;
    }
    s->n_strangers++;
    c->link = &s->inbounds;
    c->next = s->inbounds;
    if (c->next != NULL)
        c->next->link = &c->next;
    s->inbounds = c;
}

static void server_ready(struct watch *w, uint32_t events)
{
    struct tcp_server *s = (struct tcp_server *)w;
    int fd = accept4(s->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    (void)events;
    if (fd >= 0) {
        inbound_new(s, fd);
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        log_error("transfer: cannot accept a sender: %s: raise ulimit -n", strerror(errno));
        s->resume_us = clock_now_us() + PAUSE_US;
        watch_change(s->t, s->fd, 0, &s->watch);
    }
}

int tcp_server_tend(struct tcp_server *s)
{
    uint64_t now, first = UINT64_MAX;

    if (s == NULL || (s->n_strangers == 0 && s->resume_us == 0))
        return -1;
    now = clock_now_us();
    if (s->resume_us > now) {
        first = s->resume_us;
    } else if (s->resume_us > 0) {
        s->resume_us = 0;
        watch_change(s->t, s->fd, EPOLLIN, &s->watch);
    }
    for (struct inbound *c = s->inbounds, *next; c != NULL; c = next) {
        next = c->next;
        if (c->state != GREETING)
            continue;
        if (c->deadline_us <= now)
            inbound_end(c);
        else if (c->deadline_us < first)
            first = c->deadline_us;
    }
    return first == UINT64_MAX ? -1 : (int)((first - now) / 1000 + 1);
}

/* A socket for both families where the kernel has IPv6, else for IPv4. */
static int listen_on(uint16_t port, uint16_t *bound)
{
    const int zero = 0, one = 1;
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr *sa = (struct sockaddr *)&in6;
    socklen_t len = sizeof(in6);
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd >= 0) {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
    } else {
        fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        sa = (struct sockaddr *)&in;
        len = sizeof(in);
    }
    if (fd < 0)
        return -1;
    if (port != 0)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, sa, len) != 0 || listen(fd, 128) != 0 || getsockname(fd, sa, &len) != 0) {
        close(fd);
        return -1;
    }
    *bound = ntohs(sa->sa_family == AF_INET6 ? in6.sin6_port : in.sin_port);
    return fd;
}

enum status_code tcp_server_start(struct transfer *t, uint16_t port, struct tcp_server **out,
                                  struct status *st)
{
    struct tcp_server *s = calloc(1, sizeof(*s));

    if (s == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the socket lane");
    s->watch.ready = server_ready;
    s->t = t;
    if (getrandom(s->token, sizeof(s->token), 0) != sizeof(s->token)) {
        free(s);
        return status_set(st, ST_UNAVAILABLE, "no random numbers for the socket lane's token");
    }
    s->fd = listen_on(port, &s->port);
    if (s->fd < 0) {
        free(s);
        return status_set(st, ST_UNAVAILABLE, "socket lane: cannot listen on port %u: %s", port,
                          strerror(errno));
    }
    if (!watch_add(t, s->fd, EPOLLIN, &s->watch)) {
        close(s->fd);
        free(s);
        return status_set(st, ST_EXHAUSTED, "socket lane: no epoll entry: %s", strerror(errno));
    }
    *out = s;
    return status_ok(st);
}

void tcp_server_stop(struct tcp_server *s)
{
    if (s == NULL)
        return;
    while (s->inbounds != NULL)
        inbound_end(s->inbounds);
    while (s->grants != NULL) {
        struct grant *g = s->grants;

        s->grants = g->next;
        free(g);
    }
    watch_close(s->t, s->fd);
    free(s);
}

static enum status_code grant(struct tcp_server *s, uint64_t writer, uint8_t *token,
                              struct status *st)
{
    struct grant *g = calloc(1, sizeof(*g));

    if (g == NULL || getrandom(g->token, sizeof(g->token), 0) != sizeof(g->token)) {
        free(g);
        return status_set(st, ST_EXHAUSTED, "no memory or random numbers for a writer's token");
    }
    g->writer = writer;
    g->next = s->grants;
    s->grants = g;
    memcpy(token, g->token, sizeof(g->token));
    return status_ok(st);
}

enum status_code tcp_server_offer(struct tcp_server *s, uint64_t writer, struct tcp_offer *out,
                                  struct status *st)
{
    memset(out, 0, sizeof(*out));
    if (s == NULL)
        return status_ok(st);
    out->port = s->port;
    memcpy(out->token, s->token, sizeof(out->token));
    out->host = tcp_host_id();
    out->n_addresses = tcp_addresses_local(s->t->plan.devices, out->addresses);
    return writer != 0 ? grant(s, writer, out->token, st) : status_ok(st);
}

bool tcp_server_revoke(struct tcp_server *s, uint64_t writer)
{
    bool used = false;

    if (s == NULL)
        return false;
    for (struct grant **at = &s->grants; *at != NULL; at = &(*at)->next) {
        struct grant *g = *at;

        if (g->writer != writer)
            continue;
        used = g->used;
        *at = g->next;
        free(g);
        break;
    }
    /* The thread that closes is the one that reads: what the kernel still holds is dropped. */
    for (struct inbound *c = s->inbounds, *next; c != NULL; c = next) {
        next = c->next;
        if (c->writer == writer && c->state != GREETING)
            inbound_end(c);
    }
    return used;
}
