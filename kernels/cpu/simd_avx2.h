/* simd_avx2: see simd.h. 8 lanes. Partial loads and stores touch no byte beyond n. */
#ifndef BATON_KERNELS_CPU_SIMD_AVX2_H
#define BATON_KERNELS_CPU_SIMD_AVX2_H

#define VF_LANES 8
#define VF_INLINE static inline __attribute__((always_inline))

typedef __m256 vf;

VF_INLINE vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}

VF_INLINE vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

VF_INLINE void vf_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}

/* The first n < 8 lanes; the others are 0. */
VF_INLINE vf vf_load_some(const float *p, int n)
{
    float lane[8] = {0};

    memcpy(lane, p, (size_t)n * 4);
    return _mm256_loadu_ps(lane);
}

VF_INLINE void vf_store_some(float *p, vf x, int n)
{
    float lane[8];

    _mm256_storeu_ps(lane, x);
    memcpy(p, lane, (size_t)n * 4);
}

VF_INLINE vf vf_widen(__m128i x)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}

VF_INLINE vf vf_load_bf16(const uint16_t *p)
{
    return vf_widen(_mm_loadu_si128((const void *)p));
}

VF_INLINE vf vf_load_bf16_some(const uint16_t *p, int n)
{
    uint16_t lane[8] = {0};

    memcpy(lane, p, (size_t)n * 2);
    return vf_load_bf16(lane);
}

/* Bits of bf16(x) in the upper half of each lane; the lower half is garbage. A NaN stays one. */
VF_INLINE __m256i vf_bf16_bits(vf x)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7FFF)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));

    return _mm256_blendv_epi8(up, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}

VF_INLINE __m128i vf_narrow(vf x)
{
    __m256i w = _mm256_srli_epi32(vf_bf16_bits(x), 16);

    return _mm_packus_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
}

VF_INLINE void vf_store_bf16(uint16_t *p, vf x)
{
    _mm_storeu_si128((void *)p, vf_narrow(x));
}

VF_INLINE void vf_store_bf16_some(uint16_t *p, vf x, int n)
{
    uint16_t lane[8];

    vf_store_bf16(lane, x);
    memcpy(p, lane, (size_t)n * 2);
}

/* x on the bf16 grid */
VF_INLINE vf vf_bf16(vf x)
{
    return _mm256_castsi256_ps(
        _mm256_and_si256(vf_bf16_bits(x), _mm256_set1_epi32((int)0xFFFF0000)));
}

/* The same for numbers: no NaN but those that arithmetic makes. */
VF_INLINE vf vf_bf16_number(vf x)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));

    bits = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), lsb);
    return _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32((int)0xFFFF0000)));
}

VF_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

VF_INLINE vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}

VF_INLINE vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}

VF_INLINE vf vf_abs(vf x)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.f), x);
}

VF_INLINE vf vf_sqrt(vf x)
{
    return _mm256_sqrt_ps(x);
}

VF_INLINE vf vf_round_even(vf x)
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* 2^n for whole n in [-126, 127] */
VF_INLINE vf vf_pow2(vf n)
{
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}

/* x * 2^n for whole n; x of 1 .. 2, n in [-128, 128]: in two steps */
VF_INLINE vf vf_scale2(vf x, vf n)
{
    vf half = vf_round_even(n * vf_set1(0.5f));

    return x * vf_pow2(half) * vf_pow2(n - half);
}

/* a < b ? yes : no */
VF_INLINE vf vf_select_less(vf a, vf b, vf yes, vf no)
{
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}

VF_INLINE vf vf_select_nan(vf x, vf yes, vf no)
{
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

/* x rounded to a grid of `mantissa` bits whose steps stop shrinking below 2^least; ties to even.
 * Adding 1.5 * 2^(e + 23 - mantissa), e the exponent of x, leaves just these steps. */
VF_INLINE vf vf_to_grid(vf x, int mantissa, int least)
{
    __m256i e = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7F800000));

    e = _mm256_max_epi32(e, _mm256_set1_epi32((127 + least) << 23));
    vf big = _mm256_castsi256_ps(
        _mm256_add_epi32(e, _mm256_set1_epi32(((23 - mantissa) << 23) + 0x00400000)));

    return _mm256_sub_ps(_mm256_add_ps(x, big), big);
}

/* x with neighbours exchanged: lanes 1, 0, 3, 2, ... */
VF_INLINE vf vf_swap_pairs(vf x)
{
    return _mm256_permute_ps(x, 0xB1);
}

/* FP8 codes but NaN to 2^-8 times their values: shifted right by one, a code is an fp16 of that,
 * subnormals included. */
VF_INLINE vf vf_load_e4m3_number(const uint8_t *p)
{
    __m128i c = _mm_slli_epi16(_mm_cvtepu8_epi16(_mm_loadl_epi64((const void *)p)), 8);

    return _mm256_cvtph_ps(_mm_and_si128(_mm_srai_epi16(c, 1), _mm_set1_epi16((short)0xBF80)));
}

