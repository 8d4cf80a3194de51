/* The CUDA kernels, emulated on the host. */
#include "tests/unit/kernels/cuda_emulated.h"
#include "tests/unit/kernels/rows_levels.h"

const int rows_n_levels = 1;
const int rows_longest = 600;

bool rows_open(int level, struct rig *r, const struct kernel_dims *dims, int n_threads)
{
    (void)level;
    if (!rig_open(r, CPU_ISA_REF, dims, n_threads))
        return false;
    cuda_emulated_set(&r->k);
    return true;
}

void rows_close(struct rig *r)
{
    cuda_emulated_unset(&r->k);
    rig_close(r);
}
