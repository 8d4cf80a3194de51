/*
 * api_generate: POST /generate, SGLang's own API: text in, text out, nothing rendered or parsed.
 *
 * An event of a stream carries all of the text so far, as SGLang's does: its clients cut off what
 * they have. A list of prompts, or n > 1, is answered by a list; streamed, its events say "index".
 */
#include <string.h>

#include "common/base/clock.h"
#include "common/base/json.h"
#include "router/intake.h"
#include "router/routes.h"

static void put_finish(const struct job_choice *c, const char *finish, struct buf *out)
{
    buf_printf(out, "{\"type\":\"%s\"", finish);
    if (strcmp(finish, "stop") == 0) {
        buf_puts(out, ",\"matched\":");
        job_put_matched(c, out);
    }
    buf_puts(out, "}");
}

/* An answer as it stands. @param finish  NULL while it goes on */
static void put_answer(const struct job *j, const struct job_choice *c, const char *finish,
                       struct buf *out)
{
    buf_puts(out, "{\"text\":");
    json_write_string(out, c->content.data, c->content.len);
    buf_puts(out, ",\"output_ids\":[");
    for (size_t i = 0; i < c->ids.n; i++)
        buf_printf(out, "%s%d", i > 0 ? "," : "", c->ids.ids[i]);
    buf_puts(out, "],\"meta_info\":{\"id\":");
    json_write_string(out, j->request_id, strlen(j->request_id));
    buf_puts(out, ",\"finish_reason\":");
    if (finish == NULL)
        buf_puts(out, "null");
    else if (strcmp(finish, "length") == 0)
        buf_printf(out, "{\"type\":\"length\",\"length\":%llu}",
                   (unsigned long long)c->answer.n_completion);
    else
        put_finish(c, finish, out);
    if (c->logprobs != NULL) {
        buf_puts(out, ",");
        token_logprobs_write_meta(c->logprobs, j->logprob_tops, j->logprob_text,
                                  j->thread->router->tokenizer, out);
    }
    buf_printf(out,
               ",\"prompt_tokens\":%zu,\"completion_tokens\":%llu,\"cached_tokens\":%zu,"
               "\"e2e_latency\":%.6f}",
               c->n_prompt, (unsigned long long)c->answer.n_completion, c->n_cached,
               (double)(clock_now_us() - j->begun_us) / 1e6);
    if (j->many)
        buf_printf(out, ",\"index\":%u", c->index);
    buf_puts(out, "}");
}

static void put_event(const struct job *j, const struct job_choice *c, const char *finish,
                      struct buf *out)
{
    buf_puts(out, "data: ");
    put_answer(j, c, finish, out);
    buf_puts(out, "\n\n");
}

static void begin_choice(struct job *j, struct job_choice *c, struct buf *out)
{
    (void)j, (void)c, (void)out;
}

static void delta(struct job *j, struct job_choice *c, const struct chat_delta *d, struct buf *out)
{
    buf_append(&c->content, d->text, d->len);
    put_event(j, c, NULL, out);
}

static void end_choice(struct job *j, struct job_choice *c, struct buf *out)
{
    put_event(j, c, c->answer.finish, out);
}

static void end(struct job *j, struct buf *out)
{
    (void)j;
    chat_sse_done(out);
}

static void error(struct job *j, int http_status, const char *message, struct buf *out)
{
    (void)j;
    chat_sse_error(http_status, message, out);
    chat_sse_done(out);
}

static void whole(struct job *j, struct buf *out)
{
    if (j->many)
        buf_puts(out, "[");
    for (unsigned i = 0; i < j->n_choices; i++) {
        if (i > 0)
            buf_puts(out, ",");
        put_answer(j, &j->choices[i], j->choices[i].answer.finish, out);
    }
    if (j->many)
        buf_puts(out, "]");
}

static const struct job_format format = {
    .id_prefix = "gen-",
    .keeps_ids = true,
    .aborts = true,
    .begin_choice = begin_choice,
    .delta = delta,
    .end_choice = end_choice,
    .end = end,
    .error = error,
    .whole = whole,
};

void api_generate(struct router_thread *t, struct http_exchange *x)
{
    intake_request(t, x, &http_exchange_request(x)->body, generate_task_run, &format);
}
