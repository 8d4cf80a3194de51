/*
 * compress: the compressors on a GPU; portable.
 *
 * Contract, roundings and tolerance: compress of kernels.h. Work is queued on the stream; a launch
 * that cannot be made is left to cudaGetLastError().
 * Promises  the bits of an entry depend on its tokens alone: sums go by position.
 * Limits    dim % 64 == 0, at most ROW_DIM_MAX, and a power of two for the indexer; ratio 4 or a
 *           multiple of it.
 */
#ifndef BATON_KERNELS_CUDA_COMPRESS_H
#define BATON_KERNELS_CUDA_COMPRESS_H

#include "kernels/cuda/stream.h"
#include "kernels/kernels.h"

struct compress_args {
    const float *kv, *score; /* [T][cols]; score without ape */
    const float *ape;        /* [ratio][cols] */
    const uint16_t *norm;
    const float *freq;
    struct kernel_batch b;
    struct kernel_kv v;
    uint16_t *pooled; /* workspace [T][dim] */
    int for_index, cols, dim, rope_dim;
    float eps;
};
CUDA_API void cuda_compress(cuda_stream s, struct compress_args args);

#endif
