#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/transfer/lifeline.h"

/*  SENDING ──▶ FLUSHING ──▶ ENDED      SENDING: in the list of turns
 *     │                       ▲        FLUSHING: all sent (or cancelled); waits for the flush
 *     └──────▶ DRAINING ──────┘        DRAINING: the peer is lost; waits for requests to end
 *  FLUSHING also goes to DRAINING. ENDED when no request is out; the callback is due. */
enum put_state { PUT_SENDING, PUT_FLUSHING, PUT_DRAINING, PUT_ENDED };

enum { RATE_SLACK_NS = 2000000 };

struct put {
    struct msg base;
    struct transfer_peer *peer;
    struct put *next;      /* in the list of turns, later in that of the ended */
    struct put *peer_next; /* in the peer's list */
    enum put_state state;
    bool hurried; /* goes before those that are not */
    uint64_t id;
    size_t n, at;       /* pieces; the one to send next */
    uint64_t at_bytes;  /* of that piece, already sent */
    uint64_t bytes;     /* sent in all */
    uint32_t in_flight; /* requests that have not ended */
    uint32_t n_groups;
    uint64_t started_us; /* 0 before the first turn */
    struct status status;
    void (*done)(void *arg, const struct transfer_result *r);
    void *arg;
    uint32_t *crc;                  /* [n_groups], behind the pieces */
    struct transfer_piece pieces[]; /* [n] */
};

enum status_code put_start(struct transfer_peer *p, uint64_t id, int n_slabs,
                           const struct transfer_piece *pieces, size_t n, uint32_t n_groups,
                           void (*done)(void *arg, const struct transfer_result *r), void *arg,
                           struct status *st)
{
    struct put *u;

    if (pieces_check(p->t, p->slabs, n_slabs, pieces, n, n_groups, st) != ST_OK)
        return status_wrap(st, "put %" PRIu64 " to %s", id, p->name);
    u = calloc(1, sizeof(*u) + n * sizeof(*pieces) + n_groups * sizeof(uint32_t));
    if (u == NULL)
        return status_set(st, ST_EXHAUSTED, "put %" PRIu64 ": no memory for %zu pieces", id, n);
    u->base.type = CMD_PUT;
    u->peer = p;
    u->id = id;
    u->n = n;
    u->n_groups = n_groups;
    u->done = done;
    u->arg = arg;
    if (n > 0)
        memcpy(u->pieces, pieces, n * sizeof(*pieces));
    u->crc = (uint32_t *)(u->pieces + n);
    mailbox_push(p->t->box, &u->base);
    return status_ok(st);
}

enum status_code transfer_put(struct transfer_peer *p, uint64_t id,
                              const struct transfer_piece *pieces, size_t n, uint32_t n_groups,
                              void (*done)(void *arg, const struct transfer_result *r), void *arg,
                              struct status *st)
{
    return put_start(p, id, TRANSFER_SLABS_MAX, pieces, n, n_groups, done, arg, st);
}

/* CMD_HURRY, CMD_CANCEL */
struct id_msg {
    struct msg base;
    struct transfer_peer *peer;
    uint64_t id;
};

static bool id_send(enum transfer_cmd cmd, struct transfer_peer *p, uint64_t id)
{
    struct id_msg *m = calloc(1, sizeof(*m));

    if (m == NULL)
        return false;
    m->base.type = cmd;
    m->peer = p;
    m->id = id;
    mailbox_push(p->t->box, &m->base);
    return true;
}

void transfer_hurry(struct transfer_peer *p, uint64_t id)
{
    if (!id_send(CMD_HURRY, p, id))
        log_warn("transfer: put %" PRIu64 ": no memory to hurry it; it takes its turns", id);
}

void transfer_cancel(struct transfer_peer *p, uint64_t id)
{
    if (!id_send(CMD_CANCEL, p, id))
        log_warn("transfer: put %" PRIu64 ": no memory to cancel it; it goes on to its end", id);
}

static void turns_append(struct transfer *t, struct put *u)
{
    u->next = NULL;
    if (t->turn_head == NULL)
        t->turn_head = u;
    else
        t->turn_tail->next = u;
    t->turn_tail = u;
}

static void turns_remove(struct transfer *t, struct put *u)
{
    struct put *before = NULL;

    for (struct put *v = t->turn_head; v != u; v = v->next)
        before = v;
    if (before == NULL)
        t->turn_head = u->next;
    else
        before->next = u->next;
    if (t->turn_tail == u)
        t->turn_tail = before;
}

