/*
 * emulated: the CUDA backend with a GPU that the host emulates (emulate.h), for tests: the same
 * table, the same kernels, the same memory accounts.
 *
 * Threads   one a GPU, as emulate.h.
 */
#ifndef BATON_KERNELS_CUDA_EMULATED_H
#define BATON_KERNELS_CUDA_EMULATED_H

#include "kernels/cuda/gpu.h"

struct emulated_options {
    size_t memory_bytes; /* 0: 1 GiB, of which only what is used is touched */
    bool hidden;         /* its memory has no host address, as with a real one */
    bool no_e4m3;        /* an sm_80: products of bf16 alone */
};

/** @return a GPU, or NULL: no memory */
struct gpu *gpu_emulated_open(const struct emulated_options *opt);

#endif
