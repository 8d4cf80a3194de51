/*
 * api_info: what the router tells about itself: models, health, readiness, metrics, workers.
 */
#include <string.h>

#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/text/chat_profile.h"
#include "router/routes.h"

static void put_string(struct buf *out, const char *s)
{
    json_write_string(out, s, strlen(s));
}

static void put_model(struct router_thread *t, struct buf *out)
{
    uint64_t context = workers_context_length(t->workers);

    buf_puts(out, "{\"id\":");
    put_string(out, t->router->model_name);
    buf_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"baton\",\"root\":",
               (long long)t->router->started_unix_s);
    put_string(out, t->router->model_name);
    if (context > 0)
        buf_printf(out, ",\"max_model_len\":%llu}", (unsigned long long)context);
    else
        buf_puts(out, ",\"max_model_len\":null}");
}

void api_models(struct router_thread *t, struct http_exchange *x)
{
    const char *path = http_exchange_request(x)->path.data;
    const char *id = path + strlen("/v1/models");
    struct buf body = {0};

    if (*id == '/' && strcmp(id + 1, t->router->model_name) != 0) {
        buf_puts(&body, "the model '");
        buf_puts(&body, id + 1);
        buf_puts(&body, "' does not exist");
        reply_error(t, x, 404, "model", "model_not_found", buf_cstr(&body));
    } else if (*id == '/') {
        put_model(t, &body);
        reply_json(t, x, 200, &body);
    } else {
        buf_puts(&body, "{\"object\":\"list\",\"data\":[");
        put_model(t, &body);
        buf_puts(&body, "]}");
        reply_json(t, x, 200, &body);
    }
    buf_deinit(&body);
}

void api_health(struct router_thread *t, struct http_exchange *x)
{
    struct buf body = {0};

    buf_puts(&body, "{\"status\":\"ok\"}");
    reply_json(t, x, 200, &body);
    buf_deinit(&body);
}

void api_ready(struct router_thread *t, struct http_exchange *x)
{
    size_t prefill = workers_ready(t->workers, WORKER_PREFILL),
           decode = workers_ready(t->workers, WORKER_DECODE);
    bool ready = prefill > 0 && decode > 0 && !t->draining;
    struct buf body = {0};

    buf_printf(&body, "{\"ready\":%s,\"prefill\":%zu,\"decode\":%zu,\"draining\":%s}",
               ready ? "true" : "false", prefill, decode, t->draining ? "true" : "false");
    reply_json(t, x, ready ? 200 : 503, &body);
    buf_deinit(&body);
}

void api_metrics(struct router_thread *t, struct http_exchange *x)
{
    static const char *const roles[] = {"prefill", "decode"};
    struct buf body = {0};

    metrics_write(t->router->metrics->registry, &body);
    /* As this thread sees them: its own sessions. */
    buf_puts(&body, "# HELP baton_router_worker_ready 1 while the worker serves this router.\n"
                    "# TYPE baton_router_worker_ready gauge\n");
    for (int role = 0; role < 2; role++)
        for (size_t i = 0; i < workers_count(t->workers, role); i++) {
            const struct worker *w = workers_at(t->workers, role, i);

            buf_printf(&body, "baton_router_worker_ready{role=\"%s\",address=\"%s\"} %d\n",
                       roles[role], w->address, w->state == WORKER_READY);
        }
    http_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", body.data, body.len);
    buf_deinit(&body);
}

static void put_worker(struct buf *out, const struct worker *w)
{
    bool known = w->role == WORKER_DECODE && w->incarnation != 0;

    buf_puts(out, "{\"address\":");
    put_string(out, w->address);
    buf_printf(out, ",\"role\":\"%s\",\"state\":\"%s\",\"since_seconds\":%.3f",
               w->role == WORKER_PREFILL ? "prefill" : "decode", worker_state_name(w->state),
               (double)(clock_now_us() - w->since_us) / 1e6);
    if (w->role == WORKER_DECODE)
        buf_printf(out, ",\"running\":%u,\"submitted\":%llu", w->n_running,
                   (unsigned long long)w->n_submitted);
    buf_printf(out, ",\"lost\":%llu", (unsigned long long)w->n_lost);
    if (known) {
        buf_printf(out,
                   ",\"incarnation\":\"%016llx\",\"context_length\":%llu,\"model\":\"%016llx\"",
                   (unsigned long long)w->incarnation, (unsigned long long)w->context_length,
                   (unsigned long long)w->model_fingerprint);
        buf_puts(out, ",\"backend\":");
        put_string(out, w->backend);
    }
    if (w->transport[0] != '\0') {
        buf_puts(out, ",\"kv_transport\":");
        put_string(out, w->transport);
    }
    buf_puts(out, ",\"last_error\":");
    if (w->state != WORKER_READY && w->last_error.code != ST_OK)
        put_string(out, w->last_error.msg);
    else
        buf_puts(out, "null");
    buf_puts(out, "}");
}

void api_workers(struct router_thread *t, struct http_exchange *x)
{
    struct buf body = {0};
    bool first = true;

    buf_puts(&body, "{\"workers\":[");
    for (int role = 0; role < 2; role++)
        for (size_t i = 0; i < workers_count(t->workers, role); i++) {
            if (!first)
                buf_puts(&body, ",");
            first = false;
            put_worker(&body, workers_at(t->workers, role, i));
        }
    buf_puts(&body, "]}");
    reply_json(t, x, 200, &body);
    buf_deinit(&body);
}

void api_model_info(struct router_thread *t, struct http_exchange *x)
{
    struct buf body = {0};

    buf_puts(&body, "{\"model_path\":");
    put_string(&body, t->router->model_name);
    buf_puts(&body, ",\"tokenizer_path\":");
    put_string(&body, t->router->options->tokenizer_path);
    buf_printf(&body, ",\"is_generation\":true,\"vocab_size\":%d,\"context_length\":%llu,",
               tokenizer_vocab(t->router->tokenizer),
               (unsigned long long)workers_context_length(t->workers));
    buf_printf(&body, "\"effort_profile\":\"%s\",\"default_thinking\":%s}",
               chat_profile_name(t->router->chat.profile),
               t->router->chat.default_thinking ? "true" : "false");
    reply_json(t, x, 200, &body);
    buf_deinit(&body);
}
