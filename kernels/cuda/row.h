/*
 * row: what several kernels do to one row of f32 in shared memory, a block of CUDA_BLOCK threads
 * to a row: norm, rotation, Hadamard, and the row formats of the KV pools (kernels/ref/formats.h).
 *
 * Every function begins and ends with the row visible to all threads of the block.
 */
#ifndef BATON_KERNELS_CUDA_ROW_H
#define BATON_KERNELS_CUDA_ROW_H

#include "kernels/cuda/device.h"

enum { ROW_DIM_MAX = 1024 };

/* sin and cos of |x| < 2^21 to about 1e-15, and so, rounded, those that the model has: Cody-Waite
 * reduction, then Taylor series to the ends of what a double holds on +-pi/4. About 25 FP64
 * instructions: sinf and cosf are not near enough, a flipped rounding of a rotated value moves all
 * that Hadamard's transform mixes it into. */
CUDA_DEVICE void dev_sin_cos(double x, float *sine, float *cosine)
{
    double q = rint(x * 0.63661977236758134308), r, z, s, c;
    int turn = (int)q & 3;

    r = fma(-q, 1.57079632679489661923, x);
    r = fma(-q, 6.12323399573676603587e-17, r);
    z = r * r;
    s = fma(-1.0 / 1307674368000, z, 1.0 / 6227020800);
    s = fma(s, z, -1.0 / 39916800);
    s = fma(s, z, 1.0 / 362880);
    s = fma(s, z, -1.0 / 5040);
    s = fma(s, z, 1.0 / 120);
    s = fma(s, z, -1.0 / 6);
    s = fma(s * z, r, r);
    c = fma(1.0 / 20922789888000, z, -1.0 / 87178291200);
    c = fma(c, z, 1.0 / 479001600);
    c = fma(c, z, -1.0 / 3628800);
    c = fma(c, z, 1.0 / 40320);
    c = fma(c, z, -1.0 / 720);
    c = fma(c, z, 1.0 / 24);
    c = fma(c, z, -0.5);
    c = fma(c, z, 1.0);
    *sine = (float)(turn & 1 ? c : s) * (turn & 2 ? -1.0f : 1.0f);
    *cosine = (float)(turn & 1 ? s : c) * ((turn + 1) & 2 ? -1.0f : 1.0f);
}

/* Rotates a pair by an angle whose cosine and sine are given. Rounded to bf16. */
CUDA_DEVICE void dev_turn(float *even, float *odd, float c, float s)
{
    float x = *even, y = *odd;

    *even = dev_bf16_grid(fmaf(x, c, -(y * s)));
    *odd = dev_bf16_grid(fmaf(x, s, y * c));
}

/* The same by position * freq. The angle is a product in f32: at large positions that is part of
 * the model. */
CUDA_DEVICE void dev_rotate(float *even, float *odd, int32_t position, float freq)
{
    float c, s;

    dev_sin_cos((double)((float)position * freq), &s, &c);
    dev_turn(even, odd, c, s);
}

/* x = bf16(w * x / sqrt(mean(x^2) + eps)). scratch: as block_sum's. */
CUDA_DEVICE void row_norm(float *x, const uint16_t *w, int n, float eps, float *scratch)
{
    float sum = 0, root;

    for (int i = (int)threadIdx.x; i < n; i += CUDA_BLOCK)
        sum += x[i] * x[i];
    root = sqrtf(block_sum(sum, scratch) / (float)n + eps);
    for (int i = (int)threadIdx.x; i < n; i += CUDA_BLOCK)
        x[i] = dev_bf16_grid(dev_from_bf16(w[i]) * x[i] / root);
    __syncthreads();
}

/* Rotates the last R of n values. */
CUDA_DEVICE void row_rotate(float *x, int n, int R, int32_t position, const float *freq)
{
    for (int i = (int)threadIdx.x; i < R / 2; i += CUDA_BLOCK)
        dev_rotate(&x[n - R + 2 * i], &x[n - R + 2 * i + 1], position, freq[i]);
    __syncthreads();
}

/* Walsh-Hadamard transform of n = 2^k values, divided by sqrt(n); rounded to bf16. */
CUDA_DEVICE void row_hadamard(float *x, int n)
{
    float scale = 1 / sqrtf((float)n);

    for (int step = 1; step < n; step *= 2) {
        for (int i = (int)threadIdx.x; i < n / 2; i += CUDA_BLOCK) {
            int j = i / step * 2 * step + i % step;
            float p = x[j], q = x[j + step];

            x[j] = p + q;
            x[j + step] = p - q;
        }
        __syncthreads();
    }
    for (int i = (int)threadIdx.x; i < n; i += CUDA_BLOCK)
        x[i] = dev_bf16_grid(x[i] * scale);
    __syncthreads();
}

/* A latent or an entry: a warp takes 64 values at a time; the last warps' lanes the rotated ones.
 */
CUDA_DEVICE void row_pack_entry(uint8_t *row, const float *x, int D, int R, int row_bytes)
{
    int plain = D - R, used = plain + 2 * R + plain / 64, lane = warp_lane();

    for (int b = (int)threadIdx.x / CUDA_WARP; b < plain / 64; b += CUDA_BLOCK / CUDA_WARP) {
        const float *at = x + b * 64 + 2 * lane;
        uint32_t e = dev_fp8_scale(warp_max(max_or_nan(fabsf(at[0]), fabsf(at[1])), CUDA_WARP));
        float scale = dev_from_e8m0(e);

        row[b * 64 + 2 * lane] = (uint8_t)dev_to_e4m3(dev_clamp(at[0] / scale, 448));
        row[b * 64 + 2 * lane + 1] = (uint8_t)dev_to_e4m3(dev_clamp(at[1] / scale, 448));
        if (lane == 0)
            row[plain + 2 * R + b] = (uint8_t)e;
    }
    for (int i = (int)threadIdx.x; i < R; i += CUDA_BLOCK) {
        uint32_t v = dev_to_bf16(x[plain + i]);

        row[plain + 2 * i] = (uint8_t)v;
        row[plain + 2 * i + 1] = (uint8_t)(v >> 8);
    }
    for (int i = used + (int)threadIdx.x; i < row_bytes; i += CUDA_BLOCK)
        row[i] = 0;
}

/* One block of 32 values, a lane each: their FP4 codes on return, and the scale's byte. */
CUDA_DEVICE uint32_t warp_fp4(float x, uint32_t *code)
{
    uint32_t e = dev_fp4_scale(warp_max(fabsf(x), CUDA_WARP));

    *code = dev_to_e2m1(dev_clamp(x / dev_from_e8m0(e), 6));
    return e;
}

/* An index key: a warp takes 32 values at a time. n % 32 == 0. */
CUDA_DEVICE void row_pack_key(uint8_t *row, const float *x, int n)
{
    int lane = warp_lane();

    for (int b = (int)threadIdx.x / CUDA_WARP; b < n / 32; b += CUDA_BLOCK / CUDA_WARP) {
        uint32_t code, e = warp_fp4(x[b * 32 + lane], &code), next = warp_from(code, lane ^ 1);

        if (lane % 2 == 0)
            row[b * 16 + lane / 2] = (uint8_t)(code | next << 4);
        if (lane == 0)
            row[n / 2 + b] = (uint8_t)e;
    }
}

#endif
