/*
 * worker_session: connecting to a worker, its hello or health, and its loss.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/rpc/rpc_message.h"
#include "grpc/health/v1/health.pb-c.h"
#include "router/workers_internal.h"

enum {
    CONNECT_TIMEOUT_MS = 2000,
    HELLO_TIMEOUT_MS = 3000,
    BACKOFF_MIN_MS = 100,
    BACKOFF_MAX_MS = 1000
};

static void enter(struct worker *w, enum worker_state state)
{
    w->state = state;
    w->since_us = clock_now_us();
    worker_refresh(w);
    workers_settle(w->workers);
}

void worker_arm(struct event *timer, unsigned ms)
{
    struct timeval tv = {ms / 1000, (suseconds_t)(ms % 1000) * 1000};

    event_add(timer, &tv);
}

/* ---- the rpc thread's side ------------------------------------------------------------------- */

static void on_message(void *arg, struct rpc_session *s, const void *data, size_t len)
{
    struct session_link *link = arg;
    struct msg_session_data *m = malloc(sizeof(*m) + len);

    (void)s;
    if (m == NULL) {
        log_error("no memory for a message of %zu bytes: a worker's session ends", len);
        rpc_session_close(s, &(struct status){ST_EXHAUSTED, "no memory in the router"});
        return;
    }
    m->base.type = RM_SESSION_DATA;
    m->link = link;
    m->len = len;
    memcpy(m->data, data, len);
    mailbox_push(link->mailbox, &m->base);
}

static void on_close(void *arg, struct rpc_session *s, const struct status *why)
{
    struct session_link *link = arg;
    struct msg_session_closed *m = malloc(sizeof(*m));

    (void)s;
    if (m == NULL)
        abort(); /* a lost close would leave a worker dead for ever */
    m->base.type = RM_SESSION_CLOSED;
    m->link = link;
    m->why = *why;
    mailbox_push(link->mailbox, &m->base);
}

/* ---- sessions -------------------------------------------------------------------------------- */

void workers_introduce(const struct workers *ws, Baton__V1__Identity *me)
{
    baton__v1__identity__init(me);
    me->role = "router";
    me->incarnation = ws->config.incarnation;
    me->protocol = BATON__V1__PROTOCOL__PROTOCOL_NOW;
}

static void send_hello(struct worker *w, struct status *st)
{
    Baton__V1__DecodeRequest request = BATON__V1__DECODE_REQUEST__INIT;
    Baton__V1__Identity me;
    Grpc__Health__V1__HealthCheckRequest watch = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;

    if (w->role == WORKER_PREFILL) {
        rpc_session_send_message(w->link->session, &watch.base, st);
        return;
    }
    workers_introduce(w->workers, &me);
    request.hello = &me;
    rpc_session_send_message(w->link->session, &request.base, st);
}

/* Its closed message will still come and free the link. */
void worker_forget(struct session_link **at, const struct status *why)
{
    struct session_link *link = *at;

    *at = NULL;
    if (link != NULL) {
        link->worker = NULL;
        rpc_session_close(link->session, why);
    }
}

void worker_down(struct worker *w, const struct status *why)
{
    struct workers *ws = w->workers;
    bool was_ready = w->state == WORKER_READY;

    /* Said once per outage, not once per attempt. */
    if (was_ready)
        log_warn("%s %s is lost: %s", worker_role_name(w->role), w->address, why->msg);
    else if (!w->outage_told || why->code == ST_INVALID)
        log_info("%s %s is not there yet: %s", worker_role_name(w->role), w->address, why->msg);
    w->outage_told = true;
    w->last_error = *why;
    w->n_lost += was_ready;
    if (was_ready)
        breaker_bad(&w->breaker, clock_now_us());
    worker_watch_close(w);
    worker_forget(&w->link, why);
    buf_deinit(&w->unsent);
    w->send_failed.code = ST_OK;
    enter(w, WORKER_DOWN);
    if (!ws->stopping) {
        /* Jitter keeps many routers from knocking at the same instant. */
        worker_arm(w->timer, w->backoff_ms / 2 + (unsigned)rand() % (w->backoff_ms / 2 + 1));
        w->backoff_ms = w->backoff_ms * 2 < BACKOFF_MAX_MS ? w->backoff_ms * 2 : BACKOFF_MAX_MS;
    }
    if (was_ready && ws->callbacks.on_lost != NULL)
        ws->callbacks.on_lost(ws->callbacks.arg, w, why);
}

enum status_code worker_open_link(struct worker *w, const char *path, int timeout_ms, bool watch,
                                  struct session_link **out, struct status *st)
{
    static const struct rpc_session_callbacks callbacks = {on_message, on_close};
    struct session_link *link = calloc(1, sizeof(*link));