/* FP8 codes to values; 0x7F and 0xFF are NaN. */
VF_INLINE vf vf_load_e4m3(const uint8_t *p)
{
    __m128i c = _mm_slli_epi16(_mm_cvtepu8_epi16(_mm_loadl_epi64((const void *)p)), 8);
    __m128i nan = _mm_cmpeq_epi16(_mm_or_si128(c, _mm_set1_epi16((short)0x8000)),
                                  _mm_set1_epi16((short)0xFF00));

    return _mm256_or_ps(_mm256_mul_ps(vf_load_e4m3_number(p), _mm256_set1_ps(256)),
                        _mm256_castsi256_ps(_mm256_cvtepi16_epi32(nan)));
}

/* Whether 64 FP8 codes hold a NaN. */
VF_INLINE bool vf_any_nan_e4m3(const uint8_t *p)
{
    const __m256i seven = _mm256_set1_epi8(0x7F);
    __m256i low = _mm256_and_si256(_mm256_loadu_si256((const void *)p), seven);
    __m256i high = _mm256_and_si256(_mm256_loadu_si256((const void *)(p + 32)), seven);

    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(low, high), seven)) != 0;
}

/* FP8 codes of values on the grid. */
VF_INLINE void vf_store_e4m3(uint8_t *p, vf x)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i mag = _mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFFFF));
    __m256i code = _mm256_sub_epi32(_mm256_srli_epi32(mag, 20), _mm256_set1_epi32((127 - 7) << 3));
    __m256i small = _mm256_cvtps_epi32(_mm256_mul_ps(vf_abs(x), _mm256_set1_ps(512)));
    __m256i is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32((127 - 6) << 23), mag);
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));

    code = _mm256_blendv_epi8(code, small, is_small);
    code = _mm256_blendv_epi8(code, _mm256_set1_epi32(0x7F), is_nan);
    code = _mm256_or_si256(code,
                           _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80)));
    __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));

    _mm_storel_epi64((void *)p, _mm_packus_epi16(words, words));
}

/* ---- integers ---- */

typedef __m256i vi;

/* Dwords at base + i * stride, i the lane. */
VF_INLINE vi vi_gather(const uint8_t *base, int stride)
{
    const vi lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);

    return _mm256_i32gather_epi32((const void *)base,
                                  _mm256_mullo_epi32(lane, _mm256_set1_epi32(stride)), 1);
}

VF_INLINE vi vi_load(const void *p)
{
    return _mm256_loadu_si256(p);
}

VF_INLINE void vi_store(uint8_t *p, vi x)
{
    _mm256_storeu_si256((void *)p, x);
}

/* The lowest byte of each lane. */
VF_INLINE void vi_store_bytes(uint8_t *p, vi x)
{
    x = _mm256_and_si256(x, _mm256_set1_epi32(255));
    __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));

    _mm_storel_epi64((void *)p, _mm_packus_epi16(words, words));
}

/* Bytes of each 16-byte lane in another order. */
VF_INLINE vi vi_shuffle_bytes(vi x, const uint8_t order[16])
{
    return _mm256_shuffle_epi8(x,
                               _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)order)));
}

VF_INLINE vi vi_shift_right(vi x, int n)
{
    return _mm256_srl_epi32(x, _mm_cvtsi32_si128(n));
}

/* FP4 codes in the lowest 4 bits to values. */
VF_INLINE vf vf_e2m1(vi codes)
{
    vf mag = _mm256_permutevar8x32_ps(_mm256_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6), codes);

    return _mm256_xor_ps(mag, _mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(codes, 28),
                                                                   _mm256_set1_epi32(INT32_MIN))));
}

/* E8M0 in the lowest byte to powers of two; 255 is NaN. */
VF_INLINE vf vf_e8m0(vi x)
{
    vi e = _mm256_slli_epi32(_mm256_and_si256(x, _mm256_set1_epi32(255)), 23);
    vi nan = _mm256_cmpeq_epi32(e, _mm256_set1_epi32(0x7F800000));

    e = _mm256_max_epi32(e, _mm256_set1_epi32(0x00400000));
    return _mm256_castsi256_ps(
        _mm256_or_si256(e, _mm256_and_si256(nan, _mm256_set1_epi32(0x00400000))));
}

/* ---- packing (panel.c): one dword of each of 8 rows ---- */

typedef uint32_t vu __attribute__((vector_size(32)));

/* 4 FP8 codes of each row, as fp8_place() says: 8 rows of column 0, of 2, of 1, of 3. */
VF_INLINE vi vu_fp8_unit(vu x)
{
    static const uint8_t order[16] = {0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15};
    vi columns = vi_shuffle_bytes((vi)x, order); /* of rows 0 - 3, then of rows 4 - 7 */
    __m128i a = _mm256_castsi256_si128(columns), b = _mm256_extracti128_si256(columns, 1);

    return _mm256_set_m128i(_mm_unpackhi_epi32(a, b), _mm_unpacklo_epi32(a, b));
}

/* 8 FP4 codes of each row, as fp4_unit() says. */
VF_INLINE vi vu_fp4_unit(vu x)
{
    static const uint8_t order[16] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};
    vu even = (x & 0x0F0F) | (x >> 16 & 0x0F0F) << 4;     /* bytes: columns 0 | 4, 2 | 6 */
    vu odd = (x >> 4 & 0x0F0F) | (x >> 20 & 0x0F0F) << 4; /* 1 | 5, 3 | 7 */
    vu joined = (even & 0xFF) | (odd & 0xFF) << 8 | (even & 0xFF00) << 8 | (odd & 0xFF00) << 16;

    return vi_shuffle_bytes((vi)joined, order);
}

#endif
