#include <grpc/grpc_security.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/rpc/rpc_health.h"
#include "common/rpc/rpc_internal.h"

enum { N_ACCEPTS = 8, METHODS_MAX = 16 };

/* One pending grpc_server_request_call. */
struct accept {
    struct rpc_tag tag;
    struct rpc_server *server;
    grpc_call *call;
    grpc_call_details details;
    grpc_metadata_array metadata;
};

struct rpc_server {
    struct rpc *rpc;
    grpc_server *server;
    int port;
    struct rpc_method methods[METHODS_MAX];
    size_t n_methods;
    struct rpc_group sessions;
    struct rpc_health *health;
    struct accept accepts[N_ACCEPTS];

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    int n_accepts; /* pending requests */
    bool stopping, stopped;
    struct rpc_tag stop_tag;
};

/* ---- unary calls: sessions of one message each way ---- */

static void unary_on_message(void *arg, struct rpc_session *s, const void *data, size_t len)
{
    const struct rpc_method *m = arg;
    struct status st;
    void *reply = NULL;
    size_t reply_len = 0;

    status_ok(&st);
    if (m->unary(m->arg, data, len, &reply, &reply_len, &st) == ST_OK)
        rpc_session_send(s, reply, reply_len, &st);
    free(reply);
    rpc_session_close(s, &st);
}

static void unary_on_close(void *arg, struct rpc_session *s, const struct status *why)
{
    (void)arg;
    (void)s;
    (void)why;
}

static const struct rpc_session_callbacks unary_callbacks = {unary_on_message, unary_on_close};

/* ---- accepting ---- */

static const struct rpc_method *find_method(const struct rpc_server *srv, grpc_slice path)
{
    size_t len = GRPC_SLICE_LENGTH(path);

    for (size_t i = 0; i < srv->n_methods; i++) {
        const char *name = srv->methods[i].path;

        if (strlen(name) == len && memcmp(name, GRPC_SLICE_START_PTR(path), len) == 0)
            return &srv->methods[i];
    }
    return NULL;
}

static void ignore_message(void *arg, struct rpc_session *s, const void *data, size_t len)
{
    (void)arg;
    (void)s;
    (void)data;
    (void)len;
}

/* A session that only says why it is refused. */
static const struct rpc_session_callbacks refused_callbacks = {ignore_message, unary_on_close};

static void serve_call(struct rpc_server *srv, grpc_call *call, grpc_slice path)
{
    const struct rpc_method *m = find_method(srv, path);
    const struct rpc_session_callbacks *callbacks = m == NULL          ? &refused_callbacks
                                                    : m->unary != NULL ? &unary_callbacks
                                                                       : &m->callbacks;
    struct rpc_session *s =
        rpc_session_new(srv->rpc, &srv->sessions, false, call, callbacks, (void *)m);
    struct status st;

    if (s == NULL) { /* the server is closing, or there is no memory */
        grpc_call_cancel_with_status(call, GRPC_STATUS_UNAVAILABLE, "server is shutting down",
                                     NULL);
        grpc_call_unref(call);
        return;
    }
    /* Started first: nothing may be sent before. Its events wait until we return: this is their
     * thread. */
    rpc_session_start(s, 0);
    status_ok(&st);
    if (m == NULL)
        status_set(&st, ST_INVALID, "no method %.*s here", (int)GRPC_SLICE_LENGTH(path),
                   (const char *)GRPC_SLICE_START_PTR(path));
    else if (m->unary == NULL && (s->arg = m->on_open(m->arg, s, &st)) == NULL)
        s->callbacks = refused_callbacks;
    if (st.code != ST_OK)
        rpc_session_close(s, &st);
}

static void request_next(struct rpc_server *srv, struct accept *a)
{
    bool stopping;

    pthread_mutex_lock(&srv->lock);
    stopping = srv->stopping;
    srv->n_accepts += !stopping;
    pthread_mutex_unlock(&srv->lock);
    if (stopping)
        return;
    grpc_call_details_init(&a->details);
    grpc_metadata_array_init(&a->metadata);
    RPC_TAG_HAND_OVER(&a->tag);
    grpc_server_request_call(srv->server, &a->call, &a->details, &a->metadata, srv->rpc->cq,
                             srv->rpc->cq, &a->tag);
}

