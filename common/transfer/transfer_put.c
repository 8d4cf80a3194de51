#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/crc32c.h"
#include "common/base/log.h"
#include "common/transfer/internal.h"

/*  POSTING ──▶ FLUSHING ──▶ ENDED      POSTING: in the list of turns
 *     │                       ▲        FLUSHING: all posted (or cancelled); waits for the flush
 *     └──────▶ DRAINING ──────┘        DRAINING: the peer is lost; waits for requests to end
 *  FLUSHING also goes to DRAINING. ENDED when no request is out; the callback is due. */
enum put_state { PUT_POSTING, PUT_FLUSHING, PUT_DRAINING, PUT_ENDED };

struct put {
    struct msg base;
    struct transfer_peer *peer;
    struct put *next;      /* in the list of turns, later in that of the ended */
    struct put *peer_next; /* in the peer's list */
    enum put_state state;
    uint64_t id;
    size_t n, at;       /* pieces; the one to post next */
    uint64_t at_bytes;  /* of that piece, already posted */
    uint64_t bytes;     /* posted in all */
    uint32_t in_flight; /* requests that have not ended */
    uint32_t n_groups;
    uint64_t started_us; /* 0 before the first turn */
    struct status status;
    void (*done)(void *arg, const struct transfer_result *r);
    void *arg;
    uint32_t *crc;                  /* [n_groups], behind the pieces */
    struct transfer_piece pieces[]; /* [n] */
};

/* A request that UCX has not finished. */
struct post {
    struct put *put;
    uint64_t bytes;
    void *scratch; /* freed with the request: bytes of an injected fault */
};

enum status_code transfer_put(struct transfer_peer *p, uint64_t id,
                              const struct transfer_piece *pieces, size_t n, uint32_t n_groups,
                              void (*done)(void *arg, const struct transfer_result *r), void *arg,
                              struct status *st)
{
    struct put *u;

