#include "kernels/cpu/panel.h"

#include <string.h>

size_t panel_bytes(enum weight_type type, int64_t cols)
{
    switch (type) {
    case WEIGHT_FP4:
        return (size_t)(cols / PANEL_FP4_GROUP) * PANEL_FP4_BYTES;
    case WEIGHT_FP8:
        return (size_t)((cols + 3) / 4) * 4 * PANEL_ROWS;
    default:
        return (size_t)((cols + 1) / 2) * 4 * PANEL_ROWS;
    }
}

/* Dword r of pair i = columns 2i, 2i + 1 of row r. */
static void pack_bf16(uint8_t *dst, const uint8_t *rows, int n_rows, int64_t cols)
{
    int64_t n_pairs = cols / 2;

    for (int r = 0; r < n_rows; r++) {
        const uint8_t *src = rows + (size_t)r * (size_t)cols * 2;
        uint8_t *at = dst + 4 * r;

        for (int64_t i = 0; i < n_pairs; i++)
            memcpy(at + (size_t)i * 4 * PANEL_ROWS, src + 4 * i, 4);
        if (cols % 2 != 0)
            memcpy(at + (size_t)n_pairs * 4 * PANEL_ROWS, src + 4 * n_pairs, 2);
    }
}

/* The byte of (row, column c of 4) inside the 256 bytes of 4 columns.
 *
 * PANEL_ORDER_16: 64 B for each 16 rows. In each of their four 16-byte lanes, 4 rows: first the
 * columns (0, 1) of each row, then (2, 3): interleaving a low and a high byte for each code with
 * VPUNPCK leaves one dword of bf16 pairs per row.
 * PANEL_ORDER_8: 32 B for each 8 rows: 8 rows of column 0, of column 2, of 1, of 3: widening half a
 * lane at a time leaves one f32 per row. */
static size_t fp8_place(enum panel_order order, int row, int c)
{
    if (order == PANEL_ORDER_16)
        return (size_t)(row / 4 * 16 + c / 2 * 8 + row % 4 * 2 + c % 2);
    return (size_t)(row / 8 * 32 + c % 2 * 16 + c / 2 * 8 + row % 8);
}

static void pack_fp8(uint8_t *dst, const uint8_t *rows, int n_rows, int64_t cols,
                     enum panel_order order)
{
    for (int r = 0; r < n_rows; r++) {
        const uint8_t *src = rows + (size_t)r * (size_t)cols;
        const size_t place[4] = {fp8_place(order, r, 0), fp8_place(order, r, 1),
                                 fp8_place(order, r, 2), fp8_place(order, r, 3)};
        uint8_t *at = dst;
        int64_t c = 0;

        for (; c + 4 <= cols; c += 4, at += 4 * PANEL_ROWS)
            for (int i = 0; i < 4; i++)
                at[place[i]] = src[c + i];
        for (int i = 0; c + i < cols; i++)
            at[place[i]] = src[c + i];
    }
}

/* 8 columns of one row (4 bytes) into their place among the 256 bytes of 64 rows.
 *
 * PANEL_ORDER_16: dword r; its low (high) word holds the even (odd) columns, pair i in nibble i.
 * Shifting all words by 4i and looking up the low nibbles leaves one dword of bf16 pairs per row.
 * PANEL_ORDER_8: the bytes lie as FP8 codes of 4 columns in PANEL_ORDER_16: low nibbles hold
 * columns 0 .. 3, high nibbles 4 .. 7. Looking up nibbles gives the two bytes of a bf16, VPUNPCK
 * joins them. */
