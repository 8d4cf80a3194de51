/*
 * simd: a vector of f32 lanes, as wide as the ISA this file is compiled for, and the few functions
 * that the operations need of it. Operations are written once over this and compiled once per ISA,
 * with SIMD_NAME giving each extern symbol its suffix.
 *
 * vf is a GCC vector: + - * / work on it. Fused multiply-add only where vf_fma says so.
 */
#ifndef BATON_KERNELS_CPU_SIMD_H
#define BATON_KERNELS_CPU_SIMD_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if !defined(__AVX512F__)
#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/simd_pairs_f32.h"
#define SIMD_NAME(name) name##_avx2
#elif defined(SIMD_PAIRS_F32) /* meson.build: some files a third time */
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/simd_pairs_f32.h"
#define SIMD_NAME(name) name##_avx512_fma
#else
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/simd_pairs_bf16.h"
#if defined(SIMD_TILES) /* some a fourth time, with AMX */
#define SIMD_NAME(name) name##_amx
#else
#define SIMD_NAME(name) name##_avx512
#endif
#endif

#define SIMD static inline __attribute__((always_inline))

/* One vector. Not a loop for gcc to make memcpy of: inlined, that is a string instruction, which
 * waits for each miss. */
SIMD void vi_copy(void *to, const void *from)
{
    vi x = vi_load(from);

    __asm__("" : "+x"(x));
    vi_store(to, x);
}

/* Sum of the lanes: halves are added until one is left. */
SIMD float vf_sum(vf x)
{
    float lane[VF_LANES];

    vf_store(lane, x);
    for (int n = VF_LANES / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++)
            lane[i] += lane[i + n];
    return lane[0];
}

SIMD float vf_most(vf x)
{
    float lane[VF_LANES];

    vf_store(lane, x);
    for (int n = VF_LANES / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++)
            lane[i] = lane[i] > lane[i + n] ? lane[i] : lane[i + n];
    return lane[0];
}

/* Smallest power of two >= x, for positive normal x. */
SIMD float pow2_ceil(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, 4);
    bits = (bits + 0x7FFFFF) & 0xFF800000;
    memcpy(&x, &bits, 4);
    return x;
}

/* e^x to about 1 ulp; below -87.3 0, above 88.7 infinity. */
SIMD vf vf_exp(vf x)
{
    const vf lo = vf_set1(-87.3f), hi = vf_set1(88.72f);
    vf in = vf_min(vf_max(x, vf_set1(-88.f)), vf_set1(89.f));
    vf n = vf_round_even(in * vf_set1(1.44269504f));
    vf r = vf_fma(n, vf_set1(-0.693359375f), in); /* ln 2 in two parts */

    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.9875691500e-4f); /* Cephes expf: minimax on +-ln(2)/2 */

    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_fma(p, r * r, r) + vf_set1(1.f);
    p = vf_scale2(p, n);
    p = vf_select_less(x, lo, vf_set1(0.f), p);
    p = vf_select_less(hi, x, vf_set1(__builtin_inff()), p);
    return vf_select_nan(x, x, p);
}

/* 1 / (1 + e^-x) */
SIMD vf vf_sigmoid(vf x)
{
    return vf_set1(1.f) / (vf_set1(1.f) + vf_exp(vf_set1(0.f) - x));
}

#endif
