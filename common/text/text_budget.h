/*
 * text_budget: how a process shares out the memory of its tokenizer: 40 MB with V4's vocabulary,
 * whatever the number of threads.
 *
 *   tables (vocabulary, merges, trie)     about 9.3 MB, what the tokenizer takes
 *   beginnings of prompts met before      10 MB, shared by all threads (prefix_tokens.h)
 *   words met before                      16 MB, shared out: each thread has its own (tokenizer.h)
 *
 * A thread's share is never more than what a word cache makes good use of, nor less than the 64 KiB
 * that it needs at least: 320 threads fit.
 */
#ifndef BATON_COMMON_TEXT_TEXT_BUDGET_H
#define BATON_COMMON_TEXT_TEXT_BUDGET_H

#include <stddef.h>

enum {
    TEXT_BUDGET_BYTES = 40 << 20,
    TEXT_BUDGET_PREFIXES = 10 << 20,
    TEXT_BUDGET_WORDS = 16 << 20,
    TEXT_BUDGET_WORDS_ONE = 3 << 20, /* of one thread, at most */
    TEXT_BUDGET_WORDS_LEAST = 64 << 10
};

/** Bytes of each thread's word cache, when n_threads have one. */
static inline size_t text_budget_words(size_t n_threads)
{
    size_t share = TEXT_BUDGET_WORDS / (n_threads > 0 ? n_threads : 1);

    return share > TEXT_BUDGET_WORDS_ONE     ? TEXT_BUDGET_WORDS_ONE
           : share < TEXT_BUDGET_WORDS_LEAST ? TEXT_BUDGET_WORDS_LEAST
                                             : share;
}

#endif
