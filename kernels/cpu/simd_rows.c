/*
 * simd_rows: functions of one row that the drivers use; see struct row_kernels.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

#include <math.h>

/* One block of n <= 128 values. The inverse of a power of two is exact, so x * (1 / scale) is x /
 * scale. */
static void quant_block(uint16_t *out, const uint16_t *x, int n)
{
    vf most = vf_set1(0.f), nan = most;
    int i;

    for (i = 0; i < n; i += VF_LANES) {
        vf v = n - i >= VF_LANES ? vf_load_bf16(x + i) : vf_load_bf16_some(x + i, n - i);

        most = vf_max(most, vf_abs(v));
        nan = vf_select_nan(v, v, nan);
    }
    float amax = vf_most(most);

    if (__builtin_expect(isnan(vf_sum(nan)), 0)) { /* the scale is NaN, and so are all */
        for (i = 0; i < n; i++)
            out[i] = 0x7FC0;
        return;
    }
    if (!(amax > 1e-4f))
        amax = 1e-4f;
    vf scale = vf_set1(pow2_ceil(amax * (float)(1 / 448.0)));
    vf inverse = vf_set1(1.f) / scale, limit = vf_set1(448.f);

    for (i = 0; i < n; i += VF_LANES) {
        int some = n - i;
        vf v = some >= VF_LANES ? vf_load_bf16(x + i) : vf_load_bf16_some(x + i, some);

        /* min and max return their second operand when one is NaN: a NaN stays a NaN */
        v = vf_max(vf_set1(0.f) - limit, vf_min(limit, v * inverse));
        v = vf_to_grid(v, 3, -6) * scale;
        if (some >= VF_LANES)
            vf_store_bf16(out + i, v);
        else
            vf_store_bf16_some(out + i, v, some);
    }
}

static void quant(uint16_t *out, const uint16_t *x, int n)
{
    for (int i = 0; i < n; i += CPU_QUANT_BLOCK)
        quant_block(out + i, x + i, n - i < CPU_QUANT_BLOCK ? n - i : CPU_QUANT_BLOCK);
}

static void round_row(uint16_t *out, const float *x, int n)
{
    int i;

    for (i = 0; i + VF_LANES <= n; i += VF_LANES)
        vf_store_bf16(out + i, vf_load(x + i));
    if (i < n)
        vf_store_bf16_some(out + i, vf_load_some(x + i, n - i), n - i);
}

static void add_rounded(float *sum, const float *x, int n)
{
    int i;

    for (i = 0; i + VF_LANES <= n; i += VF_LANES)
        vf_store(sum + i, vf_load(sum + i) + vf_bf16(vf_load(x + i)));
    if (i < n)
        vf_store_some(sum + i, vf_load_some(sum + i, n - i) + vf_bf16(vf_load_some(x + i, n - i)),
                      n - i);
}

SIMD vf swiglu_of(vf g, vf u, vf limit, vf weight)
{
    g = vf_min(limit, vf_bf16(g)); /* limit first: NaN passes */
    u = vf_max(vf_set1(0.f) - limit, vf_min(limit, vf_bf16(u)));
    return g * vf_sigmoid(g) * u * weight;
}

static void swiglu(uint16_t *out, const float *g, const float *u, int n, float limit, float weight)
{
    vf lim = vf_set1(limit > 0 ? limit : __builtin_inff()), w = vf_set1(weight);
    int i;

    for (i = 0; i + VF_LANES <= n; i += VF_LANES)
        vf_store_bf16(out + i, swiglu_of(vf_load(g + i), vf_load(u + i), lim, w));
    if (i < n)
        vf_store_bf16_some(
            out + i, swiglu_of(vf_load_some(g + i, n - i), vf_load_some(u + i, n - i), lim, w),
            n - i);
}

const struct row_kernels SIMD_NAME(cpu_rows) = {
    .quant = quant,
    .round = round_row,
    .add_rounded = add_rounded,
    .swiglu = swiglu,
};
