#include "kernels/cuda/dense.h"
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

/* One block for 128 values, a thread each: grid [n / 128][T]. */
CUDA_KERNEL(act_quant_kernel, struct act_quant_args)
{
    __shared__ float scratch[CUDA_BLOCK / CUDA_WARP];
    int64_t at = (int64_t)blockIdx.y * a.n + (int64_t)blockIdx.x * CUDA_BLOCK + (int)threadIdx.x;
    float x = dev_from_bf16(a.x[at]), amax = block_max(fabsf(x), scratch), scale;
    uint32_t b = dev_bits((amax <= 1e-4f ? 1e-4f : amax) * (float)(1.0 / 448.0));

    /* the smallest power of two that is not below: an exponent-bit question */
    scale = amax == amax ? dev_float(((b >> 23) + ((b & 0x7FFFFF) != 0)) << 23) : amax;
    x = x / scale;
    x = x > 448 ? 448 : x < -448 ? -448 : x; /* a NaN stays one */
    a.xq[at] = dev_to_bf16(dev_from_e4m3(dev_to_e4m3(x)) * scale);
}

CUDA_API void cuda_act_quant(cuda_stream s, struct act_quant_args args, int T)
{
    if (T > 0)
        CUDA_LAUNCH(act_quant_kernel, struct act_quant_args, args.n / CUDA_BLOCK, T, CUDA_BLOCK, s,
                    args);
}

/* Element c of row r, scale multiplied in: exact. */
CUDA_DEVICE float weight_at(const struct linear_args *a, int64_t r, int c)
{
    if (a->type == DENSE_FP8)
        return dev_from_e4m3(((const uint8_t *)a->w)[r * a->cols + c]) *
               a->scale[r / 128 * ((a->cols + 127) / 128) + c / 128];
    if (a->type == DENSE_FP4)
        return dev_from_e2m1(((const uint8_t *)a->w)[(r * a->cols + c) / 2] >> (c % 2 * 4) & 15u) *
               a->scale[r * (a->cols / 32) + c / 32];
    return dev_from_bf16(((const uint16_t *)a->w)[r * a->cols + c]);
}

/* One block an output: grid [rows][T]. The version that reads like the formula. */
CUDA_KERNEL(linear_kernel, struct linear_args)
{
    __shared__ float scratch[CUDA_BLOCK / CUDA_WARP];
    int64_t r = blockIdx.x, t = blockIdx.y, group = r / (a.rows / a.groups);
    const uint16_t *x = a.x + (t * a.groups + group) * a.cols;
    float sum = 0;

    for (int c = (int)threadIdx.x; c < a.cols; c += CUDA_BLOCK)
        sum += weight_at(&a, r, c) * dev_from_bf16(x[c]);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0 && a.y_f32)
        ((float *)a.y)[t * a.rows + r] = sum;
    else if (threadIdx.x == 0)
        ((uint16_t *)a.y)[t * a.rows + r] = dev_to_bf16(sum);
}

CUDA_API void cuda_linear(cuda_stream s, struct linear_args args, int T)
{
    if (T > 0)
        CUDA_LAUNCH(linear_kernel, struct linear_args, args.rows, T, CUDA_BLOCK, s, args);
}
