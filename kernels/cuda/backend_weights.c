#include "kernels/cuda/backend_internal.h"

#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/panel.h"

/* weight.layout */
enum { LAYOUT_PLAIN, LAYOUT_PANELS };

/* ---- weights ---- */

static size_t bits_of(enum weight_type type)
{
    return type == WEIGHT_BF16  ? 16
           : type == WEIGHT_F32 ? 32
           : type == WEIGHT_I64 ? 64
           : type == WEIGHT_FP8 ? 8
                                : 4;
}

static bool is_panels(const struct weight_src *src)
{
    return src->type == WEIGHT_FP8 || src->type == WEIGHT_FP4 ||
           (src->type == WEIGHT_BF16 && !src->lookup && !src->vector);
}

static int type_of_panels(enum weight_type type)
{
    return type == WEIGHT_FP4 ? PANEL_FP4 : type == WEIGHT_FP8 ? PANEL_FP8 : PANEL_BF16;
}

/* FP8: one scale a tile. They are few: in one piece. */
static void load_tile_scales(struct kernels *k, const struct weight_src *src, uint64_t dst)
{
    struct backend *b = backend_of(k);
    int64_t n = (src->rows + 127) / 128 * ((src->cols + 127) / 128);
    struct scales_args a = {(float *)(uintptr_t)dst, NULL, n};

    backend_begin_piece(b);
    a.src = (const uint8_t *)(uintptr_t)b->memory.raw[b->memory.turn];
    if (src->scale_is_f32) {
        backend_fill_piece(k, 0, src->scale, (size_t)n * sizeof(float));
        b->gpu->ops->to_device(b->gpu, dst, b->memory.piece[b->memory.turn],
                               (size_t)n * sizeof(float));
    } else {
        backend_fill_piece(k, 0, src->scale, (size_t)n);
        b->gpu->ops->to_device(b->gpu, b->memory.raw[b->memory.turn],
                               b->memory.piece[b->memory.turn], (size_t)n);
        cuda_scales(b->gpu->stream, a);
    }
    backend_end_piece(b);
}

/* Rows [first, first + n) with, FP4, their scales. */
static void load_rows(struct kernels *k, const struct weight_src *src, const struct weight *out,
                      int64_t first, int64_t n)
{
    struct backend *b = backend_of(k);
    size_t row = (size_t)src->cols * bits_of(src->type) / 8, bytes = (size_t)n * row;
    size_t scale_row =
        src->type == WEIGHT_FP4 ? (size_t)(src->cols / 32) * (src->scale_is_f32 ? 4 : 1) : 0;
    size_t scales_at = (bytes + 15) / 16 * 16;
    struct panel_pack_args a = {
        .data = (uint8_t *)(uintptr_t)out->data.addr,
        .scale = (void *)(uintptr_t)out->scale.addr,
        .type = type_of_panels(src->type),
        .first = (int)first,
        .n = (int)n,
        .cols = (int)src->cols,
        .scale_is_f32 = src->scale_is_f32,
    };

    backend_begin_piece(b);
    backend_fill_piece(k, 0, (const uint8_t *)src->data + (size_t)first * row, bytes);
    if (scale_row > 0)
        backend_fill_piece(k, scales_at, (const uint8_t *)src->scale + (size_t)first * scale_row,
                           (size_t)n * scale_row);
    b->gpu->ops->to_device(b->gpu, b->memory.raw[b->memory.turn], b->memory.piece[b->memory.turn],
                           scales_at + (size_t)n * scale_row);
    a.src = (const uint8_t *)(uintptr_t)b->memory.raw[b->memory.turn];
    a.src_scale = a.src + scales_at;
    cuda_panel_pack(b->gpu->stream, a);
    backend_end_piece(b);
}

static const char *refusal(const struct weight_src *src)
{
    if (!is_panels(src))
        return NULL;
    if (src->type == WEIGHT_FP4 && src->cols % PANEL_BLOCK != 0)
        return "the CUDA kernels take FP4 of a multiple of 128 columns";
    if (src->cols % 32 != 0)
        return "the CUDA kernels take multiples of 32 columns";
    return src->cols > 65536 ? "the CUDA kernels take up to 65536 columns" : NULL;
}

static void load_panels(struct kernels *k, const struct weight_src *src, const struct weight *out)
{
    size_t row = (size_t)src->cols * bits_of(src->type) / 8;
    size_t scale_row = src->type == WEIGHT_FP4 ? (size_t)(src->cols / 32) * 4 : 0;
    int64_t step = (int64_t)((PIECE_BYTES - 16) / (row + scale_row)) / PANEL_ROWS * PANEL_ROWS;

    for (int64_t first = 0; first < src->rows; first += step)
        load_rows(k, src, out, first, src->rows - first < step ? src->rows - first : step);
    if (src->type == WEIGHT_FP8)
        load_tile_scales(k, src, out->scale.addr);
}

