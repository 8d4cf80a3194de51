/* The receiving side of the socket lane and of lifelines: bytes are read from the network straight
 * into slabs. Whoever connects is a stranger until it has shown the token of our descriptor; after
 * that, every entry is held against the slabs' bounds. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
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
    OUTLIVED_US = 60000000,   /* a writer whose lifeline broke between hosts has broken with us by
                                 itself long before, and its NIC has given up its last writes */
};

enum inbound_state { GREETING, HEADER, ENTRIES, PAYLOAD, LIFELINE };

/* A writer with a token of its own.
 *
 *   NEW ──▶ UP ──▶ GONE      by its lifeline; GONE: nothing that it sent is written any more
 *            └──▶ LOST ──▶ GONE          LOST: it broke between hosts, which proves nothing yet */
enum grant_state { GRANT_NEW, GRANT_UP, GRANT_LOST, GRANT_GONE };

struct grant {
    struct grant *next;
    uint64_t writer;
    uint8_t token[TCP_TOKEN_BYTES];
    enum grant_state state;
    bool sockets; /* its lane is a socket: closing that is proof enough */
    bool revoked; /* only its end is still waited for */
    uint64_t lost_us;
    transfer_end_fn on_end;
    void *arg;
};

/* A connection. */
struct inbound {
    struct watch watch;
    struct tcp_server *server;
    struct inbound *next, **link; /* list, and where it points to this one */
    int fd;
    enum inbound_state state;
    uint64_t deadline_us; /* of GREETING; of a LIFELINE between hosts: when its next beat is due */
    bool local;           /* from this host */
    bool bye;             /* of a LIFELINE: it said goodbye */
    uint8_t beats[64];
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

struct listener {
    struct watch watch;
    struct tcp_server *server;
    int fd; /* -1: none */
};

struct tcp_server {
    struct listener net, local;
    struct transfer *t;
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

static struct grant *grant_of(const struct tcp_server *s, uint64_t writer)
{
    struct grant *g = s->grants;

