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
#include <stdint.h>

#ifdef __CUDACC__
#include <cuda_runtime.h>
typedef cudaStream_t cuda_stream;
#define CUDA_API extern "C"
#define CUDA_DEVICE static __device__ __forceinline__
#define CUDA_KERNEL(name, args_type) static __global__ void name(const args_type a)
#define CUDA_LAUNCH(name, args_type, grid_x, grid_y, n_threads, stream, args)                      \
    name<<<dim3((unsigned)(grid_x), (unsigned)(grid_y)), (unsigned)(n_threads), 0, (stream)>>>(args)
#else
#include "kernels/cuda/emulate.h"
#define CUDA_API
#endif

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

/* ---- one block's sum and maximum ---- */

enum { CUDA_BLOCK = 128 }; /* threads of every kernel here: a power of two */

/* Halving tree over the threads: the order depends on CUDA_BLOCK alone, so neither batch nor grid
 * changes a bit. All threads call; all get the sum. scratch: shared, [CUDA_BLOCK]. */
CUDA_DEVICE float block_sum(float x, float *scratch)
{
    int i = (int)threadIdx.x;

    __syncthreads(); /* the last use of scratch is over */
    scratch[i] = x;
    __syncthreads();
    for (int half = CUDA_BLOCK / 2; half > 0; half /= 2) {
        if (i < half)
            scratch[i] += scratch[i + half];
        __syncthreads();
    }
    return scratch[0];
}

/* The same for the largest; a NaN wins. */
CUDA_DEVICE float block_max(float x, float *scratch)
{
    int i = (int)threadIdx.x;

    __syncthreads();
    scratch[i] = x;
    __syncthreads();
    for (int half = CUDA_BLOCK / 2; half > 0; half /= 2) {
        if (i < half && !(scratch[i + half] <= scratch[i]) && scratch[i] == scratch[i])
            scratch[i] = scratch[i + half];
        __syncthreads();
    }
    return scratch[0];
}

#endif
