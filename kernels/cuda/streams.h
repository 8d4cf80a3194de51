/*
 * streams: embedding, hyper-connections, the head's read and the MTP join on a GPU; portable.
 *
 * Pointers are device memory; contracts, roundings and tolerances are those of the operations of
 * the same name in kernels.h. Work is queued on the stream; a launch that cannot be made is left to
 * cudaGetLastError().
 * Promises  the bits of a row depend on nothing but the row.
 * Limits    hc == STREAMS_HC; hidden % 8 == 0, at most STREAMS_HIDDEN_MAX; rows aligned to 8 bytes.
 */
#ifndef BATON_KERNELS_CUDA_STREAMS_H
#define BATON_KERNELS_CUDA_STREAMS_H

#include <stddef.h>

#include "kernels/cuda/stream.h"

enum {
    STREAMS_HC = 4, /* of every release */
    STREAMS_MIX = (2 + STREAMS_HC) * STREAMS_HC,
    STREAMS_HIDDEN_MAX = 8192,
    STREAMS_SLICE = 512 /* columns whose products are summed before they leave the block */
};

struct embed_args {
    uint16_t *streams;
    const uint16_t *table;
    const int32_t *tokens;
    int hidden, copies;
};
CUDA_API void cuda_embed(cuda_stream s, struct embed_args args, int T);

/* hc_read; with rows, hc_head (n_fn = hc, post and comb unused). */
struct hc_read_args {
    uint16_t *x;
    float *post, *comb;
    const uint16_t *streams;
    const int32_t *rows; /* null: row t itself */
    const float *fn, *scale, *base;
    const uint16_t *norm; /* null: none */
    float *partial;       /* workspace: cuda_hc_partial_bytes() */
    int n_fn, hidden, iters;
    float hc_eps, norm_eps;
};
static inline size_t cuda_hc_partial_bytes(int hidden, int T)
{
    size_t slices = ((size_t)STREAMS_HC * (size_t)hidden + STREAMS_SLICE - 1) / STREAMS_SLICE;

    return (size_t)T * slices * (STREAMS_MIX + 1) * sizeof(float);
}
CUDA_API void cuda_hc_read(cuda_stream s, struct hc_read_args args, int T);
CUDA_API void cuda_hc_head(cuda_stream s, struct hc_read_args args, int n);

struct hc_write_args {
    uint16_t *out; /* may be streams */
    const uint16_t *y, *streams;
    const float *post, *comb;
    int hidden;
};
CUDA_API void cuda_hc_write(cuda_stream s, struct hc_write_args args, int T);

struct mtp_join_args {
    uint16_t *out; /* may be h */
    const uint16_t *e, *h;
    int hidden;
};
CUDA_API void cuda_mtp_join(cuda_stream s, struct mtp_join_args args, int T);

#endif
