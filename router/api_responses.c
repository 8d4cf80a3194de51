/*
 * api_responses: POST /v1/responses. Nothing is kept: GET of a response is refused.
 *
 *   response.created, .in_progress ─▶ (output_item.added ─▶ ...delta* ─▶ ...done)*
 *                                  ─▶ response.completed | .incomplete | .failed
 *
 * Items come in the order reasoning, message, function_call; every event carries its number. The
 * "done" events and the last one repeat what was said, so a stream keeps its text, unlike chat's.
 */
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/json.h"
#include "router/api_error.h"
#include "router/intake.h"
#include "router/routes.h"

/* ---- items ----------------------------------------------------------------------------------- */

/* "rs_...", "msg_...", "fc_...": of the response's own letters and the item's place. */
static void put_item_id(const struct job *j, enum chat_delta_kind kind, unsigned item,
                        struct buf *out)
{
    static const char *const prefixes[] = {
        [CHAT_REASONING] = "rs", [CHAT_CONTENT] = "msg", [CHAT_CALL] = "fc"};

    buf_printf(out, "\"%s_%s%u\"", prefixes[kind], j->id + strlen(j->format->id_prefix), item);
}

/* @param text  whether the part has been said; else it is empty yet */
static void put_part(const struct job_choice *c, enum chat_delta_kind kind, bool text,
                     struct buf *out)
{
    const struct buf *said = kind == CHAT_REASONING ? &c->reasoning : &c->content;

    buf_printf(out, "{\"type\":\"%s\",\"text\":",
               kind == CHAT_REASONING ? "reasoning_text" : "output_text");
    json_write_string(out, text ? said->data : "", text ? said->len : 0);
    if (kind == CHAT_CONTENT) {
        buf_puts(out, ",\"annotations\":[],\"logprobs\":[");
        if (text)
            buf_append(out, c->logprobs_text.data, c->logprobs_text.len);
        buf_puts(out, "]");
    }
    buf_puts(out, "}");
}

/* @param call  for CHAT_CALL: which */
static void put_item(const struct job *j, const struct job_choice *c, enum chat_delta_kind kind,
                     unsigned item, size_t call, bool done, const char *status, struct buf *out)
{
    static const char *const types[] = {
        [CHAT_REASONING] = "reasoning", [CHAT_CONTENT] = "message", [CHAT_CALL] = "function_call"};

    buf_puts(out, "{\"id\":");
    put_item_id(j, kind, item, out);
    buf_printf(out, ",\"type\":\"%s\",\"status\":\"%s\"", types[kind], status);
    if (kind == CHAT_CALL) {
        const struct job_call *k = &c->calls[call];

        buf_printf(out, ",\"call_id\":\"%s\",\"name\":", k->id);
        json_write_string(out, k->name.data, k->name.len);
        buf_puts(out, ",\"arguments\":");
        json_write_string(out, k->arguments.data, done ? k->arguments.len : 0);
        buf_puts(out, "}");
        return;
    }
    buf_puts(out, kind == CHAT_REASONING ? ",\"summary\":[],\"encrypted_content\":null"
                                         : ",\"role\":\"assistant\"");
    buf_puts(out, ",\"content\":[");
    if (done)
        put_part(c, kind, true, out);
    buf_puts(out, "]}");
}

/* All items of a complete answer. */
static void put_items(const struct job *j, const struct job_choice *c, const char *status,
                      struct buf *out)
{
    unsigned n = 0;

    if (c->reasoning.len > 0)
        put_item(j, c, CHAT_REASONING, n++, 0, true,
                 c->content.len + c->n_calls > 0 ? "completed" : status, out);
    if (c->content.len > 0) {
        buf_puts(out, n > 0 ? "," : "");
        put_item(j, c, CHAT_CONTENT, n++, 0, true, c->n_calls > 0 ? "completed" : status, out);
    }
    for (size_t i = 0; i < c->n_calls; i++) {
        buf_puts(out, n > 0 ? "," : "");
        put_item(j, c, CHAT_CALL, n++, i, true, i + 1 < c->n_calls ? "completed" : status, out);
    }
}

/* ---- the response ---------------------------------------------------------------------------- */

static const char *status_of(const struct job_choice *c)
{
    return strcmp(c->answer.finish, "length") == 0 ? "incomplete" : "completed";
}

static void put_usage(const struct job *j, struct buf *out)
{
    struct chat_usage u = job_usage(j);

    buf_printf(out,
               "{\"input_tokens\":%llu,\"input_tokens_details\":{\"cached_tokens\":%llu,"
               "\"cache_write_tokens\":0},\"output_tokens\":%llu,\"output_tokens_details\":"
               "{\"reasoning_tokens\":%llu},\"total_tokens\":%llu}",
               (unsigned long long)u.prompt_tokens, (unsigned long long)u.cached_tokens,
               (unsigned long long)u.completion_tokens, (unsigned long long)u.reasoning_tokens,
               (unsigned long long)(u.prompt_tokens + u.completion_tokens));
}

