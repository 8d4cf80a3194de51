/*
 * device: the words in which kernels/cuda is written, on a GPU and on the host.
 *
 * A .cu file here is C that nvcc also takes: compiled by nvcc it is CUDA; included by a .c file it
 * runs on the host through emulate.h, one fiber per thread of a block, so that the kernels' maths
 * and barriers are tested where no GPU is. A kernel takes one struct by value; CUDA_KERNEL() begins
 * it and CUDA_LAUNCH() starts it, in either world.
 */
#ifndef BATON_KERNELS_CUDA_DEVICE_H
#define BATON_KERNELS_CUDA_DEVICE_H

#include <math.h>

#include "kernels/cuda/stream.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
/* A loop over registers: unrolled, so that they are. */
#define CUDA_EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); i++)
#define CUDA_DEVICE static __device__ __forceinline__
#define CUDA_KERNEL(name, args_type) static __global__ void name(const args_type a)
/* The same with a promise of threads a block and blocks an SM: what registers are shared out by. */
#define CUDA_BOUNDED_KERNEL(name, args_type, n_threads, n_blocks)                                  \
    static __global__ void __launch_bounds__(n_threads, n_blocks) name(const args_type a)
/* Shared memory that the launch sizes; 16-byte aligned. */
#define CUDA_DYNAMIC(name) extern __shared__ __align__(16) unsigned char name[]
#define CUDA_LAUNCH_GRID(name, args_type, grid_x, grid_y, grid_z, n_threads, shared, stream, args) \
    do {                                                                                           \
        if ((shared) > 48 * 1024) /* more has to be asked for */                                   \
            cudaFuncSetAttribute((const void *)name, cudaFuncAttributeMaxDynamicSharedMemorySize,  \
                                 (int)(shared));                                                   \
        name<<<dim3((unsigned)(grid_x), (unsigned)(grid_y), (unsigned)(grid_z)),                   \
               (unsigned)(n_threads), (size_t)(shared), (stream)>>>(args);                         \
    } while (0)
#else
#include "kernels/cuda/emulate.h"
#define CUDA_EACH(i, n) for (int i = 0; i < (n); i++)
#endif
#define CUDA_LAUNCH(name, args_type, grid_x, grid_y, n_threads, stream, args)                      \
    CUDA_LAUNCH_GRID(name, args_type, grid_x, grid_y, 1, n_threads, 0, stream, args)

/* Typed address of a struct dev_ptr of kernels.h. */
#define DEV(type, p) ((type *)(uintptr_t)(p).addr)

/* ---- number formats: see kernels/ref/formats.h, whose bits these give ---- */

CUDA_DEVICE uint32_t dev_bits(float x)
{
    union {
        float f;
        uint32_t u;
    } v;

    v.f = x;
    return v.u;
}

CUDA_DEVICE float dev_float(uint32_t bits)
{
    union {
        float f;
        uint32_t u;
    } v;

    v.u = bits;
    return v.f;
}

CUDA_DEVICE float dev_from_bf16(uint16_t b)
{
    return dev_float((uint32_t)b << 16);
}

CUDA_DEVICE uint16_t dev_to_bf16(float x)
{
    uint32_t b = dev_bits(x);

    if (x != x)
        return (uint16_t)((b >> 16) | 0x40);
    return (uint16_t)((b + 0x7FFF + ((b >> 16) & 1)) >> 16);
}

CUDA_DEVICE float dev_from_e4m3(uint32_t code)
{
    uint32_t sign = (code & 128) << 24, mag = code & 127;

    if (mag == 127)
        return dev_float(0x7FC00000);
    if (mag < 8) /* subnormal: steps of 2^-9 */
        return dev_float(sign | dev_bits((float)mag * 0.001953125f));
    return dev_float(sign | ((mag << 20) + ((127u - 7) << 23)));
}

/* x within [-448, 448]; ties to even. */
CUDA_DEVICE uint32_t dev_to_e4m3(float x)
{
    uint32_t sign = dev_bits(x) >> 24 & 128, b = dev_bits(x) & 0x7FFFFFFF;

    if (x != x)
        return 0x7F;
    if (b < 0x3C800000) /* 2^-6: below it, steps of 2^-9 */
        return sign | (uint32_t)rintf(fabsf(x) * 512.0f);
    return sign | ((b - ((127u - 7) << 23) + 0x7FFFF + (b >> 20 & 1)) >> 20);
}

CUDA_DEVICE float dev_from_e2m1(uint32_t nibble)
{
    uint32_t sign = (nibble & 8) << 28, mag = nibble & 7;

    if (mag < 2)
        return dev_float(sign | (mag != 0 ? 0x3F000000u : 0));
    return dev_float(sign | ((mag << 22) + ((127u - 1) << 23)));
}

CUDA_DEVICE float dev_bf16_grid(float x)
{
    return dev_from_bf16(dev_to_bf16(x));
}

CUDA_DEVICE uint32_t dev_pack_bf16(float low, float high)
{
    return (uint32_t)dev_to_bf16(high) << 16 | dev_to_bf16(low);
}