    if (link == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a session");
    link->mailbox = w->workers->mailbox;
    link->worker = w;
    link->watch = watch;
    if (rpc_client_open(w->client, path, timeout_ms, &callbacks, link, &link->session, st) !=
        ST_OK) {
        session_link_free(link);
        return st->code;
    }
    *out = link;
    return ST_OK;
}

void worker_open(struct worker *w)
{
    struct status st;

    if (w->backoff_ms == 0)
        w->backoff_ms = BACKOFF_MIN_MS;
    if (worker_open_link(w,
                         w->role == WORKER_DECODE ? "/baton.v1.Decode/Session"
                                                  : "/grpc.health.v1.Health/Watch",
                         CONNECT_TIMEOUT_MS, false, &w->link, &st) != ST_OK) {
        worker_down(w, &st);
        return;
    }
    enter(w, WORKER_OPENING);
    worker_arm(w->timer, CONNECT_TIMEOUT_MS + HELLO_TIMEOUT_MS);
    send_hello(w, &st); /* when that fails, the session's end is on its way and says why */
}

void worker_on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct worker *w = arg;
    struct status st;

    (void)fd, (void)what;
    if (w->workers->stopping)
        return;
    if (w->state == WORKER_DOWN) {
        worker_open(w);
    } else if (w->state == WORKER_OPENING) {
        status_set(&st, ST_UNAVAILABLE, "no answer to our hello within %d ms",
                   CONNECT_TIMEOUT_MS + HELLO_TIMEOUT_MS);
        worker_down(w, &st);
    }
}

/* ---- what workers say ------------------------------------------------------------------------ */

static void become_ready(struct worker *w)
{
    struct workers *ws = w->workers;

    event_del(w->timer);
    w->backoff_ms = BACKOFF_MIN_MS;
    w->outage_told = false;
    w->report = (struct worker_report){0};
    if (w->breaker.state == BREAKER_OPEN) /* it is another process, or a new connection: find out */
        breaker_tick(&w->breaker, UINT64_MAX);
    enter(w, WORKER_READY);
    log_info("%s %s is ready", worker_role_name(w->role), w->address);
    worker_watch_open(w);
    if (ws->callbacks.on_ready != NULL)
        ws->callbacks.on_ready(ws->callbacks.arg, w);
}

static enum status_code check_hello(struct worker *w, const Baton__V1__Identity *id,
                                    struct status *st)
{
    struct workers *ws = w->workers;

    if (strcmp(id->role, "decode") != 0)
        return status_set(st, ST_INVALID, "it is a %s worker, not a decode worker: check --decode",
                          id->role);
    if (id->protocol != BATON__V1__PROTOCOL__PROTOCOL_NOW)
        return status_set(st, ST_INVALID, "it speaks protocol %u, this router %d: update the older",
                          id->protocol, BATON__V1__PROTOCOL__PROTOCOL_NOW);
    if (workers_ready(ws, WORKER_DECODE) == 0)
        ws->model_fingerprint = id->model_fingerprint;
    if (id->model_fingerprint != ws->model_fingerprint)
        return status_set(st, ST_INVALID,
                          "it serves model %016llx, the other decode workers %016llx: one router "
                          "serves one model",
                          (unsigned long long)id->model_fingerprint,
                          (unsigned long long)ws->model_fingerprint);
    w->incarnation = id->incarnation;
    w->context_length = id->context_length;
    w->vocab_size = id->vocab_size;
    w->model_fingerprint = id->model_fingerprint;
    snprintf(w->backend, sizeof(w->backend), "%s", id->backend == NULL ? "" : id->backend);
    return status_ok(st);
}

static void on_decode_data(struct worker *w, const void *data, size_t len)
{
    struct workers *ws = w->workers;
    Baton__V1__DecodeReply *reply =
        baton__v1__decode_reply__unpack(&ws->replies.allocator, len, data);
    struct status st;

    if (reply == NULL) {
        rpc_arena_drop(&ws->replies, NULL);
        status_set(&st, ST_CORRUPT, "a reply of %zu bytes cannot be read", len);
        worker_down(w, &st);
        return;
    }
    if (w->state == WORKER_OPENING) {
        if (reply->hello == NULL)
            status_set(&st, ST_INVALID, "its first reply is no hello");
        else
            check_hello(w, reply->hello, &st);
        if (st.code == ST_OK)
            become_ready(w);
        else
            worker_down(w, &st);
    }
    if (w->state == WORKER_READY)
        ws->callbacks.on_reply(ws->callbacks.arg, w, reply);
    rpc_arena_drop(&ws->replies, &reply->base);
}

