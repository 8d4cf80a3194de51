/* The lane over a socket, the sending side; tcp_wire.h has the format. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/crc32c.h"
#include "common/transfer/dial.h"

enum {
    BYE_US = 20000000,   /* for the peer to confirm that it has read everything */
    STOP_US = 2000000,   /* the same when this worker stops: nobody here asks after that */
    STALL_US = 10000000, /* with something outstanding and no sign of life */
};

/*  DIALLING ──▶ READY ──▶ LEAVING ──▶ GONE     (any ──▶ GONE) */
enum tcp_state { DIALLING, READY, LEAVING, GONE };

/* Bytes of one put on their way into the socket. */
struct frame {
    struct put *put; /* NULL: none under way */
    struct tcp_header header;
    struct tcp_entry entries[TCP_ENTRIES_MAX];
    struct iovec iov[2 + TCP_ENTRIES_MAX];
    int n_iov, at_iov;
    void *scratch;
};

/* A flush (put) or goodbye (no put) whose ack has not come, oldest first. */
struct ack_due {
    struct ack_due *next;
    struct put *put;
    uint64_t seq;
};

struct lane_tcp {
    struct watch watch;
    struct transfer_peer *peer;
    enum tcp_state state;
    int fd;
    uint32_t events; /* what epoll is asked for */
    struct dial dial;
    uint64_t deadline_us; /* of LEAVING */
    uint64_t alive_us;    /* last sign of life while something was outstanding: an ack, or room in a
                             socket that had none */
    uint64_t seq;
    struct ack_due *acks, **acks_end;
    struct buf control; /* frames without bytes, to go before the next frame */
    size_t control_at;
    struct tcp_ack in;
    size_t in_len;
    struct frame frame;
};

static void tcp_gone(struct lane_tcp *l)
{
    struct put *u = l->frame.put;

    dial_stop(&l->dial);
    if (l->fd >= 0)
        watch_close(l->peer->t, l->fd);
    l->fd = -1;
    l->state = GONE;
    l->frame.put = NULL;
    free(l->frame.scratch);
    l->frame.scratch = NULL;
    if (u != NULL)
        put_request_ended(u, "connection ended");
    while (l->acks != NULL) {
        struct ack_due *due = l->acks;

        l->acks = due->next;
        if (due->put != NULL)
            put_request_ended(due->put, "connection ended");
        free(due);
    }
    l->acks_end = &l->acks;
}

static void tcp_lost(struct lane_tcp *l, const char *why)
{
    tcp_gone(l);
    if (l->peer->state == PEER_OPEN)
        peer_fail(l->peer, PEER_FAILED, ST_UNAVAILABLE, why);
}

static void want_events(struct lane_tcp *l, uint32_t events)
{
    if (l->events == events)
        return;
    l->events = events;
    watch_change(l->peer->t, l->fd, events, &l->watch);
}

static void on_dialled(struct dial *d, int fd, const char *why)
{
    struct lane_tcp *l = (struct lane_tcp *)((char *)d - offsetof(struct lane_tcp, dial));

    if (fd < 0) {
        tcp_lost(l, why);
        return;
    }
    l->fd = fd;
    l->state = READY;
    l->events = EPOLLIN | EPOLLRDHUP;
    watch_change(l->peer->t, fd, l->events, &l->watch);
}

/* Reads up to n bytes in all into l->in. @return 1 all there, 0 not yet, -1 connection over: errno
 * says why, 0 that the peer closed it */
