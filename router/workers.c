#include "router/workers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/rpc/rpc_message.h"
#include "grpc/health/v1/health.pb-c.h"

enum {
    PROTOCOL = 1, /* of the messages: Identity.protocol */
    CONNECT_TIMEOUT_MS = 2000,
    HELLO_TIMEOUT_MS = 3000,
    BACKOFF_MIN_MS = 100,
    BACKOFF_MAX_MS = 1000
};

struct workers {
    struct event_base *base;
    struct mailbox *mailbox;
    struct workers_callbacks callbacks;
    uint64_t incarnation;
    size_t n[2];
    struct worker *list[2];     /* by role */
    size_t turn[2];             /* round robin */
    uint64_t model_fingerprint; /* of the decode workers that are ready */
    bool stopping;
};

const char *worker_state_name(enum worker_state state)
{
    static const char *const names[] = {"down", "opening", "ready"};

    return names[state];
}

static const char *role_name(enum worker_role role)
{
    return role == WORKER_PREFILL ? "prefill" : "decode";
}

static void enter(struct worker *w, enum worker_state state)
{
    w->state = state;
    w->since_us = clock_now_us();
}

static void arm(struct worker *w, unsigned ms)
{
    struct timeval tv = {ms / 1000, (suseconds_t)(ms % 1000) * 1000};

    event_add(w->timer, &tv);
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

static void send_hello(struct worker *w, struct status *st)
{
    Baton__V1__DecodeRequest request = BATON__V1__DECODE_REQUEST__INIT;
    Baton__V1__Identity me = BATON__V1__IDENTITY__INIT;
    Grpc__Health__V1__HealthCheckRequest watch = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;

    if (w->role == WORKER_PREFILL) {
        rpc_session_send_message(w->link->session, &watch.base, st);
        return;
    }
    me.role = "router";
    me.incarnation = w->workers->incarnation;
    me.protocol = PROTOCOL;
    request.hello = &me;
    rpc_session_send_message(w->link->session, &request.base, st);
}

/* The session is not wanted any more; its closed message will still come and free the link. */
static void forget_link(struct worker *w, const struct status *why)
{
    struct session_link *link = w->link;

    w->link = NULL;
    if (link != NULL) {
        link->worker = NULL;
        rpc_session_close(link->session, why);
    }
}

static void go_down(struct worker *w, const struct status *why)
{
    struct workers *ws = w->workers;
    bool was_ready = w->state == WORKER_READY;

    /* Said once per outage, not once per attempt. */
    if (was_ready)
        log_warn("%s %s is lost: %s", role_name(w->role), w->address, why->msg);
    else if (!w->outage_told || why->code == ST_INVALID)
        log_info("%s %s is not there yet: %s", role_name(w->role), w->address, why->msg);
    w->outage_told = true;
    w->last_error = *why;
    w->n_lost += was_ready;
    forget_link(w, why);
    enter(w, WORKER_DOWN);
    if (!ws->stopping) {
        /* Jitter keeps many routers from knocking at the same instant. */
        arm(w, w->backoff_ms / 2 + (unsigned)rand() % (w->backoff_ms / 2 + 1));
        w->backoff_ms = w->backoff_ms * 2 < BACKOFF_MAX_MS ? w->backoff_ms * 2 : BACKOFF_MAX_MS;
    }
    if (was_ready && ws->callbacks.on_lost != NULL)
        ws->callbacks.on_lost(ws->callbacks.arg, w, why);
}

static void open_session(struct worker *w)
{
    static const struct rpc_session_callbacks callbacks = {on_message, on_close};
    const char *path =
        w->role == WORKER_DECODE ? "/baton.v1.Decode/Session" : "/grpc.health.v1.Health/Watch";
    struct session_link *link = calloc(1, sizeof(*link));
    struct status st;

    if (link == NULL) {
        go_down(w, &(struct status){ST_EXHAUSTED, "no memory"});
        return;
    }
    link->mailbox = w->workers->mailbox;
    link->worker = w;
    if (rpc_client_open(w->client, path, CONNECT_TIMEOUT_MS, &callbacks, link, &link->session,
                        &st) != ST_OK) {
        session_link_free(link);
        go_down(w, &st);
        return;
    }
    w->link = link;
    enter(w, WORKER_OPENING);
    arm(w, CONNECT_TIMEOUT_MS + HELLO_TIMEOUT_MS);
    send_hello(w, &st); /* when that fails, the session's end is on its way and says why */
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct worker *w = arg;
    struct status st;

    (void)fd, (void)what;
    if (w->workers->stopping)
        return;
    if (w->state == WORKER_DOWN) {
        open_session(w);
    } else if (w->state == WORKER_OPENING) {
        status_set(&st, ST_UNAVAILABLE, "no answer to our hello within %d ms",
                   CONNECT_TIMEOUT_MS + HELLO_TIMEOUT_MS);
        go_down(w, &st);
    }
}

/* ---- what workers say ------------------------------------------------------------------------ */

static void become_ready(struct worker *w)
{
    struct workers *ws = w->workers;

    event_del(w->timer);
    w->backoff_ms = BACKOFF_MIN_MS;
    w->outage_told = false;
    enter(w, WORKER_READY);
    log_info("%s %s is ready", role_name(w->role), w->address);
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
    if (id->protocol != PROTOCOL)
        return status_set(st, ST_INVALID, "it speaks protocol %u, this router %d: update the older",
                          id->protocol, PROTOCOL);
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
    Baton__V1__DecodeReply *reply = baton__v1__decode_reply__unpack(NULL, len, data);
    struct status st;

    if (reply == NULL) {
        status_set(&st, ST_CORRUPT, "a reply of %zu bytes cannot be read", len);
        go_down(w, &st);
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
            go_down(w, &st);
    }
    if (w->state == WORKER_READY)
        ws->callbacks.on_reply(ws->callbacks.arg, w, reply);
    baton__v1__decode_reply__free_unpacked(reply, NULL);
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
        if (w->workers->callbacks.on_lost != NULL)
            w->workers->callbacks.on_lost(w->workers->callbacks.arg, w, &w->last_error);
    } else if (!serving) {
        event_del(w->timer); /* it did answer: wait for the change */
    }
}

