/* The CPU's vector levels. */
#include "tests/unit/kernels/rows_levels.h"

static const int levels[] = {CPU_ISA_AVX2, CPU_ISA_AVX512, RIG_AVX512_OTHER_WAY};
const int rows_n_levels = 3;
const int rows_longest = ROWS_LONGEST;

bool rows_ready(void)
{
    return true;
}

bool rows_open(int level, struct rig *r, const struct kernel_dims *dims, int n_threads)
{
    return rig_open(r, levels[level], dims, n_threads);
}

void rows_close(struct rig *r)
{
    rig_close(r);
}
