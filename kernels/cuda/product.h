/*
 * product: one tile of a matrix product on tensor cores: what linear.cu and moe.cu share.
 *
 * A block has 16 rows of the matrix (a panel) and up to 8 N tokens, N = 1 or 8. Its eight warps
 * share out the columns, in blocks of 128 that the inner dimension alone assigns; a warp multiplies
 * 32 columns at a time from nothing (so what the tensor core adds up is short), applies the scales
 * outside the mma, in f32, and the block adds up its warps in their order. So an output's bits
 * depend on its own row and token: not on the tile's size, nor on who else is in it.
 *
 * Inputs  quantised rows (norm.h) against FP8 and FP4, code against code: FP4 moves to the bits of
 *         e4m3 that are 2^-6 times its value. Or bf16 rows against BF16 and FP8.
 * Bound   decode: the matrix's bytes, in loads of 512 bytes a warp, the next block's on their way
 *         while one is multiplied. Many tokens: L1, which brings 8 bytes of tokens a lane and mma.
 */
#ifndef BATON_KERNELS_CUDA_PRODUCT_H
#define BATON_KERNELS_CUDA_PRODUCT_H

#include "kernels/cuda/device.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/panel.h"

enum {
    PRODUCT_WARPS = 8,
    PRODUCT_THREADS = PRODUCT_WARPS * CUDA_WARP,
    PRODUCT_TOKENS_MAX = 64,
    PRODUCT_PIECES_MAX = 8
};

/* How a product is made; constants of a kernel. */
struct product_kind {
    int type;   /* enum panel_type */
    int plain;  /* tokens are bf16; else quantised */
    int native; /* see warp_mma_e4m3() */
};

/* What a lane has of a block of the matrix. */
struct product_block {
    uint32_t word[PRODUCT_PIECES_MAX][4];
    uint32_t scale[2]; /* rows g, g + 8: four bytes (FP4), or f32 (FP8, the same) */
};

CUDA_DEVICE void product_fetch(struct product_block *b, const struct panels *w,
                               struct product_kind kind, int panel, int block)
{
    int64_t at = (int64_t)panel * panel_ceil(w->cols, PANEL_BLOCK) + block;
    int n_pieces = panel_pieces(kind.type), lane = warp_lane();
    const uint8_t *data = w->data + at * n_pieces * PANEL_PIECE + lane * 16;

    CUDA_EACH (p, PRODUCT_PIECES_MAX)
        if (p < n_pieces)
            dev_load_16(b->word[p], data + p * PANEL_PIECE);
    b->scale[0] = b->scale[1] = 0;
    if (kind.type == PANEL_FP4) {
        const uint32_t *s = (const uint32_t *)w->scale + at * (PANEL_SCALES / 4) + lane / 4 * 2;

        b->scale[0] = s[0];
        b->scale[1] = s[1];
    } else if (kind.type == PANEL_FP8) {
        const uint32_t *s = (const uint32_t *)w->scale +
                            (int64_t)(panel * PANEL_ROWS / 128) * panel_ceil(w->cols, PANEL_BLOCK) +
                            block;

        b->scale[0] = b->scale[1] = *s;
    }
}

/* Scale of 32 columns `step` of the block, of a row half. */
CUDA_DEVICE float product_scale(const struct product_block *b, struct product_kind kind, int step,
                                int half)
{
    if (kind.type == PANEL_FP4)
        return dev_from_e8m0(b->scale[half] >> (8 * step) & 0xFF);
    return dev_float(b->scale[half]);
}

/* FP4 in the low (or, shifted down, high) half of each byte as e4m3 codes of 2^-6 the value: sign
 * and magnitude move to where e4m3 has its sign, two exponent bits and the first of its mantissa;
 * subnormals to subnormals. */
CUDA_DEVICE uint32_t product_e4m3_low(uint32_t w)
{
    return (w << 4 & 0x80808080u) | (w << 2 & 0x1C1C1C1Cu);
}

CUDA_DEVICE uint32_t product_e4m3_high(uint32_t w)
{
    return (w & 0x80808080u) | (w >> 2 & 0x1C1C1C1Cu);
}

/* The matrix's fragment of 32 columns, as e4m3. */
CUDA_DEVICE void product_codes(uint32_t a[4], const struct product_block *b,
                               struct product_kind kind, int step)
{
    if (kind.type == PANEL_FP4) {
        CUDA_EACH (half, 2) {
            uint32_t w = b->word[step / 2][step % 2 * 2 + half];

            a[half] = product_e4m3_low(w);
            a[2 + half] = product_e4m3_high(w);
        }
    } else {
        CUDA_EACH (i, 4)
            a[i] = b->word[step][i];
    }
}

/* The same of half of them as bf16: BF16 and FP8. */
CUDA_DEVICE void product_bf16(uint32_t a[4], const struct product_block *b,
                              struct product_kind kind, int step, int half)
{
    if (kind.type == PANEL_BF16) {
        CUDA_EACH (i, 4)
            a[i] = b->word[step * 2 + half][i];
    } else {
        CUDA_EACH (i, 2) {
            a[i] = dev_e4m3_low(b->word[step][half * 2 + i]);
            a[2 + i] = dev_e4m3_high(b->word[step][half * 2 + i]);
        }
    }
}

