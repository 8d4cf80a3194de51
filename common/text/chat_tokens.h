/*
 * chat_tokens: the special tokens that V4's chat format writes, with their fixed ids.
 *
 * Threads   any; constant.
 */
#ifndef BATON_COMMON_TEXT_CHAT_TOKENS_H
#define BATON_COMMON_TEXT_CHAT_TOKENS_H

#include <stdint.h>

#include "common/base/status.h"
#include "common/text/prompt.h"

struct tokenizer;

enum chat_token {
    CHAT_BOS,       /* first in every prompt, once */
    CHAT_EOS,       /* ends an assistant turn; the stop token */
    CHAT_USER,      /* opens a turn */
    CHAT_ASSISTANT, /* opens a turn */
    CHAT_THINK,     /* reasoning begins */
    CHAT_THINK_END,
    CHAT_DSML, /* inside tool-call tags; '<', '/', names and '>' around it are ordinary text */
    CHAT_REMINDER,
    CHAT_TASK_ACTION, /* tasks: from here to the end */
    CHAT_TASK_QUERY,
    CHAT_TASK_AUTHORITY,
    CHAT_TASK_DOMAIN,
    CHAT_TASK_TITLE,
    CHAT_TASK_READ_URL,
    CHAT_N_TOKENS
};

struct chat_token_info {
    const char *text; /* how the token is spelled */
    uint32_t len;     /* bytes of text */
    int32_t id;       /* in V4's vocabulary */
};

extern const struct chat_token_info chat_tokens[CHAT_N_TOKENS];

/** Writes a real token at the end of the prompt. */
static inline void chat_token_append(struct prompt *p, enum chat_token token)
{
    prompt_append_special(p, chat_tokens[token].id, chat_tokens[token].text,
                          chat_tokens[token].len);
}

/**
 * Compares the table with a tokenizer; call once at start.
 * @return ST_OK; ST_INVALID naming the first token whose id differs or is missing
 */
enum status_code chat_tokens_check(const struct tokenizer *t, struct status *st);

#endif
