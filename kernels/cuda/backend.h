/*
 * backend: the operations of kernels.h on one GPU: memory, weights in panels, the table.
 *
 * Weights go through two pinned pieces, one of which is filled while the other is on the bus, and
 * are put in order by the device. What the host writes between launches (the batch of a step) is
 * gathered, and one kernel scatters it before the next operation: a step costs one launch for it,
 * not a copy an array.
 *
 * Threads   one caller; weight_load copies with kernel_env.parallel.
 */
#ifndef BATON_KERNELS_CUDA_BACKEND_H
#define BATON_KERNELS_CUDA_BACKEND_H

#include "kernels/cuda/gpu.h"
#include "kernels/kernels.h"

/**
 * Opens the backend on a GPU, which is its own from now on, also when this fails.
 * @return 0, or -1 with k->error set
 */
int cuda_backend_open(struct kernels *k, struct gpu *gpu, const struct kernel_dims *dims,
                      const struct kernel_env *env);

#endif
