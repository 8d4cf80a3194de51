/* The CUDA kernels, wherever cuda_place.h runs them. */
#include "tests/unit/kernels/cuda_place.h"
#include "tests/unit/kernels/rows_levels.h"

const int rows_n_levels = 1;
const int rows_longest = 400;

bool rows_ready(void)
{
    return cuda_place_ready();
}

bool rows_open(int level, struct rig *r, const struct kernel_dims *dims, int n_threads)
{
    (void)level;
    if (!rig_open(r, CPU_ISA_REF, dims, n_threads))
        return false;
    cuda_place_enter(&r->k);
    cuda_place_use(&r->k);
    return true;
}

void rows_close(struct rig *r)
{
    cuda_place_leave(&r->k);
    rig_close(r);
}