void workers_handle(struct workers *ws, struct msg *m)
{
    if (m->type == RM_SESSION_DATA) {
        struct msg_session_data *d = (struct msg_session_data *)m;
        struct worker *w = d->link->worker;

        if (w == NULL)
            return; /* of a session that was given up */
        if (w->role == WORKER_DECODE)
            on_decode_data(w, d->data, d->len);
        else
            on_health_data(w, d->data, d->len);
    } else if (m->type == RM_SESSION_CLOSED) {
        struct msg_session_closed *c = (struct msg_session_closed *)m;
        struct status why = c->why;

        if (c->link->worker == NULL || ws->stopping)
            return;
        c->link->worker->link = NULL;
        if (why.code == ST_OK)
            status_set(&why, ST_UNAVAILABLE, "it ended the session");
        go_down(c->link->worker, &why);
    }
}

enum status_code workers_send(struct worker *w, const Baton__V1__DecodeRequest *request,
                              struct status *st)
{
    if (w->state != WORKER_READY)
        return status_set(st, ST_UNAVAILABLE, "decode %s is not ready", w->address);
    return rpc_session_send_message(w->link->session, &request->base, st);
}

/* ---- choosing -------------------------------------------------------------------------------- */

size_t workers_count(const struct workers *ws, enum worker_role role)
{
    return ws->n[role];
}

size_t workers_ready(const struct workers *ws, enum worker_role role)
{
    size_t n = 0;

    for (size_t i = 0; i < ws->n[role]; i++)
        n += ws->list[role][i].state == WORKER_READY;
    return n;
}

struct worker *workers_at(struct workers *ws, enum worker_role role, size_t idx)
{
    return &ws->list[role][idx];
}

