/*
 * token_logprobs: log probabilities of tokens on their way from a worker's message to the client,
 * and how OpenAI's two APIs write them.
 *
 * A token is shown by its own text. Bytes that are no UTF-8 by themselves (a character may be cut
 * into tokens) are written as \xf0, each, as OpenAI does; "bytes" are exact. A probability of 0 is
 * written as -9999, since JSON has no infinity.
 *
 * Threads   one owner.
 */
#ifndef BATON_ROUTER_TOKEN_LOGPROBS_H
#define BATON_ROUTER_TOKEN_LOGPROBS_H

#include "baton/v1/common.pb-c.h"
#include "common/text/tokenizer.h"

enum token_logprobs_style {
    LOGPROBS_CHAT, /* {"content":[{"token":..,"logprob":..,"bytes":[..],"top_logprobs":[..]}]} */
    LOGPROBS_RESPONSES, /* [{"token":..,"logprob":..,"bytes":[..],"top_logprobs":[..]}] */
    LOGPROBS_COMPLETION /* {"tokens":[..],"token_logprobs":[..],"top_logprobs":[..],"text_offset":..}
                         */
};

/* Zero-initialise; token_logprobs_deinit() at the end. */
struct token_logprobs {
    size_t n;           /* tokens not written yet */
    size_t n_prompt;    /* of them the prompt's, which are the first */
    size_t text_offset; /* of the first of them, in characters */
    struct buf tokens;  /* their ids and numbers */
    struct buf top;     /* the most probable ones of each */
};

/**
 * @param n_tokens  that m must tell of
 * @return ST_OK; ST_CORRUPT: m is NULL, of another number of tokens, contradicts itself, or names a
 *         token outside the vocabulary
 */
enum status_code token_logprobs_check(const Baton__V1__Logprobs *m, size_t n_tokens,
                                      const struct tokenizer *t, struct status *st);

/**
 * Adds token i of a checked message.
 * @param top_at  where its most probable ones begin in m; moved behind them
 */
void token_logprobs_add(struct token_logprobs *l, int32_t id, const Baton__V1__Logprobs *m,
                        size_t i, size_t *top_at);

/** Adds a token that nothing goes before: the first of a prompt. Its probability is null. */
void token_logprobs_add_first(struct token_logprobs *l, int32_t id);

/** Writes all that was added as a JSON object, and forgets it. */
void token_logprobs_write(struct token_logprobs *l, enum token_logprobs_style style,
                          const struct tokenizer *t, struct buf *out);

/** Forgets all that was added. */
void token_logprobs_drop(struct token_logprobs *l);

/** Writes all that was added as SGLang's members of "meta_info", and forgets nothing.
 * @param tops  whether the most probable ones are told; text: whether tokens have theirs */
void token_logprobs_write_meta(const struct token_logprobs *l, bool tops, bool text,
                               const struct tokenizer *t, struct buf *out);

void token_logprobs_deinit(struct token_logprobs *l);

#endif
