/*
 * api_flush: GET or POST /flush_cache: every worker drops the prefixes that no request uses.
 *
 *   router thread ──Admin.FlushCache──▶ each worker ──on_close, rpc thread──RM_FLUSHED──▶ router
 * thread
 *
 * A unary call is a stream of one message each way, so a session serves: nobody waits for it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "baton/v1/admin.pb-c.h"
#include "common/base/json.h"
#include "common/base/log.h"
#include "common/rpc/rpc_message.h"
#include "router/routes.h"

enum { TIMEOUT_MS = 2000 };

/* One request of a client. Router thread only. */
struct flush {
    struct http_exchange *exchange; /* NULL: the client has gone */
    size_t n_open, n_flushed, n_failed;
    struct buf failed; /* "ADDRESS: why; ADDRESS: why" */
};

/* A worker that is asked; it is the message, too. */
struct flush_call {
    struct msg base;
    struct flush *flush;
    struct mailbox *mailbox;
    struct rpc_session *session; /* router thread only; a reference */
    struct status status;        /* written by the rpc thread before it is sent */
    char address[];
};

static void on_message(void *arg, struct rpc_session *s, const void *data, size_t len)
{
    (void)arg, (void)s, (void)data, (void)len; /* the reply has no members */
}

static void on_close(void *arg, struct rpc_session *s, const struct status *why)
{
    struct flush_call *call = arg;

    (void)s;
    call->status = *why;
    mailbox_push(call->mailbox, &call->base);
}

static void note_failure(struct flush *f, const char *address, const struct status *why)
{
    f->n_failed++;
    buf_printf(&f->failed, "%s%s: %s", f->failed.len > 0 ? "; " : "", address, why->msg);
}

static void call_worker(struct router_thread *t, struct flush *f, struct worker *w)
{
    static const struct rpc_session_callbacks callbacks = {on_message, on_close};
    Baton__V1__FlushCacheRequest request = BATON__V1__FLUSH_CACHE_REQUEST__INIT;
    struct flush_call *call = calloc(1, sizeof(*call) + strlen(w->address) + 1);
    struct status st;

    if (call == NULL)
        abort();
    strcpy(call->address, w->address);
    call->base.type = RM_FLUSHED;
    call->flush = f;
    call->mailbox = t->mailbox;
    if (rpc_client_open(w->client, "/baton.v1.Admin/FlushCache", TIMEOUT_MS, &callbacks, call,
                        &call->session, &st) != ST_OK) {
        note_failure(f, w->address, &st);
        free(call);
        return;
    }
    f->n_open++;
    if (rpc_session_send_message(call->session, &request.base, &st) == ST_OK)
        status_ok(&st);
    rpc_session_close(call->session, &st); /* half: its answer ends it */
}

static void flush_free(struct flush *f)
{
    buf_deinit(&f->failed);
    free(f);
}

static void answer(struct router_thread *t, struct flush *f)
{
    struct buf body = {0};

    if (f->n_failed > 0) {
        buf_printf(&body, "%zu of %zu workers did not flush: %s", f->n_failed,
                   f->n_failed + f->n_flushed, buf_cstr(&f->failed));
        reply_error(t, f->exchange, 503, NULL, NULL, buf_cstr(&body));
    } else {
        buf_printf(&body, "{\"success\":true,\"workers\":%zu}", f->n_flushed);
        reply_json(t, f->exchange, 200, &body);
    }
    buf_deinit(&body);
}

static void on_gone(void *arg)
{
    struct flush *f = arg;

    f->exchange = NULL; /* its messages are still to come */
}

void api_flush_cache(struct router_thread *t, struct http_exchange *x)
{
    struct flush *f = calloc(1, sizeof(*f));

    if (f == NULL)
        abort();
    f->exchange = x;
    log_info("the workers' prefix caches are flushed");
    for (int role = 0; role < 2; role++)
        for (size_t i = 0; i < workers_count(t->workers, role); i++)
            call_worker(t, f, workers_at(t->workers, role, i));
    if (f->n_open > 0) {
        http_exchange_on_gone(x, on_gone, f);
        return;
    }
    answer(t, f);
    flush_free(f);
}

/* @return the flush when this was its last call */
static struct flush *close_call(struct msg *m)
{
    struct flush_call *call = (struct flush_call *)m;
    struct flush *f = call->flush;

    if (call->status.code == ST_OK)
        f->n_flushed++;
    else
        note_failure(f, call->address, &call->status);
    rpc_session_unref(call->session);
    free(call);
    return --f->n_open == 0 ? f : NULL;
}

void api_flush_arrived(struct router_thread *t, struct msg *m)
{
    struct flush *f = close_call(m);

    if (f == NULL)
        return;
    if (f->exchange != NULL)
        answer(t, f);
    flush_free(f);
}

void api_flush_drop(struct msg *m)
{
    struct flush *f = close_call(m);

    if (f != NULL)
        flush_free(f);
}
