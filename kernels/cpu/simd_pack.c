/*
 * simd_pack: whole panels into kernel order at the speed of memory. Rows are copied 64 bytes at a
 * time into a small block (rows of 2^k bytes would fight for one set of the cache), a gather then
 * takes one dword of each row: 8, 4 or 2 columns, and bits are moved inside the dword. What is left
 * over (tails) takes the plain way of panel.c.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

enum { LINE = 64, DWORDS = LINE / 4 };

/* One line of each of VF_LANES rows. */
struct block {
    uint8_t row[VF_LANES][LINE] __attribute__((aligned(64)));
};

SIMD void block_load(struct block *b, const uint8_t *rows, size_t stride, size_t bytes)
{
    for (int r = 0; r < VF_LANES; r++) {
        memcpy(b->row[r], rows + (size_t)r * stride, bytes);
        _mm_prefetch((const char *)rows + (size_t)r * stride + 4 * LINE, _MM_HINT_T0);
    }
}

/* Dword q of every row. */
SIMD vu block_dword(const struct block *b, size_t q)
{
    return (vu)vi_gather(b->row[0] + 4 * q, LINE);
}

enum unit { UNIT_BF16, UNIT_FP8, UNIT_FP4 };

/* n_dwords of each row of VF_LANES rows; unit q of the panel lies at at(q). */
SIMD void pack_rows(uint8_t *dst, const uint8_t *rows, size_t stride, size_t n_dwords,
                    const enum unit unit)
{
    struct block b;

    for (size_t first = 0; first < n_dwords; first += DWORDS) {
        size_t n = n_dwords - first < DWORDS ? n_dwords - first : DWORDS;

        block_load(&b, rows + 4 * first, stride, 4 * n);
        for (size_t i = 0; i < n; i++) {
            size_t q = first + i;
            vu x = block_dword(&b, i);

            if (unit == UNIT_BF16)
                vi_store(dst + q * 256, (vi)x);
            else if (unit == UNIT_FP8)
                vi_store(dst + q * 256, vu_fp8_unit(x));
            else
                vi_store(dst + q / 4 * PANEL_FP4_BYTES + q % 4 * 256, vu_fp4_unit(x));
        }
    }
}

/* Scale bytes of VF_LANES rows into the ends of their groups. */
SIMD void pack_scales(uint8_t *dst, const uint8_t *scales, size_t n_groups)
{
    for (size_t g = 0; g < n_groups; g += 4) {
        vu four = (vu)vi_gather(scales + g, (int)n_groups);

        for (size_t i = 0; i < 4; i++)
            vi_store_bytes(dst + (g + i) * PANEL_FP4_BYTES + 1024, (vi)(four >> (8 * (uint32_t)i)));
    }
}

void SIMD_NAME(cpu_pack)(uint8_t *dst, const struct weight_src *src, int64_t i,
                         enum panel_order order)
{
    size_t cols = (size_t)src->cols, first = (size_t)i * PANEL_ROWS;
    const uint8_t *data = src->data;
    size_t n_groups = cols / PANEL_FP4_GROUP;

    if (src->rows - (int64_t)first < PANEL_ROWS || cols % 4 != 0 ||
        (src->type == WEIGHT_FP4 && (src->scale_is_f32 || n_groups % 4 != 0))) {
        panel_pack(dst, src, i, order);
        return;
    }
    for (size_t r = 0; r < PANEL_ROWS; r += VF_LANES) {
        uint8_t *at = dst + 4 * r;

        switch (src->type) {
        case WEIGHT_FP4:
            pack_rows(at, data + (first + r) * cols / 2, cols / 2, cols / 8, UNIT_FP4);
            pack_scales(dst + r, (const uint8_t *)src->scale + (first + r) * n_groups, n_groups);
            break;
        case WEIGHT_FP8:
            pack_rows(at, data + (first + r) * cols, cols, cols / 4, UNIT_FP8);
            break;
        default:
            pack_rows(at, data + (first + r) * cols * 2, cols * 2, cols / 2, UNIT_BF16);
            break;
        }
    }
}
