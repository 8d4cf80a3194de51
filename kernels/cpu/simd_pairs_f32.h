/*
 * simd_pairs_f32: what simd_pairs_bf16.h does, with elements of f32 and two FMAs a pair; the same
 * bits. For AVX2, and for AVX-512 on the processors whose VDPBF16PS is slower than that. simd.h
 * includes it, after the header of the ISA.
 */
#ifndef BATON_KERNELS_CPU_SIMD_PAIRS_F32_H
#define BATON_KERNELS_CPU_SIMD_PAIRS_F32_H

typedef float el;
typedef struct {
    vf first, second;
} vp;

VF_INLINE vf vf_dot(vf sum, vp x, vp y)
{
    return vf_fma(x.first, y.first, vf_fma(x.second, y.second, sum));
}

VF_INLINE const el *el_row(el *copy, const uint16_t *x, int n)
{
    for (int i = 0; i < n; i += VF_LANES)
        vf_store(copy + i, vf_load_bf16(x + i));
    return copy;
}

VF_INLINE void el_store(el *p, vf x)
{
    vf_store(p, x);
}

VF_INLINE void vp_store(el *p, vf first, vf second)
{
    vf_store(p, first);
    vf_store(p + VF_LANES, second);
}

VF_INLINE vp vp_load(const el *p)
{
    return (vp){vf_load(p), vf_load(p + VF_LANES)};
}

VF_INLINE vp vp_lane(const el *p, int lane)
{
    return (vp){vf_set1(p[lane]), vf_set1(p[VF_LANES + lane])};
}

VF_INLINE vp vp_set1(const el *row)
{
    return (vp){vf_set1(row[0]), vf_set1(row[1])};
}

VF_INLINE void vp_gather(el *p, const uint16_t *x, int stride)
{
    vu pairs = (vu)vi_gather((const uint8_t *)x, 2 * stride);

    vp_store(p, (vf)(pairs << 16), (vf)(pairs & 0xFFFF0000));
}

VF_INLINE void vp_zip(el *p, const el *a, const el *b)
{
    for (int i = 0; i < 2; i++)
        vp_store(p + 2 * i * VF_LANES, vf_load(a + i * VF_LANES), vf_load(b + i * VF_LANES));
}

VF_INLINE bool el_load_fp8(el *out, const uint8_t *codes, uint8_t e)
{
    uint32_t bits = (uint32_t)(e + 8) << 23; /* 2^8 is still owed */
    float scale;

    /* A value's exponent lies between -9 and 8. */
    if (e < 10 || e > 246 || vf_any_nan_e4m3(codes))
        return false;
    memcpy(&scale, &bits, 4);
    for (int i = 0; i < 64; i += VF_LANES)
        vf_store(out + i, vf_load_e4m3_number(codes + i) * vf_set1(scale));
    return true;
}

#endif
