/* simd_avx512: see simd.h. 16 lanes. Partial loads and stores touch no byte beyond n. */
#ifndef BATON_KERNELS_CPU_SIMD_AVX512_H
#define BATON_KERNELS_CPU_SIMD_AVX512_H

#include "kernels/cpu/fp8_avx512.h"

#define VF_LANES 16
#define VF_INLINE static inline __attribute__((always_inline))

typedef __m512 vf;

VF_INLINE vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}

VF_INLINE vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

VF_INLINE void vf_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}

VF_INLINE __mmask16 vf_mask(int n)
{
    return (__mmask16)((1u << n) - 1);
}

/* The first n < 16 lanes; the others are 0. */
VF_INLINE vf vf_load_some(const float *p, int n)
{
    return _mm512_maskz_loadu_ps(vf_mask(n), p);
}

VF_INLINE void vf_store_some(float *p, vf x, int n)
{
    _mm512_mask_storeu_ps(p, vf_mask(n), x);
}

VF_INLINE vf vf_widen(__m256i x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

VF_INLINE vf vf_load_bf16(const uint16_t *p)
{
    return vf_widen(_mm256_loadu_si256((const void *)p));
}

VF_INLINE vf vf_load_bf16_some(const uint16_t *p, int n)
{
    return vf_widen(_mm256_maskz_loadu_epi16(vf_mask(n), p));
}

/* Bits of bf16(x) in the upper half of each lane; the lower half is garbage. A NaN stays one. */
VF_INLINE __m512i vf_bf16_bits(vf x)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7FFF)));

    return _mm512_mask_or_epi32(up, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits,
                                _mm512_set1_epi32(0x400000));
}

VF_INLINE __m256i vf_narrow(vf x)
{
    /* VCVTNEPS2BF16 flushes denormals and is right about all else. */
    if (__builtin_expect(_mm512_fpclass_ps_mask(x, 0x20) == 0, 1))
        return (__m256i)_mm512_cvtneps_pbh(x);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(vf_bf16_bits(x), 16));
}

VF_INLINE void vf_store_bf16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((void *)p, vf_narrow(x));
}

VF_INLINE void vf_store_bf16_some(uint16_t *p, vf x, int n)
{
    _mm256_mask_storeu_epi16(p, vf_mask(n), vf_narrow(x));
}

/* x on the bf16 grid */
VF_INLINE vf vf_bf16(vf x)
{
    return _mm512_castsi512_ps(
        _mm512_and_si512(vf_bf16_bits(x), _mm512_set1_epi32((int)0xFFFF0000)));
}

/* The same for numbers: no NaN but those that arithmetic makes. */
VF_INLINE vf vf_bf16_number(vf x)
{
    __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
    __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_slli_epi32(one, 16));

    bits = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF));
    bits = _mm512_mask_add_epi32(bits, odd, bits, one);
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32((int)0xFFFF0000)));
}

VF_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

VF_INLINE vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

VF_INLINE vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}

VF_INLINE vf vf_abs(vf x)
{
    return _mm512_abs_ps(x);
}

VF_INLINE vf vf_sqrt(vf x)
{
    return _mm512_sqrt_ps(x);
}

VF_INLINE vf vf_round_even(vf x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* x * 2^n for whole n; x of 1 .. 2, n in [-128, 128] */
VF_INLINE vf vf_scale2(vf x, vf n)
{
    return _mm512_scalef_ps(x, n);
}

/* a < b ? yes : no */
VF_INLINE vf vf_select_less(vf a, vf b, vf yes, vf no)
{
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), yes);
}

VF_INLINE vf vf_select_nan(vf x, vf yes, vf no)
{
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), yes);
}

/* x rounded to a grid of `mantissa` bits whose steps stop shrinking below 2^least; ties to even.
 * Adding 1.5 * 2^(e + 23 - mantissa), e the exponent of x, leaves just these steps. */
VF_INLINE vf vf_to_grid(vf x, int mantissa, int least)
{
    __m512i e = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7F800000));

    e = _mm512_max_epi32(e, _mm512_set1_epi32((127 + least) << 23));
    vf big = _mm512_castsi512_ps(
        _mm512_add_epi32(e, _mm512_set1_epi32(((23 - mantissa) << 23) + 0x00400000)));

    return _mm512_sub_ps(_mm512_add_ps(x, big), big);
}

/* x with neighbours exchanged: lanes 1, 0, 3, 2, ... */
VF_INLINE vf vf_swap_pairs(vf x)
{
    return _mm512_permute_ps(x, 0xB1);
}

/* FP8 codes but NaN to 2^-8 times their values: shifted right by one, a code is an fp16 of that,
 * subnormals included. */
