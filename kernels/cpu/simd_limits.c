/* simd_limits: see limits.h; 12 chains hide the latency of any FMA unit. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

enum { CHAINS = 12 };

uint64_t SIMD_NAME(cpu_read)(const void *p, size_t bytes)
{
    const float *at = p;
    vi sum[8] = {0};
    uint64_t lane[sizeof(vi) / 8], all = 0;

    for (size_t i = 0; i < bytes / sizeof(vi); i += 8)
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++)
            sum[j] ^= (vi)vf_load(at + (i + (size_t)j) * VF_LANES);
    for (int j = 0; j < 8; j++) {
        memcpy(lane, &sum[j], sizeof(lane));
        for (size_t i = 0; i < sizeof(vi) / 8; i++)
            all ^= lane[i];
    }
    return all;
}

/* Chains are variables, not an array: gcc keeps an array in memory that an asm statement touches.
 */
#define EACH_CHAIN(do)                                                                             \
    do                                                                                             \
    (a) do(b) do(c) do(d) do(e) do(f) do(g) do(h) do(i) do(j) do(k) do(l)
#define START(chain) vf chain = vf_set1(1.f);
#define KEEP(chain) __asm__ volatile("" : "+v"(chain));
#define FMA(chain)                                                                                 \
    chain = vf_fma(x, y, chain);                                                                   \
    KEEP(chain)
#define DOT(chain)                                                                                 \
    chain = vf_dot(chain, x, y);                                                                   \
    KEEP(chain)

double SIMD_NAME(cpu_fma)(int64_t n)
{
    vf x = vf_set1(1.f), y = vf_set1(0x1p-20f);

    EACH_CHAIN(START)
    for (int64_t round = 0; round < n; round++) {
        EACH_CHAIN(FMA)
    }
    return 2.0 * VF_LANES * CHAINS * (double)n;
}

double SIMD_NAME(cpu_dot)(int64_t n)
{
#ifdef __AVX512BF16__
    vp x = (vp)vf_set1(1.f), y = (vp)vf_set1(0x1p-20f);

    EACH_CHAIN(START)
    for (int64_t round = 0; round < n; round++) {
        EACH_CHAIN(DOT)
    }
    return 4.0 * VF_LANES * CHAINS * (double)n;
#else
    (void)n;
    return 0;
#endif
}