/* @param status   "in_progress", ...; failure: what went wrong, or NULL */
static void put_response(const struct job *j, const char *status, const char *failure,
                         struct buf *out)
{
    const char *model = j->thread->router->model_name;
    const struct job_choice *c = &j->choices[0];
    bool running = strcmp(status, "in_progress") == 0, cut = strcmp(status, "incomplete") == 0;

    buf_printf(out, "{\"id\":\"%s\",\"object\":\"response\",\"created_at\":%lld,\"status\":\"",
               j->id, (long long)j->created);
    buf_puts(out, status); /* not by a %s: under sanitizers GCC 12 takes it for NULL */
    buf_puts(out, "\",\"completed_at\":");
    if (strcmp(status, "completed") == 0)
        buf_printf(out, "%lld", (long long)clock_unix_s());
    else
        buf_puts(out, "null");
    buf_puts(out, ",\"model\":");
    json_write_string(out, model, strlen(model));
    buf_puts(out, ",\"error\":");
    if (failure != NULL) {
        buf_puts(out, "{\"code\":\"server_error\",\"message\":");
        api_error_text(out, failure);
        buf_puts(out, "}");
    } else {
        buf_puts(out, "null");
    }
    buf_printf(out, ",\"incomplete_details\":%s,\"output\":[",
               cut ? "{\"reason\":\"max_output_tokens\"}" : "null");
    if (!running)
        put_items(j, c, failure != NULL || cut ? "incomplete" : "completed", out);
    buf_puts(out, "],");
    buf_append(out, j->repeated.data, j->repeated.len);
    buf_puts(out, ",\"usage\":");
    if (running)
        buf_puts(out, "null");
    else
        put_usage(j, out);
    if (j->wants_path && !running) {
        buf_puts(out, ",\"baton\":");
        job_put_path(j, out);
    }
    buf_puts(out, "}");
}

/* ---- streamed -------------------------------------------------------------------------------- */

static void begin_event(struct job *j, const char *type, struct buf *out)
{
    buf_printf(out, "event: %s\ndata: {\"type\":\"%s\",\"sequence_number\":%llu", type, type,
               (unsigned long long)j->n_events++);
}

static void end_event(struct buf *out)
{
    buf_puts(out, "}\n\n");
}

static void put_response_event(struct job *j, const char *type, const char *status,
                               const char *failure, struct buf *out)
{
    begin_event(j, type, out);
    buf_puts(out, ",\"response\":");
    put_response(j, status, failure, out);
    end_event(out);
}

/* Begins an event about the latest item. @param part  whether it is about the item's only part */
static void begin_item_event(struct job *j, const struct job_choice *c, const char *type, bool part,
                             struct buf *out)
{
    begin_event(j, type, out);
    buf_puts(out, ",\"item_id\":");
    put_item_id(j, c->block_kind, c->n_blocks - 1, out);
    buf_printf(out, ",\"output_index\":%u%s", c->n_blocks - 1, part ? ",\"content_index\":0" : "");
}

/* output_item.added and .done hold the item itself. */
static void put_item_event(struct job *j, const struct job_choice *c, const char *type, bool done,
                           const char *status, struct buf *out)
{
    begin_event(j, type, out);
    buf_printf(out, ",\"output_index\":%u,\"item\":", c->n_blocks - 1);
    put_item(j, c, c->block_kind, c->n_blocks - 1, c->n_calls - 1, done, status, out);
    end_event(out);
}

static void put_part_event(struct job *j, const struct job_choice *c, const char *type, bool done,
                           struct buf *out)
{
    begin_item_event(j, c, type, true, out);
    buf_puts(out, ",\"part\":");
    put_part(c, c->block_kind, done, out);
    end_event(out);
}

static void close_item(struct job *j, struct job_choice *c, const char *status, struct buf *out)
{
    const struct buf *said = c->block_kind == CHAT_REASONING ? &c->reasoning : &c->content;

    if (!c->block_open)
        return;
    c->block_open = false;
    if (c->block_kind == CHAT_CALL) {
        const struct job_call *k = &c->calls[c->n_calls - 1];

        begin_item_event(j, c, "response.function_call_arguments.done", false, out);
        buf_puts(out, ",\"name\":");
        json_write_string(out, k->name.data, k->name.len);
        buf_puts(out, ",\"arguments\":");
        json_write_string(out, k->arguments.data, k->arguments.len);
        end_event(out);
    } else {
        begin_item_event(j, c,
                         c->block_kind == CHAT_REASONING ? "response.reasoning_text.done"
                                                         : "response.output_text.done",
                         true, out);
        buf_puts(out, ",\"text\":");
        json_write_string(out, said->data, said->len);
        if (c->block_kind == CHAT_CONTENT) {
            buf_puts(out, ",\"logprobs\":[");
            buf_append(out, c->logprobs_text.data, c->logprobs_text.len);
            buf_puts(out, "]");
        }
        end_event(out);
        put_part_event(j, c, "response.content_part.done", true, out);
    }
    put_item_event(j, c, "response.output_item.done", true, status, out);
}

