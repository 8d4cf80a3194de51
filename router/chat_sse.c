#include "router/chat_sse.h"

#include "common/base/json.h"
#include "router/api_error.h"

static void put(struct buf *out, const char *s)
{
    buf_puts(out, s);
}

void chat_sse_init(struct chat_sse *s, const char *object, const char *id, int64_t created,
                   const char *model)
{
    buf_printf(&s->head, "data: {\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", id,
               object, (long long)created);
    json_write_string(&s->head, model, strlen(model));
    put(&s->head, ",\"choices\":[");
}

void chat_sse_deinit(struct chat_sse *s)
{
    buf_deinit(&s->head);
}

void chat_usage_json(const struct chat_usage *u, struct buf *out)
{
    put(out, "{\"prompt_tokens\":");
    buf_put_number(out, u->prompt_tokens);
    put(out, ",\"completion_tokens\":");
    buf_put_number(out, u->completion_tokens);
    put(out, ",\"total_tokens\":");
    buf_put_number(out, u->prompt_tokens + u->completion_tokens);
    put(out, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    buf_put_number(out, u->cached_tokens);
    put(out, "},\"completion_tokens_details\":{\"reasoning_tokens\":");
    buf_put_number(out, u->reasoning_tokens);
    put(out, "}}");
}

static void begin(const struct chat_sse *s, unsigned choice, struct buf *out)
{
    buf_append(out, s->head.data, s->head.len);
    put(out, "{\"index\":");
    buf_put_number(out, choice);
    put(out, ",\"delta\":{");
}

static void end(const struct chat_sse *s, const char *reason, const struct chat_usage *usage,
                struct buf *out)
{
    put(out, ",\"logprobs\":");
    if (s->logprobs != NULL && s->logprobs->n > 0)
        token_logprobs_write(s->logprobs, s->logprobs_style, s->tokenizer, out);
    else
        put(out, "null");
    put(out, ",\"finish_reason\":");
    if (reason == NULL) {
        put(out, "null");
    } else {
        put(out, "\"");
        put(out, reason);
        put(out, "\",\"matched_stop\":");
        if (s->matched_stop != NULL)
            buf_append(out, s->matched_stop->data, s->matched_stop->len);
        else
            put(out, "null");
    }
    put(out, "}]");
    if (s->each_usage) {
        put(out, ",\"usage\":");
        chat_usage_json(usage, out);
    } else if (s->null_usage) {
        put(out, ",\"usage\":null");
    }
    put(out, "}\n\n");
}

void chat_sse_role(const struct chat_sse *s, unsigned choice, const struct chat_usage *usage,
                   struct buf *out)
{
    begin(s, choice, out);
    put(out, "\"role\":\"assistant\",\"content\":\"\"}");
    end(s, NULL, usage, out);
}

void chat_sse_text(const struct chat_sse *s, unsigned choice, const char *field, const char *text,
                   size_t len, const struct chat_usage *usage, struct buf *out)
{
    begin(s, choice, out);
    put(out, "\"");
    put(out, field);
    put(out, "\":");
    json_write_string(out, text, len);
    put(out, "}");
    end(s, NULL, usage, out);
}

void chat_sse_call(const struct chat_sse *s, unsigned choice, unsigned call, const char *call_id,
                   const char *name, size_t name_len, const struct chat_usage *usage,
                   struct buf *out)
{
    begin(s, choice, out);
    put(out, "\"tool_calls\":[{\"index\":");
    buf_put_number(out, call);
    put(out, ",\"id\":\"");
    put(out, call_id);
    put(out, "\",\"type\":\"function\",\"function\":{\"name\":");
    json_write_string(out, name, name_len);
    put(out, ",\"arguments\":\"\"}}]}");
    end(s, NULL, usage, out);
}

void chat_sse_arguments(const struct chat_sse *s, unsigned choice, unsigned call, const char *text,
                        size_t len, const struct chat_usage *usage, struct buf *out)
{
    begin(s, choice, out);
    put(out, "\"tool_calls\":[{\"index\":");
    buf_put_number(out, call);
    put(out, ",\"function\":{\"arguments\":");
    json_write_string(out, text, len);
    put(out, "}}]}");
    end(s, NULL, usage, out);
}

void chat_sse_finish(const struct chat_sse *s, unsigned choice, const char *reason,
                     const struct chat_usage *usage, struct buf *out)
{
    begin(s, choice, out);
    put(out, "}");
    end(s, reason, usage, out);
}

void chat_sse_completion(const struct chat_sse *s, unsigned choice, const char *text, size_t len,
                         const char *reason, const struct chat_usage *usage, struct buf *out)
{
    buf_append(out, s->head.data, s->head.len);
    put(out, "{\"index\":");
    buf_put_number(out, choice);
    put(out, ",\"text\":");
    json_write_string(out, text, len);
    end(s, reason, usage, out);
}

void chat_sse_usage(const struct chat_sse *s, const struct chat_usage *usage, struct buf *out)
{
    buf_append(out, s->head.data, s->head.len);
    put(out, "],\"usage\":");
    chat_usage_json(usage, out);
    put(out, "}\n\n");
}

void chat_sse_path(const struct chat_sse *s, const struct buf *path, struct buf *out)
{
    buf_append(out, s->head.data, s->head.len);
    put(out, "],\"baton\":");
    buf_append(out, path->data, path->len);
    put(out, "}\n\n");
}

void chat_sse_error(int http_status, const char *message, struct buf *out)
{
    put(out, "data: ");
    api_error_json(out, http_status, NULL, NULL, message);
    put(out, "\n\n");
}

void chat_sse_done(struct buf *out)
{
    put(out, "data: [DONE]\n\n");
}
