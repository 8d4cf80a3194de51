/*
 * chat: from a list of messages to the DeepSeek-V4 prompt, byte for byte as the release encoder
 * writes it, and from an OpenAI chat-completion request to such a list. The rules, with their
 * sources: tests/data/text/ENCODING.md.
 *
 * The output is a struct prompt: text whose real special tokens are known, so that nothing a client
 * sends can open a turn or a tool call.
 *
 * Promises  the prompt is valid UTF-8 when the JSON is; cost is linear in the request (n log n in
 *           tool calls); no recursion, so depth of schemas and arguments is bounded by memory.
 * Threads   any; no shared state.
 */
#ifndef BATON_COMMON_TEXT_CHAT_H
#define BATON_COMMON_TEXT_CHAT_H

#include <stdbool.h>

#include "common/base/json.h"
#include "common/base/status.h"
#include "common/text/prompt.h"
#include "common/text/turn.h"

/* The two releases of the format: they differ in the reasoning-effort prefix alone. */
enum chat_profile {
    CHAT_PREVIEW, /* April 2026 */
    CHAT_GA       /* V4-Flash-0731, V4-Pro-0813 and later V4 builds */
};

enum {
    /* How request bodies are read: strictly. Of a key that stands twice, readers take one value or
     * the other: what a proxy has checked need not be what we would do, so it is refused. */
    CHAT_JSON_FLAGS = 0
};

struct chat_options {
    enum chat_profile profile;
    bool default_thinking; /* the mode of a request that says nothing about it */
};

/* What the client did wrong: the fields of an OpenAI error object. */
struct chat_error {
    int status;        /* HTTP: 400, or 503 when memory is out */
    char message[512]; /* UTF-8; names the message's index where there is one */
    char param[128];   /* "messages[3].content"; empty when no field is to blame */
    const char *code;  /* "missing_required_parameter", "invalid_value", ...; static */
    /* Set by a caller whose messages were made from another API's list: how that is called, and
     * which element message i came from. NULL: "messages", and i itself. */
    const char *list;
    const uint32_t *origin;
};

struct chat_prompt {
    struct prompt prompt;
    enum turn_start start; /* where the output parser begins */
    bool tools;            /* whether it looks for tool calls */
    bool thinking;         /* the mode that was chosen */
    bool think_max;        /* the most effort was asked for */
};

/**
 * Renders an OpenAI chat-completion body (ENCODING.md, section 9). Reads messages, tools,
 * tool_choice, response_format, thinking, reasoning_effort, chat_template_kwargs,
 * continue_final_message and task; sampling fields are the caller's.
 * @param out  zero-initialised or used before (its memory is reused); complete on success only
 * @return ST_OK; ST_INVALID or ST_EXHAUSTED with err filled
 */
enum status_code chat_request_render(const struct json *body, const struct chat_options *opt,
                                     struct chat_prompt *out, struct chat_error *err);

/** Frees the memory; out may be used again. */
void chat_prompt_deinit(struct chat_prompt *out);

/**
 * The release encoder itself (ENCODING.md, sections 2-8): an object with messages, thinking_mode
 * and optional drop_thinking, reasoning_effort, tools, response_format.
 * @param out  emptied first; complete on success only
 */
enum status_code chat_encode(const struct json *request, enum chat_profile profile,
                             struct prompt *out, struct chat_error *err);

#endif
