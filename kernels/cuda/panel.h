/*
 * panel: matrices as the tensor cores of kernels/cuda take them.
 *
 * A panel is 16 rows; it is cut into blocks of 128 columns, and a block into pieces of 512 bytes,
 * 16 a lane: a warp reads whole pieces straight into the registers that an mma wants, so weights go
 * through no shared memory. With g = lane / 4 and i = lane % 4, a piece holds of a lane, in words:
 *
 *   FP8   32 columns, from k on: rows g, g + 8 of k + 8i .. + 3, then the same of k + 8i + 4 .. + 7
 *   FP4   64 columns: rows g, g + 8 of k + 8i .. + 7, then the same of k + 32 + 8i .. + 7; in a
 *         word byte b has column b in its low half and column b + 4 in its high one
 *   BF16  16 of 32 columns (half h): rows g, g + 8 of k + 8i + 4h .. + 1, then of + 2 .. + 3
 *
 * So a lane's columns of an mma are eight neighbours, not those of the PTX manual: the inputs are
 * read in the same order, and a dot product does not mind. What is beyond the matrix is 0.
 *
 * Scales: FP8 f32 [rows / 128][cols / 128]; FP4 a block of a panel 64 bytes, [g][row half][32
 * columns], E8M0.
 */
#ifndef BATON_KERNELS_CUDA_PANEL_H
#define BATON_KERNELS_CUDA_PANEL_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/stream.h"

enum panel_type { PANEL_BF16, PANEL_FP8, PANEL_FP4 };

enum { PANEL_ROWS = 16, PANEL_BLOCK = 128, PANEL_PIECE = 512, PANEL_SCALES = 64 };

/* A matrix on the device. */
struct panels {
    const uint8_t *data;
    const void *scale;
    int rows, cols;
};

/* Pieces of a block. */
CUDA_BOTH int panel_pieces(int type)
{
    return type == PANEL_BF16 ? 8 : type == PANEL_FP8 ? 4 : 2;
}

CUDA_BOTH int64_t panel_ceil(int64_t n, int64_t unit)
{
    return (n + unit - 1) / unit;
}

/* Bytes of a matrix and of its scales. */
CUDA_BOTH size_t panel_bytes(int type, int64_t rows, int64_t cols)
{
    return (size_t)(panel_ceil(rows, PANEL_ROWS) * panel_ceil(cols, PANEL_BLOCK)) *
           (size_t)(panel_pieces(type) * PANEL_PIECE);
}

CUDA_BOTH size_t panel_scale_bytes(int type, int64_t rows, int64_t cols)
{
    int64_t blocks = panel_ceil(cols, PANEL_BLOCK);

    return type == PANEL_BF16  ? 0
           : type == PANEL_FP8 ? (size_t)(panel_ceil(rows, 128) * blocks) * sizeof(float)
                               : (size_t)(panel_ceil(rows, PANEL_ROWS) * blocks) * PANEL_SCALES;
}

/* Rows [first, first + n) of a matrix as the checkpoint has it, already on the device, into panels.
 * first is a multiple of 16, and so is n unless these are the last rows. */
struct panel_pack_args {
    uint8_t *data;
    void *scale;              /* FP4, else null */
    const uint8_t *src;       /* [n][cols]; FP4: [n][cols / 2], low half first */
    const uint8_t *src_scale; /* FP4: [n][cols / 32], E8M0, or f32 when scale_is_f32 */
    int type, first, n, cols, scale_is_f32;
};
CUDA_API void cuda_panel_pack(cuda_stream s, struct panel_pack_args args);

/* FP8 scales to f32: n of them. */
struct scales_args {
    float *out;
    const uint8_t *src; /* E8M0 */
    int64_t n;
};
CUDA_API void cuda_scales(cuda_stream s, struct scales_args args);

#endif
