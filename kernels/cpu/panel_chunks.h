/*
 * panel_chunks: several x rows times a panel, the part that all ISAs share: a chunk of columns is
 * decoded once into L1, then tiles of TILE x rows run over it. Sums of earlier groups stay in
 * memory (the caller's out), touched once a group.
 *
 * Included by panel_<isa>.c; everything is inlined there with the ISA's functions.
 */
#ifndef BATON_KERNELS_CPU_PANEL_CHUNKS_H
#define BATON_KERNELS_CPU_PANEL_CHUNKS_H

#include "kernels/cpu/panel.h"

#include <string.h>

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

enum { TILE = PANEL_TILE };

/* A chunk in L1. */
struct chunk {
    const void *w;      /* decoded, in the ISA's form */
    const float *scale; /* FP4: [groups][64]; FP8: [64]; BF16: NULL */
    int n_cols;         /* with padding */
    int group;          /* columns that a row of scale serves */
};

/* Decodes columns [k, k + n) of p. */
typedef struct chunk (*chunk_decode_fn)(const struct panel *p, int k, int n,
                                        struct panel_scratch *scratch);

/* out[i][64] += chunk times x[i], n_x <= TILE; xf: the rows as f32 [TILE][PANEL_CHUNK]. */
typedef void (*chunk_tile_fn)(float *out, const struct chunk *c, const uint16_t *const *x,
                              const float *xf, int n_x);

/* f32 of n bf16, n a multiple of 32; NULL where tiles read x itself. */
typedef void (*chunk_widen_fn)(float *out, const uint16_t *x, int n);

/* x rows of a tile at column k, n of them; a short tail is copied and padded with zeros. */
INLINE void tile_rows(const uint16_t **to, const uint16_t *const *x, int n_x, int k, int n,
                      struct panel_scratch *scratch)
{
    for (int i = 0; i < n_x; i++) {
        to[i] = x[i] + k;
        if (n % 32 != 0) {
            uint16_t *tail = scratch->tail + i * PANEL_CHUNK;

            memset(tail, 0, PANEL_CHUNK * sizeof(*tail));
            memcpy(tail, x[i] + k, (size_t)n * sizeof(*tail));
            to[i] = tail;
        }
    }
}

INLINE void multiply_chunks(float *out, const struct panel *p, const uint16_t *const *x, int n_x,
                            struct panel_scratch *scratch, chunk_decode_fn decode,
                            chunk_tile_fn tile, chunk_widen_fn widen)
{
    /* As f32 a chunk of 128 columns is 32 KB and, with the sums of 64 rows, more than L1: FP4's
     * groups let it be half of that. */
    const int step = p->type == WEIGHT_FP4 && widen != NULL ? PANEL_CHUNK / 2 : PANEL_CHUNK;

    memset(out, 0, (size_t)n_x * PANEL_ROWS * sizeof(*out));
    for (int k = 0; k < p->cols; k += step) {
        int n = p->cols - k < step ? p->cols - k : step;
        struct chunk c = decode(p, k, n, scratch);

        for (int i = 0; i < n_x; i += TILE) {
            int n_tile = n_x - i < TILE ? n_x - i : TILE;
            const uint16_t *rows[TILE];

            tile_rows(rows, x + i, n_tile, k, n, scratch);
            if (widen != NULL)
                for (int j = 0; j < n_tile; j++)
                    widen(scratch->x + j * PANEL_CHUNK, rows[j], (n + 31) / 32 * 32);
            tile(out + i * PANEL_ROWS, &c, rows, scratch->x, n_tile);
        }
    }
}

/* Calls tile_n(out, c, x, xf, N) with a constant N for each n_x: its loops are unrolled for each.
 */
#define TILE_BY_COUNT(tile_n, out, c, x, xf, n_x, ...)                                             \
    switch (n_x) {                                                                                 \
    case 1:                                                                                        \
        tile_n(out, c, x, xf, 1, ##__VA_ARGS__);                                                   \
        break;                                                                                     \
    case 2:                                                                                        \
        tile_n(out, c, x, xf, 2, ##__VA_ARGS__);                                                   \
        break;                                                                                     \
    case 3:                                                                                        \
        tile_n(out, c, x, xf, 3, ##__VA_ARGS__);                                                   \
        break;                                                                                     \
    case 4:                                                                                        \
        tile_n(out, c, x, xf, 4, ##__VA_ARGS__);                                                   \
        break;                                                                                     \
    case 5:                                                                                        \
        tile_n(out, c, x, xf, 5, ##__VA_ARGS__);                                                   \
        break;                                                                                     \
    default:                                                                                       \
        tile_n(out, c, x, xf, 6, ##__VA_ARGS__);                                                   \
        break;                                                                                     \
    }

#endif
