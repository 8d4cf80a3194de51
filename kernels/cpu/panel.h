/*
 * panel: 64 rows of a weight matrix in kernel order, and the kernels that multiply them.
 *
 * Every product of the backend goes through one function, panel_fn: the dot products of 64 rows of
 * W with some rows of x. It is the only place where the order of accumulation is decided, and the
 * order is the same for every ISA, every number of x rows and every thread (the fixed tree):
 *
 *   for each group of k's (FP4: 32, one scale; FP8 and BF16: 128)       ascending
 *       s = 0
 *       for each pair (2i, 2i + 1) of the group                         ascending
 *           s = fma(x[2i + 1], w[2i + 1], s)
 *           s = fma(x[2i], w[2i], s)                 this order is what VDPBF16PS does in one step
 *       y = fma(s, scale, y)                                            from y = 0
 *
 * x is bf16; w is the code without its scale, exact in bf16. (VDPBF16PS flushes denormals, FMA does
 * not: bits differ only for numbers below 1e-38.) Where AVX512_BF16 runs at full rate it is used,
 * elsewhere two f32 FMAs give the same bits: panel_kernels_avx512() measures. AMX has a tree of its
 * own, that of its instruction: panel_amx.c.
 *
 * Layout, bytes of one panel (rows r of 64, the last panel zero-padded; columns padded with zeros)
 *
 *   BF16   per pair of columns  256 B: dword r = columns (2i, 2i + 1) of row r
 *   FP8    per 4 columns        256 B: 4 x 64 B, one for each 16 rows; see fp8_place() in panel.c
 *   FP4    per 32 columns      1088 B: 4 x 4 x 64 B (8 columns, 16 rows each), then 64 E8M0 scales;
 *                              see fp4_unit() in panel.c
 *   FP8's scales stand apart: f32 per 128 columns.
 */
#ifndef BATON_KERNELS_CPU_PANEL_H
#define BATON_KERNELS_CPU_PANEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum {
    PANEL_ROWS = 64,
    PANEL_TILE = 6,       /* x rows multiplied at a time */
    PANEL_TILE_ROWS = 16, /* AMX: the same */
    PANEL_TILE_CHUNK = 256,
    PANEL_CHUNK = 128,     /* columns decoded at a time when several x rows share a panel */
    PANEL_FP4_GROUP = 32,  /* columns of one FP4 scale */
    PANEL_FP4_BYTES = 1088 /* one group of a panel: 1024 B of codes, 64 B of scales */
};

struct panel {
    enum weight_type type; /* WEIGHT_BF16, WEIGHT_FP8, WEIGHT_FP4 */
    const uint8_t *data;
    const float *scale; /* FP8: [ceil(cols / 128)] */
    int cols;
};

/* How FP8 and FP4 codes lie inside a unit; the ISA chooses. */
enum panel_order { PANEL_ORDER_16, PANEL_ORDER_8 };

/* Decoded weights of one chunk; every thread owns one. Aligned to 64. */
struct panel_scratch {
    float w[PANEL_CHUNK * PANEL_ROWS]; /* as f32, or in its first half as bf16 pairs */
    float scale[PANEL_TILE_CHUNK / 32 * PANEL_ROWS]; /* per group and row */
    float x[PANEL_TILE * PANEL_CHUNK];               /* x rows of one tile, as f32 */
    uint16_t tail[PANEL_TILE * PANEL_CHUNK];         /* x rows of a last short chunk, zero-padded */
    uint16_t
        rows[2 * PANEL_TILE_ROWS * PANEL_TILE_CHUNK]; /* AMX: x rows of two tiles, sums of one */
    float sums[PANEL_TILE_ROWS * PANEL_ROWS];
};

/**
 * out[i][r] = dot(x[i], row r), f32 [n_x][64], n_x >= 1. x[i]: bf16 [cols], any alignment of 2.
 */
typedef void (*panel_fn)(float *out, const struct panel *p, const uint16_t *const *x, int n_x,
                         struct panel_scratch *scratch);

/* What the drivers take from an ISA. */
struct panel_kernels {
    const char *name; /* "avx2", "avx512 dot", "avx512 fma" */
    enum panel_order order;
    panel_fn multiply;
    bool by_fma; /* two f32 FMAs are faster than a VDPBF16PS, or there is none */
};

/** Bytes of one panel of this type and number of columns. */
size_t panel_bytes(enum weight_type type, int64_t cols);

/** Packs panel i of a matrix into dst (panel_bytes), zero-padding; threads may pack different
 * panels. */
void panel_pack(uint8_t *dst, const struct weight_src *src, int64_t i, enum panel_order order);

/** Panel i of a packed weight. */
struct panel panel_of(const struct weight *w, int64_t i);

/** The faster of two ways, on this processor; `other`: the slower one. */
const struct panel_kernels *panel_kernels_avx512(bool other);
const struct panel_kernels *panel_kernels_avx2(bool other); /* has one way */
const struct panel_kernels *panel_kernels_amx(bool other);  /* other: FMAs, slow */

#endif
