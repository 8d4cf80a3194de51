#include "kernels/cuda/panel.h"
#include "kernels/cuda/device.h"

/* Byte c of row r of the source; 0 beyond it. */
CUDA_DEVICE uint32_t source_byte(const struct panel_pack_args *a, int r, int64_t c, int64_t width)
{
    return r < a->n && c < width ? a->src[r * width + c] : 0;
}

/* Word w (of four) of a lane in a piece; rows count from a->first on, col is the block's first. */
CUDA_DEVICE uint32_t packed_word(const struct panel_pack_args *a, int panel_row, int64_t col,
                                 int piece, int w)
{
    int lane = warp_lane(), i = lane % 4, r = panel_row + lane / 4 + w % 2 * 8;
    uint32_t word = 0;

    if (a->type == PANEL_FP4) {
        int64_t c = col + piece * 64 + w / 2 * 32 + i * 8;

        for (int b = 0; b < 8; b++) {
            uint32_t pair = source_byte(a, r, (c + b) / 2, a->cols / 2);

            word |= (pair >> (b % 2 * 4) & 15) << (b % 4 * 8 + b / 4 * 4);
        }
    } else if (a->type == PANEL_FP8) {
        int64_t c = col + piece * 32 + i * 8 + w / 2 * 4;

        for (int b = 0; b < 4; b++)
            word |= source_byte(a, r, c + b, a->cols) << (8 * b);
    } else {
        int64_t c = col + piece / 2 * 32 + i * 8 + piece % 2 * 4 + w / 2 * 2;

        for (int b = 0; b < 4; b++)
            word |= source_byte(a, r, 2 * c + b, 2 * (int64_t)a->cols) << (8 * b);
    }
    return word;
}

CUDA_DEVICE uint8_t packed_scale(const struct panel_pack_args *a, int r, int64_t group)
{
    int64_t at = (int64_t)r * (a->cols / 32) + group;

    if (r >= a->n || group >= a->cols / 32)
        return 127;
    if (!a->scale_is_f32)
        return a->src_scale[at];
    return (uint8_t)(dev_bits(((const float *)(const void *)a->src_scale)[at]) >> 23);
}

/* Grid [blocks of columns][panels]; a warp writes pieces, 64 threads the scales. Bound by the bus
 * that brings the source; bytes read one by one come from the caches. */
CUDA_KERNEL(panel_pack_kernel, struct panel_pack_args)
{
    int64_t n_blocks = panel_ceil(a.cols, PANEL_BLOCK);
    int64_t at = (int64_t)(a.first / PANEL_ROWS + (int)blockIdx.y) * n_blocks + (int)blockIdx.x;
    int n_pieces = panel_pieces(a.type), row = (int)blockIdx.y * PANEL_ROWS;
    uint32_t *out = (uint32_t *)(void *)(a.data + at * n_pieces * PANEL_PIECE);

    for (int p = (int)threadIdx.x / CUDA_WARP; p < n_pieces; p += CUDA_BLOCK / CUDA_WARP)
        CUDA_EACH (w, 4)
            out[(p * CUDA_WARP + warp_lane()) * 4 + w] =
                packed_word(&a, row, (int64_t)blockIdx.x * PANEL_BLOCK, p, w);
    if (a.type == PANEL_FP4 && threadIdx.x < PANEL_SCALES) {
        int i = (int)threadIdx.x;

        ((uint8_t *)a.scale)[at * PANEL_SCALES + i] =
            packed_scale(&a, row + i / 8 + i / 4 % 2 * 8, (int64_t)blockIdx.x * 4 + i % 4);
    }
}

CUDA_API void cuda_panel_pack(cuda_stream s, struct panel_pack_args args)
{
    if (args.n > 0)
        CUDA_LAUNCH(panel_pack_kernel, struct panel_pack_args, panel_ceil(args.cols, PANEL_BLOCK),
                    panel_ceil(args.n, PANEL_ROWS), CUDA_BLOCK, s, args);
}

CUDA_KERNEL(scales_kernel, struct scales_args)
{
    int64_t i = (int64_t)blockIdx.x * CUDA_BLOCK + (int)threadIdx.x;

    if (i < a.n)
        a.out[i] = dev_from_e8m0(a.src[i]);
}

CUDA_API void cuda_scales(cuda_stream s, struct scales_args args)
{
    if (args.n > 0)
        CUDA_LAUNCH(scales_kernel, struct scales_args, panel_ceil(args.n, CUDA_BLOCK), 1,
                    CUDA_BLOCK, s, args);
}