static int receive(struct lane_tcp *l, size_t n)
{
    ssize_t got;

    errno = 0;
    got = recv(l->fd, (char *)&l->in + l->in_len, n - l->in_len, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
        return -1;
    if (got > 0)
        l->in_len += (size_t)got;
    if (l->in_len < n)
        return 0;
    l->in_len = 0;
    return 1;
}

/* ---- sending ---- */

/* Advances an iovec list by n written bytes; returns the first that has bytes left. */
static int advance(struct iovec *iov, int at, int n_iov, size_t n)
{
    while (at < n_iov && n >= iov[at].iov_len)
        n -= iov[at++].iov_len;
    if (at < n_iov) {
        iov[at].iov_base = (char *)iov[at].iov_base + n;
        iov[at].iov_len -= n;
    }
    return at;
}

static void frame_ended(struct lane_tcp *l)
{
    struct put *u = l->frame.put;

    l->frame.put = NULL;
    free(l->frame.scratch);
    l->frame.scratch = NULL;
    put_request_ended(u, NULL);
}

/* Writes what is due: the frame under way, then control frames. @return false when the connection
 * broke */
static bool write_due(struct lane_tcp *l)
{
    struct frame *f = &l->frame;

    while (f->put != NULL || l->control_at < l->control.len) {
        struct iovec control = {l->control.data + l->control_at, l->control.len - l->control_at};
        struct msghdr m = {.msg_iov = &control, .msg_iovlen = 1};
        ssize_t n;

        if (f->put != NULL) {
            m.msg_iov = f->iov + f->at_iov;
            m.msg_iovlen = (size_t)(f->n_iov - f->at_iov);
        }
        n = sendmsg(l->fd, &m, MSG_NOSIGNAL);
        if (n > 0 && (l->events & EPOLLOUT))
            l->alive_us = clock_now_us();
        if (n < 0 && errno == EAGAIN) {
            want_events(l, EPOLLIN | EPOLLRDHUP | EPOLLOUT);
            return true;
        }
        if (n < 0 && errno != EINTR)
            return false;
        if (n < 0)
            continue;
        if (f->put == NULL) {
            l->control_at += (size_t)n;
            continue;
        }
        f->at_iov = advance(f->iov, f->at_iov, f->n_iov, (size_t)n);
        if (f->at_iov == f->n_iov)
            frame_ended(l);
    }
    l->control.len = l->control_at = 0;
    want_events(l, EPOLLIN | EPOLLRDHUP);
    return true;
}

static bool tcp_has_room(const struct transfer_peer *p)
{
    const struct lane_tcp *l = p->tcp;

    return l->state == READY && l->frame.put == NULL && l->control.len == 0;
}

static void tcp_turn(struct put *u)
{
    struct lane_tcp *l = put_peer(u)->tcp;
    struct frame *f = &l->frame;
    struct tcp_header *h = &f->header;
    struct chunk c;

    *h = (struct tcp_header){.type = TCP_PUT};
    f->n_iov = 2;
    f->at_iov = 0;
    while (h->bytes < PUT_QUANTUM && h->n_entries < TCP_ENTRIES_MAX &&
           put_next(u, PUT_QUANTUM, &c)) {
        *c.crc = crc32c(*c.crc, c.from, c.bytes);
        f->entries[h->n_entries++] =
            (struct tcp_entry){.slab = (uint32_t)c.slab, .offset = c.remote_off, .bytes = c.bytes};
        h->bytes += c.bytes;
        if (c.scratch != NULL)
            f->scratch = c.scratch; /* at most the first chunk of a put has one */
        f->iov[f->n_iov++] =
            (struct iovec){c.scratch != NULL ? c.scratch : (void *)c.from, c.bytes};
    }
    if (h->n_entries == 0)
        return;
    h->crc = tcp_frame_crc(h, f->entries);
    f->iov[0] = (struct iovec){h, sizeof(*h)};
    f->iov[1] = (struct iovec){f->entries, h->n_entries * sizeof(f->entries[0])};
    if (l->acks == NULL)
        l->alive_us = clock_now_us();
    f->put = u;
    put_request_began(u);
    if (!write_due(l))
        tcp_lost(l, strerror(errno));
}

/* Queues a frame without bytes, for whose ack u (or the close) waits. */
static void ask_ack(struct lane_tcp *l, enum tcp_frame type, struct put *u)
{
    struct tcp_header h = {.type = type, .seq = ++l->seq};
    struct ack_due *due = calloc(1, sizeof(*due));

    if (due == NULL) {
        tcp_lost(l, "no memory for a request");
        return;
    }
    if (l->acks == NULL && l->frame.put == NULL)
        l->alive_us = clock_now_us();
    due->put = u;
    due->seq = h.seq;
    *l->acks_end = due;
    l->acks_end = &due->next;
    if (u != NULL)
        put_request_began(u);
    h.crc = tcp_frame_crc(&h, NULL);
    buf_append(&l->control, &h, sizeof(h));
    if (!write_due(l))
        tcp_lost(l, strerror(errno));
}

static void tcp_flush(struct put *u)
{
    struct lane_tcp *l = put_peer(u)->tcp;

    if (l->state == READY)
        ask_ack(l, TCP_FLUSH, u);
    /* Else nothing of u can be under way: it was cancelled before the connection stood. */
}

static void take_acks(struct lane_tcp *l)
{
    int rc;

    while ((rc = receive(l, sizeof(l->in))) > 0) {
        struct ack_due *due = l->acks;

        if (due == NULL || l->in.seq != due->seq) {
            tcp_lost(l, "the peer confirms what was not asked");
            return;
        }
        l->alive_us = clock_now_us();
        l->acks = due->next;
        if (l->acks == NULL)
            l->acks_end = &l->acks;
        if (due->put == NULL)
            tcp_gone(l); /* goodbye confirmed */
        else
            put_request_ended(due->put, NULL);
        free(due);
        if (l->state == GONE)
            return;
    }
    if (rc < 0)
        tcp_lost(l, errno != 0 ? strerror(errno) : "the peer hung up");
}

static void tcp_ready(struct watch *w, uint32_t events)
{
    struct lane_tcp *l = (struct lane_tcp *)w;

    switch (l->state) {
    case READY:
    case LEAVING:
        if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            take_acks(l);
        if (l->state != GONE && (events & EPOLLOUT) && !write_due(l))
            tcp_lost(l, strerror(errno));
        break;
    case DIALLING:
    case GONE:
        break;
    }
}

/* A peer that is well is asked to confirm that it has read everything: bytes that are still in the
 * socket would otherwise be written after the close. A peer that is frozen, but whose kernel lives,
 * is cut off after BYE_US. */
static void tcp_close(struct transfer_peer *p)
{
    struct lane_tcp *l = p->tcp;

    if (l->state == READY && p->state == PEER_CLOSING && !p->lost) {
        l->state = LEAVING;
        l->deadline_us = clock_now_us() + (p->t->stopping ? STOP_US : BYE_US);
        ask_ack(l, TCP_BYE, NULL);
    } else if (l->state == LEAVING && p->lost) {
        tcp_gone(l);
    } else if (l->state == LEAVING && p->t->stopping) {
        l->deadline_us = clock_now_us() + STOP_US;
    } else if (l->state != LEAVING && l->state != GONE) {
        tcp_gone(l);
    }
}

static int tcp_tend(struct transfer_peer *p)
{
    struct lane_tcp *l = p->tcp;
    uint64_t now, until;

    if (l->state == DIALLING)
        return dial_tend(&l->dial);
    if (l->state == GONE)
        return LANE_GONE;
    if (l->state == READY && l->acks == NULL && l->frame.put == NULL)
        return LANE_FOREVER;
    now = clock_now_us();
    until = l->state == READY ? l->alive_us + STALL_US : l->deadline_us;
    if (now < until)
        return (int)((until - now) / 1000 + 1);
    if (l->state == READY)
        tcp_lost(l, "the peer does not read what is sent");
    else
        tcp_gone(l);
    return 0;
}

static void tcp_describe(struct transfer_peer *p, char *buf, size_t n)
{
    char device[64];

    tcp_socket_device(p->tcp->fd, device, sizeof(device));
    snprintf(buf, n, "tcp (tcp/%s)", device);
}

static void tcp_free(struct transfer_peer *p)
{
    tcp_gone(p->tcp);
    buf_deinit(&p->tcp->control);
    free(p->tcp);
}

static const struct lane_ops lane_tcp = {
    .has_room = tcp_has_room,
    .turn = tcp_turn,
    .flush = tcp_flush,
    .close = tcp_close,
    .tend = tcp_tend,
    .describe = tcp_describe,
    .free = tcp_free,
};

enum status_code lane_tcp_open(struct transfer_peer *p, const struct descriptor *d,
                               struct status *st)
{
    struct lane_tcp *l;

    if (!d->tcp.puts)
        return status_set(st, ST_UNAVAILABLE,
                          "the peer takes no KV over TCP: its --kv-transport forbids it");
    l = calloc(1, sizeof(*l));
    if (l == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a peer");
    l->watch.ready = tcp_ready;
    l->peer = p;
    l->fd = -1;
    l->acks_end = &l->acks;
    l->dial =
        (struct dial){.t = p->t, .offer = d->tcp, .kind = TCP_HELLO_PUTS, .ended = on_dialled};
    l->dial.n_to = tcp_candidates(&d->tcp, tcp_host_id(), l->dial.to);
    p->lane = &lane_tcp;
    p->tcp = l;
    if (l->dial.n_to == 0)
        return status_set(st, ST_UNAVAILABLE,
                          "the peer has no address but loopback ones, and is on another host: give "
                          "it a network interface (--kv-devices)");
    dial_start(&l->dial);
    return status_ok(st);
}
