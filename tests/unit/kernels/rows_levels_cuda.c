/* The CUDA backend, wherever cuda_place.h runs it. */
#include "kernels/cuda/norm.h"
#include "kernels/ref/formats.h"
#include "tests/unit/kernels/cuda_place.h"
#include "tests/unit/kernels/rows_levels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

/* cuda_place_n_levels; only products with weights look at whether there is e4m3. */
const int rows_n_levels = 2, rows_n_row_levels = 1;
const int rows_longest = 400, rows_cols_unit = 32, rows_tokens = 70;
const bool rows_alike = false;

bool rows_ready(void)
{
    return cuda_place_ready();
}

static void run_pool(void *pool, void (*fn)(void *, int, int), void *arg)
{
    pool_run(pool, fn, arg);
}

bool rows_open(int level, struct rig *r, const struct kernel_dims *dims, int n_threads)
{
    struct kernel_env env = {.parallel = run_pool, .n_threads = n_threads};
    struct status st;

    assert_int_equal(rows_n_levels, cuda_place_n_levels);
    assert_int_equal(pool_new(n_threads, &r->pool, &st), ST_OK);
    env.pool = r->pool;
    if (cuda_place_open(&r->k, level, dims, &env) != 0)
        fail_msg("%s", r->k.error);
    return true;
}

bool rows_open_mapped(int level, struct rig *r, const struct kernel_dims *dims, int n_threads)
{
    return rows_open(level, r, dims, n_threads);
}

void rows_close(struct rig *r)
{
    assert_int_equal(r->k.ops->sync(&r->k), 0);
    rig_close(r);
}

void rows_decode(uint16_t *out, const void *row, int n)
{
    const uint8_t *codes = row;

    for (int i = 0; i < n; i++) {
        float scale;

        memcpy(&scale, codes + n + i / QUANT_BLOCK * 4, sizeof(scale));
        out[i] = bf16_encode(e4m3_decode(codes[i]) * scale);
    }
}
