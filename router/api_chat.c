/*
 * api_chat: POST /v1/chat/completions.
 */
#include "common/base/json.h"
#include "router/ids.h"
#include "router/intake.h"
#include "router/routes.h"

/* ---- streamed -------------------------------------------------------------------------------- */

static void begin_choice(struct job *j, struct job_choice *c, struct buf *out)
{
    struct chat_usage usage = job_usage(j);

    if (j->sse.head.len == 0)
        chat_sse_init(&j->sse, "chat.completion.chunk", j->id, j->created,
                      j->thread->router->model_name);
    chat_sse_role(&j->sse, c->index, &usage, out);
}

static void delta(struct job *j, struct job_choice *c, const struct chat_delta *d, struct buf *out)
{
    struct chat_usage usage = {0};
    char id[JOB_CALL_ID_BYTES];

    if (j->sse.each_usage)
        usage = job_usage(j);
    switch (d->kind) {
    case CHAT_REASONING:
        chat_sse_text(&j->sse, c->index, "reasoning_content", d->text, d->len, &usage, out);
        break;
    case CHAT_CONTENT:
        chat_sse_text(&j->sse, c->index, "content", d->text, d->len, &usage, out);
        break;
    case CHAT_CALL:
        ids_call(id);
        chat_sse_call(&j->sse, c->index, d->call, id, d->text, d->len, &usage, out);
        break;
    case CHAT_ARGUMENTS:
        chat_sse_arguments(&j->sse, c->index, d->call, d->text, d->len, &usage, out);
        break;
    }
}

static void end_choice(struct job *j, struct job_choice *c, struct buf *out)
{
    struct chat_usage usage = job_usage(j);
    struct buf matched = {0};

    job_put_matched(c, &matched);
    j->sse.matched_stop = &matched;
    chat_sse_finish(&j->sse, c->index, c->answer.finish, &usage, out);
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

static void put_calls(const struct job_choice *c, struct buf *out)
{
    buf_puts(out, ",\"tool_calls\":[");
    for (size_t i = 0; i < c->n_calls; i++) {
        buf_printf(out, "%s{\"index\":%zu,\"id\":\"%s\",\"type\":\"function\",", i > 0 ? "," : "",
                   i, c->calls[i].id);
        buf_puts(out, "\"function\":{\"name\":");
        json_write_string(out, c->calls[i].name.data, c->calls[i].name.len);
        buf_puts(out, ",\"arguments\":");
        json_write_string(out, c->calls[i].arguments.data, c->calls[i].arguments.len);
        buf_puts(out, "}}");
    }
    buf_puts(out, "]");
}

static void put_choice(const struct job_choice *c, struct buf *out)
{
    buf_printf(out, "{\"index\":%u,\"message\":{\"role\":\"assistant\",\"content\":", c->index);
    if (c->content.len == 0 && c->n_calls > 0)
        buf_puts(out, "null");
    else
        json_write_string(out, c->content.data, c->content.len);
    buf_puts(out, ",\"reasoning_content\":");
    if (c->reasoning.len == 0)
        buf_puts(out, "null");
    else
        json_write_string(out, c->reasoning.data, c->reasoning.len);
    if (c->n_calls > 0)
        put_calls(c, out);
    buf_puts(out, "},\"logprobs\":");
    job_put_logprobs(c, out);
    buf_printf(out, ",\"finish_reason\":\"%s\",\"matched_stop\":", c->answer.finish);
    job_put_matched(c, out);
    buf_puts(out, "}");
}

static void whole(struct job *j, struct buf *out)
{
    job_put_head(j, "chat.completion", out);
    for (unsigned i = 0; i < j->n_choices; i++) {
        buf_puts(out, i > 0 ? "," : "");
        put_choice(&j->choices[i], out);
    }
    job_put_tail(j, out);
}

static const struct job_format format = {
    .id_prefix = "chatcmpl-",
    .aborts = true,
    .logprobs_style = LOGPROBS_CHAT,
    .begin_choice = begin_choice,
    .delta = delta,
    .end_choice = end_choice,
    .end = job_put_stream_tail,
    .error = error,
    .whole = whole,
};

void api_chat(struct router_thread *t, struct http_exchange *x)
{
    intake_request(t, x, &http_exchange_request(x)->body, chat_task_run, &format);
}
