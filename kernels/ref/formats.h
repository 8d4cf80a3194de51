/*
 * formats: the narrow number formats of V4, bit by bit, as tests/oracle/formats.py defines them.
 *
 *   bf16   1 s, 8 e, 7 m              e4m3   1 s, 4 e, 3 m, largest 448, 0x7f NaN
 *   e8m0   8 e, value 2^(byte - 127)  e2m1   0 .5 1 1.5 2 3 4 6 and their negatives
 *
 * All rounding is to nearest, ties to even. Doubles pass through f32 first, as an f32 accumulator
 * would. Plain C, no state; any thread.
 */
#ifndef BATON_KERNELS_REF_FORMATS_H
#define BATON_KERNELS_REF_FORMATS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t f32_bits(float x)
{
    uint32_t b;

    memcpy(&b, &x, 4);
    return b;
}

static inline float f32_from_bits(uint32_t b)
{
    float x;

    memcpy(&x, &b, 4);
    return x;
}

static inline float bf16_decode(uint16_t b)
{
    return f32_from_bits((uint32_t)b << 16);
}

static inline uint16_t bf16_encode(float x)
{
    uint32_t b = f32_bits(x);

    if (isnan(x))
        return (uint16_t)((b >> 16) | 0x40); /* rounding must not turn a NaN into infinity */
    return (uint16_t)((b + 0x7FFF + ((b >> 16) & 1)) >> 16);
}

/* Rounds a double the way the model's f32 results become bf16. */
static inline uint16_t bf16_round(double x)
{
    return bf16_encode((float)x);
}

/* x as it looks after bf16 storage. */
static inline float bf16_grid(double x)
{
    return bf16_decode(bf16_round(x));
}

static inline float e4m3_decode(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 128) << 24, mag = code & 127;

    if (mag == 127)
        return NAN;
    if (mag < 8) /* subnormal: steps of 2^-9 */
        return f32_from_bits(sign | f32_bits((float)mag * 0x1p-9f));
    return f32_from_bits(sign | ((mag << 20) + ((127u - 7) << 23)));
}

/* x within [-448, 448]. */
static inline uint8_t e4m3_encode(float x)
{
    uint32_t sign = f32_bits(x) >> 24 & 128, b = f32_bits(x) & 0x7FFFFFFF;

    if (isnan(x))
        return 0x7F;
    if (b < f32_bits(0x1p-6f)) /* subnormal: steps of 2^-9; 8 steps are the first normal number */
        return (uint8_t)(sign | (uint32_t)rintf(fabsf(x) * 0x1p9f));
    return (uint8_t)(sign | ((b - ((127u - 7) << 23) + 0x7FFFF + (b >> 20 & 1)) >> 20));
}

static inline float e2m1_decode(unsigned nibble)
{
    uint32_t sign = (nibble & 8) << 28, mag = nibble & 7;

    if (mag < 2) /* 0 and 1/2 */
        return f32_from_bits(sign | f32_bits((float)mag * 0.5f));
    return f32_from_bits(sign | ((mag << 22) + ((127u - 1) << 23)));
}

/* x within [-6, 6]. */
static inline unsigned e2m1_encode(float x)
{
    /* Midpoints between neighbours; a tie goes to the even code. */
    static const float mid[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5};
    float a = fabsf(x);
    unsigned code = 0;

    while (code < 7 && (a > mid[code] || (a == mid[code] && (code & 1) != 0)))
        code++;
    return code | (signbit(x) ? 8u : 0u);
}

static inline float e8m0_decode(uint8_t e)
{
    if (e == 255)
        return NAN;
    return e == 0 ? 0x1p-127f : f32_from_bits((uint32_t)e << 23);
}

/* E8M0 byte of the smallest power of two >= x; x positive and normal, or infinite or NaN: 255. */
static inline uint8_t e8m0_ceil(float x)
{
    uint32_t b = f32_bits(x);

    if (isnan(x))
        return 255;
    return (uint8_t)((b >> 23) + ((b & 0x7FFFFF) != 0));
}

/* Scale byte of a block whose largest magnitude is amax; a NaN in the block makes all of it NaN. */
static inline uint8_t fp8_scale(float amax)
{
    float floor = 1e-4f;

    return e8m0_ceil((amax <= floor ? floor : amax) * (float)(1.0 / 448.0));
}

