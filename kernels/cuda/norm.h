/*
 * norm: RMS norm and the quantiser of products' inputs, on a GPU; portable (any sm_80+).
 *
 * Pointers are device memory; contracts, roundings and tolerances are those of the operations of
 * the same name in kernels.h. Work is queued on the stream; a launch that cannot be made is left to
 * cudaGetLastError().
 * Promises  sums are f32 in an order that the inner dimension alone decides.
 */
#ifndef BATON_KERNELS_CUDA_NORM_H
#define BATON_KERNELS_CUDA_NORM_H

#include <stddef.h>

#include "kernels/cuda/stream.h"

struct rms_norm_args {
    uint16_t *y;
    const uint16_t *x, *w; /* w may be null: rounding alone is the identity then */
    int n;
    float eps;
};
/* y may be x. */
CUDA_API void cuda_rms_norm(cuda_stream s, struct rms_norm_args args, int T);

/*
 * A quantised row of n values, n a multiple of QUANT_BLOCK:
 *
 *   0    n codes, e4m3
 *   n    n / QUANT_BLOCK scales, f32, powers of two
 *        padding to a multiple of 16
 */
enum { QUANT_BLOCK = 128 };

CUDA_BOTH size_t cuda_quant_bytes(int n)
{
    return ((size_t)n + (size_t)n / QUANT_BLOCK * 4 + 15) / 16 * 16;
}

struct act_quant_args {
    uint8_t *xq;       /* [T][cuda_quant_bytes(n)] */
    const uint16_t *x; /* [T][n] */
    int n;
};
CUDA_API void cuda_act_quant(cuda_stream s, struct act_quant_args args, int T);

#endif