/* sum += 32 columns from k on, of one tile of 8 tokens; x: rows of tokens, [8]. */
CUDA_DEVICE void product_quantised(float sum[4], const struct product_block *b,
                                   const uint32_t codes[4], struct product_kind kind, int step,
                                   const uint8_t *const *x, int64_t k, int64_t cols)
{
    int g = warp_lane() / 4, i = warp_lane() % 4;
    float part[4] = {0, 0, 0, 0}, factor = kind.type == PANEL_FP4 ? 64 : 1;
    uint64_t raw = *(const uint64_t *)(const void *)(x[g] + k + i * 8);
    uint32_t xs[2] = {(uint32_t)raw, (uint32_t)(raw >> 32)};
    float low = product_scale(b, kind, step, 0), high = product_scale(b, kind, step, 1);

    warp_mma_e4m3(part, codes, xs, kind.native);
    CUDA_EACH (j, 2) {
        const uint8_t *scales = x[i * 2 + j] + cols;
        float s = ((const float *)(const void *)scales)[k / QUANT_BLOCK] * factor;

        /* one after the other: neither product overflows where the result does not, nor is 0
         * times an overflow */
        sum[j] = fmaf(part[j] * low, s, sum[j]);
        sum[2 + j] = fmaf(part[2 + j] * high, s, sum[2 + j]);
    }
}

CUDA_DEVICE void product_plain(float sum[4], const struct product_block *b, uint32_t bf16[2][4],
                               struct product_kind kind, int step, const uint8_t *const *x,
                               int64_t k)
{
    int g = warp_lane() / 4, i = warp_lane() % 4;
    float part[4] = {0, 0, 0, 0};
    uint32_t raw[4];

    dev_load_16(raw, x[g] + (k + i * 8) * 2);
    CUDA_EACH (half, 2)
        warp_mma(part, bf16[half], raw + 2 * half);
    CUDA_EACH (j, 4)
        sum[j] = kind.type == PANEL_BF16
                     ? sum[j] + part[j]
                     : fmaf(part[j], product_scale(b, kind, step, j / 2), sum[j]);
}

CUDA_DEVICE void product_multiply(float (*sum)[4], int n_tiles, const struct product_block *b,
                                  struct product_kind kind, const uint8_t *const *x, int n_live,
                                  int64_t k, int64_t cols)
{
    CUDA_EACH (step, PANEL_BLOCK / 32) {
        uint32_t codes[4], bf16[2][4];

        if (k + step * 32 < cols) {
            if (kind.plain) {
                CUDA_EACH (half, 2)
                    product_bf16(bf16[half], b, kind, step, half);
            } else {
                product_codes(codes, b, kind, step);
            }
            CUDA_EACH (n, n_tiles) {
                if (n < n_live && kind.plain)
                    product_plain(sum[n], b, bf16, kind, step, x + n * 8, k + step * 32);
                else if (n < n_live)
                    product_quantised(sum[n], b, codes, kind, step, x + n * 8, k + step * 32, cols);
            }
        }
    }
}

/*
 * out[token][row] = the product, f32, in shared memory [PRODUCT_WARPS][8 n_tiles][PANEL_ROWS + 1],
 * of which the first part holds the sums at the end; every thread sees them.
 * x: shared, [8 n_tiles] addresses of tokens' rows; those beyond the last are any row's.
 */
CUDA_DEVICE void product_tile(float *shared, const struct panels *w, int panel,
                              const uint8_t *const *x, int n_tokens, int n_tiles,
                              struct product_kind kind)
{
    int warp = (int)threadIdx.x / CUDA_WARP, g = warp_lane() / 4, i = warp_lane() % 4;
    int n_blocks = (int)panel_ceil(w->cols, PANEL_BLOCK), n_live = (n_tokens + 7) / 8;
    int block = n_blocks * warp / PRODUCT_WARPS, end = n_blocks * (warp + 1) / PRODUCT_WARPS;
    int stride = PANEL_ROWS + 1, wide = 8 * n_tiles * stride;
    struct product_block now, next;
    float sum[PRODUCT_TOKENS_MAX / 8][4];

    CUDA_EACH (n, n_tiles)
        CUDA_EACH (j, 4)
            sum[n][j] = 0;
    if (block < end)
        product_fetch(&next, w, kind, panel, block);
    for (; block < end; block++) {
        now = next;
        if (block + 1 < end)
            product_fetch(&next, w, kind, panel, block + 1);
        product_multiply(sum, n_tiles, &now, kind, x, n_live, (int64_t)block * PANEL_BLOCK,
                         w->cols);
    }
    __syncthreads(); /* what shared held has been read */
    CUDA_EACH (n, n_tiles)
        CUDA_EACH (j, 4)
            shared[warp * wide + (n * 8 + i * 2 + j % 2) * stride + g + j / 2 * 8] = sum[n][j];
    __syncthreads();
    for (int at = (int)threadIdx.x; at < wide; at += PRODUCT_THREADS) {
        float total = shared[at];

        for (int other = 1; other < PRODUCT_WARPS; other++)
            total += shared[other * wide + at];
        shared[at] = total;
    }
    __syncthreads();
}

#endif
