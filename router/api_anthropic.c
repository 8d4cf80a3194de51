/*
 * api_anthropic: POST /v1/messages and /v1/messages/count_tokens.
 *
 *   message_start ─▶ (content_block_start ─▶ content_block_delta* ─▶ content_block_stop)*
 *                 ─▶ message_delta ─▶ message_stop                     error: at any place, the
 * last
 *
 * Blocks come in the order thinking, text, tool_use; a thinking block's signature is the message's
 * id: nothing is sealed, its text is what a client sends back.
 */
#include <string.h>

#include "common/base/json.h"
#include "router/api_error.h"
#include "router/ids.h"
#include "router/intake.h"
#include "router/routes.h"

/* input_tokens are those that no cache had: Anthropic's clients add the two up. */
static void put_usage(const struct job *j, struct buf *out)
{
    struct chat_usage u = job_usage(j);

    buf_printf(out,
               "{\"input_tokens\":%llu,\"cache_creation_input_tokens\":0,"
               "\"cache_read_input_tokens\":%llu,\"output_tokens\":%llu,"
               "\"output_tokens_details\":{\"thinking_tokens\":%llu}}",
               (unsigned long long)(u.prompt_tokens - u.cached_tokens),
               (unsigned long long)u.cached_tokens, (unsigned long long)u.completion_tokens,
               (unsigned long long)u.reasoning_tokens);
}

static const char *stop_reason(const struct job_choice *c)
{
    size_t n;

    if (strcmp(c->answer.finish, "length") == 0)
        return "max_tokens";
    if (strcmp(c->answer.finish, "tool_calls") == 0)
        return "tool_use";
    return chat_answer_stop_string(&c->answer, &n) != NULL ? "stop_sequence" : "end_turn";
}

static void put_stop(const struct job_choice *c, struct buf *out)
{
    size_t n = 0;
    const char *s = chat_answer_stop_string(&c->answer, &n);

    buf_printf(out, "\"stop_reason\":\"%s\",\"stop_sequence\":", stop_reason(c));
    if (s != NULL)
        json_write_string(out, s, n);
    else
        buf_puts(out, "null");
}

static void put_head(const struct job *j, struct buf *out)
{
    const char *model = j->thread->router->model_name;

    buf_printf(out, "{\"id\":\"%s\",\"type\":\"message\",\"role\":\"assistant\",\"model\":", j->id);
    json_write_string(out, model, strlen(model));
    buf_puts(out, ",\"content\":[");
}

/* ---- streamed -------------------------------------------------------------------------------- */

static void begin_choice(struct job *j, struct job_choice *c, struct buf *out)
{
    (void)c;
    buf_puts(out, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":");
    put_head(j, out);
    buf_puts(out, "],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":");
    put_usage(j, out);
    buf_puts(out, "}}\n\n");
}

/* Opens an event about the latest block, as far as its delta's value. */
static void put_delta_head(const struct job_choice *c, const char *type, const char *member,
                           struct buf *out)
{
    buf_printf(out,
               "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":%u,"
               "\"delta\":{\"type\":\"%s\",\"%s\":",
               c->n_blocks - 1, type, member);
}

static void put_delta(const struct job_choice *c, const char *type, const char *member,
                      const char *text, size_t len, struct buf *out)
{
    put_delta_head(c, type, member, out);
    json_write_string(out, text, len);
    buf_puts(out, "}}\n\n");
}

static void close_block(struct job *j, struct job_choice *c, struct buf *out)
{
    if (!c->block_open)
        return;
    if (c->block_kind == CHAT_REASONING)
        put_delta(c, "signature_delta", "signature", j->id, strlen(j->id), out);
    buf_printf(
        out, "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":%u}\n\n",
        c->n_blocks - 1);
    c->block_open = false;
}

/* Opens a block unless the latest one goes on. */
static void open_block(struct job *j, struct job_choice *c, const struct chat_delta *d,
                       struct buf *out)
{
    enum chat_delta_kind kind = d->kind == CHAT_ARGUMENTS ? CHAT_CALL : d->kind;
    char id[JOB_CALL_ID_BYTES];

    if (c->block_open && c->block_kind == kind && d->kind != CHAT_CALL)
        return;
    close_block(j, c, out);
    c->block_open = true;
    c->block_kind = kind;
    buf_printf(out,
               "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":%u,"
               "\"content_block\":",
               c->n_blocks++);
    if (kind == CHAT_REASONING) {
        buf_puts(out, "{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}}\n\n");
    } else if (kind == CHAT_CONTENT) {
        buf_puts(out, "{\"type\":\"text\",\"text\":\"\"}}\n\n");
    } else {
        ids_call(id);
        buf_printf(out, "{\"type\":\"tool_use\",\"id\":\"%s\",\"name\":", id);
        json_write_string(out, d->text, d->len);
        buf_puts(out, ",\"input\":{}}}\n\n");
    }
}

