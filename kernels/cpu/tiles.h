/*
 * tiles: the tile registers of AMX, for what multiplies by them. gcc's intrinsics do not tell the
 * compiler what they read: tiles_written() does.
 */
#ifndef BATON_KERNELS_CPU_TILES_H
#define BATON_KERNELS_CPU_TILES_H

#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TILES_INLINE static inline __attribute__((always_inline))

enum { TILE_ROWS = 16, TILE_STEP = 32 /* columns of the left operand: bf16 */ };

/* Tiles of 64 bytes a row; 0 to 4 have n rows, 5 to 7 have 16. */
TILES_INLINE void tiles_configure(int n)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } c = {.palette = 1};

    for (int i = 0; i < 8; i++) {
        c.row_bytes[i] = 64;
        c.rows[i] = (uint8_t)(i < 5 ? n : TILE_ROWS);
    }
    /* gcc's _tile_loadconfig() names 8 of these bytes: it may leave the others unwritten */
    __asm__ volatile("ldtilecfg %0" : : "m"(c));
}

/* What tiles are loaded from is to be in memory from here on. */
TILES_INLINE void tiles_written(void)
{
    __asm__ volatile("" : : : "memory");
}

/* 2 x 2 tiles of a product: where each of its operands and sums begins, and how far apart their
 * rows are, in bytes. */
struct tile_product {
    const uint16_t *a[2], *b[2];
    size_t a_row, b_row;
    size_t a_step, b_step; /* elements from one 32 to the next */
    float *sum[2][2];
    size_t sum_row;
    int n_steps;
};

/* two_a, two_b: whether there is a second of each. add: to what the sums are. */
TILES_INLINE void tiles_multiply_as(const struct tile_product *p, const bool two_a,
                                    const bool two_b, const bool add)
{
    tiles_written();
    if (add) {
        _tile_loadd(0, p->sum[0][0], p->sum_row);
        if (two_b)
            _tile_loadd(1, p->sum[0][1], p->sum_row);
        if (two_a)
            _tile_loadd(2, p->sum[1][0], p->sum_row);
        if (two_a && two_b)
            _tile_loadd(3, p->sum[1][1], p->sum_row);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int i = 0; i < p->n_steps; i++) {
        _tile_loadd(4, p->a[0] + (size_t)i * p->a_step, p->a_row);
        _tile_loadd(6, p->b[0] + (size_t)i * p->b_step, p->b_row);
        _tile_dpbf16ps(0, 4, 6);
        if (two_b) {
            _tile_loadd(7, p->b[1] + (size_t)i * p->b_step, p->b_row);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (two_a) {
            _tile_loadd(5, p->a[1] + (size_t)i * p->a_step, p->a_row);
            _tile_dpbf16ps(2, 5, 6);
            if (two_b)
                _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, p->sum[0][0], p->sum_row);
    if (two_b)
        _tile_stored(1, p->sum[0][1], p->sum_row);
    if (two_a)
        _tile_stored(2, p->sum[1][0], p->sum_row);
    if (two_a && two_b)
        _tile_stored(3, p->sum[1][1], p->sum_row);
}

TILES_INLINE void tiles_multiply(const struct tile_product *p, bool two_a, bool two_b,
                                 const bool add)
{
    if (two_a && two_b)
        tiles_multiply_as(p, true, true, add);
    else if (two_a)
        tiles_multiply_as(p, true, false, add);
    else if (two_b)
        tiles_multiply_as(p, false, true, add);
    else
        tiles_multiply_as(p, false, false, add);
}

#endif
