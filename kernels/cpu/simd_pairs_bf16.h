/*
 * simd_pairs_bf16: products of numbers that bf16 holds, two at a time, by VDPBF16PS. AVX-512;
 * simd.h includes it, after simd_avx512.h.
 */
#ifndef BATON_KERNELS_CPU_SIMD_PAIRS_BF16_H
#define BATON_KERNELS_CPU_SIMD_PAIRS_BF16_H

typedef uint16_t el; /* an element of a row to be multiplied: bf16 */
typedef __m512i vp;  /* a pair of them in each lane */

/* sum + the product of the second elements + that of the first, rounded twice (VDPBF16PS). */
VF_INLINE vf vf_dot(vf sum, vp x, vp y)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y);
}

/* n bf16 values as a row; copy: room for one. */
VF_INLINE const el *el_row(el *copy, const uint16_t *x, int n)
{
    (void)copy;
    (void)n;
    return x;
}

/* VF_LANES elements of a row, from values that bf16 holds. */
VF_INLINE void el_store(el *p, vf x)
{
    _mm256_storeu_si256((void *)p,
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(x), 16)));
}

/* 2 * VF_LANES elements: a pair per lane, in the ISA's order; vp_load() and vp_lane() read it. */
VF_INLINE void vp_store(el *p, vf first, vf second)
{
    __m512i low = _mm512_srli_epi32(_mm512_castps_si512(first), 16);

    /* low | (second & 0xFFFF0000) */
    _mm512_storeu_si512(p, _mm512_ternarylogic_epi32(low, _mm512_castps_si512(second),
                                                     _mm512_set1_epi32((int)0xFFFF0000), 0xF8));
}

VF_INLINE vp vp_load(const el *p)
{
    return _mm512_loadu_si512(p);
}

/* Lane `lane` of what vp_store() wrote, in all lanes. */
VF_INLINE vp vp_lane(const el *p, int lane)
{
    int bits;

    memcpy(&bits, p + 2 * lane, 4);
    return _mm512_set1_epi32(bits);
}

/* The neighbours row[0] and row[1] in all lanes. */
VF_INLINE vp vp_set1(const el *row)
{
    return vp_lane(row, 0);
}

/* As vp_store(): the bf16 neighbours at x + i * stride in lane i. */
VF_INLINE void vp_gather(el *p, const uint16_t *x, int stride)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);

    _mm512_storeu_si512(
        p, _mm512_i32gather_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32(stride)), x, 2));
}

/* As vp_store() for 2 * VF_LANES columns: the pairs (a[i], b[i]). */
VF_INLINE void vp_zip(el *p, const el *a, const el *b)
{
    static const uint16_t low[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    __m512i from = _mm512_loadu_si512(low), x = _mm512_loadu_si512(a), y = _mm512_loadu_si512(b);

    _mm512_storeu_si512(p, _mm512_permutex2var_epi16(x, from, y));
    from = _mm512_add_epi16(from, _mm512_set1_epi16(16));
    _mm512_storeu_si512(p + 2 * VF_LANES, _mm512_permutex2var_epi16(x, from, y));
}

/* 64 FP8 codes times 2^(e - 127). @return false: not from these codes or this scale; nothing is
 * written */
VF_INLINE bool el_load_fp8(el *out, const uint8_t *codes, uint8_t e)
{
    static const uint8_t order[64] = {
        0,  1,  2,  3,  4,  5,  6,  7,  32, 33, 34, 35, 36, 37, 38, 39, 8,  9,  10, 11, 12, 13,
        14, 15, 40, 41, 42, 43, 44, 45, 46, 47, 16, 17, 18, 19, 20, 21, 22, 23, 48, 49, 50, 51,
        52, 53, 54, 55, 24, 25, 26, 27, 28, 29, 30, 31, 56, 57, 58, 59, 60, 61, 62, 63};
    const struct fp8_tables tables = fp8_tables_load();
    const __m512i seven = _mm512_set1_epi8(0x7F);
    __m512i c = _mm512_loadu_si512(codes);
    __m512i half[2], by = _mm512_set1_epi16((short)((e - 127) * 128));

    /* A value's exponent lies between -9 and 8; a NaN has none. */
    if (e < 10 || e > 246 || _mm512_cmpeq_epi8_mask(_mm512_and_si512(c, seven), seven) != 0)
        return false;
    fp8_to_bf16(_mm512_permutexvar_epi8(_mm512_loadu_si512(order), c), &tables, half);
    for (int i = 0; i < 2; i++) {
        __mmask32 some = _mm512_test_epi16_mask(half[i], _mm512_set1_epi16(0x7FFF));

        _mm512_storeu_si512(out + 32 * i, _mm512_mask_add_epi16(half[i], some, half[i], by));
    }
    return true;
}

#endif
