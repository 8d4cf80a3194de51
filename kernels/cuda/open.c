/* kernels_open_cuda() of a build with nvcc. */
#include <stdio.h>

#include "kernels/cuda/backend.h"

int kernels_open_cuda(struct kernels *k, int ordinal, const struct kernel_dims *dims,
                      const struct kernel_env *env)
{
    struct gpu_options opt = {.ordinal = ordinal};
    struct gpu *g = gpu_cuda_open(&opt, k->error, sizeof(k->error));

    return g != NULL ? cuda_backend_open(k, g, dims, env) : -1;
}
