#include "common/worker/admin.h"

#include <event2/buffer.h>
#include <event2/http.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "baton/v1/admin.pb-c.h"
#include "common/base/log.h"
#include "common/rpc/rpc_message.h"
#include "common/worker/orders.h"

enum { HEADERS_MAX_BYTES = 16384, IDLE_TIMEOUT_S = 10 };

/* ---- the Admin service ---- */

static enum status_code describe(void *arg, const void *request, size_t len, void **reply,
                                 size_t *reply_len, struct status *st)
{
    const struct worker *w = arg;
    Baton__V1__DescribeReply r = BATON__V1__DESCRIBE_REPLY__INIT;
    Baton__V1__Identity identity;

    (void)request;
    (void)len;
    worker_identity(w, &identity);
    r.identity = &identity;
    r.has_page_bytes = r.has_slot_bytes = r.has_n_pages = r.has_n_slots = r.has_weight_bytes = true;
    r.page_bytes = w->geometry->page_bytes;
    r.slot_bytes = w->geometry->slot_bytes;
    r.n_pages = w->kv.n_pages;
    r.n_slots = w->kv.n_slots;
    r.weight_bytes = model_weight_bytes(w->model);
    r.kv_transport = (char *)w->opt.kv_transport;
    return rpc_message_pack(&r.base, reply, reply_len, st);
}

enum { STATS_MAX = 256 };

struct stats {
    Baton__V1__Stat items[STATS_MAX], *pointers[STATS_MAX];
    char names[STATS_MAX][128];
    size_t n;
};

static void add_stat(void *arg, const char *name, double value)
{
    struct stats *s = arg;
    Baton__V1__Stat *item = &s->items[s->n];

    if (s->n == STATS_MAX)
        return;
    baton__v1__stat__init(item);
    snprintf(s->names[s->n], sizeof(s->names[0]), "%s", name);
    item->name = s->names[s->n];
    item->value = value;
    s->pointers[s->n++] = item;
}

static enum status_code stats(void *arg, const void *request, size_t len, void **reply,
                              size_t *reply_len, struct status *st)
{
    const struct worker *w = arg;
    Baton__V1__StatsReply r = BATON__V1__STATS_REPLY__INIT;
    struct stats *s = calloc(1, sizeof(*s));

    (void)request;
    (void)len;
    if (s == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for stats");
    metrics_each(w->metrics, add_stat, s);
    r.n_stats = s->n;
    r.stats = s->pointers;
    rpc_message_pack(&r.base, reply, reply_len, st);
    free(s);
    return st->code;
}

static enum status_code flush(void *arg, const void *request, size_t len, void **reply,
                              size_t *reply_len, struct status *st)
{
    Baton__V1__FlushCacheReply r = BATON__V1__FLUSH_CACHE_REPLY__INIT;

    (void)request;
    (void)len;
    orders_flush_cache(arg);
    return rpc_message_pack(&r.base, reply, reply_len, st);
}

void admin_methods(struct worker *w, struct rpc_method *out)
{
    out[0] = (struct rpc_method){.path = "/baton.v1.Admin/Describe", .unary = describe, .arg = w};
    out[1] = (struct rpc_method){.path = "/baton.v1.Admin/Stats", .unary = stats, .arg = w};
    out[2] = (struct rpc_method){.path = "/baton.v1.Admin/FlushCache", .unary = flush, .arg = w};
    out[3] = publisher_method(w->publisher);
}

/* ---- HTTP ---- */

static void answer(struct evhttp_request *req, int code, const char *type, const char *body)
{
    struct evbuffer *b = evbuffer_new();

    if (b == NULL) {
        evhttp_send_error(req, 503, NULL);
        return;
    }
    evbuffer_add(b, body, strlen(body));
    evhttp_add_header(evhttp_request_get_output_headers(req), "Content-Type", type);
    evhttp_send_reply(req, code, NULL, b);
    evbuffer_free(b);
}

/* The process lives and its event loop turns. */
static void on_health(struct evhttp_request *req, void *arg)
{
    (void)arg;
    answer(req, 200, "application/json", "{\"status\":\"ok\"}\n");
}

/* It takes requests. */
static void on_ready(struct evhttp_request *req, void *arg)
{
    struct worker *w = arg;

    if (atomic_load(&w->ready))
        answer(req, 200, "application/json", "{\"ready\":true}\n");
    else
        answer(req, 503, "application/json", "{\"ready\":false}\n");
}

static void on_metrics(struct evhttp_request *req, void *arg)
{
    struct worker *w = arg;
    struct buf text = {0};

    metrics_write(w->metrics, &text);
    answer(req, 200, "text/plain; version=0.0.4", buf_cstr(&text));
    buf_deinit(&text);
}

static void on_flush(struct evhttp_request *req, void *arg)
{
    if (evhttp_request_get_command(req) != EVHTTP_REQ_POST) {
        answer(req, 405, "application/json", "{\"error\":\"POST it\"}\n");
        return;
    }
    orders_flush_cache(arg);
    answer(req, 200, "application/json", "{\"status\":\"ok\"}\n");
}

static void on_other(struct evhttp_request *req, void *arg)
{
    (void)arg;
    answer(req, 404, "application/json",
           "{\"error\":\"no such page: there are /health, /ready, /metrics and /flush_cache\"}\n");
}

enum status_code admin_http_open(struct worker *w, struct status *st)
{
    int64_t port =
        w->opt.admin_port != 0 ? w->opt.admin_port : w->opt.port + WORKER_ADMIN_PORT_OFFSET;

    w->http = evhttp_new(w->base);
    if (w->http == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the admin HTTP server");
    evhttp_set_allowed_methods(w->http, EVHTTP_REQ_GET | EVHTTP_REQ_HEAD | EVHTTP_REQ_POST);
    evhttp_set_max_headers_size(w->http, HEADERS_MAX_BYTES);
    evhttp_set_max_body_size(w->http, 0);
    evhttp_set_timeout(w->http, IDLE_TIMEOUT_S);
    evhttp_set_cb(w->http, "/health", on_health, w);
    evhttp_set_cb(w->http, "/ready", on_ready, w);
    evhttp_set_cb(w->http, "/metrics", on_metrics, w);
    evhttp_set_cb(w->http, "/flush_cache", on_flush, w);
    evhttp_set_gencb(w->http, on_other, w);
    if (port > 65535 || evhttp_bind_socket(w->http, w->opt.host, (uint16_t)port) != 0)
        return status_set(st, ST_UNAVAILABLE,
                          "cannot listen for admin HTTP on %s:%" PRId64
                          ": is the port in use? --admin-port chooses another",
                          w->opt.host, port);
    w->admin_port = (int)port;
    return status_ok(st);
}

void admin_http_close(struct worker *w)
{
    if (w->http != NULL)
        evhttp_free(w->http);
    w->http = NULL;
}
