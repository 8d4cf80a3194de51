#include <grpc/byte_buffer_reader.h>
#include <grpc/support/alloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/rpc/rpc_internal.h"

/* ---- the group ---- */

void rpc_group_init(struct rpc_group *g)
{
    *g = (struct rpc_group){0};
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
}

void rpc_group_deinit(struct rpc_group *g)
{
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->lock);
}

static bool group_add(struct rpc_group *g, struct rpc_session *s)
{
    bool open;

    pthread_mutex_lock(&g->lock);
    open = !g->closing;
    if (open) {
        s->next = g->first;
        if (g->first != NULL)
            g->first->prev = s;
        g->first = s;
    }
    pthread_mutex_unlock(&g->lock);
    return open;
}

static void group_remove(struct rpc_group *g, struct rpc_session *s)
{
    pthread_mutex_lock(&g->lock);
    if (s->prev != NULL)
        s->prev->next = s->next;
    else
        g->first = s->next;
    if (s->next != NULL)
        s->next->prev = s->prev;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

/* Ends the call now, whatever is queued. The session's lock is held. */
static void cancel(struct rpc_session *s, const struct status *why)
{
    if (s->call != NULL)
        grpc_call_cancel_with_status(s->call, (grpc_status_code)status_to_grpc(why->code), why->msg,
                                     NULL);
}

void rpc_group_end_all(struct rpc_group *g, const struct status *why)
{
    pthread_mutex_lock(&g->lock);
    g->closing = true;
    for (struct rpc_session *s = g->first; s != NULL; s = s->next) {
        pthread_mutex_lock(&s->lock); /* order: group, then session */
        cancel(s, why);
        pthread_mutex_unlock(&s->lock);
    }
    while (g->first != NULL)
        pthread_cond_wait(&g->changed, &g->lock);
    pthread_mutex_unlock(&g->lock);
}

/* ---- references ---- */

struct rpc_session *rpc_session_ref(struct rpc_session *s)
{
    atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
    return s;
}

static void free_queue(struct rpc_session *s)
{
    while (s->head != NULL) {
        struct rpc_outgoing *o = s->head;

        s->head = o->next;
        grpc_byte_buffer_destroy(o->bytes);
        free(o);
    }
    s->queued_bytes = 0;
}

void rpc_session_unref(struct rpc_session *s)
{
    if (s == NULL || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1)
        return;
    free_queue(s);
    grpc_metadata_array_destroy(&s->initial_md);
    grpc_metadata_array_destroy(&s->trailing_md);
    grpc_slice_unref(s->status_details);
    gpr_free(s->peer);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

/* ---- the end ---- */

/* Delivers on_close once the final status is known and no event is to come. rpc thread. */
static void finish_if_over(struct rpc_session *s)
{
    bool over;

    pthread_mutex_lock(&s->lock);
    over = s->ended && s->n_pending == 0 && !s->send_pending && !s->close_pending;
    pthread_mutex_unlock(&s->lock);
    if (!over)
        return;
    s->callbacks.on_close(s->arg, s, &s->why);
    /* Under the lock, so that nobody can cancel a call that is gone (close and send look at dead).
     */
    pthread_mutex_lock(&s->lock);
    grpc_call_unref(s->call);
    s->call = NULL;
    pthread_mutex_unlock(&s->lock);
    group_remove(s->group, s);
    rpc_session_unref(s);
}

/* One event has come. */
static void count_event(struct rpc_session *s)
{
    pthread_mutex_lock(&s->lock);
    s->n_pending--;
    pthread_mutex_unlock(&s->lock);
}

static void stop_connecting(struct rpc_session *s)
{
    pthread_mutex_lock(&s->rpc->lock);
    for (struct rpc_session **p = &s->rpc->connecting; *p != NULL; p = &(*p)->next_connecting)
        if (*p == s) {
            *p = s->next_connecting;
            break;
        }
    pthread_mutex_unlock(&s->rpc->lock);
}

void rpc_check_connecting(struct rpc *r)
{
    uint64_t now = clock_now_us();
    struct status why;

    pthread_mutex_lock(&r->lock);
    for (struct rpc_session *s = r->connecting; s != NULL; s = s->next_connecting) {
        if (now < s->connect_deadline_us)
            continue;
        status_set(&why, ST_UNAVAILABLE, "no answer from %s in time", rpc_session_peer(s));
        pthread_mutex_lock(&s->lock);
        cancel(s, &why);
        pthread_mutex_unlock(&s->lock);
    }
    pthread_mutex_unlock(&r->lock);
}

static void mark_dead(struct rpc_session *s)
{
    pthread_mutex_lock(&s->lock);
    s->dead = true;
    free_queue(s);
    pthread_mutex_unlock(&s->lock);
}

/* Starts a batch whose event is counted. @return false: refused, no event will come */
static bool start_batch(struct rpc_session *s, grpc_op *ops, size_t n, struct rpc_tag *tag)
{
    grpc_call *call;

    pthread_mutex_lock(&s->lock);
    s->n_pending++; /* before the start: its event may come at once on the rpc thread */
    call = s->call; /* under the lock, so that TSan sees the order that gRPC keeps */
    pthread_mutex_unlock(&s->lock);
    RPC_TAG_HAND_OVER(tag);
    if (grpc_call_start_batch(call, ops, n, tag, NULL) == GRPC_CALL_OK)
        return true;
    count_event(s);
    return false;
}

static void on_client_end(struct rpc_session *s)
{
    size_t len = GRPC_SLICE_LENGTH(s->status_details);

    status_set(&s->why, status_from_grpc((int)s->status_code), "%.*s", (int)(len < 400 ? len : 400),
               (const char *)GRPC_SLICE_START_PTR(s->status_details));
    if (s->status_code == GRPC_STATUS_UNIMPLEMENTED)
        s->why.code = ST_INVALID; /* the peer does not speak this */
}

static void on_server_end(struct rpc_session *s)
{
    pthread_mutex_lock(&s->lock);
    if (s->close_asked && (s->close_why.code != ST_OK || !s->cancelled))
        s->why = s->close_why;
    else if (s->cancelled)
        status_set(&s->why, ST_UNAVAILABLE, "the peer cancelled the session or is gone");
    else
        status_ok(&s->why);
    pthread_mutex_unlock(&s->lock);
}

static void on_end(struct rpc_tag *tag, bool ok)
{
    struct rpc_session *s = tag->owner;

    (void)ok;
    count_event(s);
    s->ended = true;
    mark_dead(s);
    stop_connecting(s);
    if (s->is_client)
        on_client_end(s);
    else
        on_server_end(s);
    finish_if_over(s);
}

/* ---- receiving ---- */

static bool receive_next(struct rpc_session *s)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};

    op.data.recv_message.recv_message = &s->received;
    s->received = NULL;
    return start_batch(s, &op, 1, &s->recv_tag);
}

