#include <grpc/grpc_security.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/rpc/rpc_internal.h"

struct rpc_client {
    struct rpc *rpc;
    char *address;
    grpc_channel *channel;
    struct rpc_group sessions;
};

static grpc_channel *make_channel(const struct rpc *r, const char *address)
{
    static const struct rpc_int_arg own[] = {
        {GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100},
        {GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000},
        {GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000},
        {GRPC_ARG_ENABLE_RETRIES, 0},
        {GRPC_ARG_ENABLE_HTTP_PROXY, 0},
        /* Clients of one process to one address share nothing: each has its own connection. */
        {GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1},
    };
    struct rpc_channel_args args;
    grpc_channel_credentials *creds = rpc_channel_credentials(r);
    grpc_channel *channel = grpc_channel_create(
        address, creds, rpc_channel_args(&args, sizeof(own) / sizeof(own[0]), own));

    grpc_channel_credentials_release(creds);
    return channel;
}

enum status_code rpc_client_new(struct rpc *r, const char *address, struct rpc_client **out,
                                struct status *st)
{
    struct rpc_client *c = calloc(1, sizeof(*c));

    if (c != NULL)
        c->address = strdup(address);
    if (c == NULL || c->address == NULL) {
        free(c);
        return status_set(st, ST_EXHAUSTED, "no memory for a channel to %s", address);
    }
    c->rpc = r;
    c->channel = make_channel(r, address);
    rpc_group_init(&c->sessions);
    *out = c;
    return status_ok(st);
}

void rpc_client_free(struct rpc_client *c)
{
    struct status why;

    if (c == NULL)
        return;
    status_set(&why, ST_CANCELLED, "the channel to %s is closed", c->address);
    rpc_group_end_all(&c->sessions, &why);
    grpc_channel_destroy(c->channel);
    rpc_group_deinit(&c->sessions);
    free(c->address);
    free(c);
}

const char *rpc_client_address(const struct rpc_client *c)
{
    return c->address;
}

enum status_code rpc_client_open(struct rpc_client *c, const char *path, int connect_timeout_ms,
                                 const struct rpc_session_callbacks *callbacks, void *arg,
                                 struct rpc_session **out, struct status *st)
{
    grpc_slice method = grpc_slice_from_copied_string(path);
    grpc_call *call = grpc_channel_create_call(c->channel, NULL, 0, c->rpc->cq, method, NULL,
                                               gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
    struct rpc_session *s;

    grpc_slice_unref(method);
    s = rpc_session_new(c->rpc, &c->sessions, true, call, callbacks, arg);
    if (s == NULL) {
        grpc_call_unref(call);
        return status_set(st, ST_EXHAUSTED, "no session to %s: no memory, or it is closing",
                          c->address);
    }
    *out = rpc_session_ref(s); /* the caller's, before the end can come */
    rpc_session_start(s, connect_timeout_ms);
    return status_ok(st);
}

/* ---- a unary call is a session of one message each way ---- */

struct waiting_call {
    pthread_mutex_t lock; /* guards all */
    pthread_cond_t over;
    void *reply;
    size_t reply_len;
    bool has_reply, closed;
    struct status why;
};

static void call_message(void *arg, struct rpc_session *s, const void *data, size_t len)
{
    struct waiting_call *w = arg;

    (void)s;
    pthread_mutex_lock(&w->lock);
    free(w->reply);
    w->reply = malloc(len + 1);
    if (w->reply != NULL) {
        memcpy(w->reply, data, len);
        w->reply_len = len;
        w->has_reply = true;
    }
    pthread_mutex_unlock(&w->lock);
}

static void call_close(void *arg, struct rpc_session *s, const struct status *why)
{
    struct waiting_call *w = arg;

    (void)s;
    pthread_mutex_lock(&w->lock);
    w->why = *why;
    w->closed = true;
    pthread_cond_signal(&w->over);
    pthread_mutex_unlock(&w->lock);
}

static void wait_for_end(struct waiting_call *w, struct rpc_session *s, int timeout_ms)
{
    struct timespec until;
    struct status late;
    int rc = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    pthread_mutex_lock(&w->lock);
    while (!w->closed && rc == 0)
        rc = pthread_cond_timedwait(&w->over, &w->lock, &until);
    pthread_mutex_unlock(&w->lock);
    if (rc == 0)
        return;
    status_set(&late, ST_TIMEOUT, "no answer within %d ms", timeout_ms);
    rpc_session_cancel(s, &late);
    pthread_mutex_lock(&w->lock);
    while (!w->closed)
        pthread_cond_wait(&w->over, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

enum status_code rpc_client_call(struct rpc_client *c, const char *path, int timeout_ms,
                                 const void *request, size_t len, void **reply, size_t *reply_len,
                                 struct status *st)
{
    static const struct rpc_session_callbacks callbacks = {call_message, call_close};
    struct waiting_call w = {0};
    struct rpc_session *s;
    struct status fine;

    pthread_mutex_init(&w.lock, NULL);
    pthread_cond_init(&w.over, NULL);
    if (rpc_client_open(c, path, timeout_ms, &callbacks, &w, &s, st) != ST_OK)
        goto done;
    rpc_session_send(s, request, len, st); /* a failure shows in the final status */
    status_ok(&fine);
    rpc_session_close(s, &fine);
    wait_for_end(&w, s, timeout_ms);
    rpc_session_unref(s);
    *st = w.why;
    if (w.why.code == ST_OK && !w.has_reply)
        status_set(st, ST_INTERNAL, "%s answered without a message", c->address);
    if (st->code == ST_OK) {
        *reply = w.reply;
        *reply_len = w.reply_len;
        w.reply = NULL;
    } else {
        status_wrap(st, "%s%s", c->address, path);
    }
done:
    free(w.reply);
    pthread_cond_destroy(&w.over);
    pthread_mutex_destroy(&w.lock);
    return st->code;
}