static void fp4_unit(uint8_t *dst, const uint8_t *src, int row, enum panel_order order)
{
    uint32_t even = 0, odd = 0;

    if (order == PANEL_ORDER_8) {
        for (int c = 0; c < 4; c++) {
            int shift = 4 * (c % 2), low = src[c / 2] >> shift & 15,
                high = src[2 + c / 2] >> shift & 15;

            dst[fp8_place(PANEL_ORDER_16, row, c)] = (uint8_t)(low | high << 4);
        }
        return;
    }
    for (int i = 0; i < 4; i++) {
        even |= (uint32_t)(src[i] & 15) << (4 * i);
        odd |= (uint32_t)(src[i] >> 4) << (4 * i);
    }
    even |= odd << 16;
    memcpy(dst + 4 * row, &even, 4);
}

static void pack_fp4(uint8_t *dst, const uint8_t *rows, const uint8_t *scales, int n_rows,
                     int64_t cols, enum panel_order order)
{
    int64_t n_groups = cols / PANEL_FP4_GROUP;

    for (int r = 0; r < n_rows; r++) {
        const uint8_t *src = rows + (size_t)r * (size_t)cols / 2;

        for (int64_t g = 0; g < n_groups; g++) {
            uint8_t *at = dst + (size_t)g * PANEL_FP4_BYTES;

            for (int j = 0; j < 4; j++)
                fp4_unit(at + j * 256, src + g * 16 + j * 4, r, order);
            at[1024 + r] = scales[(size_t)r * (size_t)n_groups + (size_t)g];
        }
    }
}

/* E8M0 of a scale that the checkpoint stores as an f32 power of two. */
static uint8_t e8m0_of(const uint8_t *scale)
{
    uint32_t bits;

    memcpy(&bits, scale, 4);
    return (uint8_t)(bits >> 23); /* 2^-127 is a denormal: 0; NaN and infinity: 255 */
}

static void pack_fp4_f32_scales(uint8_t *dst, const struct weight_src *src, int64_t first,
                                int n_rows)
{
    int64_t n_groups = src->cols / PANEL_FP4_GROUP;
    const uint8_t *scale = (const uint8_t *)src->scale + (size_t)(first * n_groups) * 4;

    for (int r = 0; r < n_rows; r++)
        for (int64_t g = 0; g < n_groups; g++)
            dst[(size_t)g * PANEL_FP4_BYTES + 1024 + (size_t)r] =
                e8m0_of(scale + (size_t)(r * n_groups + g) * 4);
}

void panel_pack(uint8_t *dst, const struct weight_src *src, int64_t i, enum panel_order order)
{
    int64_t first = i * PANEL_ROWS;
    int n_rows = (int)(src->rows - first < PANEL_ROWS ? src->rows - first : PANEL_ROWS);
    const uint8_t *data = src->data;

    if (n_rows < PANEL_ROWS || src->cols % 4 != 0)
        memset(dst, 0, panel_bytes(src->type, src->cols));
    switch (src->type) {
    case WEIGHT_FP4: {
        int64_t n_groups = src->cols / PANEL_FP4_GROUP;

        /* With f32 scales any readable bytes will do first; the right ones follow. */
        pack_fp4(dst, data + (size_t)(first * src->cols / 2),
                 (const uint8_t *)src->scale + (src->scale_is_f32 ? 0 : (size_t)(first * n_groups)),
                 n_rows, src->cols, order);
        if (src->scale_is_f32)
            pack_fp4_f32_scales(dst, src, first, n_rows);
        break;
    }
    case WEIGHT_FP8:
        pack_fp8(dst, data + (size_t)(first * src->cols), n_rows, src->cols, order);
        break;
    default:
        pack_bf16(dst, data + (size_t)(first * src->cols) * 2, n_rows, src->cols);
        break;
    }
}

struct panel panel_of(const struct weight *w, int64_t i)
{
    int64_t n_groups = (w->cols + 127) / 128;
    struct panel p = {
        .type = w->type,
        .data =
            (const uint8_t *)(uintptr_t)w->data.addr + (size_t)i * panel_bytes(w->type, w->cols),
        .cols = (int)w->cols,
    };

    if (w->type == WEIGHT_FP8)
        p.scale = (const float *)(uintptr_t)w->scale.addr + (i * PANEL_ROWS / 128) * n_groups;
    return p;
}
