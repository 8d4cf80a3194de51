/*
 * moe: experts on a GPU: tokens sorted by expert on the device, then two grouped products for all
 * experts at once; portable (mma.sync: any sm_80+). See product.h for what the bits depend on.
 *
 * Contract, roundings and tolerance: moe_parts and moe_sum of kernels.h, of which moe is one after
 * the other. Slot i of token t is t * n_active + i, its result row t * (n_active + 1) + i of the
 * parts; the shared expert's is the last row of the token. Work is queued on the stream and needs
 * nothing of the host; a launch that cannot be made is left to cudaGetLastError().
 * Limits    n_experts <= MOE_EXPERTS_MAX, n_active <= MOE_ACTIVE_MAX; hidden and moe_inter
 *           multiples of 128; experts of a layer are all FP4 or all FP8.
 */
#ifndef BATON_KERNELS_CUDA_MOE_H
#define BATON_KERNELS_CUDA_MOE_H

#include <stddef.h>

#include "kernels/cuda/panel.h"
#include "kernels/cuda/stream.h"

enum { MOE_EXPERTS_MAX = 1024, MOE_ACTIVE_MAX = 32, MOE_ROWS_MAX = 1024 };

/* An expert on the device: gate [f][d], down [d][f], up [f][d]. */
struct moe_expert {
    const uint8_t *w1, *w2, *w3;
    const void *s1, *s2, *s3;
};

/* Consecutive slots of one expert in the sorted list. */
struct moe_tile {
    int expert, first, n;
};

struct moe_args {
    uint16_t *parts;                /* [T][n_active + 1][d] */
    const uint8_t *xq;              /* [T], quantised rows of d */
    const int32_t *ids;             /* [T][n_active] */
    const float *weights;           /* [T][n_active] */
    const struct moe_expert *table; /* [n_experts], device */
    struct moe_expert shared;       /* FP8 */
    int has_shared;                 /* else its parts are 0 */
    int first, n;                   /* experts that are here; parts of the others are 0 */
    int type;                       /* of the experts: PANEL_FP4 or PANEL_FP8 */
    int n_experts, n_active, d, f, T;
    int native;      /* see warp_mma_e4m3() */
    int shared_pass; /* set by the launch */
    float limit;
    unsigned char *work; /* [cuda_moe_work_bytes()], aligned to 16 */
};
/** Workspace of cuda_moe_parts() for T tokens. */
CUDA_API size_t cuda_moe_work_bytes(int n_experts, int n_active, int f, int T);
/** T <= MOE_ROWS_MAX. */
CUDA_API void cuda_moe_parts(cuda_stream s, struct moe_args args);

struct moe_sum_args {
    uint16_t *y;           /* [T][d] */
    const uint16_t *parts; /* [T][n_active + 1][d] */
    const int32_t *ids;    /* [T][n_active] */
    int n_active, d;
};
CUDA_API void cuda_moe_sum(cuda_stream s, struct moe_sum_args args, int T);

#endif