uint64_t workers_context_length(const struct workers *ws)
{
    uint64_t least = 0;

    for (size_t i = 0; i < ws->n[WORKER_DECODE]; i++) {
        const struct worker *w = &ws->list[WORKER_DECODE][i];

        if (w->state == WORKER_READY && w->context_length > 0 &&
            (least == 0 || w->context_length < least))
            least = w->context_length;
    }
    return least;
}

struct worker *workers_pick_decode(struct workers *ws, uint64_t avoid)
{
    size_t n = ws->n[WORKER_DECODE], start = ws->turn[WORKER_DECODE]++;
    struct worker *best = NULL;

    for (size_t i = 0; i < n; i++) {
        struct worker *w = &ws->list[WORKER_DECODE][(start + i) % n];

        if (w->state == WORKER_READY && (avoid >> w->idx & 1) == 0 &&
            (best == NULL || w->n_running < best->n_running))
            best = w;
    }
    return best;
}

size_t workers_pick_prefill(struct workers *ws, char **out)
{
    size_t n = ws->n[WORKER_PREFILL], start = ws->turn[WORKER_PREFILL]++, k = 0;

    for (int ready = 1; ready >= 0; ready--)
        for (size_t i = 0; i < n; i++) {
            struct worker *w = &ws->list[WORKER_PREFILL][(start + i) % n];

            if ((w->state == WORKER_READY) == ready)
                out[k++] = (char *)w->address;
        }
    return k;
}

/* ---- life ------------------------------------------------------------------------------------ */

static enum status_code add(struct workers *ws, enum worker_role role, size_t n,
                            struct rpc_client *const *clients, struct status *st)
{
    ws->list[role] = calloc(n + 1, sizeof(struct worker));
    if (ws->list[role] == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for %zu workers", n);
    ws->n[role] = n;
    for (size_t i = 0; i < n; i++) {
        struct worker *w = &ws->list[role][i];

        w->workers = ws;
        w->role = role;
        w->idx = (unsigned)i;
        w->client = clients[i];
        w->address = rpc_client_address(clients[i]);
        w->backoff_ms = BACKOFF_MIN_MS;
        w->timer = evtimer_new(ws->base, on_timer, w);
        if (w->timer == NULL)
            return status_set(st, ST_EXHAUSTED, "no memory for a timer");
    }
    return status_ok(st);
}

enum status_code workers_new(struct event_base *base, struct mailbox *mailbox,
                             const struct workers_config *config,
                             const struct workers_callbacks *callbacks, struct workers **out,
                             struct status *st)
{
    struct workers *ws = calloc(1, sizeof(*ws));

    if (ws == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the workers");
    ws->base = base;
    ws->mailbox = mailbox;
    ws->callbacks = *callbacks;
    ws->incarnation = config->incarnation;
    if (add(ws, WORKER_PREFILL, config->n_prefill, config->prefill, st) != ST_OK ||
        add(ws, WORKER_DECODE, config->n_decode, config->decode, st) != ST_OK) {
        workers_free(ws);
        return st->code;
    }
    *out = ws;
    for (int role = 0; role < 2; role++)
        for (size_t i = 0; i < ws->n[role]; i++)
            open_session(&ws->list[role][i]);
    return status_ok(st);
}

void workers_stop(struct workers *ws)
{
    static const struct status bye = {ST_OK, ""};

    if (ws == NULL)
        return;
    ws->stopping = true;
    for (int role = 0; role < 2; role++)
        for (size_t i = 0; i < ws->n[role]; i++) {
            struct worker *w = &ws->list[role][i];

            event_del(w->timer);
            forget_link(w, &bye);
            enter(w, WORKER_DOWN);
        }
}

void workers_free(struct workers *ws)
{
    if (ws == NULL)
        return;
    for (int role = 0; role < 2; role++) {
        for (size_t i = 0; i < ws->n[role]; i++)
            if (ws->list[role][i].timer != NULL)
                event_free(ws->list[role][i].timer);
        free(ws->list[role]);
    }
    free(ws);
}