static void on_health_data(struct worker *w, const void *data, size_t len)
{
    Grpc__Health__V1__HealthCheckResponse *reply =
        grpc__health__v1__health_check_response__unpack(NULL, len, data);
    bool serving =
        reply != NULL &&
        reply->status == GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;

    if (reply != NULL)
        grpc__health__v1__health_check_response__free_unpacked(reply, NULL);
    if (serving && w->state == WORKER_OPENING) {
        become_ready(w);
    } else if (!serving && w->state == WORKER_READY) {
        /* Still there, but draining or loading: keep watching. */
        log_info("prefill %s says that it does not serve", w->address);
        w->last_error = (struct status){ST_UNAVAILABLE, "not serving"};
        enter(w, WORKER_OPENING);
        worker_watch_close(w);
        if (w->workers->callbacks.on_lost != NULL)
            w->workers->callbacks.on_lost(w->workers->callbacks.arg, w, &w->last_error);
    } else if (!serving) {
        event_del(w->timer); /* it did answer: wait for the change */
    }
}

static void on_data(struct worker *w, const struct msg_session_data *d)
{
    if (d->link->watch)
        worker_watch_data(w, d->data, d->len);
    else if (w->role == WORKER_DECODE)
        on_decode_data(w, d->data, d->len);
    else
        on_health_data(w, d->data, d->len);
}

static void on_closed(struct worker *w, const struct msg_session_closed *c)
{
    struct status why = c->why;

    if (why.code == ST_OK)
        status_set(&why, ST_UNAVAILABLE, "it ended the session");
    if (c->link->watch) {
        w->watch = NULL;
        worker_watch_closed(w, &why);
    } else {
        w->link = NULL;
        worker_down(w, &why);
    }
}

void worker_session_message(struct workers *ws, struct msg *m)
{
    struct session_link *link = m->type == RM_SESSION_DATA ? ((struct msg_session_data *)m)->link
                                                           : ((struct msg_session_closed *)m)->link;

    if (link->worker == NULL || ws->stopping)
        return; /* of a session that was given up */
    if (m->type == RM_SESSION_DATA)
        on_data(link->worker, (struct msg_session_data *)m);
    else
        on_closed(link->worker, (struct msg_session_closed *)m);
}

/* ---- what workers are told ------------------------------------------------------------------- */

/* Fails only when the session has ended, and then its closed message is on its way, or without
 * memory: then what it was asked for is lost, and workers_flush() gives it up. */
static enum status_code give(struct worker *w, struct status *st)
{
    status_ok(st);
    if (w->unsent.len == 0)
        return ST_OK;
    rpc_session_give(w->link->session, w->unsent.data, w->unsent.len, st);
    w->unsent = (struct buf){0};
    if (st->code != ST_OK && st->code != ST_UNAVAILABLE)
        w->send_failed = *st;
    return st->code;
}

void workers_flush(struct workers *ws)
{
    struct worker *w;
    struct status st;

    while ((w = ws->unsent) != NULL) {
        ws->unsent = w->next_unsent;
        w->is_unsent = false;
        give(w, &st);
        if (w->send_failed.code == ST_OK)
            continue;
        st = w->send_failed;
        w->send_failed.code = ST_OK;
        worker_down(w, &st);
    }
}

enum status_code workers_send(struct worker *w, const Baton__V1__DecodeRequest *request,
                              struct status *st)
{
    struct workers *ws = w->workers;
    size_t n = protobuf_c_message_get_packed_size(&request->base);

    if (w->state != WORKER_READY)
        return status_set(st, ST_UNAVAILABLE, "decode %s is not ready", w->address);
    if (n > RPC_MESSAGE_MAX)
        return status_set(st, ST_INVALID, "a request of %zu bytes, at most %d travel", n,
                          RPC_MESSAGE_MAX);
    /* From here nobody is given up: the caller is in the middle of something. */
    if (w->unsent.len + n > RPC_MESSAGE_MAX && give(w, st) != ST_OK)
        return status_set(st, ST_UNAVAILABLE, "decode %s cannot be told", w->address);
    if (w->send_failed.code != ST_OK ||
        rpc_session_waiting(w->link->session) + w->unsent.len + n > RPC_SESSION_QUEUE_MAX)
        return status_set(st, ST_UNAVAILABLE, "decode %s does not read what it is sent",
                          w->address);
    /* Messages one after the other are one message with the repeated fields of all. */
    buf_reserve(&w->unsent, n);
    w->unsent.len +=
        protobuf_c_message_pack(&request->base, (uint8_t *)w->unsent.data + w->unsent.len);
    if (!w->is_unsent) {
        w->is_unsent = true;
        w->next_unsent = ws->unsent;
        if (ws->unsent == NULL)
            event_active(ws->flush, EV_TIMEOUT, 0);
        ws->unsent = w;
    }
    return status_ok(st);
}