static void deliver(struct rpc_session *s)
{
    grpc_byte_buffer_reader reader;
    grpc_slice all;

    if (grpc_byte_buffer_reader_init(&reader, s->received)) {
        all = grpc_byte_buffer_reader_readall(&reader);
        s->callbacks.on_message(s->arg, s, GRPC_SLICE_START_PTR(all), GRPC_SLICE_LENGTH(all));
        grpc_slice_unref(all);
        grpc_byte_buffer_reader_destroy(&reader);
    }
    grpc_byte_buffer_destroy(s->received);
    s->received = NULL;
}

static void on_received(struct rpc_tag *tag, bool ok)
{
    struct rpc_session *s = tag->owner;
    struct status fine;

    count_event(s);
    if (ok && s->received != NULL) {
        deliver(s);
        receive_next(s);
    } else if (!s->is_client) {
        /* The client has said all it had to say: so have we, after what is queued. */
        rpc_session_close(s, (status_ok(&fine), &fine));
    }
    finish_if_over(s);
}

/* ---- sending: each function below with the lock held ---- */

static void start_close(struct rpc_session *s)
{
    grpc_op op = {0};
    grpc_slice details = grpc_slice_from_copied_string(s->close_why.msg);

    s->close_sent = true;
    if (s->is_client) {
        op.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    } else {
        op.op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        op.data.send_status_from_server.status =
            (grpc_status_code)status_to_grpc(s->close_why.code);
        op.data.send_status_from_server.status_details = &details;
    }
    RPC_TAG_HAND_OVER(&s->close_tag);
    if (grpc_call_start_batch(s->call, &op, 1, &s->close_tag, NULL) == GRPC_CALL_OK)
        s->close_pending = true;
    grpc_slice_unref(details);
}