VF_INLINE vf vf_load_e4m3_number(const uint8_t *p)
{
    __m256i c = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)p)), 8);

    return _mm512_cvtph_ps(
        _mm256_and_si256(_mm256_srai_epi16(c, 1), _mm256_set1_epi16((short)0xBF80)));
}

/* FP8 codes to values; 0x7F and 0xFF are NaN. */
VF_INLINE vf vf_load_e4m3(const uint8_t *p)
{
    __m256i c = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)p)), 8);
    __mmask16 nan = _mm256_cmpeq_epi16_mask(_mm256_or_si256(c, _mm256_set1_epi16((short)0x8000)),
                                            _mm256_set1_epi16((short)0xFF00));

    return _mm512_mask_mov_ps(_mm512_mul_ps(vf_load_e4m3_number(p), _mm512_set1_ps(256)), nan,
                              _mm512_set1_ps(__builtin_nanf("")));
}

/* Whether 64 FP8 codes hold a NaN. */
VF_INLINE bool vf_any_nan_e4m3(const uint8_t *p)
{
    const __m512i seven = _mm512_set1_epi8(0x7F);

    return _mm512_cmpeq_epi8_mask(_mm512_and_si512(_mm512_loadu_si512(p), seven), seven) != 0;
}

/* FP8 codes of values on the grid. */
VF_INLINE void vf_store_e4m3(uint8_t *p, vf x)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i mag = _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFFFFF));
    __m512i code = _mm512_sub_epi32(_mm512_srli_epi32(mag, 20), _mm512_set1_epi32((127 - 7) << 3));
    __m512i small = _mm512_cvtps_epi32(_mm512_mul_ps(vf_abs(x), _mm512_set1_ps(512)));

    code = _mm512_mask_mov_epi32(
        code, _mm512_cmplt_epi32_mask(mag, _mm512_set1_epi32((127 - 6) << 23)), small);
    code = _mm512_mask_mov_epi32(code, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
                                 _mm512_set1_epi32(0x7F));
    code = _mm512_or_si512(code,
                           _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80)));
    _mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8(code));
}

/* ---- integers ---- */

typedef __m512i vi;

/* Dwords at base + i * stride, i the lane. */
VF_INLINE vi vi_gather(const uint8_t *base, int stride)
{
    const vi lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);

    return _mm512_i32gather_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32(stride)), base, 1);
}

VF_INLINE vi vi_load(const void *p)
{
    return _mm512_loadu_si512(p);
}

VF_INLINE void vi_store(uint8_t *p, vi x)
{
    _mm512_storeu_si512(p, x);
}

/* The lowest byte of each lane. */
VF_INLINE void vi_store_bytes(uint8_t *p, vi x)
{
    _mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8(x));
}

/* Bytes of each 16-byte lane in another order. */
VF_INLINE vi vi_shuffle_bytes(vi x, const uint8_t order[16])
{
    return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)order)));
}

VF_INLINE vi vi_shift_right(vi x, int n)
{
    return _mm512_srl_epi32(x, _mm_cvtsi32_si128(n));
}

/* FP4 codes in the lowest 4 bits to values. */
VF_INLINE vf vf_e2m1(vi codes)
{
    return _mm512_permutexvar_ps(
        codes, _mm512_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6));
}

/* E8M0 in the lowest byte to powers of two; 255 is NaN. */
VF_INLINE vf vf_e8m0(vi x)
{
    vi e = _mm512_slli_epi32(_mm512_and_si512(x, _mm512_set1_epi32(255)), 23);
    __mmask16 nan = _mm512_cmpeq_epi32_mask(e, _mm512_set1_epi32(0x7F800000));

    e = _mm512_max_epi32(e, _mm512_set1_epi32(0x00400000));
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(e, nan, _mm512_set1_epi32(0x7FC00000)));
}

/* ---- packing (panel.c): one dword of each of 16 rows ---- */

typedef uint32_t vu __attribute__((vector_size(64)));

/* 4 FP8 codes of each row: (0, 1) of four rows, then (2, 3), as fp8_place() says. */
VF_INLINE vi vu_fp8_unit(vu x)
{
    static const uint8_t order[16] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};

    return vi_shuffle_bytes((vi)x, order);
}

/* The low nibble of each byte, joined in the lower 16 bits. */
VF_INLINE vu vu_low_nibbles(vu x)
{
    x = x & 0x0F0F0F0F;
    x = (x | x >> 4) & 0x00FF00FF;
    return (x | x >> 8) & 0xFFFF;
}

/* 8 FP4 codes of each row, as fp4_unit() says. */
VF_INLINE vi vu_fp4_unit(vu x)
{
    return (vi)(vu_low_nibbles(x) | vu_low_nibbles(x >> 4) << 16);
}

#endif
