/*
 * weight: checkpoint tensors into the layout that the operations read.
 *
 * Matrices are packed into panels (panel.h), in parallel; or they stay mapped, and each panel is
 * packed into its thread's memory when it is used (kernel_env.as_mapped). Vectors, tables of
 * integers, F32 constants and the embedding (src->lookup) stay as kernels/ref holds them: borrowed,
 * where they are aligned.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/ref/ref.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct pack_job {
    const struct cpu *cpu;
    const struct weight_src *src;
    uint8_t *data;
    float *scale; /* FP8 */
    size_t panel_bytes;
    enum panel_order order;
};

static void pack_item(void *arg, int64_t item, struct cpu_part *part)
{
    struct pack_job *job = arg;

    (void)part;
    job->cpu->pack(job->data + (size_t)item * job->panel_bytes, job->src, item, job->order);
}

static bool is_packed(const struct weight_src *src)
{
    if (src->type == WEIGHT_BF16)
        return !src->vector && !src->lookup;
    return src->type == WEIGHT_FP8 || src->type == WEIGHT_FP4;
}

/* FP8: one f32 per tile of 128 x 128. */
static void scales_to_f32(float *out, const struct weight_src *src, size_t n)
{
    const uint8_t *bytes = src->scale;

    if (src->scale_is_f32) {
        memcpy(out, src->scale, n * sizeof(*out));
        return;
    }
    for (size_t i = 0; i < n; i++)
        out[i] = bytes[i] == 255 ? NAN : ldexpf(1, bytes[i] - 127);
}

static size_t scale_count(const struct weight_src *src)
{
    if (src->type != WEIGHT_FP8)
        return 0;
    return (size_t)((src->rows + 127) / 128) * (size_t)((src->cols + 127) / 128);
}

/* PANEL_ORDER_8 has no NaN codes: a tile that holds one gets a NaN scale. item: 128 rows. */
static void poison_item(void *arg, int64_t item, struct cpu_part *part)
{
    struct pack_job *job = arg;
    const struct weight_src *src = job->src;
    int64_t n_tiles = (src->cols + 127) / 128;
    int64_t end = (item + 1) * 128 < src->rows ? (item + 1) * 128 : src->rows;

    (void)part;
    for (int64_t r = item * 128; r < end; r++)
        for (int64_t tile = 0; tile < n_tiles; tile++) {
            const uint8_t *code = (const uint8_t *)src->data + r * src->cols + tile * 128;
            int64_t n = src->cols - tile * 128 < 128 ? src->cols - tile * 128 : 128;
            bool nan = false;

            for (int64_t i = 0; i < n; i++)
                nan |= (code[i] & 127) == 127;
            if (nan)
                job->scale[item * n_tiles + tile] = NAN;
        }
}

/* ---- as mapped ---- */

static int64_t n_groups(int64_t cols)
{
    return (cols + 127) / 128;
}

/* Room in every part for a panel of src. */
static bool make_room(struct cpu *c, const struct weight_src *src)
{
    size_t bytes = panel_bytes(src->type, src->cols) + (size_t)n_groups(src->cols) * sizeof(float);

    if (bytes <= c->packed_bytes)
        return true;
    bytes = (bytes + 63) / 64 * 64;
    for (int i = 0; i < c->n_parts; i++) {
        free(c->parts[i]->packed);
        c->parts[i]->packed = aligned_alloc(64, bytes);
        if (c->parts[i]->packed == NULL)
            return false;
    }
    c->packed_bytes = bytes;
    return true;
}

static int load_mapped(struct kernels *k, const struct weight_src *src, struct weight *out)
{
    struct cpu *c = cpu_of(k);

    if (!make_room(c, src)) {
        c->packed_bytes = 0;
        snprintf(k->error, sizeof(k->error), "no memory for a panel of %lld columns a thread",
                 (long long)src->cols);
        return -1;
    }
    *out = (struct weight){.type = src->type,
                           .rows = src->rows,
                           .cols = src->cols,
                           .data = {(uintptr_t)src->data},
                           .scale = {(uintptr_t)src->scale},
                           .layout = src->scale_is_f32 ? CPU_MAPPED_F32 : CPU_MAPPED};
    return 0;
}

/* Scales of panel i, one per 128 columns. PANEL_ORDER_8 has no NaN codes, see poison_item(). */
static void panel_scales(float *out, const struct weight_src *src, int64_t i,
                         enum panel_order order)
{
    int64_t n = n_groups(src->cols), first = i * PANEL_ROWS;
    int64_t n_rows = src->rows - first < PANEL_ROWS ? src->rows - first : PANEL_ROWS;
    size_t size = src->scale_is_f32 ? sizeof(float) : 1;
    struct weight_src row = *src;

    row.scale = (const uint8_t *)src->scale + (size_t)(first / 128 * n) * size;
    scales_to_f32(out, &row, (size_t)n);
    for (int64_t r = 0; order == PANEL_ORDER_8 && r < n_rows; r++) {
        const uint8_t *code = (const uint8_t *)src->data + (first + r) * src->cols;

        for (int64_t c = 0; c < src->cols; c++)
            if ((code[c] & 127) == 127)
                out[c / 128] = NAN;
    }
}

