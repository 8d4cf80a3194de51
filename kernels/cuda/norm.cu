#include "kernels/cuda/norm.h"
#include "kernels/cuda/device.h"

/* One block a row; each thread sums every CUDA_BLOCK-th square. Bound by bytes: 4 n a row. */
CUDA_KERNEL(rms_norm_kernel, struct rms_norm_args)
{
    __shared__ float scratch[CUDA_BLOCK / CUDA_WARP];
    const uint16_t *x = a.x + (int64_t)blockIdx.x * a.n;
    uint16_t *y = a.y + (int64_t)blockIdx.x * a.n;
    float sum = 0, root;

    for (int i = (int)threadIdx.x; i < a.n; i += CUDA_BLOCK)
        sum += dev_from_bf16(x[i]) * dev_from_bf16(x[i]);
    root = sqrtf(block_sum(sum, scratch) / (float)a.n + a.eps);
    for (int i = (int)threadIdx.x; i < a.n; i += CUDA_BLOCK)
        y[i] = a.w == 0 ? x[i] : dev_to_bf16(dev_from_bf16(a.w[i]) * dev_from_bf16(x[i]) / root);
}

CUDA_API void cuda_rms_norm(cuda_stream s, struct rms_norm_args args, int T)
{
    if (T > 0)
        CUDA_LAUNCH(rms_norm_kernel, struct rms_norm_args, T, 1, CUDA_BLOCK, s, args);
}

/*
 * A warp for a block of 128 values, four a lane: grid [T][blocks of n / (WARPS * 128)]. Rows are x:
 * there may be more than 65,535 of them. Bound by bytes: 3 n a row.
 */
enum { QUANT_WARPS = CUDA_BLOCK / CUDA_WARP };

CUDA_KERNEL(act_quant_kernel, struct act_quant_args)
{
    int block = (int)blockIdx.y * QUANT_WARPS + (int)threadIdx.x / CUDA_WARP, lane = warp_lane();
    uint8_t *row = a.xq + (int64_t)blockIdx.x * (int64_t)cuda_quant_bytes(a.n);
    float x[4], amax = 0, scale;
    uint32_t codes = 0;
    uint64_t raw;

    if (block >= a.n / QUANT_BLOCK) /* the whole warp */
        return;
    raw = *(const uint64_t *)(const void *)(a.x + (int64_t)blockIdx.x * a.n + block * QUANT_BLOCK +
                                            lane * 4);
    CUDA_EACH (i, 4) {
        x[i] = dev_from_bf16((uint16_t)(raw >> (16 * i)));
        amax = max_or_nan(amax, fabsf(x[i]));
    }
    amax = warp_max(amax, CUDA_WARP);
    scale = dev_from_e8m0(dev_fp8_scale(amax)); /* a NaN makes the whole block NaN */
    CUDA_EACH (i, 4)
        codes |= dev_to_e4m3(dev_clamp(x[i] / scale, 448)) << (8 * i);
    *(uint32_t *)(void *)(row + block * QUANT_BLOCK + lane * 4) = codes;
    if (lane == 0)
        *(float *)(void *)(row + a.n + block * 4) = scale;
}

CUDA_API void cuda_act_quant(cuda_stream s, struct act_quant_args args, int T)
{
    int blocks = args.n / QUANT_BLOCK;

    if (T > 0)
        CUDA_LAUNCH(act_quant_kernel, struct act_quant_args, T,
                    (blocks + QUANT_WARPS - 1) / QUANT_WARPS, CUDA_BLOCK, s, args);
}
