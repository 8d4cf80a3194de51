#include "kernels/cuda/scatter.h"
#include "kernels/cuda/device.h"

/* A block a write. Words where both ends allow it. Bound by the bus's latency. */
CUDA_KERNEL(scatter_kernel, struct scatter_args)
{
    struct scatter_write w = a.writes[blockIdx.x];
    const uint8_t *from = a.data + w.from;
    uint8_t *to = (uint8_t *)(uintptr_t)w.dst;
    uint32_t n_words = (w.dst | w.from) % 4 == 0 ? w.bytes / 4 : 0;

    for (uint32_t i = threadIdx.x; i < n_words; i += CUDA_BLOCK)
        ((uint32_t *)(void *)to)[i] = ((const uint32_t *)(const void *)from)[i];
    for (uint32_t i = n_words * 4 + threadIdx.x; i < w.bytes; i += CUDA_BLOCK)
        to[i] = from[i];
}

CUDA_API void cuda_scatter(cuda_stream s, struct scatter_args args, int n)
{
    if (n > 0)
        CUDA_LAUNCH(scatter_kernel, struct scatter_args, n, 1, CUDA_BLOCK, s, args);
}
