/*
 * api_completions: POST /v1/completions, and /health_generate, which asks for one token.
 */
#include "common/base/json.h"
#include "router/intake.h"
#include "router/routes.h"

/* ---- streamed -------------------------------------------------------------------------------- */

static void begin_choice(struct job *j, struct job_choice *c, struct buf *out)
{
    (void)c, (void)out;
    if (j->sse.head.len == 0)
        chat_sse_init(&j->sse, "text_completion", j->id, j->created, j->thread->router->model_name);
}

static void put_text(struct job *j, struct job_choice *c, const char *text, size_t len,
                     const char *reason, struct buf *out)
{
    struct chat_usage usage = {0};

    if (j->sse.each_usage)
        usage = job_usage(j);
    chat_sse_completion(&j->sse, c->index, text, len, reason, &usage, out);
}

static void delta(struct job *j, struct job_choice *c, const struct chat_delta *d, struct buf *out)
{
    put_text(j, c, d->text, d->len, NULL, out);
}

static void end_choice(struct job *j, struct job_choice *c, struct buf *out)
{
    struct buf matched = {0};

    job_put_matched(c, &matched);
    j->sse.matched_stop = &matched;
    put_text(j, c, "", 0, c->answer.finish, out);
    j->sse.matched_stop = NULL;
    buf_deinit(&matched);
}

static void error(struct job *j, int http_status, const char *message, struct buf *out)
{
    (void)j;
    chat_sse_error(http_status, message, out);
    chat_sse_done(out);
}

/* ---- whole ----------------------------------------------------------------------------------- */

static void whole(struct job *j, struct buf *out)
{
    job_put_head(j, "text_completion", out);
    for (unsigned i = 0; i < j->n_choices; i++) {
        const struct job_choice *c = &j->choices[i];

        buf_printf(out, "%s{\"index\":%u,\"text\":", i > 0 ? "," : "", i);
        json_write_string(out, c->content.data, c->content.len);
        buf_puts(out, ",\"logprobs\":");
        job_put_logprobs(c, out);
        buf_printf(out, ",\"finish_reason\":\"%s\",\"matched_stop\":", c->answer.finish);
        job_put_matched(c, out);
        buf_puts(out, "}");
    }
    job_put_tail(j, out);
}

static void whole_health(struct job *j, struct buf *out)
{
    buf_puts(out, "{\"status\":\"ok\",\"path\":");
    job_put_path(j, out);
    buf_puts(out, "}");
}

static const struct job_format format = {
    .id_prefix = "cmpl-",
    .aborts = true,
    .logprobs_style = LOGPROBS_COMPLETION,
    .begin_choice = begin_choice,
    .delta = delta,
    .end_choice = end_choice,
    .end = job_put_stream_tail,
    .error = error,
    .whole = whole,
};

static const struct job_format health_format = {.id_prefix = "health-", .whole = whole_health};

void api_completions(struct router_thread *t, struct http_exchange *x)
{
    intake_request(t, x, &http_exchange_request(x)->body, completion_task_run, &format);
}

void api_health_generate(struct router_thread *t, struct http_exchange *x)
{
    struct buf body = {0};

    buf_puts(&body, "{\"prompt\": [0], \"max_tokens\": 1, \"temperature\": 0}");
    intake_request(t, x, &body, completion_task_run, &health_format);
}