/* Opens an item unless the latest one goes on. d is kept already. */
static void open_item(struct job *j, struct job_choice *c, const struct chat_delta *d,
                      struct buf *out)
{
    enum chat_delta_kind kind = d->kind == CHAT_ARGUMENTS ? CHAT_CALL : d->kind;

    if (c->block_open && c->block_kind == kind && d->kind != CHAT_CALL)
        return;
    c->block_open = true;
    c->block_kind = kind;
    c->n_blocks++;
    put_item_event(j, c, "response.output_item.added", false, "in_progress", out);
    if (kind != CHAT_CALL)
        put_part_event(j, c, "response.content_part.added", false, out);
}

static void begin_choice(struct job *j, struct job_choice *c, struct buf *out)
{
    (void)c;
    put_response_event(j, "response.created", "in_progress", NULL, out);
    put_response_event(j, "response.in_progress", "in_progress", NULL, out);
}

/* Keeps the log probabilities of text, drops those of calls. @return where the new ones
 * begin */
static size_t keep_logprobs(struct job *j, struct job_choice *c, const struct chat_delta *d)
{
    struct buf list = {0};
    size_t begin = c->logprobs_text.len;

    if (c->logprobs == NULL || c->logprobs->n == 0)
        return begin;
    if (d->kind != CHAT_CONTENT) {
        token_logprobs_drop(c->logprobs);
        return begin;
    }
    token_logprobs_write(c->logprobs, LOGPROBS_RESPONSES, j->thread->router->tokenizer, &list);
    buf_puts(&c->logprobs_text, begin > 0 ? "," : "");
    buf_append(&c->logprobs_text, list.data + 1, list.len - 2); /* without its brackets */
    buf_deinit(&list);
    return begin > 0 ? begin + 1 : 0;
}

static void kept(struct job *j, struct job_choice *c, const struct chat_delta *d)
{
    keep_logprobs(j, c, d);
}

static void delta(struct job *j, struct job_choice *c, const struct chat_delta *d, struct buf *out)
{
    static const char *const types[] = {
        [CHAT_REASONING] = "response.reasoning_text.delta",
        [CHAT_CONTENT] = "response.output_text.delta",
        [CHAT_ARGUMENTS] = "response.function_call_arguments.delta",
    };
    size_t logprobs_at;

    if (d->kind == CHAT_CALL || (d->kind == CHAT_CONTENT && c->block_kind == CHAT_REASONING))
        close_item(j, c, "completed", out); /* before d is kept: it may be a second call */
    logprobs_at = keep_logprobs(j, c, d);
    job_keep_delta(c, d);
    open_item(j, c, d, out);
    if (d->kind == CHAT_CALL)
        return;
    begin_item_event(j, c, types[d->kind], d->kind != CHAT_ARGUMENTS, out);
    buf_puts(out, ",\"delta\":");
    json_write_string(out, d->text, d->len);
    if (d->kind == CHAT_CONTENT) {
        buf_puts(out, ",\"logprobs\":[");
        if (logprobs_at < c->logprobs_text.len)
            buf_append(out, c->logprobs_text.data + logprobs_at,
                       c->logprobs_text.len - logprobs_at);
        buf_puts(out, "]");
    }
    end_event(out);
}

static void end_choice(struct job *j, struct job_choice *c, struct buf *out)
{
    close_item(j, c, status_of(c), out);
}

static void end(struct job *j, struct buf *out)
{
    const char *status = status_of(&j->choices[0]);
    char type[40];

    snprintf(type, sizeof(type), "response.%s", status);
    put_response_event(j, type, status, NULL, out);
}

static void error(struct job *j, int http_status, const char *message, struct buf *out)
{
    (void)http_status;
    put_response_event(j, "response.failed", "failed", message, out);
}

/* ---- whole ----------------------------------------------------------------------------------- */

static void whole(struct job *j, struct buf *out)
{
    put_response(j, status_of(&j->choices[0]), NULL, out);
}

static const struct job_format format = {
    .id_prefix = "resp_",
    .content_logprobs = true,
    .begin_choice = begin_choice,
    .delta = delta,
    .end_choice = end_choice,
    .end = end,
    .error = error,
    .kept = kept,
    .whole = whole,
};

void api_responses(struct router_thread *t, struct http_exchange *x)
{
    intake_request(t, x, &http_exchange_request(x)->body, responses_task_run, &format);
}

void api_response(struct router_thread *t, struct http_exchange *x)
{
    reply_error(t, x, 404, "response_id", "response_not_found",
                "this server keeps no responses: send the whole conversation as input");
}
