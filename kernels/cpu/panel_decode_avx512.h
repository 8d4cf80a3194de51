/*
 * panel_decode_avx512: the codes of a panel to bf16 pairs and f32, for what multiplies them:
 * panel_avx512.c and panel_amx.c include it, and everything is inlined there.
 */
#ifndef BATON_KERNELS_CPU_PANEL_DECODE_AVX512_H
#define BATON_KERNELS_CPU_PANEL_DECODE_AVX512_H

#include "kernels/cpu/fp8_avx512.h"
#include "kernels/cpu/panel_chunks.h"

#include <immintrin.h>

enum { LANES = 16, BLOCKS = PANEL_ROWS / LANES };

/* bf16 of the 16 FP4 codes, twice: VPERMW looks at 5 bits of each word, bit 4 is the neighbour's.
 */
static const uint16_t fp4_bf16[32] __attribute__((aligned(64))) = {
    0x0000, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040, 0x4080, 0x40C0, 0x8000, 0xBF00, 0xBF80,
    0xBFC0, 0xC000, 0xC040, 0xC080, 0xC0C0, 0x0000, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040,
    0x4080, 0x40C0, 0x8000, 0xBF00, 0xBF80, 0xBFC0, 0xC000, 0xC040, 0xC080, 0xC0C0};

static const float fp4_f32[16] __attribute__((aligned(64))) = {
    0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};

/* Codes into a register, once: gcc would rather repeat the load in every shift, and a line that is
 * still on its way from memory makes each of them wait and retry. */
INLINE __m512i load_codes(const uint8_t *at)
{
    __m512i c = _mm512_loadu_si512(at);

    __asm__("" : "+v"(c));
    return c;
}

/* 8 columns of 16 rows to bf16 pairs: nibble i of each word, shifted to its lowest bits, indexes
 * the table (the bits above are ignored). Shifts and permutes compete for two ports on Zen 4, so a
 * shift by 8 is a load one byte further on; and where no dots want the ports of products (alone),
 * a shift by 4 is the upper half of one. */
INLINE void fp4_decode(const uint8_t *codes, __m512i table, __m512i pair[4], const bool alone)
{
    __m512i low = load_codes(codes), high = load_codes(codes + 1);

    pair[0] = _mm512_permutexvar_epi16(low, table);
    pair[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(low, 4), table);
    pair[2] = _mm512_permutexvar_epi16(high, table);
    high =
        alone ? _mm512_mulhi_epu16(high, _mm512_set1_epi16(1 << 12)) : _mm512_srli_epi16(high, 4);
    pair[3] = _mm512_permutexvar_epi16(high, table);
}

/* 64 codes: bf16 pairs of columns (0, 1) and (2, 3) of 16 rows. */
INLINE void fp8_decode(const uint8_t *codes, const struct fp8_tables *t, __m512i pair[2])
{
    fp8_to_bf16(load_codes(codes), t, pair);
}

/* f32 of 16 E8M0 bytes: 0 is 2^-127, 255 is NaN. */
INLINE __m512 e8m0_f32(const uint8_t *scale)
{
    __m512i bits =
        _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)scale)), 23);
    __mmask16 nan = _mm512_cmpeq_epi32_mask(bits, _mm512_set1_epi32(0x7F800000));

    bits = _mm512_max_epu32(bits, _mm512_set1_epi32(0x00400000));
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, nan, _mm512_set1_epi32(0x7FC00000)));
}

INLINE __m512i pair_of(const uint16_t *x)
{
    int bits;

    memcpy(&bits, x, 4);
    return _mm512_set1_epi32(bits);
}

INLINE __m512 even_of(__m512i pair)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
}

INLINE __m512 odd_of(__m512i pair)
{
    return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xFFFF0000)));
}

/* bf16 [n] to f32, n a multiple of 16. */
INLINE void widen(float *out, const uint16_t *x, int n)
{
    for (int i = 0; i < n; i += 16)
        _mm512_store_ps(out + i,
                        _mm512_castsi512_ps(_mm512_slli_epi32(
                            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(x + i))), 16)));
}

/* Asks for the lines that lie AHEAD of p, on the processors that take the FMA way: on a quiet
 * Sapphire Rapids a matrix times a vector gains a fifth by it; from 4 KB on, which is the next
 * page, it loses as much. Zen 4's own prefetchers do better when left alone. */
enum { AHEAD = 1024 };

INLINE void ask_ahead(const uint8_t *p, int lines, const bool ask)
{
    if (ask)
        UNROLL for (int i = 0; i < lines; i++)
            _mm_prefetch((const char *)p + AHEAD + 64 * i, _MM_HINT_T0);
}

/* The scales of one group, f32 of 16 rows each. Nearly all are between 1 and 254, where an E8M0
 * byte is the exponent of an f32. */
struct group_scales {
    __m512 block[BLOCKS];
};

INLINE struct group_scales group_scales_load(const uint8_t *scale)
{
    __m512i odd = _mm512_add_epi8(_mm512_loadu_si512(scale), _mm512_set1_epi8(1));
    struct group_scales s;

    if (__builtin_expect(_mm512_cmple_epu8_mask(odd, _mm512_set1_epi8(1)) != 0, 0)) {
        UNROLL for (int b = 0; b < BLOCKS; b++) s.block[b] = e8m0_f32(scale + b * LANES);
    } else {
        UNROLL for (int b = 0; b < BLOCKS; b++) s.block[b] = _mm512_castsi512_ps(_mm512_slli_epi32(
            _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(scale + b * LANES))), 23));
    }
    return s;
}

#endif
