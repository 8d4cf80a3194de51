/*
 * tiles: the tile registers of AMX, for what multiplies by them. gcc's intrinsics do not tell the
 * compiler what they read: tiles_written() does.
 */
#ifndef BATON_KERNELS_CPU_TILES_H
#define BATON_KERNELS_CPU_TILES_H

#include <immintrin.h>
#include <stdint.h>

enum { TILE_ROWS = 16, TILE_STEP = 32 /* columns of the left operand: bf16 */ };

/* Tiles of 64 bytes a row; 0 to 4 have n rows, 5 to 7 have 16. */
static inline void tiles_configure(int n)
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
static inline void tiles_written(void)
{
    __asm__ volatile("" : : : "memory");
}

#endif
