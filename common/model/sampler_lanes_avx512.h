/* sampler_lanes for AVX-512 (F, DQ). */
#include <immintrin.h>

typedef __m512 vf;
typedef __m512i vu;
typedef struct {
    __m512d half[2];
} vd;

LANES vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

LANES void vf_store(float *p, vf a)
{
    _mm512_storeu_ps(p, a);
}

LANES vf vf_set(float x)
{
    return _mm512_set1_ps(x);
}

LANES vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}

LANES vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}

LANES vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}

LANES vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

/* The bits of p plus those of n moved up by 23: p * 2^n for a small integer n, in n's low bits. */
LANES vf vf_scale_bits(vf p, vf n)
{
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
}

LANES vu vu_iota(uint32_t first)
{
    return _mm512_add_epi32(_mm512_set1_epi32((int)first),
                            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
}

LANES vu vu_xor_shift(vu a, int bits)
{
    return _mm512_xor_si512(a, _mm512_srl_epi32(a, _mm_cvtsi32_si128(bits)));
}

LANES vu vu_xor(vu a, uint32_t b)
{
    return _mm512_xor_si512(a, _mm512_set1_epi32((int)b));
}

LANES vu vu_mul(vu a, uint32_t b)
{
    return _mm512_mullo_epi32(a, _mm512_set1_epi32((int)b));
}

/* (float)(a >> 8): exact */
LANES vf vu_high24(vu a)
{
    return _mm512_cvtepi32_ps(_mm512_srli_epi32(a, 8));
}

/* Lanes where a >= b and c <= d, as bits. */
LANES uint32_t vf_bits_ge_le(vf a, vf b, vf c, vf d)
{
    return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), c, d, _CMP_LE_OQ);
}

/* p where x > rank_x, or equal and id < rank_id; elsewhere 0. Adds how many to *n. */
LANES vf vf_keep_before(vf p, vf x, float rank_x, vu id, int32_t rank_id, int32_t *n)
{
    vf r = vf_set(rank_x);
    __mmask16 equal = _mm512_cmp_ps_mask(x, r, _CMP_EQ_OQ);
    __mmask16 keep = _mm512_cmp_ps_mask(x, r, _CMP_GT_OQ) |
                     _mm512_mask_cmplt_epi32_mask(equal, id, _mm512_set1_epi32(rank_id));

    *n += __builtin_popcount(keep);
    return _mm512_maskz_mov_ps(keep, p);
}

LANES vd vd_zero(void)
{
    return (vd){{_mm512_setzero_pd(), _mm512_setzero_pd()}};
}

LANES vd vd_add(vd s, vf a)
{
    s.half[0] = _mm512_add_pd(s.half[0], _mm512_cvtps_pd(_mm512_castps512_ps256(a)));
    s.half[1] = _mm512_add_pd(s.half[1], _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)));
    return s;
}

LANES void vd_store(double *p, vd s)
{
    _mm512_storeu_pd(p, s.half[0]);
    _mm512_storeu_pd(p + 8, s.half[1]);
}
