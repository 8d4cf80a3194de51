#include "kernels/cuda/backend.h"
#include "kernels/cuda/emulated.h"
#include "tests/unit/kernels/cuda_place.h"

#include <stdlib.h>
#include <string.h>

const int cuda_place_n_levels = 2;

bool cuda_place_ready(void)
{
    return true;
}

int cuda_place_open(struct kernels *k, int level, const struct kernel_dims *dims,
                    const struct kernel_env *env)
{
    struct emulated_options opt = {.no_e4m3 = level == 1, .hidden = level == CUDA_PLACE_HIDDEN};
    struct gpu *g = gpu_emulated_open(&opt);

    return g != NULL ? cuda_backend_open(k, g, dims, env) : -1;
}

void *cuda_place_alloc(size_t bytes)
{
    size_t whole = (bytes + 64) / 64 * 64;
    void *p = aligned_alloc(64, whole);

    if (p == NULL)
        abort();
    return memset(p, 0, whole);
}

void cuda_place_free(void *p)
{
    free(p);
}

void cuda_place_enter(struct kernels *k)
{
    (void)k;
}

void cuda_place_leave(struct kernels *k)
{
    (void)k;
}
