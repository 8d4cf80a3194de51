/*
 * dense: norms, quantiser and matrix products on a GPU; portable (any sm_80+), correct first.
 *
 * Pointers are device memory; contracts, roundings and tolerances are those of the operations of
 * the same name in kernels.h. Weights lie as in the checkpoint, scales as f32. Work is queued on
 * the stream; a launch that cannot be made is left to cudaGetLastError().
 * Promises  sums are f32 in an order that the inner dimension alone decides.
 */
#ifndef BATON_KERNELS_CUDA_DENSE_H
#define BATON_KERNELS_CUDA_DENSE_H

#include "kernels/cuda/stream.h"

struct rms_norm_args {
    uint16_t *y;
    const uint16_t *x, *w; /* w may be null: rounding alone is the identity then */
    int n;
    float eps;
};
/* y may be x. */
CUDA_API void cuda_rms_norm(cuda_stream s, struct rms_norm_args args, int T);

struct act_quant_args {
    uint16_t *xq; /* code times scale: exact in bf16 */
    const uint16_t *x;
    int n; /* a multiple of 128 */
};
CUDA_API void cuda_act_quant(cuda_stream s, struct act_quant_args args, int T);

enum dense_type { DENSE_BF16, DENSE_FP8, DENSE_FP4 };

struct linear_args {
    void *y;
    const uint16_t *x; /* [T][groups * cols] */
    const void *w;     /* [rows][cols]; group g of the rows reads columns g of x */
    const float *scale;
    int type; /* enum dense_type */
    int rows, cols, groups;
    int y_f32; /* else bf16 */
};
CUDA_API void cuda_linear(cuda_stream s, struct linear_args args, int T);

#endif
