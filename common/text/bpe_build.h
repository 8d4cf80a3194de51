/*
 * bpe_build: the tables of bpe.h, from a vocabulary and its merges.
 *
 * Threads   start-up only.
 */
#ifndef BATON_COMMON_TEXT_BPE_BUILD_H
#define BATON_COMMON_TEXT_BPE_BUILD_H

#include "common/text/bpe.h"

struct bpe_merge {
    uint32_t left, right, whole;
};

/* What bpe_build() makes; everything malloc'ed, bpe_tables_deinit() frees it. */
struct bpe_tables {
    bool linear;
    struct bpe_token *tokens; /* [n_tokens] */
    uint32_t *prefixes;       /* [n_tokens] */
    uint32_t *merged;         /* [n_merges] */
    uint64_t *pairs;
    size_t n_pairs; /* a power of two */
    uint64_t *filter;
    size_t n_filter; /* a power of two */
    uint32_t *trie;  /* [2 n_trie] */
    size_t n_trie;
};

void bpe_tables_deinit(struct bpe_tables *t);

/**
 * @param vocab   n_tokens, offsets, bytes and byte_ids are read; byte_ids name 256 tokens of a byte
 * @param merges  [n_merges] by rank; ids < n_tokens, and whole's bytes are left's then right's
 * @return ST_OK; ST_INVALID naming a merge that is listed twice; ST_EXHAUSTED
 */
enum status_code bpe_build(const struct bpe *vocab, const struct bpe_merge *merges,
                           uint32_t n_merges, struct bpe_tables *out, struct status *st);

#endif
