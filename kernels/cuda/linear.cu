#include "kernels/cuda/linear.h"
#include "kernels/cuda/product.h"

/* Grid [panels of rows][tiles of tokens]. Shared: PRODUCT_WARPS * 17 * 4 bytes a token. */
CUDA_DEVICE void linear_tile(const struct linear_args *a, float *shared, const uint8_t **x,
                             int n_tiles, struct product_kind kind)
{
    int first = (int)blockIdx.y * 8 * n_tiles, n = a->T - first, panel = (int)blockIdx.x;
    int group = a->groups > 1 ? panel * PANEL_ROWS / (a->w.rows / a->groups) : 0;

    n = n < 8 * n_tiles ? n : 8 * n_tiles;
    for (int t = (int)threadIdx.x; t < 8 * n_tiles; t += PRODUCT_THREADS)
        x[t] = a->x + (int64_t)(first + (t < n ? t : 0)) * (int64_t)a->x_bytes +
               (int64_t)group * a->w.cols * 2;
    __syncthreads();
    product_tile(shared, &a->w, panel, x, n, n_tiles, kind);
    for (int at = (int)threadIdx.x; at < n * PANEL_ROWS; at += PRODUCT_THREADS) {
        int t = at / PANEL_ROWS, r = at % PANEL_ROWS, row = panel * PANEL_ROWS + r;
        float y = shared[t * (PANEL_ROWS + 1) + r];

        if (row < a->w.rows && a->y_f32)
            ((float *)a->y)[(first + t) * a->y_stride + row] = y;
        else if (row < a->w.rows)
            ((uint16_t *)a->y)[(first + t) * a->y_stride + row] = dev_to_bf16(y);
    }
}

#define LINEAR_KERNEL(name, n_tiles, type, plain, native)                                          \
    CUDA_BOUNDED_KERNEL(name, struct linear_args, PRODUCT_THREADS, 2)                              \
    {                                                                                              \
        __shared__ float shared[PRODUCT_WARPS * 8 * (n_tiles) * (PANEL_ROWS + 1)];                 \
        __shared__ const uint8_t *x[8 * (n_tiles)];                                                \
        struct product_kind kind = {type, plain, native};                                          \
                                                                                                   \
        linear_tile(&a, shared, x, n_tiles, kind);                                                 \
    }

LINEAR_KERNEL(linear_bf16_few, 1, PANEL_BF16, 1, 0)
LINEAR_KERNEL(linear_bf16_many, 8, PANEL_BF16, 1, 0)
LINEAR_KERNEL(linear_fp8_plain_few, 1, PANEL_FP8, 1, 0)
LINEAR_KERNEL(linear_fp8_plain_many, 8, PANEL_FP8, 1, 0)
LINEAR_KERNEL(linear_fp8_few, 1, PANEL_FP8, 0, 0)
LINEAR_KERNEL(linear_fp8_many, 8, PANEL_FP8, 0, 0)
LINEAR_KERNEL(linear_fp8_few_native, 1, PANEL_FP8, 0, 1)
LINEAR_KERNEL(linear_fp8_many_native, 8, PANEL_FP8, 0, 1)
LINEAR_KERNEL(linear_fp4_few, 1, PANEL_FP4, 0, 0)
LINEAR_KERNEL(linear_fp4_many, 8, PANEL_FP4, 0, 0)

#define LAUNCH_LINEAR(kernel)                                                                      \
    CUDA_LAUNCH(kernel, struct linear_args, panel_ceil(args.w.rows, PANEL_ROWS), tiles,            \
                PRODUCT_THREADS, s, args)

CUDA_API void cuda_linear(cuda_stream s, struct linear_args args)
{
    int few = args.T <= 8, tiles = (int)panel_ceil(args.T, few ? 8 : PRODUCT_TOKENS_MAX);

    if (args.T == 0)
        return;
    if (args.type == PANEL_BF16 && few)
        LAUNCH_LINEAR(linear_bf16_few);
    else if (args.type == PANEL_BF16)
        LAUNCH_LINEAR(linear_bf16_many);
    else if (args.plain && few)
        LAUNCH_LINEAR(linear_fp8_plain_few);
    else if (args.plain)
        LAUNCH_LINEAR(linear_fp8_plain_many);
    else if (args.type == PANEL_FP4 && few)
        LAUNCH_LINEAR(linear_fp4_few);
    else if (args.type == PANEL_FP4)
        LAUNCH_LINEAR(linear_fp4_many);
    else if (args.native && few)
        LAUNCH_LINEAR(linear_fp8_few_native);
    else if (args.native)
        LAUNCH_LINEAR(linear_fp8_many_native);
    else if (few)
        LAUNCH_LINEAR(linear_fp8_few);
    else
        LAUNCH_LINEAR(linear_fp8_many);
}