static void delta(struct job *j, struct job_choice *c, const struct chat_delta *d, struct buf *out)
{
    open_block(j, c, d, out);
    switch (d->kind) {
    case CHAT_REASONING:
        if (!j->omit_reasoning)
            put_delta(c, "thinking_delta", "thinking", d->text, d->len, out);
        break;
    case CHAT_CONTENT:
        put_delta(c, "text_delta", "text", d->text, d->len, out);
        break;
    case CHAT_CALL:
        break;
    case CHAT_ARGUMENTS:
        put_delta(c, "input_json_delta", "partial_json", d->text, d->len, out);
        break;
    }
}

static void end_choice(struct job *j, struct job_choice *c, struct buf *out)
{
    close_block(j, c, out);
    buf_puts(out, "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{");
    put_stop(c, out);
    buf_puts(out, "},\"usage\":");
    put_usage(j, out);
    buf_puts(out, "}\n\n");
}

static void end(struct job *j, struct buf *out)
{
    (void)j;
    buf_puts(out, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n");
}

static void error(struct job *j, int http_status, const char *message, struct buf *out)
{
    buf_puts(out, "event: error\ndata: ");
    api_error_anthropic_json(out, http_status, j->request_id, message);
    buf_puts(out, "\n\n");
}

/* ---- whole ----------------------------------------------------------------------------------- */

/* Arguments that were cut off are no object: they are told as Anthropic has its users tell such. */
static void put_input(const struct buf *arguments, struct buf *out)
{
    struct json_doc *doc = NULL;
    struct status st;

    if (arguments->len == 0) {
        buf_puts(out, "{}");
    } else if (json_parse(arguments->data, arguments->len, JSON_LAST_KEY_WINS, &doc, &st) ==
               ST_OK) {
        buf_append(out, arguments->data, arguments->len);
    } else {
        buf_puts(out, "{\"INVALID_JSON\":");
        json_write_string(out, arguments->data, arguments->len);
        buf_puts(out, "}");
    }
    json_free(doc);
}

static void whole(struct job *j, struct buf *out)
{
    const struct job_choice *c = &j->choices[0];
    const char *comma = "";

    put_head(j, out);
    if (c->reasoning.len > 0) {
        buf_puts(out, "{\"type\":\"thinking\",\"thinking\":");
        json_write_string(out, c->reasoning.data, j->omit_reasoning ? 0 : c->reasoning.len);
        buf_printf(out, ",\"signature\":\"%s\"}", j->id);
        comma = ",";
    }
    if (c->content.len > 0) {
        buf_printf(out, "%s{\"type\":\"text\",\"text\":", comma);
        json_write_string(out, c->content.data, c->content.len);
        buf_puts(out, "}");
        comma = ",";
    }
    for (size_t i = 0; i < c->n_calls; i++, comma = ",") {
        buf_printf(out, "%s{\"type\":\"tool_use\",\"id\":\"%s\",\"name\":", comma, c->calls[i].id);
        json_write_string(out, c->calls[i].name.data, c->calls[i].name.len);
        buf_puts(out, ",\"input\":");
        put_input(&c->calls[i].arguments, out);
        buf_puts(out, "}");
    }
    buf_puts(out, "],");
    put_stop(c, out);
    buf_puts(out, ",\"usage\":");
    put_usage(j, out);
    buf_puts(out, "}");
}

static const struct job_format format = {
    .id_prefix = "msg_",
    .begin_choice = begin_choice,
    .delta = delta,
    .end_choice = end_choice,
    .end = end,
    .error = error,
    .ping = "event: ping\ndata: {\"type\":\"ping\"}\n\n",
    .whole = whole,
};

void api_messages(struct router_thread *t, struct http_exchange *x)
{
    intake_request(t, x, &http_exchange_request(x)->body, anthropic_task_run, &format);
}

/* ---- counting -------------------------------------------------------------------------------- */

static void answer_count(struct router_thread *t, struct http_exchange *x,
                         const struct text_task *task)
{
    char request_id[JOB_REQUEST_ID_MAX + 1];
    struct buf body = {0};

    job_name_request(x, NULL, request_id);
    reply_request_id(x, request_id);
    buf_printf(&body, "{\"input_tokens\":%zu}", task->n_prompt_tokens);
    reply_json(t, x, 200, &body);
    buf_deinit(&body);
}

void api_count_tokens(struct router_thread *t, struct http_exchange *x)
{
    static const struct job_format count = {.at_once = answer_count};

    intake_request(t, x, &http_exchange_request(x)->body, anthropic_count_task_run, &count);
}
