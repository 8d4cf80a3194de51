/*
 * simd_math: what several operations do to a row: norm, rotation, Hadamard, the row formats of the
 * KV pools. Over simd.h; rows are f32 in the caller's buffers, aligned or not, lengths multiples of
 * 16 unless said otherwise (head dims, rotated dims and blocks of all models are).
 */
#ifndef BATON_KERNELS_CPU_SIMD_MATH_H
#define BATON_KERNELS_CPU_SIMD_MATH_H

#include <math.h>

#include "kernels/cpu/simd.h"

enum { HEAD_DIM_MAX = 1024 };

/* Sum of x[i]^2; any n. */
SIMD float square_sum(const float *x, int n)
{
    vf a = vf_set1(0.f), b = a;
    int i;

    for (i = 0; i + 2 * VF_LANES <= n; i += 2 * VF_LANES) {
        a = vf_fma(vf_load(x + i), vf_load(x + i), a);
        b = vf_fma(vf_load(x + i + VF_LANES), vf_load(x + i + VF_LANES), b);
    }
    for (; i < n; i += VF_LANES) {
        vf v = n - i >= VF_LANES ? vf_load(x + i) : vf_load_some(x + i, n - i);

        a = vf_fma(v, v, a);
    }
    return vf_sum(a + b);
}

/* 1 / sqrt(sum / n + eps), through double: the scale of a whole row. */
SIMD float inverse_root(double sum, int n, double eps)
{
    return (float)(1 / sqrt(sum / n + eps));
}

/* y = bf16(w * x * inverse) as bf16; any n. */
SIMD void scale_row_bf16(uint16_t *y, const float *x, const uint16_t *w, float inverse, int n)
{
    vf r = vf_set1(inverse);
    int i;

    for (i = 0; i + VF_LANES <= n; i += VF_LANES)
        vf_store_bf16(y + i, vf_load_bf16(w + i) * (vf_load(x + i) * r));
    if (i < n)
        vf_store_bf16_some(
            y + i, vf_load_bf16_some(w + i, n - i) * (vf_load_some(x + i, n - i) * r), n - i);
}

/* x = w * x / sqrt(mean(x^2) + eps), rounded to bf16, in place. */
SIMD void norm_row(float *x, const uint16_t *w, int n, double eps)
{
    vf r = vf_set1(inverse_root((double)square_sum(x, n), n, eps));

    for (int i = 0; i < n; i += VF_LANES)
        vf_store(x + i, vf_bf16(vf_load_bf16(w + i) * (vf_load(x + i) * r)));
}

SIMD void load_row(float *x, const uint16_t *bf16, int n)
{
    for (int i = 0; i < n; i += VF_LANES)
        vf_store(x + i, vf_load_bf16(bf16 + i));
}

SIMD void store_row(uint16_t *bf16, const float *x, int n)
{
    for (int i = 0; i < n; i += VF_LANES)
        vf_store_bf16(bf16 + i, vf_load(x + i));
}

/* ---- rotation ---- */

enum { ROPE_DIM_MAX = 256 };

/* cos and sin of one position, for pairs of neighbours: lane 2i and 2i + 1 hold cos_i twice, and
 * -sin_i, sin_i. */
struct rotation {
    float c[ROPE_DIM_MAX], s[ROPE_DIM_MAX];
};

/* sin and cos of |a| < 2^21, to about 1e-15: Cody-Waite reduction by FMA, Taylor series to the ends
 * of what a double holds on +-pi/4. */
SIMD void sin_cos(double a, double *sine, double *cosine)
{
    double q = rint(a * 0.63661977236758134308);
    double r = __builtin_fma(-q, 1.57079632679489661923, a);

    r = __builtin_fma(-q, 6.12323399573676603587e-17, r);
    double z = r * r;
    double s = -1.0 / 1307674368000;

    s = __builtin_fma(s, z, 1.0 / 6227020800);
    s = __builtin_fma(s, z, -1.0 / 39916800);
    s = __builtin_fma(s, z, 1.0 / 362880);
    s = __builtin_fma(s, z, -1.0 / 5040);
    s = __builtin_fma(s, z, 1.0 / 120);
    s = __builtin_fma(s, z, -1.0 / 6);
    s = __builtin_fma(s * z, r, r);
    double c = 1.0 / 20922789888000;

    c = __builtin_fma(c, z, -1.0 / 87178291200);
    c = __builtin_fma(c, z, 1.0 / 479001600);
    c = __builtin_fma(c, z, -1.0 / 3628800);
    c = __builtin_fma(c, z, 1.0 / 40320);
    c = __builtin_fma(c, z, -1.0 / 720);
    c = __builtin_fma(c, z, 1.0 / 24);
    c = __builtin_fma(c, z, -0.5);
    c = __builtin_fma(c, z, 1.0);
    int turn = (int)q & 3;
    double big = turn & 1 ? c : s, small = turn & 1 ? s : c;

    *sine = turn & 2 ? -big : big;
    *cosine = (turn + 1) & 2 ? -small : small;
}

