/*
 * api_info: what the router tells about itself: models, health, readiness, metrics, workers.
 */
#include <string.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/text/chat_profile.h"
#include "router/routes.h"

static void put_string(struct buf *out, const char *s)
{
    json_write_string(out, s, strlen(s));
}

/* With the members that OpenAI's and those that Anthropic's clients look for. */
static void put_model(struct router_thread *t, struct buf *out)
{
    uint64_t context = workers_context_length(t->workers);
    time_t started = (time_t)t->router->started_unix_s;
    char created[32];
    struct tm tm;

    buf_puts(out, "{\"id\":");
    put_string(out, t->router->model_name);
    buf_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"baton\",\"root\":",
               (long long)t->router->started_unix_s);
    put_string(out, t->router->model_name);
    strftime(created, sizeof(created), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&started, &tm));
    buf_printf(out, ",\"type\":\"model\",\"created_at\":\"%s\",\"display_name\":", created);
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
        buf_puts(&body, "],\"has_more\":false,\"first_id\":");
        put_string(&body, t->router->model_name);
        buf_puts(&body, ",\"last_id\":");
        put_string(&body, t->router->model_name);
        buf_puts(&body, "}");
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
    struct buf body = {0};

    metrics_write(t->router->metrics->registry, &body);
    api_workers_metrics(t, &body);
    http_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", body.data, body.len);
    buf_deinit(&body);
}

/* The members that both of SGLang's descriptions have. */
static void put_info(struct router_thread *t, struct buf *out)
{
    buf_puts(out, "\"model_path\":");
    put_string(out, t->router->model_name);
    buf_puts(out, ",\"tokenizer_path\":");
    put_string(out, t->router->options->tokenizer_path);
    buf_printf(out, ",\"is_generation\":true,\"vocab_size\":%d,\"context_length\":%llu,",
               tokenizer_vocab(t->router->tokenizer),
               (unsigned long long)workers_context_length(t->workers));
    buf_printf(out, "\"effort_profile\":\"%s\",\"default_thinking\":%s",
               chat_profile_name(t->router->chat.profile),
               t->router->chat.default_thinking ? "true" : "false");
}

void api_model_info(struct router_thread *t, struct http_exchange *x)
{
    struct buf body = {0};

    buf_puts(&body, "{");
    put_info(t, &body);
    buf_puts(&body, "}");
    reply_json(t, x, 200, &body);
    buf_deinit(&body);
}

/* SGLang's benchmark reads this after its run: a "decode" would have to be a list of servers, and
 * internal_states must not be empty. */
void api_server_info(struct router_thread *t, struct http_exchange *x)
{
    struct buf body = {0};

    buf_puts(&body, "{");
    put_info(t, &body);
    buf_puts(&body, ",\"served_model_name\":");
    put_string(&body, t->router->model_name);
    buf_printf(&body,
               ",\"disaggregation_mode\":\"router\",\"started\":%lld,\"prefill_ready\":%zu,"
               "\"decode_ready\":%zu,\"draining\":%s,\"internal_states\":[{}]}",
               (long long)t->router->started_unix_s, workers_ready(t->workers, WORKER_PREFILL),
               workers_ready(t->workers, WORKER_DECODE), t->draining ? "true" : "false");
    reply_json(t, x, 200, &body);
    buf_deinit(&body);
}