    if (pieces_check(p->t, p->slabs, pieces, n, n_groups, st) != ST_OK)
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

struct cancel_msg {
    struct msg base;
    struct transfer_peer *peer;
    uint64_t id;
};

void transfer_cancel(struct transfer_peer *p, uint64_t id)
{
    struct cancel_msg *c = calloc(1, sizeof(*c));

    if (c == NULL) {
        log_warn("transfer: put %" PRIu64 ": no memory to cancel it; it goes on to its end", id);
        return;
    }
    c->base.type = CMD_CANCEL;
    c->peer = p;
    c->id = id;
    mailbox_push(p->t->box, &c->base);
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

/* Ends u when nothing of it is out any more. */
static void put_settle(struct put *u)
{
    struct transfer *t = u->peer->t;

    if (u->in_flight > 0 || u->state == PUT_POSTING || u->state == PUT_ENDED)
        return;
    u->state = PUT_ENDED;
    u->next = t->ended;
    t->ended = u;
}

static void request_ended(struct post *post, ucs_status_t status)
{
    struct put *u = post->put;
    struct transfer_peer *p = u->peer;

    p->window_bytes -= post->bytes;
    p->window_requests--;
    u->in_flight--;
    free(post->scratch);
    free(post);
    if (status != UCS_OK && u->status.code == ST_OK)
        status_set(&u->status, ST_UNAVAILABLE, "peer %s: %s", p->name, ucs_status_string(status));
    put_settle(u);
}

static void on_request(void *request, ucs_status_t status, void *arg)
{
    ucp_request_free(request);
    request_ended(arg, status);
}

/* Accounts for what UCX returned: a request under way, an end at once, or an error. */
static void posted(struct post *post, ucs_status_ptr_t ret)
{
    struct transfer_peer *p = post->put->peer;

    if (UCS_PTR_IS_PTR(ret))
        return; /* on_request() follows */
    request_ended(post, UCS_PTR_STATUS(ret));
    if (UCS_PTR_IS_ERR(ret))
        peer_fail(p, PEER_FAILED, ST_UNAVAILABLE, ucs_status_string(UCS_PTR_STATUS(ret)));
}

static struct post *post_new(struct put *u, uint64_t bytes)
{
    struct post *post = calloc(1, sizeof(*post));

    if (post == NULL) {
        peer_fail(u->peer, PEER_FAILED, ST_UNAVAILABLE, "no memory for a request");
        return NULL;
    }
    post->put = u;
    post->bytes = bytes;
    u->in_flight++;
    u->peer->window_bytes += bytes;
    u->peer->window_requests++;
    return post;
}

static void put_flush(struct put *u)
{
    ucp_request_param_t param = {.op_attr_mask =
                                     UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                 .cb.send = on_request};
    struct post *post;

    turns_remove(u->peer->t, u);
    u->state = PUT_FLUSHING;
    post = post_new(u, 0);
    if (post == NULL)
        return;
    param.user_data = post;
    posted(post, ucp_ep_flush_nbx(u->peer->ep, &param));
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

/* Posts the next n bytes of the current piece. */
static void put_post(struct put *u, uint64_t n)
{
    struct transfer *t = u->peer->t;
    const struct transfer_piece *piece = &u->pieces[u->at];
    const struct slab_region *slab = &t->slabs.at[piece->slab];
    const uint8_t *from = (const uint8_t *)slab->base + piece->local_off + u->at_bytes;
    uint64_t to = u->peer->slabs[piece->slab].base + piece->remote_off + u->at_bytes;
    ucp_request_param_t param = {.op_attr_mask =
                                     UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                 .cb.send = on_request};
    struct post *post = post_new(u, n);

    if (post == NULL)
        return;
    u->crc[piece->group] = crc32c(u->crc[piece->group], from, n);
    if (u->bytes == 0)
        post->scratch = scratch_with_flip(t, from, n);
    if (post->scratch == NULL) {
        param.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
        param.memh = slab->memh;
    }
    param.user_data = post;
    u->bytes += n;
    u->at_bytes += n;
    posted(post, ucp_put_nbx(u->peer->ep, post->scratch != NULL ? post->scratch : from, n, to,
                             u->peer->rkeys[piece->slab], &param));
}

static bool window_has_room(const struct transfer_peer *p)
{
    return p->window_bytes < PEER_WINDOW_BYTES && p->window_requests < PEER_WINDOW_REQUESTS;
}

/* One turn: about a quantum of bytes. */
static void put_turn(struct put *u)
{
    uint64_t had = 0;

    if (u->started_us == 0)
        u->started_us = clock_now_us();
    while (u->state == PUT_POSTING && u->at < u->n && had < PUT_QUANTUM &&
           window_has_room(u->peer)) {
        uint64_t n = u->pieces[u->at].bytes - u->at_bytes;

        if (n > PUT_QUANTUM)
            n = PUT_QUANTUM;
        if (n > 0)
            put_post(u, n);
        had += n;
        if (u->at_bytes == u->pieces[u->at].bytes) {
            u->at++;
            u->at_bytes = 0;
        }
    }
}

bool puts_pump(struct transfer *t)
{
    struct put *u = t->turn_head;

    while (u != NULL && !window_has_room(u->peer))
        u = u->next;
    if (u == NULL)
        return false;
    put_turn(u);
    if (u->state != PUT_POSTING)
        return true; /* the peer was lost meanwhile */
    if (u->at == u->n) {
        put_flush(u);
    } else {
        turns_remove(t, u);
        turns_append(t, u);
    }
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
        if (u->state == PUT_POSTING && p->state == PEER_OPEN) {
            put_flush(u); /* what was posted lands before the put ends */
        } else {
            if (u->state == PUT_POSTING)
                turns_remove(p->t, u);
            u->state = PUT_DRAINING;
            put_settle(u);
        }
    }
}

void put_cancel(struct msg *m)
{
    struct cancel_msg *c = (struct cancel_msg *)m;
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
        peer_note_transport(u->peer);
    u->done(u->arg, &r);
    free(u);
}

bool puts_deliver(struct transfer *t)
{
    bool any = t->ended != NULL;

    while (t->ended != NULL) {
        struct put *u = t->ended;

        t->ended = u->next;
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
    if (m->type == CMD_PUT || m->type == CMD_CANCEL)
        free(m);
}
