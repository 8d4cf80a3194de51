/*
 * bpe: byte-pair encoding of one piece of text.
 *
 * The definition: start from single bytes; merge the adjacent pair of lowest rank, the leftmost of
 * equals, until no listed pair is left. bpe_encode() finds the same tokens without doing so: a
 * sequence of tokens is the encoding exactly when each token encodes to itself and each two
 * neighbours stay apart when encoded alone, and whether two tokens stay apart is seen by undoing
 * their merges at the border, the latest first (bpe.c). So it walks from left to right, takes the
 * longest token, and on the rare refusal a shorter one or the one before back: linear, because a
 * place that failed once is never tried again.
 *
 * That needs merges as training makes them (parts before the whole, one merge a token). Tables of
 * other files are encoded by merging with a heap, O(n log n).
 *
 * Threads   a struct bpe is constant; scratch is per thread.
 */
#ifndef BATON_COMMON_TEXT_BPE_H
#define BATON_COMMON_TEXT_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/text/trie.h"

#define BPE_NONE UINT32_MAX

enum {
    BPE_MAX_TOKENS = 1 << 20, /* ids take 20 bits of a pair's entry */
    BPE_MAX_MERGES = (1 << 24) - 1,
};

struct bpe_token {
    uint32_t left, right; /* the merge that makes it; BPE_NONE for bytes and unreachable tokens */
    uint32_t made;        /* that merge's rank + 1; 0: none */
    uint32_t prefix;      /* the longest token that is a proper prefix of this one, or BPE_NONE */
};

/* Everything points into memory that the tokenizer owns. */
struct bpe {
    uint32_t n_tokens, n_merges;
    bool linear;              /* merges are as training makes them */
    const uint32_t *offsets;  /* [n_tokens + 1] into bytes */
    const uint8_t *bytes;     /* what the tokens stand for */
    const uint32_t *byte_ids; /* [256] the token of a single byte */
    const struct bpe_token *tokens;
    const uint32_t *merged; /* [n_merges] token that a rank makes */
    const uint64_t *pairs;  /* [pairs_mask + 1] open addressing: left 20 | right 20 | rank 24 */
    uint64_t pairs_mask;
    unsigned pairs_shift;
    const uint64_t *trie; /* of the tokens that encode to themselves; used when linear */
};

#define BPE_PAIR_FREE UINT64_MAX

/* Memory that long pieces need, kept between calls; zero-initialise. */
struct bpe_scratch {
    void *memory;
    size_t bytes;
};

void bpe_scratch_deinit(struct bpe_scratch *s);

/** The rank of a merge, or BPE_NONE. */
static inline uint32_t bpe_rank(const struct bpe *b, uint32_t left, uint32_t right)
{
    uint64_t key = (uint64_t)left << 20 | right;

    for (uint64_t i = (key * 0x9E3779B97F4A7C15u) >> b->pairs_shift;; i = (i + 1) & b->pairs_mask) {
        if (b->pairs[i] >> 24 == key)
            return b->pairs[i] & 0xFFFFFF;
        if (b->pairs[i] == BPE_PAIR_FREE)
            return BPE_NONE;
    }
}

/** False when BPE of the two tokens' bytes merges across their border with a rank below limit. */
bool bpe_stays_apart(const struct bpe *b, uint32_t left, uint32_t right, uint32_t limit);

/**
 * Encodes n > 0 bytes.
 * @param ids  out, room for n
 * @param n_ids  out
 * @return ST_OK; ST_EXHAUSTED when a long piece finds no memory
 */
enum status_code bpe_encode(const struct bpe *b, struct bpe_scratch *scratch, const uint8_t *s,
                            size_t n, uint32_t *ids, size_t *n_ids, struct status *st);

/** The same by the definition, with a heap: for tables that are not linear, and for tests. */
enum status_code bpe_encode_by_merging(const struct bpe *b, struct bpe_scratch *scratch,
                                       const uint8_t *s, size_t n, uint32_t *ids, size_t *n_ids,
                                       struct status *st);

#endif