/* The angle is a product in f32: at large positions that is part of the model. sign -1: back. */
SIMD void rotation_of(struct rotation *rot, int32_t position, const float *freq, int R, float sign)
{
    for (int i = 0; i < R / 2; i++) {
        double s, c;

        sin_cos((double)((float)position * freq[i]), &s, &c);
        rot->c[2 * i] = rot->c[2 * i + 1] = (float)c;
        rot->s[2 * i] = -sign * (float)s;
        rot->s[2 * i + 1] = sign * (float)s;
    }
}

/* Rotates the last R of n values; the results are on the bf16 grid. */
SIMD void rotate_row(float *x, int n, int R, const struct rotation *rot)
{
    float *tail = x + n - R;

    for (int i = 0; i < R; i += VF_LANES) {
        vf v = vf_load(tail + i);

        vf_store(tail + i,
                 vf_bf16(vf_fma(v, vf_load(rot->c + i), vf_swap_pairs(v) * vf_load(rot->s + i))));
    }
}

/* ---- Hadamard ---- */

/* Walsh-Hadamard transform of n = 2^k values, Sylvester order, divided by sqrt(n); bf16 grid. */
SIMD void hadamard_row(float *x, int n)
{
    for (int step = 1; step < n; step *= 2)
        for (int i = 0; i < n; i += 2 * step)
            for (int j = i; j < i + step; j++) {
                float a = x[j], b = x[j + step];

                x[j] = a + b;
                x[j + step] = a - b;
            }
    vf scale = vf_set1((float)(1 / sqrt((double)n)));

    for (int i = 0; i < n; i += VF_LANES)
        vf_store(x + i, vf_bf16(vf_load(x + i) * scale));
}

/* ---- row formats ---- */

SIMD float row_amax(const float *x, int n)
{
    vf most = vf_set1(0.f);

    for (int i = 0; i < n; i += VF_LANES)
        most = vf_max(most, vf_abs(vf_load(x + i)));
    return vf_most(most);
}

SIMD uint8_t e8m0_of(float power_of_two)
{
    uint32_t bits;

    memcpy(&bits, &power_of_two, 4);
    return (uint8_t)(bits >> 23);
}

/* Latent or entry: the first D - R as FP8 per 64, the last R as bf16, scales, zeros to row_bytes.
 */
SIMD void kv_row_store(uint8_t *row, const float *x, int D, int R, int row_bytes)
{
    int plain = D - R, used = plain + 2 * R + plain / 64;
    uint16_t tail[ROPE_DIM_MAX];

    for (int b = 0; b < plain; b += 64) {
        float amax = row_amax(x + b, 64);

        amax = amax > 1e-4f ? amax : 1e-4f;
        float scale = pow2_ceil(amax * (float)(1 / 448.0));
        vf inverse = vf_set1(1 / scale), limit = vf_set1(448.f);

        for (int i = b; i < b + 64; i += VF_LANES) {
            vf v = vf_max(vf_set1(0.f) - limit, vf_min(limit, vf_load(x + i) * inverse));

            vf_store_e4m3(row + i, vf_to_grid(v, 3, -6));
        }
        row[plain + 2 * R + b / 64] = e8m0_of(scale);
    }
    store_row(tail, x + plain, R);
    memcpy(row + plain, tail, 2 * (size_t)R);
    memset(row + used, 0, (size_t)(row_bytes - used));
}

/* The row as elements for products. */
SIMD void kv_row_load(el *x, const uint8_t *row, int D, int R)
{
    int plain = D - R;

    for (int b = 0; b < plain; b += 64) {
        uint8_t e = row[plain + 2 * R + b / 64];
        uint32_t bits = e == 0 ? 0x00400000 : e == 255 ? 0x7FC00000 : (uint32_t)e << 23;
        float scale;

        if (el_load_fp8(x + b, row + b, e))
            continue;
        memcpy(&scale, &bits, 4);
        for (int i = b; i < b + 64; i += VF_LANES)
            el_store(x + i, vf_load_e4m3(row + i) * vf_set1(scale));
    }
    for (int i = 0; i < R; i += VF_LANES)
        el_store(x + plain + i, vf_load_bf16((const uint16_t *)(const void *)(row + plain) + i));
}

/* x on the FP4 grid, per 32 values with a power-of-two scale. */
SIMD void fp4_row(float *x, int n)
{
    for (int b = 0; b < n; b += 32) {
        float amax = row_amax(x + b, 32), least = (float)(6 * 0x1p-126);

        amax = amax > least ? amax : least;
        float scale = pow2_ceil(amax * (float)(1 / 6.0));
        vf inverse = vf_set1(1 / scale), limit = vf_set1(6.f);

        for (int i = b; i < b + 32; i += VF_LANES) {
            vf v = vf_max(vf_set1(0.f) - limit, vf_min(limit, vf_load(x + i) * inverse));

            vf_store(x + i, vf_to_grid(v, 1, 0) * vf_set1(scale));
        }
    }
}

#endif