bool cpu_is_matrix(const struct weight *w)
{
    return w->layout >= CPU_PANELS && w->layout <= CPU_MAPPED_F32;
}

struct panel cpu_panel(const struct cpu *c, const struct weight *w, int64_t i,
                       struct cpu_part *part)
{
    if (w->layout == CPU_PANELS)
        return panel_of(w, i);
    struct weight_src src = {.type = w->type,
                             .rows = w->rows,
                             .cols = w->cols,
                             .data = cpu_ptr(w->data),
                             .scale = cpu_ptr(w->scale),
                             .scale_is_f32 = w->layout == CPU_MAPPED_F32};
    float *scale = (float *)(void *)(part->packed + panel_bytes(w->type, w->cols));

    c->pack(part->packed, &src, i, c->panels->order);
    if (w->type == WEIGHT_FP8)
        panel_scales(scale, &src, i, c->panels->order);
    return (struct panel){
        .type = w->type, .data = part->packed, .scale = scale, .cols = (int)w->cols};
}

/* ---- loading ---- */

static int cpu_weight_load(struct kernels *k, const struct weight_src *src, struct weight *out)
{
    struct cpu *c = cpu_of(k);
    struct weight w = {.type = src->type, .rows = src->rows, .cols = src->cols};

    if (!is_packed(src))
        return ref_weight_load(k, src, out);
    if (src->type == WEIGHT_FP4 && src->cols % PANEL_FP4_GROUP != 0) {
        snprintf(k->error, sizeof(k->error),
                 "an FP4 matrix with %lld columns: not a multiple of 32", (long long)src->cols);
        return -1;
    }
    if (c->as_mapped)
        return load_mapped(k, src, out);
    int64_t n_panels = (src->rows + PANEL_ROWS - 1) / PANEL_ROWS;
    struct pack_job job = {.cpu = c,
                           .src = src,
                           .panel_bytes = panel_bytes(src->type, src->cols),
                           .order = c->panels->order};
    size_t data_bytes = (size_t)n_panels * job.panel_bytes;
    size_t n_scales = scale_count(src);

    w.bytes = data_bytes + n_scales * sizeof(float);
    job.data = cpu_arena_take(c->arena, w.bytes);
    if (job.data == NULL) {
        snprintf(k->error, sizeof(k->error), "no memory for %zu bytes of weights", w.bytes);
        return -1;
    }
    job.scale = (float *)(void *)(job.data + data_bytes);
    cpu_run(k, n_panels, pack_item, &job);
    if (n_scales > 0)
        scales_to_f32(job.scale, src, n_scales);
    if (n_scales > 0 && job.order == PANEL_ORDER_8)
        cpu_run(k, (src->rows + 127) / 128, poison_item, &job);
    w.data.addr = (uintptr_t)job.data;
    w.scale.addr = n_scales > 0 ? (uintptr_t)(job.data + data_bytes) : 0;
    w.layout = CPU_PANELS;
    *out = w;
    return 0;
}

static void cpu_weight_unload(struct kernels *k, struct weight *w)
{
    if (!cpu_is_matrix(w)) {
        ref_weight_unload(k, w);
        return;
    }
    if (w->layout == CPU_PANELS)
        cpu_arena_give(cpu_of(k)->arena, cpu_ptr(w->data));
    *w = (struct weight){0};
}

/* ---- looking up ---- */

/* Row of a packed BF16 matrix: a table that was loaded without saying `lookup`. */
static void packed_row(uint16_t *out, const struct weight *w, int64_t row)
{
    struct panel p = panel_of(w, row / PANEL_ROWS);
    const uint8_t *at = p.data + 4 * (row % PANEL_ROWS);

    for (int64_t i = 0; i < w->cols; i += 2, at += 4 * PANEL_ROWS)
        memcpy(out + i, at, w->cols - i >= 2 ? 4 : 2);
}

static void cpu_embed(struct kernels *k, struct dev_ptr streams, const struct weight *table,
                      struct dev_ptr tokens, int T, int copies)
{
    const int32_t *ids = cpu_ptr(tokens);
    uint16_t *out = cpu_ptr(streams);
    int64_t d = table->cols;

    if (table->layout != CPU_PANELS) {
        ref_embed(k, streams, table, tokens, T, copies);
        return;
    }
    for (int64_t t = 0; t < T; t++) {
        uint16_t *row = out + t * copies * d;

        packed_row(row, table, ids[t]);
        for (int c = 1; c < copies; c++)
            memcpy(row + c * d, row, (size_t)d * sizeof(*row));
    }
}

void cpu_weight_fill(struct kernel_ops *ops)
{
    ops->embed = cpu_embed;
    ops->weight_load = cpu_weight_load;
    ops->weight_unload = cpu_weight_unload;
}