/* Puts of one id at the end of the list, in their order: the others have a turn first. */
static void turns_yield(struct transfer *t, const struct transfer_peer *p, uint64_t id)
{
    struct put *next, *u = t->turn_head, *mine = NULL, **mine_end = &mine;

    t->turn_head = t->turn_tail = NULL;
    for (; u != NULL; u = next) {
        next = u->next;
        if (u->peer == p && u->id == id) {
            u->next = NULL;
            *mine_end = u;
            mine_end = &u->next;
        } else {
            turns_append(t, u);
        }
    }
    for (u = mine; u != NULL; u = next) {
        next = u->next;
        turns_append(t, u);
    }
}

/* Are all bytes out? */
static bool put_is_through(const struct put *u)
{
    size_t at = u->at;
    uint64_t at_bytes = u->at_bytes;

    for (; at < u->n && at_bytes == u->pieces[at].bytes; at_bytes = 0)
        at++;
    return at == u->n;
}

/* Whose turn it is: the first of those that can send, of the hurried ones if there are any; before
 * all, one whose bytes are out and that waited for the limit. */
static struct put *turns_next(const struct transfer *t)
{
    struct put *first = NULL;

    for (struct put *u = t->turn_head; u != NULL; u = u->next) {
        if ((first != NULL && !u->hurried && !put_is_through(u)) ||
            !lifeline_stands(u->peer->lifeline) || !u->peer->lane->has_room(u->peer))
            continue;
        if (u->hurried || put_is_through(u))
            return u;
        first = u;
    }
    return first;
}

/* Ends u when nothing of it is out any more. */
static void put_settle(struct put *u)
{
    struct transfer *t = u->peer->t;

    if (u->in_flight > 0 || u->state == PUT_SENDING || u->state == PUT_ENDED)
        return;
    u->state = PUT_ENDED;
    u->next = NULL;
    *t->ended_end = u;
    t->ended_end = &u->next;
}

void put_request_began(struct put *u)
{
    u->in_flight++;
}

void put_request_ended(struct put *u, const char *why)
{
    assert(u->in_flight > 0);
    u->in_flight--;
    if (why != NULL && u->status.code == ST_OK)
        status_set(&u->status, ST_UNAVAILABLE, "peer %s: %s", u->peer->name, why);
    put_settle(u);
}

struct transfer_peer *put_peer(const struct put *u)
{
    return u->peer;
}

bool put_is_sending(const struct put *u)
{
    return u->state == PUT_SENDING;
}

/* The lane may settle the flush at once or later; meanwhile u must not settle. */
static void put_flush(struct put *u)
{
    turns_remove(u->peer->t, u);
    u->state = PUT_FLUSHING;
    u->peer->lane->flush(u);
    put_settle(u);
}

/* The bytes to send instead of the true ones, when a fault is to be injected here. */
static void *scratch_with_flip(struct transfer *t, const void *bytes, uint64_t n)
{
    uint8_t *copy;
    int left = atomic_load(&t->flips);

    while (left > 0 && !atomic_compare_exchange_weak(&t->flips, &left, left - 1))
        ;
    if (left <= 0)
        return NULL;
    copy = malloc(n);
    if (copy == NULL)
        return NULL;
    memcpy(copy, bytes, n);
    copy[n / 2] ^= 0x10;
    log_warn("transfer: a bit is flipped on the way, as the test asked");
    return copy;
}

bool put_next(struct put *u, uint64_t max, struct chunk *c)
{
    const struct transfer_piece *piece;
    const struct slab_region *slab;

    while (u->at < u->n && u->at_bytes == u->pieces[u->at].bytes) {
        u->at++;
        u->at_bytes = 0;
    }
    if (u->at == u->n)
        return false;
    piece = &u->pieces[u->at];
    slab = &u->peer->t->slabs[piece->slab];
    *c = (struct chunk){
        .from = (const uint8_t *)slab->base + piece->local_off + u->at_bytes,
        .bytes = piece->bytes - u->at_bytes < max ? piece->bytes - u->at_bytes : max,
        .slab = piece->slab,
        .remote_off = piece->remote_off + u->at_bytes,
        .crc = &u->crc[piece->group],
    };
    if (u->bytes == 0 && piece->slab != SLAB_PROBE) /* a probe uses up no fault */
        c->scratch = scratch_with_flip(u->peer->t, c->from, c->bytes);
    u->at_bytes += c->bytes;
    u->bytes += c->bytes;
    return true;
}

/* The link that the limit stands for is busy with these bytes. What it was idle for is lost, but
 * for RATE_SLACK_NS, by which the thread may wake too late. */
