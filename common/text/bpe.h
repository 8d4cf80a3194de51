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
    BPE_MAX_MERGES = (1 << 24) - 2,
};

/* Bytes in sixteen classes: so coarse, what may stand beside a token fits in 16 bits. */
enum { BPE_N_CLASSES = 16 };

struct bpe_token {
    uint32_t left, right;     /* the merge that makes it; BPE_NONE for bytes, unreachable tokens */
    uint32_t made : 24;       /* that merge's rank + 1; 0: none */
    uint32_t first_class : 4; /* of its first byte */
    uint32_t last_class : 4;  /* of its last byte */
    /* Bit c: it, or a token at its right end (its right part, that one's right part, ...), is the
     * left of a merge whose right part begins with a byte of class c. */
    uint16_t leads;
    /* Bit c: it, or a token at its left end, is the right of a merge whose left part ends in c. */
    uint16_t follows;
};

/* Everything points into memory that the tokenizer owns. */
struct bpe {
    uint32_t n_tokens, n_merges;
    bool linear;              /* merges are as training makes them */
    const uint32_t *offsets;  /* [n_tokens + 1] into bytes */
    const uint8_t *bytes;     /* what the tokens stand for */
    const uint32_t *byte_ids; /* [256] the token of a single byte */
    const struct bpe_token *tokens;
    const uint32_t *prefixes; /* [n_tokens] the longest token that is a proper prefix; BPE_NONE */
    const uint32_t *merged;   /* [n_merges] token that a rank makes */
    const uint64_t *pairs;    /* [pairs_mask + 1] open addressing: left 20 | right 20 | rank 24 */
    uint64_t pairs_mask;
    unsigned pairs_shift;
    const uint64_t
        *filter; /* [1 << (64 - filter_shift)] two bits for each pair, see bpe_filter() */
    unsigned filter_shift;
    struct trie trie; /* of the tokens that encode to themselves; used when linear */
};

#define BPE_PAIR_FREE UINT64_MAX

/* Memory that long pieces need, kept between calls; zero-initialise. */
struct bpe_scratch {
    void *memory;
    size_t bytes;
};

void bpe_scratch_deinit(struct bpe_scratch *s);

static inline uint64_t bpe_hash(uint32_t left, uint32_t right)
{
    return ((uint64_t)left << 20 | right) * 0x9E3779B97F4A7C15u;
}

/* Most pairs that are asked for are no merges. This table of an eighth of the size, which stays in
 * the nearer caches, knows nearly all of them: a merge has both bits set in the word of its hash.
 */
static inline uint64_t bpe_filter_bits(uint64_t hash)
{
    return (uint64_t)1 << (hash >> 20 & 63) | (uint64_t)1 << (hash >> 26 & 63);
}

static inline bool bpe_may_merge(const struct bpe *b, uint64_t hash)
{
    uint64_t bits = bpe_filter_bits(hash);

    return (b->filter[hash >> b->filter_shift] & bits) == bits;
}

/** The rank of a merge, or BPE_NONE. */
static inline uint32_t bpe_rank(const struct bpe *b, uint32_t left, uint32_t right)
{
    uint64_t key = (uint64_t)left << 20 | right, hash = bpe_hash(left, right);

    if (!bpe_may_merge(b, hash))
        return BPE_NONE;
    for (uint64_t i = hash >> b->pairs_shift;; i = (i + 1) & b->pairs_mask) {
        if (b->pairs[i] >> 24 == key)
            return b->pairs[i] & 0xFFFFFF;
        if (b->pairs[i] == BPE_PAIR_FREE)
            return BPE_NONE;
    }
}

/** The class of a byte, 0 to 15. */
unsigned bpe_class(uint8_t byte);

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
