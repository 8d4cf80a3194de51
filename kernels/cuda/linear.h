/*
 * linear: matrix products on tensor cores, for any number of tokens; portable (mma.sync: any
 * sm_80+). See product.h for how, and for what the bits depend on.
 *
 * Pointers are device memory; contracts, roundings and tolerances are those of linear_q, linear and
 * linear_grouped of kernels.h. Work is queued on the stream; a launch that cannot be made is left
 * to cudaGetLastError().
 * Limits    cols % 32 == 0, of quantised rows % 128; rows / groups % 16 == 0 with groups > 1.
 */
#ifndef BATON_KERNELS_CUDA_LINEAR_H
#define BATON_KERNELS_CUDA_LINEAR_H

#include <stddef.h>

#include "kernels/cuda/panel.h"
#include "kernels/cuda/stream.h"

struct linear_args {
    void *y;          /* [T][y_stride], f32 or bf16 */
    const uint8_t *x; /* [T], x_bytes apart; group g of the rows reads from g * cols on (bf16) */
    struct panels w;
    int64_t y_stride;
    size_t x_bytes;
    int type;   /* enum panel_type */
    int plain;  /* x is bf16, else quantised rows */
    int native; /* see warp_mma_e4m3() */
    int groups, y_f32, T;
};
CUDA_API void cuda_linear(cuda_stream s, struct linear_args args);

#endif