static void send_next(struct rpc_session *s)
{
    struct rpc_outgoing *o = s->head;
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE};

    if (s->writing || s->dead)
        return;
    if (o == NULL) {
        if (s->close_asked && !s->close_sent)
            start_close(s);
        return;
    }
    op.data.send_message.send_message = o->bytes;
    RPC_TAG_HAND_OVER(&s->send_tag);
    if (grpc_call_start_batch(s->call, &op, 1, &s->send_tag, NULL) != GRPC_CALL_OK) {
        s->dead = true;
    } else {
        s->writing = s->send_pending = true;
        s->queued_bytes -= o->len;
    }
    s->head = o->next;
    grpc_byte_buffer_destroy(o->bytes); /* the batch holds its own reference */
    free(o);
}

static void on_sent(struct rpc_tag *tag, bool ok)
{
    struct rpc_session *s = tag->owner;

    pthread_mutex_lock(&s->lock);
    s->writing = s->send_pending = false;
    if (!ok)
        s->dead = true;
    send_next(s);
    pthread_mutex_unlock(&s->lock);
    finish_if_over(s);
}

static void on_close_sent(struct rpc_tag *tag, bool ok)
{
    struct rpc_session *s = tag->owner;

    (void)ok;
    pthread_mutex_lock(&s->lock);
    s->close_pending = false;
    pthread_mutex_unlock(&s->lock);
    finish_if_over(s);
}

/* Owns slice. */
static enum status_code send_slice(struct rpc_session *s, grpc_slice slice, struct status *st)
{
    struct rpc_outgoing *o = malloc(sizeof(*o));
    size_t len = GRPC_SLICE_LENGTH(slice);

    if (o == NULL) {
        grpc_slice_unref(slice);
        return status_set(st, ST_EXHAUSTED, "no memory for a message of %zu bytes", len);
    }
    *o = (struct rpc_outgoing){NULL, grpc_raw_byte_buffer_create(&slice, 1), len};
    grpc_slice_unref(slice);
    pthread_mutex_lock(&s->lock);
    if (s->dead || s->close_asked || s->call == NULL) {
        status_set(st, ST_UNAVAILABLE, "the session with %s has ended", rpc_session_peer(s));
    } else if (s->queued_bytes + len > RPC_SESSION_QUEUE_MAX) {
        status_set(st, ST_EXHAUSTED, "%zu bytes wait for %s, which does not read", s->queued_bytes,
                   rpc_session_peer(s));
    } else {
        if (s->head == NULL)
            s->head = o;
        else
            s->tail->next = o;
        s->tail = o;
        s->queued_bytes += len;
        o = NULL;
        send_next(s);
        status_ok(st);
    }
    pthread_mutex_unlock(&s->lock);
    if (o != NULL) {
        grpc_byte_buffer_destroy(o->bytes);
        free(o);
    }
    return st->code;
}

enum status_code rpc_session_send(struct rpc_session *s, const void *data, size_t len,
                                  struct status *st)
{
    return send_slice(s, grpc_slice_from_copied_buffer(data, len), st);
}

enum status_code rpc_session_give(struct rpc_session *s, void *data, size_t len, struct status *st)
{
    return send_slice(s, grpc_slice_new(data, len, free), st);
}

size_t rpc_session_waiting(struct rpc_session *s)
{
    size_t n;

    pthread_mutex_lock(&s->lock);
    n = s->queued_bytes;
    pthread_mutex_unlock(&s->lock);
    return n;
}

