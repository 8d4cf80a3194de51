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
    int e = (code >> 3) & 15, m = code & 7;
    float mag = e == 0 ? (float)m * 0x1p-9f : ldexpf((float)(8 + m), e - 10);

    if ((code & 127) == 127)
        return NAN;
    return code & 128 ? -mag : mag;
}

/* x within [-448, 448]. */
static inline uint8_t e4m3_encode(float x)
{
    uint8_t sign = signbit(x) ? 0x80 : 0;
    float a = fabsf(x);
    int e;

    if (isnan(x))
        return 0x7F;
    if (a < 0x1p-6f) /* subnormal: steps of 2^-9; 8 steps are the first normal number */
        return (uint8_t)(sign | (uint8_t)rintf(a * 0x1p9f));
    frexpf(a, &e); /* a = m 2^e, m in [1/2, 1); eight steps per octave */
    return (uint8_t)(sign | (uint8_t)(((e + 6) << 3) + (int)rintf(ldexpf(a, 4 - e)) - 8));
}

static inline float e2m1_decode(unsigned nibble)
{
    static const float mag[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};

    return nibble & 8 ? -mag[nibble & 7] : mag[nibble & 7];
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

/* E8M0 byte of the smallest power of two >= x; x positive and normal. */
static inline uint8_t e8m0_ceil(float x)
{
    uint32_t b = f32_bits(x);

    return (uint8_t)((b >> 23) + ((b & 0x7FFFFF) != 0));
}

/* Scale byte of a block whose largest magnitude is amax. */
static inline uint8_t fp8_scale(float amax)
{
    float floor = 1e-4f;

    return e8m0_ceil((amax > floor ? amax : floor) * (float)(1.0 / 448.0));
}

static inline uint8_t fp4_scale(float amax)
{
    float floor = (float)(6 * 0x1p-126);

    return e8m0_ceil((amax > floor ? amax : floor) * (float)(1.0 / 6.0));
}

static inline float clampf(float x, float limit)
{
    return x > limit ? limit : x < -limit ? -limit : x; /* a NaN stays one */
}

static inline float block_amax(const float *x, int n)
{
    float amax = 0;

    for (int i = 0; i < n; i++)
        if (!(fabsf(x[i]) <= amax))
            amax = fabsf(x[i]);
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
