/*
 * gate: which experts a token goes to, on a GPU; portable.
 *
 * Contract, roundings and tolerance: gate of kernels.h. Work is queued on the stream; a launch that
 * cannot be made is left to cudaGetLastError().
 * Promises  a row's choice depends on nothing but the row.
 * Limits    n_experts <= GATE_EXPERTS_MAX; n_active <= GATE_ACTIVE_MAX and <= n_experts.
 */
#ifndef BATON_KERNELS_CUDA_GATE_H
#define BATON_KERNELS_CUDA_GATE_H

#include "kernels/cuda/stream.h"

enum { GATE_EXPERTS_MAX = 1024, GATE_ACTIVE_MAX = 32 };

struct gate_args {
    int32_t *ids;          /* [T][n_active] */
    float *weights;        /* [T][n_active] */
    const float *logits;   /* [T][n_experts]: x . gate^T, by cuda_linear() */
    const float *bias;     /* [n_experts]; may be null */
    const int64_t *table;  /* [vocab][n_active]; null: the largest are chosen */
    const int32_t *tokens; /* [T]; used with a table */
    int n_experts, n_active;
    double route_scale;
};
CUDA_API void cuda_gate(cuda_stream s, struct gate_args args, int T);

#endif
