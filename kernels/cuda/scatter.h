/* scatter: many small writes from pinned host memory in one launch. */
#ifndef BATON_KERNELS_CUDA_SCATTER_H
#define BATON_KERNELS_CUDA_SCATTER_H

#include "kernels/cuda/stream.h"

struct scatter_write {
    uint64_t dst;         /* device */
    uint32_t from, bytes; /* in scatter_args.data */
};

struct scatter_args {
    const struct scatter_write *writes; /* both pinned: a kernel reads them over the bus */
    const uint8_t *data;
};
/* Writes that overlap are made in any order. */
CUDA_API void cuda_scatter(cuda_stream s, struct scatter_args args, int n);

#endif
