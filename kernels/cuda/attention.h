/*
 * attention: one token's attention over its window and its compressed entries, on tensor cores
 * (mma.sync: any sm_80+).
 *
 * Contract, roundings and tolerance: attention of kernels.h; but a probability is rounded to bf16
 * relative to the largest logit so far, not to the largest of all. Work is queued on the stream; a
 * launch that cannot be made is left to cudaGetLastError().
 * Promises  keys are cut into splits of ATTENTION_SPLIT by their place in the token's list, each is
 *           summed by itself, and splits are merged in order with the same arithmetic whether one
 *           block has them all (prefill) or one each (decode): the same bits.
 * Limits    head_dim % 64 == 0, at most 512; rope_dim == 64; rows of the pools aligned to 8 bytes;
 *           a NaN code of a row stands beside a NaN scale, as every quantiser here writes it.
 */
#ifndef BATON_KERNELS_CUDA_ATTENTION_H
#define BATON_KERNELS_CUDA_ATTENTION_H

#include <stddef.h>

#include "kernels/cuda/stream.h"
#include "kernels/kernels.h"

enum { ATTENTION_SPLIT = 128, ATTENTION_HEADS = 32 };

struct attention_args {
    uint16_t *o;
    const uint16_t *q;
    const uint8_t *rows;
    const int32_t *chosen; /* [T][index_topk]; null unless ratio 4 */
    const float *sink, *freq;
    struct kernel_batch b;
    struct kernel_kv kv;
    int n_heads, head_dim, rope_dim, window, index_topk;
    float *partial; /* workspace of n_splits a row (below); null: one block has all splits */
    int n_splits;   /* most that a row of this call has; unused without partial */
};

/* Most splits of a row when no position is at or above max_context. */
static inline int cuda_attention_splits(int ratio, int window, int index_topk, int max_context)
{
    int all = ratio == 0 ? 0 : max_context / ratio;
    int keys = window + (ratio == 4 && index_topk < all ? index_topk : all);

    return (keys + ATTENTION_SPLIT - 1) / ATTENTION_SPLIT;
}

static inline size_t cuda_attention_partial_bytes(int n_heads, int head_dim, int n_splits, int T)
{
    return (size_t)T * (size_t)n_heads * (size_t)n_splits * ((size_t)head_dim + 2) * sizeof(float);
}

/** Worth a workspace where the rows alone do not fill the GPU: T * ceil(n_heads / ATTENTION_HEADS)
 * below its number of SMs. */
CUDA_API void cuda_attention(cuda_stream s, struct attention_args args);

#endif
