/* kernels_open_cuda() of a build without nvcc. */
#include <stdio.h>

#include "kernels/kernels.h"

int kernels_open_cuda(struct kernels *k, int ordinal, const struct kernel_dims *dims,
                      const struct kernel_env *env)
{
    (void)ordinal;
    (void)dims;
    (void)env;
    snprintf(k->error, sizeof(k->error),
             "this build has no CUDA kernels: build where nvcc is on PATH (meson's summary says "
             "whether it was found)");
    return -1;
}
