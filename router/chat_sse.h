/*
 * chat_sse: writes the events of a streamed chat completion from templates
 * (tests/data/text/PARSING.md, "What a stream must look like").
 *
 * Threads   any; no state besides the struct.
 */
#ifndef BATON_ROUTER_CHAT_SSE_H
#define BATON_ROUTER_CHAT_SSE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "router/token_logprobs.h"

enum { CHAT_ID_BYTES = 40 };

struct chat_usage {
    uint64_t prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens;
};

/* What all chunks of one answer share. */
struct chat_sse {
    struct buf head; /* up to the choices */
    bool null_usage; /* include_usage: chunks without usage say so */
    bool each_usage; /* continuous_usage_stats: each chunk carries it */
    /* What the next event of a choice carries; NULL or none: null. Writing empties it. */
    struct token_logprobs *logprobs;
    enum token_logprobs_style logprobs_style;
    const struct tokenizer *tokenizer; /* needed with logprobs */
    const struct buf *matched_stop;    /* JSON, beside a finish reason; NULL: null */
};

/** Writes the head of a zeroed struct. @param object  "chat.completion.chunk", "text_completion" */
void chat_sse_init(struct chat_sse *s, const char *object, const char *id, int64_t created,
                   const char *model);
void chat_sse_deinit(struct chat_sse *s);

/* Each appends one event to out. usage is written when each_usage is set; it may be NULL otherwise.
 */
void chat_sse_role(const struct chat_sse *s, unsigned choice, const struct chat_usage *usage,
                   struct buf *out);
/** @param field  "content" or "reasoning_content"; text is whole UTF-8 characters */
void chat_sse_text(const struct chat_sse *s, unsigned choice, const char *field, const char *text,
                   size_t len, const struct chat_usage *usage, struct buf *out);
/** A call begins: its name is known. */
void chat_sse_call(const struct chat_sse *s, unsigned choice, unsigned call, const char *call_id,
                   const char *name, size_t name_len, const struct chat_usage *usage,
                   struct buf *out);
void chat_sse_arguments(const struct chat_sse *s, unsigned choice, unsigned call, const char *text,
                        size_t len, const struct chat_usage *usage, struct buf *out);
void chat_sse_finish(const struct chat_sse *s, unsigned choice, const char *reason,
                     const struct chat_usage *usage, struct buf *out);
/** A chunk of /v1/completions. @param reason  NULL while it goes on */
void chat_sse_completion(const struct chat_sse *s, unsigned choice, const char *text, size_t len,
                         const char *reason, const struct chat_usage *usage, struct buf *out);
/** The chunk without choices that carries the usage. */
void chat_sse_usage(const struct chat_sse *s, const struct chat_usage *usage, struct buf *out);
/** The chunk without choices that carries the path of the request, a JSON object. */
void chat_sse_path(const struct chat_sse *s, const struct buf *path, struct buf *out);
void chat_sse_error(int http_status, const char *message, struct buf *out);
void chat_sse_done(struct buf *out);

/** The usage object, without a name. */
void chat_usage_json(const struct chat_usage *u, struct buf *out);

#endif