    while (g != NULL && g->writer != writer)
        g = g->next;
    return g;
}

static void grant_free(struct tcp_server *s, struct grant *g)
{
    struct grant **at = &s->grants;

    while (*at != g)
        at = &(*at)->next;
    *at = g->next;
    free(g);
}

static void grant_gone(struct tcp_server *s, struct grant *g)
{
    g->state = GRANT_GONE;
    g->on_end(g->arg, g->writer, !g->sockets);
    if (g->revoked)
        grant_free(s, g);
}

/* What that proves: see lifeline.h. */
static void lifeline_ended(const struct inbound *c)
{
    struct grant *g = c->writer != 0 ? grant_of(c->server, c->writer) : NULL;

    if (g == NULL || g->state != GRANT_UP)
        return;
    if (c->local || c->bye || g->sockets) {
        grant_gone(c->server, g);
        return;
    }
    g->state = GRANT_LOST;
    g->lost_us = clock_now_us();
    g->on_end(g->arg, g->writer, false);
}

static void inbound_end(struct inbound *c)
{
    *c->link = c->next;
    if (c->next != NULL)
        c->next->link = c->link;
    c->server->n_strangers -= c->state == GREETING;
    watch_close(c->server->t, c->fd);
    if (c->state == LIFELINE)
        lifeline_ended(c);
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
static bool known(struct inbound *c)
{
    bool is = same_token(c->hello.token, c->server->token);

    for (struct grant *g = c->server->grants; g != NULL; g = g->next)
        if (!g->revoked && same_token(c->hello.token, g->token)) {
            is = true;
            c->writer = g->writer;
        }
    return is;
}

static enum tcp_welcome admit(struct inbound *c)
{
    bool puts = c->hello.kind == TCP_HELLO_PUTS;
    struct grant *g;

    if (c->hello.version != TCP_VERSION || c->hello.kind > TCP_HELLO_LIFELINE_UCX)
        return TCP_OTHER_VERSION;
    if (!known(c))
        return TCP_OTHER_TOKEN;
    if (puts && !c->server->t->plan.sockets)
        return TCP_NO_PUTS;
    g = c->writer != 0 ? grant_of(c->server, c->writer) : NULL;
    if (g == NULL)
        return TCP_COME_IN;
    if (!puts && g->state != GRANT_NEW)
        return TCP_OTHER_TOKEN; /* a second lifeline: the token has been used */
    g->sockets |= c->hello.kind != TCP_HELLO_LIFELINE_UCX;
    if (!puts)
        g->state = GRANT_UP;
    return TCP_COME_IN;
}

static bool on_hello(struct inbound *c)
{
    struct tcp_greeting g = {.version = TCP_VERSION, .incarnation = c->server->t->incarnation};

    if (memcmp(c->hello.magic, TCP_HELLO_MAGIC, sizeof(c->hello.magic)) != 0)
        return false; /* not for us: a port scanner, perhaps */
    g.code = admit(c);
    memcpy(g.magic, TCP_WELCOME_MAGIC, sizeof(g.magic));
    buf_append(&c->out, &g, sizeof(g));
    if (!write_out(c))
        return false;
    if (g.code != TCP_COME_IN) {
        refusal(c->server, "a sender",
                g.code == TCP_OTHER_VERSION ? "it speaks another version"
                : g.code == TCP_NO_PUTS     ? "it brings KV, which may not go over TCP here"
                                        : "its token is not ours (is it using an old descriptor?)");
        return false;
    }
    c->incarnation = c->hello.incarnation;
    c->server->n_strangers--;
    if (c->hello.kind == TCP_HELLO_PUTS) {
        expect(c, HEADER, &c->header, sizeof(c->header));
        return true;
    }
    if (!c->local)
        tcp_break_soon(c->fd);
    c->deadline_us = clock_now_us();
    c->state = LIFELINE;
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

        if (e->slab >= DESCRIPTOR_SLABS)
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
    case LIFELINE:
        break;
    }
    return false;
}

/* Beats say nothing but that the sender's kernel lives, which TCP knows by now. */
static bool lifeline_read(struct inbound *c)
{
    ssize_t n = recv(c->fd, c->beats, sizeof(c->beats), 0);

    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    if (n > 0)
        c->bye |= memchr(c->beats, LIFELINE_BYE, (size_t)n) != NULL;
    return n > 0 && !c->bye;
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
        if (c->state == LIFELINE)
            return lifeline_read(c);
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

static void inbound_new(struct tcp_server *s, int fd, bool local)
{
    struct inbound *c = s->n_strangers < STRANGERS_MAX ? calloc(1, sizeof(*c)) : NULL;

    if (c == NULL) {
        refusal(s, "a connection", "too many others have not greeted yet");
        close(fd);
        return;
    }
    tcp_keep_alive(fd);
    c->watch.ready = inbound_ready;
    c->server = s;
    c->fd = fd;
    c->local = local;
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

static void listen_for(struct tcp_server *s, uint32_t events)
{
    watch_change(s->t, s->local.fd, events, &s->local.watch);
    if (s->net.fd >= 0)
        watch_change(s->t, s->net.fd, events, &s->net.watch);
}

static void server_ready(struct watch *w, uint32_t events)
{
    struct listener *l = (struct listener *)w;
    struct tcp_server *s = l->server;
    int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    (void)events;
    if (fd >= 0) {
        inbound_new(s, fd, l == &s->local);
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        log_error("transfer: cannot accept a sender: %s: raise ulimit -n", strerror(errno));
        s->resume_us = clock_now_us() + PAUSE_US;
        listen_for(s, 0);
    }
}

/* @return ms to its next bound; -1: none, or it has ended */
static int inbound_tend(struct inbound *c, uint64_t now)
{
    if (c->state != GREETING && (c->state != LIFELINE || c->local))
        return -1;
    if (c->deadline_us <= now && c->state == GREETING) {
        inbound_end(c);
        return -1;
    }
    if (c->deadline_us <= now) {
        (void)!send(c->fd, &(char){LIFELINE_BEAT}, 1, MSG_NOSIGNAL);
        c->deadline_us = now + LIFELINE_BEAT_US;
    }
    return (int)((c->deadline_us - now) / 1000 + 1);
}

static int grant_tend(struct tcp_server *s, struct grant *g, uint64_t now)
{
    if (g->state != GRANT_LOST)
        return -1;
    if (g->lost_us + OUTLIVED_US > now)
        return (int)((g->lost_us + OUTLIVED_US - now) / 1000 + 1);
    grant_gone(s, g);
    return -1;
}

int tcp_server_tend(struct tcp_server *s)
{
    uint64_t now = clock_now_us();
    int ms = -1;

    if (s->resume_us > now) {
        ms = (int)((s->resume_us - now) / 1000 + 1);
    } else if (s->resume_us > 0) {
        s->resume_us = 0;
        listen_for(s, EPOLLIN);
    }
    for (struct inbound *c = s->inbounds, *next; c != NULL; c = next) {
        next = c->next;
        ms = sooner(ms, inbound_tend(c, now));
    }
    for (struct grant *g = s->grants, *next; g != NULL; g = next) {
        next = g->next;
        ms = sooner(ms, grant_tend(s, g, now));
    }
    return ms;
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

/* Within the host, by our name. */
static int listen_here(uint64_t incarnation)
{
    struct tcp_address a = tcp_address_local(incarnation);
    struct sockaddr_storage ss;
    socklen_t len = tcp_sockaddr(&a, 0, &ss);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd >= 0 && (bind(fd, (struct sockaddr *)&ss, len) != 0 || listen(fd, 128) != 0)) {
        close(fd);
        return -1;
    }
    return fd;
}

static bool listener_watch(struct listener *l, struct tcp_server *s)
{
    l->watch.ready = server_ready;
    l->server = s;
    return l->fd < 0 || watch_add(s->t, l->fd, EPOLLIN, &l->watch);
}

static void listener_close(struct listener *l)
{
    if (l->fd >= 0 && l->server != NULL)
        watch_close(l->server->t, l->fd);
    else if (l->fd >= 0)
        close(l->fd);
}

enum status_code tcp_server_start(struct transfer *t, uint16_t port, struct tcp_server **out,
                                  struct status *st)
{
    struct tcp_server *s = calloc(1, sizeof(*s));

    if (s == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the socket lane");
    s->t = t;
    s->net.fd = -1;
    s->local.fd = listen_here(t->incarnation);
    if (s->local.fd < 0) {
        status_set(st, ST_UNAVAILABLE, "lifelines: cannot listen within this host: %s",
                   strerror(errno));
        goto fail;
    }
    if (getrandom(s->token, sizeof(s->token), 0) != sizeof(s->token)) {
        status_set(st, ST_UNAVAILABLE, "no random numbers for the socket lane's token");
        goto fail;
    }
    if (t->plan.sockets || t->plan.rdma) {
        s->net.fd = listen_on(port, &s->port);
        if (s->net.fd < 0) {
            status_set(st, ST_UNAVAILABLE, "--kv-port: cannot listen on port %u: %s", port,
                       strerror(errno));
            goto fail;
        }
    }
    if (!listener_watch(&s->local, s) || !listener_watch(&s->net, s)) {
        status_set(st, ST_EXHAUSTED, "socket lane: no epoll entry: %s", strerror(errno));
        goto fail;
    }
    *out = s;
    return status_ok(st);
fail:
    tcp_server_stop(s);
    return st->code;
}

void tcp_server_stop(struct tcp_server *s)
{
    if (s == NULL)
        return;
    while (s->grants != NULL) /* first: nobody is told of ends that this one makes */
        grant_free(s, s->grants);
    while (s->inbounds != NULL)
        inbound_end(s->inbounds);
    listener_close(&s->local);
    listener_close(&s->net);
    free(s);
}

static enum status_code grant(struct tcp_server *s, uint64_t writer, transfer_end_fn on_end,
                              void *arg, uint8_t *token, struct status *st)
{
    struct grant *g = calloc(1, sizeof(*g));

    if (g == NULL || getrandom(g->token, sizeof(g->token), 0) != sizeof(g->token)) {
        free(g);
        return status_set(st, ST_EXHAUSTED, "no memory or random numbers for a writer's token");
    }
    g->writer = writer;
    g->on_end = on_end;
    g->arg = arg;
    g->next = s->grants;
    s->grants = g;
    memcpy(token, g->token, sizeof(g->token));
    return status_ok(st);
}

enum status_code tcp_server_offer(struct tcp_server *s, uint64_t writer, transfer_end_fn on_end,
                                  void *arg, struct tcp_offer *out, struct status *st)
{
    const char *devices = s->t->plan.devices;

    memset(out, 0, sizeof(*out));
    out->port = s->port;
    memcpy(out->token, s->token, sizeof(out->token));
    out->host = tcp_host_id();
    if (s->net.fd >= 0)
        out->n_addresses = tcp_addresses_local(devices, out->addresses);
    out->puts = s->t->plan.sockets;
    if (s->t->plan.rdma && out->n_addresses == 0) { /* the devices listed are RDMA's */
        out->n_addresses = tcp_addresses_local(NULL, out->addresses);
        out->puts = false;
    }
    return writer != 0 ? grant(s, writer, on_end, arg, out->token, st) : status_ok(st);
}

/* Its lifeline, or NULL. Its other connections are closed: the thread that closes is the one that
 * reads, so what the kernel still holds is dropped. */
static struct inbound *shut_out(struct tcp_server *s, uint64_t writer)
{
    struct inbound *lifeline = NULL;

    for (struct inbound *c = s->inbounds, *next; c != NULL; c = next) {
        next = c->next;
        if (c->writer != writer || c->state == GREETING)
            continue;
        if (c->state == LIFELINE)
            lifeline = c;
        else
            inbound_end(c);
    }
    return lifeline;
}

bool tcp_server_revoke(struct tcp_server *s, uint64_t writer)
{
    struct grant *g = grant_of(s, writer);
    struct inbound *lifeline;

    if (g == NULL || g->revoked)
        return false;
    lifeline = shut_out(s, writer);
    /* NEW: it writes nothing before its lifeline stands, and now none will. */
    if (g->sockets || g->state == GRANT_NEW || g->state == GRANT_GONE) {
        grant_free(s, g);
        if (lifeline != NULL)
            inbound_end(lifeline);
        return true;
    }
    g->revoked = true;
    if (lifeline != NULL)
        (void)!send(lifeline->fd, &(char){LIFELINE_STOP}, 1, MSG_NOSIGNAL);
    return false;
}
