/*
 * latent: heads' queries and new latents on a GPU; portable.
 *
 * Pointers are device memory; contracts, roundings and tolerances are those of the operations of
 * the same name in kernels.h. Work is queued on the stream; a launch that cannot be made is left to
 * cudaGetLastError().
 * Promises  the bits of a row depend on nothing but the row and its position.
 * Limits    head_dim % 8 == 0, at most ROW_DIM_MAX; (head_dim - rope_dim) % 64 == 0.
 */
#ifndef BATON_KERNELS_CUDA_LATENT_H
#define BATON_KERNELS_CUDA_LATENT_H

#include "kernels/cuda/stream.h"
#include "kernels/kernels.h"

struct q_norm_rope_args {
    uint16_t *q;
    const int32_t *row_pos;
    const float *freq;
    int n_heads, head_dim, rope_dim, n_rows;
    float eps;
};
CUDA_API void cuda_q_norm_rope(cuda_stream s, struct q_norm_rope_args args);

struct kv_latent_args {
    uint8_t *rows;
    const uint16_t *kv, *norm;
    const int32_t *row_pos;
    const float *freq;
    int head_dim, rope_dim, row_bytes, n_rows;
    float eps;
};
CUDA_API void cuda_kv_latent(cuda_stream s, struct kv_latent_args args);

struct window_commit_args {
    const uint8_t *rows;
    struct kernel_batch b;
    struct kernel_kv kv;
    int window;
};
CUDA_API void cuda_window_commit(cuda_stream s, struct window_commit_args args);

#endif
