/*
 * index: the indexer on a GPU: queries, scores on tensor cores (mma.sync: any sm_80+), and the
 * choice.
 *
 * Contracts, roundings and tolerances: index_query and index_select of kernels.h. Work is queued on
 * the stream; a launch that cannot be made is left to cudaGetLastError().
 * Promises  a score depends on the query and the key alone; the choice, on the scores alone.
 * Limits    index_head_dim == INDEX_DIM; index_topk <= INDEX_TOPK_MAX; n_heads <= INDEX_HEADS_MAX;
 *           INDEX_PART * INDEX_PARTS_MAX candidates a row; key rows aligned to 4 bytes.
 */
#ifndef BATON_KERNELS_CUDA_INDEX_H
#define BATON_KERNELS_CUDA_INDEX_H

#include <stddef.h>

#include "kernels/cuda/stream.h"
#include "kernels/kernels.h"

enum {
    INDEX_DIM = 128,
    INDEX_TOPK_MAX = 2048,
    INDEX_HEADS_MAX = 128,
    INDEX_PART = 8192,   /* candidates that a block counts */
    INDEX_PARTS_MAX = 64 /* a context of two million tokens */
};

struct index_query_args {
    uint16_t *q, *weights;
    const int32_t *row_pos;
    const float *freq;
    int n_heads, rope_dim, n_rows;
    float scale; /* of the weights: f32(INDEX_DIM^-0.5 * n_heads^-0.5) */
};
CUDA_API void cuda_index_query(cuda_stream s, struct index_query_args args);

struct index_select_args {
    int32_t *chosen;
    const uint16_t *q, *weights;
    struct kernel_batch b;
    struct kernel_kv v;
    int n_heads, topk;
    unsigned char *work; /* workspace [round_rows][cuda_index_row_bytes()], aligned to 16 bytes */
    int max_context;     /* no position is at or above it */
    int round_rows;      /* rows that are scored before they are chosen from; >= 1 */
    int row0, phase;     /* set by the launch */
};
/* Scores of a row, in whole blocks of the kernel that makes them. */
static inline int64_t cuda_index_stride(int ratio, int max_context)
{
    return (max_context / ratio + 127) / 128 * 128;
}
CUDA_API size_t cuda_index_row_bytes(int ratio, int max_context);
CUDA_API void cuda_index_select(cuda_stream s, struct index_select_args args);

#endif
