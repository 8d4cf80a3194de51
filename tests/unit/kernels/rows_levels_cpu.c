/* The CPU's vector levels; with ROWS_LEVELS_AMX that of AMX, whose products have bits of their own.
 */
#include "tests/unit/kernels/rows_levels.h"

#include <string.h>

#ifdef ROWS_LEVELS_AMX
static const int levels[] = {CPU_ISA_AMX, RIG_AMX_OTHER_WAY};
enum { N_LEVELS = 2 };
#else
static const int levels[] = {CPU_ISA_AVX2, CPU_ISA_AVX512, RIG_AVX512_OTHER_WAY};
enum { N_LEVELS = 3 };
#endif
const int rows_n_levels = N_LEVELS, rows_n_row_levels = N_LEVELS;
const int rows_longest = ROWS_LONGEST, rows_cols_unit = 1, rows_tokens = ROWS_TOKENS_MAX;

const bool rows_alike = true;

bool rows_ready(void)
{
    return true;
}

bool rows_open(int level, struct rig *r, const struct kernel_dims *dims, int n_threads)
{
    return rig_open(r, levels[level], dims, n_threads);
}

bool rows_open_mapped(int level, struct rig *r, const struct kernel_dims *dims, int n_threads)
{
    return rig_open_mapped(r, levels[level], dims, n_threads);
}

void rows_decode(uint16_t *out, const void *row, int n)
{
    memcpy(out, row, (size_t)n * sizeof(*out));
}

void rows_close(struct rig *r)
{
    rig_close(r);
}