/* Two products of bf16 at once, rounded. */
CUDA_DEVICE uint32_t dev_mul_bf16x2(uint32_t x, uint32_t y)
{
#ifdef __CUDACC__
    uint32_t z;

    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(z) : "r"(x), "r"(y), "r"(0x80008000u)); /* + -0 */
    return z;
#else
    return dev_pack_bf16(dev_float(x << 16) * dev_float(y << 16),
                         dev_float(x & 0xFFFF0000u) * dev_float(y & 0xFFFF0000u));
#endif
}

/* 16 bytes at once, from an address that is a multiple of them. */
CUDA_DEVICE void dev_load_16(uint32_t out[4], const void *p)
{
#ifdef __CUDACC__
    uint4 v = *(const uint4 *)p;

    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
#else
    const uint32_t *from = (const uint32_t *)p;

    for (int i = 0; i < 4; i++)
        out[i] = from[i];
#endif
}

CUDA_DEVICE void dev_store_16(void *p, const uint32_t v[4])
{
#ifdef __CUDACC__
    *(uint4 *)p = make_uint4(v[0], v[1], v[2], v[3]);
#else
    uint32_t *to = (uint32_t *)p;

    for (int i = 0; i < 4; i++)
        to[i] = v[i];
#endif
}

/* x within [-6, 6]; ties to even. */
CUDA_DEVICE uint32_t dev_to_e2m1(float x)
{
    float a = fabsf(x);
    uint32_t code = (uint32_t)(a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) +
                    (a >= 3.5f) + (a > 5.0f);

    return code | (dev_bits(x) >> 28 & 8);
}

CUDA_DEVICE float dev_from_e8m0(uint32_t e)
{
    return e == 255 ? dev_float(0x7FC00000) : e == 0 ? dev_float(0x00400000) : dev_float(e << 23);
}

/* The smallest power of two that is not below x, positive and normal: an exponent-bit question. */
CUDA_DEVICE uint32_t dev_e8m0_ceil(float x)
{
    uint32_t b = dev_bits(x);

    return x != x ? 255 : (b >> 23) + ((b & 0x7FFFFF) != 0);
}

CUDA_DEVICE uint32_t dev_fp8_scale(float amax)
{
    return dev_e8m0_ceil((amax <= 1e-4f ? 1e-4f : amax) * (float)(1.0 / 448.0));
}

CUDA_DEVICE uint32_t dev_fp4_scale(float amax)
{
    const float least = 6 * 1.17549435e-38f; /* 6 * 2^-126 */

    return dev_e8m0_ceil((amax <= least ? least : amax) * (float)(1.0 / 6.0));
}

CUDA_DEVICE float dev_clamp(float x, float limit)
{
    return x > limit ? limit : x < -limit ? -limit : x; /* a NaN stays one */
}

/* *counter += n, whoever else does so; what it was. */
CUDA_DEVICE uint32_t dev_add(uint32_t *counter, uint32_t n)
{
#ifdef __CUDACC__
    return atomicAdd(counter, n);
#else
    uint32_t was = *counter; /* fibers change at barriers alone */

    *counter += n;
    return was;
#endif
}

/* ---- one warp: every lane calls, every lane gets the result ---- */

enum { CUDA_WARP = 32 };

CUDA_DEVICE int warp_lane(void)
{
    return (int)(threadIdx.x % CUDA_WARP);
}

CUDA_DEVICE float warp_xor(float x, int mask)
{
#ifdef __CUDACC__
    return __shfl_xor_sync(0xFFFFFFFFu, x, mask);
#else
    return dev_float(emulate_exchange(dev_bits(x), threadIdx.x % CUDA_WARP ^ (unsigned)mask));
#endif
}

CUDA_DEVICE uint32_t warp_from(uint32_t x, int lane)
{
#ifdef __CUDACC__
    return __shfl_sync(0xFFFFFFFFu, x, lane);
#else
    return emulate_exchange(x, (unsigned)lane);
#endif
}

CUDA_DEVICE uint32_t warp_ballot(int x)
{
#ifdef __CUDACC__
    return __ballot_sync(0xFFFFFFFFu, x);
#else
    return emulate_ballot(x);
#endif
}

CUDA_DEVICE int count_bits(uint32_t x)
{
#ifdef __CUDACC__
    return __popc(x);
#else
    return __builtin_popcount(x);
#endif
}

/* The larger; a NaN wins. */
CUDA_DEVICE float max_or_nan(float x, float y)
{
    return x <= y || y != y ? y : x;
}

/* Butterfly over groups of n neighbouring lanes (2^k): the order depends on n alone. */
CUDA_DEVICE float warp_sum(float x, int n)
{
    for (int mask = n / 2; mask > 0; mask /= 2)
        x += warp_xor(x, mask);
    return x;
}

CUDA_DEVICE float warp_max(float x, int n)
{
    for (int mask = n / 2; mask > 0; mask /= 2)
        x = max_or_nan(x, warp_xor(x, mask));
    return x;
}