static int weight_load(struct kernels *k, const struct weight_src *src, struct weight *out)
{
    struct backend *b = backend_of(k);
    bool panels = is_panels(src);
    int type = type_of_panels(src->type);
    size_t bytes = panels ? panel_bytes(type, src->rows, src->cols)
                          : (size_t)(src->rows * src->cols) * bits_of(src->type) / 8;
    size_t scales_at = (bytes + 255) / 256 * 256;
    struct weight w = {.type = src->type, .rows = src->rows, .cols = src->cols};
    char why[200];

    if (refusal(src) != NULL) {
        snprintf(why, sizeof(why), "a matrix of %lld x %lld: %s", (long long)src->rows,
                 (long long)src->cols, refusal(src));
        return backend_fail(k, why);
    }
    w.layout = panels ? LAYOUT_PANELS : LAYOUT_PLAIN;
    w.bytes = scales_at + (panels ? panel_scale_bytes(type, src->rows, src->cols) : 0);
    w.data = backend_alloc(k, w.bytes);
    if (dev_is_null(w.data)) {
        snprintf(why, sizeof(why), "no room for a weight of %zu bytes among %.1f GB on %s", w.bytes,
                 (double)b->gpu->memory_bytes / 1e9, b->gpu->name);
        return backend_fail(k, why);
    }
    if (src->scale != NULL)
        w.scale = dev_at(w.data, scales_at);
    if (panels)
        load_panels(k, src, &w);
    else
        backend_large_write(k, w.data.addr, src->data, bytes);
    if (b->gpu->error[0] != '\0') {
        backend_free(k, w.data);
        return backend_fail(k, b->gpu->error);
    }
    *out = w;
    return 0;
}

static void weight_unload(struct kernels *k, struct weight *w)
{
    backend_free(k, w->data);
    *w = (struct weight){0};
}

/* ---- experts ---- */

/* Not loaded: another rank's. @return -1: of two types */
static int type_of_experts(const struct expert_weights *experts, int n)
{
    int type = -1;

    for (int i = 0; i < n; i++) {
        const struct weight *w[3] = {&experts[i].w1, &experts[i].w2, &experts[i].w3};

        for (int j = 0; j < 3; j++) {
            if (dev_is_null(w[j]->data))
                continue;
            if (type >= 0 && type != type_of_panels(w[j]->type))
                return -1;
            type = type_of_panels(w[j]->type);
        }
    }
    return type < 0 ? PANEL_FP4 : type;
}

static int experts_load(struct kernels *k, const struct expert_weights *experts)
{
    struct backend *b = backend_of(k);
    int n = k->dims.n_experts;
    struct experts *at = &b->layers[b->n_layers];
    struct moe_expert *list;
    struct dev_ptr table;

    if (b->n_layers == LAYERS_MAX)
        return backend_fail(k, "more layers of experts than 512");
    if (type_of_experts(experts, n) < 0)
        return backend_fail(
            k, "experts of one layer are FP4 and FP8: the CUDA kernels take one of them");
    list = calloc((size_t)n, sizeof(*list));
    table = backend_alloc(k, (size_t)n * sizeof(*list));
    if (list == NULL || dev_is_null(table)) {
        free(list);
        return backend_fail(k, "no memory for a table of experts");
    }
    cuda_experts_list(list, experts, n);
    backend_large_write(k, table.addr, list, (size_t)n * sizeof(*list));
    free(list);
    *at = (struct experts){experts, table.addr, type_of_experts(experts, n)};
    b->n_layers++;
    return 0;
}

static void experts_unload(struct kernels *k, const struct expert_weights *experts)
{
    struct backend *b = backend_of(k);

    for (int i = 0; i < b->n_layers; i++)
        if (b->layers[i].key == experts) {
            backend_free(k, (struct dev_ptr){b->layers[i].table});
            b->layers[i] = b->layers[--b->n_layers];
            return;
        }
}

const struct moe_expert *cuda_experts_of(struct kernels *k, const struct expert_weights *experts,
                                         int *type)
{
    struct backend *b = backend_of(k);

    for (int i = 0; i < b->n_layers; i++)
        if (b->layers[i].key == experts) {
            *type = b->layers[i].type;
            return (const struct moe_expert *)(uintptr_t)b->layers[i].table;
        }
    snprintf(b->gpu->error, sizeof(b->gpu->error), "experts_load() was not called for a layer");
    *type = PANEL_FP4;
    return NULL;
}

/* ---- the part ---- */

void backend_weights_fill(struct kernel_ops *ops)
{
    ops->weight_load = weight_load;
    ops->weight_unload = weight_unload;
    ops->experts_load = experts_load;
    ops->experts_unload = experts_unload;
}