static void on_call(struct rpc_tag *tag, bool ok)
{
    struct accept *a = tag->owner;
    struct rpc_server *srv = a->server;

    if (ok)
        serve_call(srv, a->call, a->details.method);
    grpc_call_details_destroy(&a->details);
    grpc_metadata_array_destroy(&a->metadata);
    if (ok)
        request_next(srv, a);
    pthread_mutex_lock(&srv->lock);
    srv->n_accepts--;
    pthread_cond_broadcast(&srv->changed);
    pthread_mutex_unlock(&srv->lock);
}

/* ---- start and end ---- */

static void on_stopped(struct rpc_tag *tag, bool ok)
{
    struct rpc_server *srv = tag->owner;

    (void)ok;
    pthread_mutex_lock(&srv->lock);
    srv->stopped = true;
    pthread_cond_broadcast(&srv->changed);
    pthread_mutex_unlock(&srv->lock);
}

static grpc_server *make_server(void)
{
    static const struct rpc_int_arg own[] = {
        {GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500},
        /* Two workers on one port would share its connections by chance. */
        {GRPC_ARG_ALLOW_REUSEPORT, 0},
    };
    struct rpc_channel_args args;

    return grpc_server_create(rpc_channel_args(&args, sizeof(own) / sizeof(own[0]), own), NULL);
}

enum status_code rpc_server_start(struct rpc *r, const char *address,
                                  const struct rpc_method *methods, size_t n,
                                  struct rpc_server **out, struct status *st)
{
    struct rpc_server *srv = calloc(1, sizeof(*srv));
    grpc_server_credentials *creds;

    if (srv == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a server");
    if (n + RPC_HEALTH_METHODS > METHODS_MAX) {
        free(srv);
        return status_set(st, ST_INTERNAL, "%zu methods, room for %d", n,
                          METHODS_MAX - RPC_HEALTH_METHODS);
    }
    srv->rpc = r;
    srv->n_methods = n + RPC_HEALTH_METHODS;
    if (n > 0)
        memcpy(srv->methods, methods, n * sizeof(*methods));
    srv->health = rpc_health_new(srv->methods + n);
    pthread_mutex_init(&srv->lock, NULL);
    pthread_cond_init(&srv->changed, NULL);
    rpc_group_init(&srv->sessions);
    srv->stop_tag = (struct rpc_tag){on_stopped, srv};
    srv->server = make_server();
    grpc_server_register_completion_queue(srv->server, r->cq, NULL);
    creds = rpc_server_credentials(r);
    srv->port = grpc_server_add_http2_port(srv->server, address, creds);
    grpc_server_credentials_release(creds);
    grpc_server_start(srv->server);
    if (srv->port == 0) {
        rpc_server_free(srv);
        return status_set(
            st, ST_UNAVAILABLE,
            "cannot listen on %s: is the port in use, the address one of this host's?", address);
    }
    for (int i = 0; i < N_ACCEPTS; i++) {
        srv->accepts[i].server = srv;
        srv->accepts[i].tag = (struct rpc_tag){on_call, &srv->accepts[i]};
        request_next(srv, &srv->accepts[i]);
    }
    *out = srv;
    return status_ok(st);
}

int rpc_server_port(const struct rpc_server *s)
{
    return s->port;
}

void rpc_server_set_serving(struct rpc_server *s, int serving)
{
    rpc_health_set(s->health, serving != 0);
}

void rpc_server_free(struct rpc_server *srv)
{
    struct status why;

    if (srv == NULL)
        return;
    status_set(&why, ST_UNAVAILABLE, "the server is shutting down");
    pthread_mutex_lock(&srv->lock);
    srv->stopping = true;
    pthread_mutex_unlock(&srv->lock);
    RPC_TAG_HAND_OVER(&srv->stop_tag);
    grpc_server_shutdown_and_notify(srv->server, srv->rpc->cq, &srv->stop_tag);
    rpc_group_end_all(&srv->sessions, &why);
    grpc_server_cancel_all_calls(srv->server);
    pthread_mutex_lock(&srv->lock);
    while (!srv->stopped || srv->n_accepts > 0)
        pthread_cond_wait(&srv->changed, &srv->lock);
    pthread_mutex_unlock(&srv->lock);
    grpc_server_destroy(srv->server);
    rpc_health_free(srv->health);
    rpc_group_deinit(&srv->sessions);
    pthread_cond_destroy(&srv->changed);
    pthread_mutex_destroy(&srv->lock);
    free(srv);
}