static inline uint8_t fp4_scale(float amax)
{
    float floor = (float)(6 * 0x1p-126);

    return e8m0_ceil((amax <= floor ? floor : amax) * (float)(1.0 / 6.0));
}

static inline float clampf(float x, float limit)
{
    return x > limit ? limit : x < -limit ? -limit : x; /* a NaN stays one */
}

/* Largest magnitude; NaN when there is one. */
static inline float block_amax(const float *x, int n)
{
    float amax = 0;

    for (int i = 0; i < n; i++) {
        if (isnan(x[i]))
            return NAN;
        if (fabsf(x[i]) > amax)
            amax = fabsf(x[i]);
    }
    return amax;
}

/* Quantises one block of n values: E4M3 codes, and the scale's byte returned. */
static inline uint8_t fp8_quantise(uint8_t *codes, const float *x, int n)
{
    uint8_t e = fp8_scale(block_amax(x, n));
    float scale = e8m0_decode(e);

    for (int i = 0; i < n; i++)
        codes[i] = e4m3_encode(clampf(x[i] / scale, 448));
    return e;
}

/* x as it looks after FP8 storage, per 128 values; bf16 holds code * scale exactly. out may be x.
 */
static inline void fp8_grid_row(uint16_t *out, const uint16_t *x, int n)
{
    for (int b = 0; b < n; b += 128) {
        uint8_t codes[128];
        float block[128], scale;

        for (int i = 0; i < 128; i++)
            block[i] = bf16_decode(x[b + i]);
        scale = e8m0_decode(fp8_quantise(codes, block, 128));
        for (int i = 0; i < 128; i++)
            out[b + i] = bf16_encode(e4m3_decode(codes[i]) * scale);
    }
}

/* The same for FP4: n / 2 bytes, element 2j in the low nibble. */
static inline uint8_t fp4_quantise(uint8_t *pairs, const float *x, int n)
{
    uint8_t e = fp4_scale(block_amax(x, n));
    float scale = e8m0_decode(e);

    for (int i = 0; i < n; i += 2)
        pairs[i / 2] = (uint8_t)(e2m1_encode(clampf(x[i] / scale, 6)) |
                                 e2m1_encode(clampf(x[i + 1] / scale, 6)) << 4);
    return e;
}

/* ---- rows of the KV pools (kernels.h, struct kernel_kv) ---- */

/* Latent or entry of D values, the last R as bf16: the first D - R are rounded to FP8 per 64. */
static inline void kv_row_pack(uint8_t *row, const float *x, int D, int R, int row_bytes)
{
    int plain = D - R, used = plain + 2 * R + plain / 64;

    for (int b = 0; b < plain; b += 64)
        row[plain + 2 * R + b / 64] = fp8_quantise(row + b, x + b, 64);
    for (int i = 0; i < R; i++) {
        uint16_t v = bf16_encode(x[plain + i]);

        memcpy(row + plain + 2 * i, &v, 2);
    }
    memset(row + used, 0, (size_t)(row_bytes - used));
}

static inline void kv_row_unpack(float *x, const uint8_t *row, int D, int R)
{
    int plain = D - R;

    for (int i = 0; i < plain; i++)
        x[i] = e4m3_decode(row[i]) * e8m0_decode(row[plain + 2 * R + i / 64]);
    for (int i = 0; i < R; i++) {
        uint16_t v;

        memcpy(&v, row + plain + 2 * i, 2);
        x[plain + i] = bf16_decode(v);
    }
}

/* Index key of n values: FP4 per 32. */
static inline void key_row_pack(uint8_t *row, const float *x, int n)
{
    for (int b = 0; b < n; b += 32)
        row[n / 2 + b / 32] = fp4_quantise(row + b / 2, x + b, 32);
}

static inline void key_row_unpack(float *x, const uint8_t *row, int n)
{
    for (int i = 0; i < n; i++)
        x[i] = e2m1_decode(i & 1 ? row[i / 2] >> 4 : row[i / 2] & 15u) *
               e8m0_decode(row[n / 2 + i / 32]);
}

#endif
