/* sampler_lanes for AVX2: two vectors of eight. */
#include <immintrin.h>

typedef struct {
    __m256 half[2];
} vf;
typedef struct {
    __m256i half[2];
} vu;
typedef struct {
    __m256d part[4];
} vd;

#define EACH_HALF(type, call)                                                                      \
    do {                                                                                           \
        type r_;                                                                                   \
        for (int h = 0; h < 2; h++)                                                                \
            r_.half[h] = call;                                                                     \
        return r_;                                                                                 \
    } while (0)

LANES vf vf_load(const float *p)
{
    EACH_HALF(vf, _mm256_loadu_ps(p + 8 * h));
}

LANES void vf_store(float *p, vf a)
{
    _mm256_storeu_ps(p, a.half[0]);
    _mm256_storeu_ps(p + 8, a.half[1]);
}

LANES vf vf_set(float x)
{
    EACH_HALF(vf, _mm256_set1_ps(x));
}

LANES vf vf_add(vf a, vf b)
{
    EACH_HALF(vf, _mm256_add_ps(a.half[h], b.half[h]));
}

LANES vf vf_sub(vf a, vf b)
{
    EACH_HALF(vf, _mm256_sub_ps(a.half[h], b.half[h]));
}

LANES vf vf_mul(vf a, vf b)
{
    EACH_HALF(vf, _mm256_mul_ps(a.half[h], b.half[h]));
}

LANES vf vf_max(vf a, vf b)
{
    EACH_HALF(vf, _mm256_max_ps(a.half[h], b.half[h]));
}

/* The bits of p plus those of n moved up by 23: p * 2^n for a small integer n, in n's low bits. */
LANES vf vf_scale_bits(vf p, vf n)
{
    EACH_HALF(vf, _mm256_castsi256_ps(
                      _mm256_add_epi32(_mm256_castps_si256(p.half[h]),
                                       _mm256_slli_epi32(_mm256_castps_si256(n.half[h]), 23))));
}

LANES vu vu_iota(uint32_t first)
{
    EACH_HALF(vu, _mm256_add_epi32(_mm256_set1_epi32((int)first + 8 * h),
                                   _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0)));
}

LANES vu vu_xor_shift(vu a, int bits)
{
    EACH_HALF(vu,
              _mm256_xor_si256(a.half[h], _mm256_srl_epi32(a.half[h], _mm_cvtsi32_si128(bits))));
}

LANES vu vu_xor(vu a, uint32_t b)
{
    EACH_HALF(vu, _mm256_xor_si256(a.half[h], _mm256_set1_epi32((int)b)));
}

LANES vu vu_mul(vu a, uint32_t b)
{
    EACH_HALF(vu, _mm256_mullo_epi32(a.half[h], _mm256_set1_epi32((int)b)));
}

/* (float)(a >> 8): exact */
LANES vf vu_high24(vu a)
{
    EACH_HALF(vf, _mm256_cvtepi32_ps(_mm256_srli_epi32(a.half[h], 8)));
}

/* Lanes where a >= b and c <= d, as bits. */
LANES uint32_t vf_bits_ge_le(vf a, vf b, vf c, vf d)
{
    uint32_t bits = 0;

    for (int h = 0; h < 2; h++) {
        __m256 both = _mm256_and_ps(_mm256_cmp_ps(a.half[h], b.half[h], _CMP_GE_OQ),
                                    _mm256_cmp_ps(c.half[h], d.half[h], _CMP_LE_OQ));

        bits |= (uint32_t)_mm256_movemask_ps(both) << 8 * h;
    }
    return bits;
}

/* p where x > rank_x, or equal and id < rank_id; elsewhere 0. Adds how many to *n. */
LANES vf vf_keep_before(vf p, vf x, float rank_x, vu id, int32_t rank_id, int32_t *n)
{
    __m256 r = _mm256_set1_ps(rank_x);
    vf out;

    for (int h = 0; h < 2; h++) {
        __m256i lower = _mm256_cmpgt_epi32(_mm256_set1_epi32(rank_id), id.half[h]);
        __m256 tie =
            _mm256_and_ps(_mm256_cmp_ps(x.half[h], r, _CMP_EQ_OQ), _mm256_castsi256_ps(lower));
        __m256 keep = _mm256_or_ps(_mm256_cmp_ps(x.half[h], r, _CMP_GT_OQ), tie);

        *n += __builtin_popcount((unsigned)_mm256_movemask_ps(keep));
        out.half[h] = _mm256_and_ps(keep, p.half[h]);
    }
    return out;
}

LANES vd vd_zero(void)
{
    vd s;

    for (int i = 0; i < 4; i++)
        s.part[i] = _mm256_setzero_pd();
    return s;
}

LANES vd vd_add(vd s, vf a)
{
    for (int h = 0; h < 2; h++) {
        __m128 low = _mm256_castps256_ps128(a.half[h]);
        __m128 high = _mm256_extractf128_ps(a.half[h], 1);

        s.part[2 * h] = _mm256_add_pd(s.part[2 * h], _mm256_cvtps_pd(low));
        s.part[2 * h + 1] = _mm256_add_pd(s.part[2 * h + 1], _mm256_cvtps_pd(high));
    }
    return s;
}

LANES void vd_store(double *p, vd s)
{
    for (int i = 0; i < 4; i++)
        _mm256_storeu_pd(p + 4 * i, s.part[i]);
}

#undef EACH_HALF
