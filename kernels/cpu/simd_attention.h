/*
 * simd_attention: what an item of attention works with, in part->keys.
 */
#ifndef BATON_KERNELS_CPU_SIMD_ATTENTION_H
#define BATON_KERNELS_CPU_SIMD_ATTENTION_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd_math.h"

enum { PAIRS = 2 * VF_LANES /* elements of a vector of pairs */ };

/* Heads are padded to whole vectors, rows to whole vectors of pairs. A lane block is VF_LANES
 * heads. KEYS, DIMS: of the products. */
struct work {
    el *q;      /* [stride/2][lane blocks][PAIRS]: pairs of dims */
    el *k;      /* [KEYS][stride] */
    el *zipped; /* [dims/DIMS][KEYS/2][DIMS][2]: pairs of keys. What a tile reads lies
                 * together: rows 2^k bytes apart would all fall into the same sets of L1 */
    float *o;   /* [heads][stride] */
    float *s;   /* [lane blocks][max_keys + KEYS][VF_LANES]: logits, to be scaled; then, from
                 * the start of each block, pairs of probabilities [keys/2][PAIRS] */
    const uint8_t **row; /* [max_keys + KEYS] */
    float total[CPU_HEADS_BLOCK];
    int heads, n_blocks, D, stride;
    int64_t s_block; /* floats of one lane block of s */
};

#endif
