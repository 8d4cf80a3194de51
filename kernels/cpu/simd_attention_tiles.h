/*
 * simd_attention_tiles: the products of attention on the tiles of AMX, in the order of TDPBF16PS
 * (panel_amx.c): 32 dims, or 32 keys, at a time.
 *
 *   logits  [16 keys][16 heads] += [16 keys][32 dims] x [16 pairs of dims][16 heads]: keys as they
 *           are decoded, q as it is transposed
 *   values  [16 heads][16 dims] += [16 heads][32 keys] x [16 pairs of keys][16 dims]: probabilities
 *           arranged by head, keys zipped
 */
#ifndef BATON_KERNELS_CPU_SIMD_ATTENTION_TILES_H
#define BATON_KERNELS_CPU_SIMD_ATTENTION_TILES_H

#include "kernels/cpu/simd_attention.h"
#include "kernels/cpu/tiles.h"

enum {
    KEYS = 128, /* decoded at a time */
    DIMS = TILE_ROWS
};

/* A vector more than needed: rows 2^k bytes apart would all fall into the same sets of L1. */
static int row_stride(int D)
{
    return (D + PAIRS - 1) / PAIRS * PAIRS + PAIRS;
}

SIMD void products_begin(void)
{
    tiles_configure(TILE_ROWS);
}

SIMD void products_end(void)
{
    _tile_release();
}

/* Logits of the n <= KEYS keys in w->k, of which the first is key j; some beyond n are written too,
 * and never read. */
static void logits(const struct work *w, int j, int n)
{
    for (int i = 0; i < n; i += 2 * TILE_ROWS)
        for (int block = 0; block < w->n_blocks; block += 2) {
            const el *k = w->k + i * w->stride, *q = w->q + block * PAIRS;
            float *s = w->s + block * w->s_block + (int64_t)(j + i) * VF_LANES;
            struct tile_product p = {
                .a = {k, k + TILE_ROWS * w->stride},
                .b = {q, q + PAIRS},
                .a_row = (size_t)w->stride * sizeof(el),
                .b_row = 2 * (size_t)w->heads * sizeof(el),
                .a_step = TILE_STEP,
                .b_step = TILE_STEP * (size_t)w->heads,
                .sum = {{s, s + w->s_block},
                        {s + TILE_ROWS * VF_LANES, s + w->s_block + TILE_ROWS * VF_LANES}},
                .sum_row = VF_LANES * sizeof(float),
                .n_steps = (w->D + TILE_STEP - 1) / TILE_STEP,
            };

            tiles_multiply(&p, n - i > TILE_ROWS, w->n_blocks - block > 1, false);
        }
}

/* 16 rows of 16 dwords, in place: rows become columns. */
static void transpose(void *block)
{
    __m512i r[16], t[16];

    for (int i = 0; i < 16; i++)
        r[i] = _mm512_loadu_si512((const uint8_t *)block + 64 * i);
    for (int i = 0; i < 16; i += 2) { /* dwords of neighbours */
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { /* of four; r[i + c]: columns c, c + 4, c + 8, c + 12 */
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int c = 0; c < 4; c++) {
        __m512i low = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
        __m512i high = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xDD);
        __m512i low2 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
        __m512i high2 = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xDD);

        t[c] = _mm512_shuffle_i32x4(low, low2, 0x88);
        t[8 + c] = _mm512_shuffle_i32x4(low, low2, 0xDD);
        t[4 + c] = _mm512_shuffle_i32x4(high, high2, 0x88);
        t[12 + c] = _mm512_shuffle_i32x4(high, high2, 0xDD);
    }
    for (int i = 0; i < 16; i++)
        _mm512_storeu_si512((uint8_t *)block + 64 * i, t[i]);
}

/* The probabilities of m keys, pairs [keys/2][16 heads], become tiles [keys/32][16 heads][16
 * pairs], with zeros beyond m. */
static void arrange(const struct work *w, int m)
{
    int whole = (m + TILE_STEP - 1) / TILE_STEP * TILE_STEP;

    for (int block = 0; block < w->n_blocks; block++) {
        el *pairs = (el *)(void *)(w->s + block * w->s_block);

        memset(pairs + (m + 1) / 2 * PAIRS, 0,
               (size_t)(whole / 2 - (m + 1) / 2) * PAIRS * sizeof(el));
        for (int j = 0; j < whole; j += TILE_STEP)
            transpose(pairs + j / 2 * PAIRS);
    }
}

/* Pairs of the n keys in w->k, with keys of zeros up to whole steps. */
static void zip(const struct work *w, int n)
{
    static const uint16_t low[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i first = _mm512_loadu_si512(low);
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));

    for (int i = 0; i < n; i += 2) {
        const el *a = w->k + i * w->stride, *b = a + w->stride;

        for (int c = 0; c < w->D; c += PAIRS) {
            __m512i x = _mm512_loadu_si512(a + c), y = _mm512_loadu_si512(b + c);
            el *to = w->zipped + c * KEYS + i * DIMS;

            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(x, first, y));
            _mm512_storeu_si512(to + DIMS * KEYS, _mm512_permutex2var_epi16(x, second, y));
        }
    }
}

/* Adds the n <= KEYS keys in w->k, of which the first is key j, a multiple of KEYS; all heads of
 * the lane blocks. */
static void values(const struct work *w, int j, int n, int n_heads)
{
    int whole = (n + TILE_STEP - 1) / TILE_STEP * TILE_STEP;

    (void)n_heads;
    memset(w->k + n * w->stride, 0, (size_t)(whole - n) * (size_t)w->stride * sizeof(el));
    zip(w, whole);
    for (int c = 0; c < w->D; c += 2 * DIMS)
        for (int block = 0; block < w->n_blocks; block += 2) {
            const el *pairs = (const el *)(const void *)(w->s + block * w->s_block) + j / 2 * PAIRS;
            const el *k = w->zipped + c * KEYS;
            float *o = w->o + block * VF_LANES * w->stride + c;
            struct tile_product p = {
                .a = {pairs, pairs + 2 * w->s_block},
                .b = {k, k + DIMS * KEYS},
                .a_row = PAIRS * sizeof(el),
                .b_row = 2 * DIMS * sizeof(el),
                .a_step = TILE_STEP / 2 * PAIRS,
                .b_step = TILE_STEP * DIMS,
                .sum = {{o, o + DIMS},
                        {o + TILE_ROWS * w->stride, o + TILE_ROWS * w->stride + DIMS}},
                .sum_row = (size_t)w->stride * sizeof(float),
                .n_steps = whole / TILE_STEP,
            };

            tiles_multiply(&p, w->n_blocks - block > 1, w->D - c > DIMS, true);
        }
}

#endif