static void rate_take(struct transfer *t, uint64_t bytes)
{
    uint64_t now = clock_now_ns();

    if (t->rate_limit == 0)
        return;
    if (t->rate_ns + RATE_SLACK_NS < now)
        t->rate_ns = now - RATE_SLACK_NS;
    t->rate_ns += (uint64_t)((double)bytes * 1e9 / (double)t->rate_limit);
}

int puts_held(const struct transfer *t)
{
    uint64_t now;

    if (t->rate_limit == 0 || t->turn_head == NULL)
        return -1;
    now = clock_now_ns();
    return now < t->rate_ns ? (int)((t->rate_ns - now) / 1000000 + 1) : -1;
}

bool puts_pump(struct transfer *t)
{
    struct transfer_peer *p;
    struct put *u;
    uint64_t had;

    if (puts_held(t) >= 0)
        return false;
    u = turns_next(t);
    if (u == NULL)
        return false;
    p = u->peer;
    had = u->bytes;
    if (u->started_us == 0)
        u->started_us = clock_now_us();
    p->lane->turn(u);
    rate_take(t, u->bytes - had);
    if (u->state != PUT_SENDING)
        return true; /* the peer was lost meanwhile */
    if (put_is_through(u) && puts_held(t) >= 0)
        return true; /* its last bytes would not have left the link yet */
    turns_yield(t, p, u->id);
    if (put_is_through(u))
        put_flush(u);
    return true;
}

void put_accept(struct msg *m)
{
    struct put *u = (struct put *)m;
    struct transfer_peer *p = u->peer;

    u->peer_next = p->puts;
    p->puts = u;
    if (p->state == PEER_OPEN) {
        turns_append(p->t, u);
        return;
    }
    u->state = PUT_DRAINING;
    u->status = p->why;
    put_settle(u);
}

void puts_stop(struct transfer_peer *p, const uint64_t *id, const struct status *why)
{
    for (struct put *u = p->puts; u != NULL; u = u->peer_next) {
        if ((id != NULL && u->id != *id) || u->state == PUT_ENDED)
            continue;
        if (u->status.code == ST_OK)
            u->status = *why;
        if (u->state == PUT_SENDING && p->state == PEER_OPEN) {
            put_flush(u); /* what was sent lands before the put ends */
        } else {
            if (u->state == PUT_SENDING)
                turns_remove(p->t, u);
            u->state = PUT_DRAINING;
            put_settle(u);
        }
    }
}

void put_hurry(struct msg *m)
{
    struct id_msg *h = (struct id_msg *)m;

    for (struct put *u = h->peer->puts; u != NULL; u = u->peer_next)
        u->hurried |= u->id == h->id;
    free(h);
}

void put_cancel(struct msg *m)
{
    struct id_msg *c = (struct id_msg *)m;
    struct status why;

    status_set(&why, ST_CANCELLED, "put %" PRIu64 " to %s: cancelled", c->id, c->peer->name);
    puts_stop(c->peer, &c->id, &why);
    free(c);
}

static void peer_forget(struct put *u)
{
    struct put **at = &u->peer->puts;

    while (*at != u)
        at = &(*at)->peer_next;
    *at = u->peer_next;
}

static void put_deliver(struct put *u)
{
    struct transfer_result r = {
        .status = u->status,
        .bytes = u->bytes,
        .elapsed_us = u->started_us > 0 ? clock_now_us() - u->started_us : 0,
        .n_groups = u->n_groups,
        .crc = u->crc,
    };

    peer_forget(u);
    if (r.status.code == ST_OK)
        peer_note_transport(u->peer); /* before done: who hears of it may ask for the transport */
    u->done(u->arg, &r);
    free(u);
}

bool puts_deliver(struct transfer *t)
{
    bool any = t->ended != NULL;

    while (t->ended != NULL) {
        struct put *u = t->ended;

        t->ended = u->next;
        if (t->ended == NULL)
            t->ended_end = &t->ended;
        put_deliver(u);
    }
    return any;
}

void put_drop(struct msg *m)
{
    struct put *u = (struct put *)m;
    struct transfer_result r = {.n_groups = 0};

    if (m->type == CMD_PUT) {
        status_set(&r.status, ST_CANCELLED, "put %" PRIu64 ": this worker stops", u->id);
        u->done(u->arg, &r);
    }
    if (m->type == CMD_PUT || m->type == CMD_HURRY || m->type == CMD_CANCEL)
        free(m);
}
