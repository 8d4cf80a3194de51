/*
 * prefix_tokens: the ids of prompts seen before, so that a conversation's next turn tokenizes only
 * what is new in it.
 *
 * A special token is a safe border: text before it and behind it never shares a piece. So the ids
 * of a prompt up to a special token are those of any prompt that begins with the same bytes and the
 * same special tokens. The cache keeps such beginnings in a tree (a turn hangs on the turn before),
 * found by a keyed 128-bit hash of what leads there: the text itself is not kept, and two different
 * beginnings would have to agree in all 128 bits, with a key that nobody outside knows.
 *
 * Threads   any number share one cache; a mutex guards the tree and is not held while ids are
 *           copied or text is tokenized.
 * Promises  ids are those of tokenizer_encode_prompt(), whatever the cache holds; its memory never
 *           exceeds cap_bytes: beginnings that were not asked for longest go first.
 */
#ifndef BATON_COMMON_TEXT_PREFIX_TOKENS_H
#define BATON_COMMON_TEXT_PREFIX_TOKENS_H

#include <stddef.h>

#include "common/base/status.h"
#include "common/text/prompt.h"
#include "common/text/tokenizer.h"

struct prefix_tokens;

/**
 * @param t          borrowed; must outlive the cache
 * @param cap_bytes  the most memory for ids and the tree; 0: TEXT_BUDGET_PREFIXES, room for two and
 *                   a half million ids
 * @return ST_OK, ST_EXHAUSTED
 */
enum status_code prefix_tokens_new(const struct tokenizer *t, size_t cap_bytes,
                                   struct prefix_tokens **out, struct status *st);
void prefix_tokens_free(struct prefix_tokens *c);

/** Bytes in use. */
size_t prefix_tokens_memory(struct prefix_tokens *c);

/**
 * tokenizer_encode_prompt() that remembers. Short prompts go straight to it: looking would cost as
 * much.
 * @param words     the calling thread's word cache; may be NULL
 * @param n_reused  out, how many of the ids came from the cache; may be NULL
 * Copying a million ids costs a third of a millisecond, first-touch page faults of fresh memory
 * more than that: keep the list of one prompt for the next.
 */
enum status_code prefix_tokens_encode(struct prefix_tokens *c, struct tokenizer_cache *words,
                                      const struct prompt *p, struct token_list *out,
                                      size_t *n_reused, struct status *st);

#endif
