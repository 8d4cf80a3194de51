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

double SIMD_NAME(cpu_fma)(int64_t n)
{
    vf sum[CHAINS], x = vf_set1(1.f), y = vf_set1(0x1p-20f);

    for (int j = 0; j < CHAINS; j++)
        sum[j] = vf_set1((float)j);
    for (int64_t i = 0; i < n; i++)
#pragma GCC unroll 16
        for (int j = 0; j < CHAINS; j++) {
            sum[j] = vf_fma(x, y, sum[j]);
            __asm__ volatile("" : "+v"(sum[j]));
        }
    return 2.0 * VF_LANES * CHAINS * (double)n;
}

double SIMD_NAME(cpu_dot)(int64_t n)
{
#ifdef VF_HAS_DOT
    vf sum[CHAINS];
    vi x = (vi)vf_set1(1.f), y = (vi)vf_set1(0x1p-20f);

    for (int j = 0; j < CHAINS; j++)
        sum[j] = vf_set1((float)j);
    for (int64_t i = 0; i < n; i++)
#pragma GCC unroll 16
        for (int j = 0; j < CHAINS; j++) {
            sum[j] = vf_dot(sum[j], x, y);
            __asm__ volatile("" : "+v"(sum[j]));
        }
    return 4.0 * VF_LANES * CHAINS * (double)n;
#else
    (void)n;
    return 0;
#endif
}