/* ---- tensor cores: m16n8k16, bf16 in, f32 out ----
 * With g = lane / 4 and i = lane % 4 a lane holds, as pairs of neighbours (low half first):
 *   a[0], a[1]  rows g, g + 8 of columns k = 2i;  a[2], a[3]  the same of k = 2i + 8
 *   b[0], b[1]  column n = g of rows k = 2i, 2i + 8
 *   d           row g, columns 2i, 2i + 1; row g + 8, the same */

CUDA_DEVICE void warp_mma(float d[4], const uint32_t a[4], const uint32_t b[2])
{
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emulate_mma(d, a, b);
#endif
}

/* ---- tensor cores: m16n8k32, e4m3 in, f32 out ----
 * With g = lane / 4 and i = lane % 4 a lane holds, four neighbours of k a word (lowest first):
 *   a[0], a[1]  rows g, g + 8 of columns k = 4i;  a[2], a[3]  the same of k = 4i + 16
 *   b[0], b[1]  column n = g of rows k = 4i, 4i + 16
 *   d           as above */

/* Two e4m3 codes (bytes 1 and 3 of pair) as bf16: the bits of a code, moved, are a bf16 number
 * 2^120 too small, subnormal where the code is. Exact; NaN stays one. */
CUDA_DEVICE uint32_t dev_e4m3_pair(uint32_t pair)
{
    uint32_t bits = (pair & 0x80008000u) | (pair >> 4 & 0x07F007F0u);
    uint32_t z = dev_mul_bf16x2(bits, 0x7B807B80u);

    z |= (pair & 0x7F00) == 0x7F00 ? 0x7FC0 : 0;
    return z | ((pair & 0x7F000000) == 0x7F000000 ? 0x7FC00000u : 0);
}

/* Codes 0, 1 and 2, 3 of a word. */
CUDA_DEVICE uint32_t dev_e4m3_low(uint32_t word)
{
    return dev_e4m3_pair((word & 0xFF) << 8 | (word & 0xFF00) << 16);
}

CUDA_DEVICE uint32_t dev_e4m3_high(uint32_t word)
{
    return dev_e4m3_pair((word & 0xFF0000) >> 8 | (word & 0xFF000000u));
}

/* As two products of bf16, which any sm_80+ has: k in the order 4i, 4i + 1 of all lanes, then
 * 4i + 2, 4i + 3, in either half. */
CUDA_DEVICE void warp_mma_e4m3_portable(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    CUDA_EACH (half, 2) {
        uint32_t x[4] = {dev_e4m3_low(a[2 * half]), dev_e4m3_low(a[2 * half + 1]),
                         dev_e4m3_high(a[2 * half]), dev_e4m3_high(a[2 * half + 1])};
        uint32_t y[2] = {dev_e4m3_low(b[half]), dev_e4m3_high(b[half])};

        warp_mma(d, x, y);
    }
}

/* native: by the instruction of sm_89 and later, which keeps fewer bits of what it adds up than f32
 * has (about 13 below the largest term, on Hopper); else as two of bf16. */
CUDA_DEVICE void warp_mma_e4m3(float d[4], const uint32_t a[4], const uint32_t b[2], int native)
{
    if (!native) {
        warp_mma_e4m3_portable(d, a, b);
        return;
    }
#if !defined(__CUDACC__)
    emulate_mma_e4m3(d, a, b);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    warp_mma_e4m3_portable(d, a, b);
#endif
}

/* Four 8 x 8 matrices of bf16; lane l brings the shared address of row l % 8 of matrix l / 8. */
CUDA_DEVICE void warp_load_matrices(uint32_t out[4], const uint16_t *row)
{
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
#else
    emulate_ldmatrix(out, 4, 0, row);
#endif
}

/* The same, each transposed. */
CUDA_DEVICE void warp_load_transposed(uint32_t out[4], const uint16_t *row)
{
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
#else
    emulate_ldmatrix(out, 4, 1, row);
#endif
}

/* ---- one block's sum and maximum ---- */

enum { CUDA_BLOCK = 128 }; /* threads of every kernel here that says nothing else */

/* Butterflies over the warps, then over their results: the order depends on CUDA_BLOCK alone, so
 * neither batch nor grid changes a bit. All threads call; all get the sum. scratch: shared,
 * [CUDA_BLOCK / CUDA_WARP]. */
CUDA_DEVICE float block_sum(float x, float *scratch)
{
    x = warp_sum(x, CUDA_WARP);
    __syncthreads(); /* the last use of scratch is over */
    if (warp_lane() == 0)
        scratch[threadIdx.x / CUDA_WARP] = x;
    __syncthreads();
    x = 0;
    for (int w = 0; w < CUDA_BLOCK / CUDA_WARP; w++)
        x += scratch[w];
    return x;
}

/* The same for the largest; a NaN wins. */
CUDA_DEVICE float block_max(float x, float *scratch)
{
    x = warp_max(x, CUDA_WARP);
    __syncthreads();
    if (warp_lane() == 0)
        scratch[threadIdx.x / CUDA_WARP] = x;
    __syncthreads();
    x = scratch[0];
    for (int w = 1; w < CUDA_BLOCK / CUDA_WARP; w++)
        x = max_or_nan(x, scratch[w]);
    return x;
}

#endif