void rpc_session_close(struct rpc_session *s, const struct status *why)
{
    pthread_mutex_lock(&s->lock);
    if (s->call != NULL && !s->close_asked && !s->dead) {
        s->close_asked = true;
        s->close_why = *why;
        if (why->code != ST_OK) {
            free_queue(s);
            /* A client cancels; so does a server whose peer does not read (the status would wait).
             */
            if (s->is_client || s->writing) {
                s->close_sent = true;
                cancel(s, why);
            }
        }
        send_next(s);
    }
    pthread_mutex_unlock(&s->lock);
}

void rpc_session_cancel(struct rpc_session *s, const struct status *why)
{
    pthread_mutex_lock(&s->lock);
    cancel(s, why);
    pthread_mutex_unlock(&s->lock);
}

const char *rpc_session_peer(const struct rpc_session *s)
{
    return s->peer != NULL ? s->peer : "?";
}

/* ---- starting ---- */

static void on_started(struct rpc_tag *tag, bool ok)
{
    struct rpc_session *s = tag->owner;

    (void)ok; /* a failure shows in the final status */
    count_event(s);
    stop_connecting(s);
    finish_if_over(s);
}

struct rpc_session *rpc_session_new(struct rpc *r, struct rpc_group *group, bool is_client,
                                    grpc_call *call, const struct rpc_session_callbacks *callbacks,
                                    void *arg)
{
    struct rpc_session *s = calloc(1, sizeof(*s));

    if (s == NULL)
        return NULL;
    atomic_init(&s->refs, 1);
    s->rpc = r;
    s->group = group;
    s->is_client = is_client;
    s->call = call;
    s->callbacks = *callbacks;
    s->arg = arg;
    s->peer = grpc_call_get_peer(call);
    s->status_details = grpc_empty_slice();
    grpc_metadata_array_init(&s->initial_md);
    grpc_metadata_array_init(&s->trailing_md);
    pthread_mutex_init(&s->lock, NULL);
    s->recv_tag = (struct rpc_tag){on_received, s};
    s->end_tag = (struct rpc_tag){on_end, s};
    s->start_tag = (struct rpc_tag){on_started, s};
    s->send_tag = (struct rpc_tag){on_sent, s};
    s->close_tag = (struct rpc_tag){on_close_sent, s};
    if (!group_add(group, s)) {
        rpc_session_unref(s);
        return NULL;
    }
    return s;
}

static bool start_client(struct rpc_session *s, int connect_timeout_ms)
{
    grpc_op start[2] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
                        {.op = GRPC_OP_RECV_INITIAL_METADATA}};
    grpc_op end = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};

    start[1].data.recv_initial_metadata.recv_initial_metadata = &s->initial_md;
    end.data.recv_status_on_client.trailing_metadata = &s->trailing_md;
    end.data.recv_status_on_client.status = &s->status_code;
    end.data.recv_status_on_client.status_details = &s->status_details;
    s->connect_deadline_us = clock_now_us() + (uint64_t)connect_timeout_ms * 1000;
    pthread_mutex_lock(&s->rpc->lock);
    s->next_connecting = s->rpc->connecting;
    s->rpc->connecting = s;
    pthread_mutex_unlock(&s->rpc->lock);
    /* The end comes last: the session can be over only after its event, when all is counted. */
    return start_batch(s, start, 2, &s->start_tag) && receive_next(s) &&
           start_batch(s, &end, 1, &s->end_tag);
}

static bool start_server(struct rpc_session *s)
{
    grpc_op start = {.op = GRPC_OP_SEND_INITIAL_METADATA};
    grpc_op end = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};

    end.data.recv_close_on_server.cancelled = &s->cancelled;
    return start_batch(s, &start, 1, &s->start_tag) && receive_next(s) &&
           start_batch(s, &end, 1, &s->end_tag);
}

bool rpc_session_start(struct rpc_session *s, int connect_timeout_ms)
{
    return s->is_client ? start_client(s, connect_timeout_ms) : start_server(s);
}
