#include "kernels/cuda/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/panel.h"
#include "kernels/cuda/pieces.h"
#include "kernels/cuda/sampler.h"
#include "kernels/cuda/self_test.h"

enum {
    PIECE_BYTES = 16 << 20,
    PARALLEL_BYTES = 1 << 20, /* from here on several threads copy */
    RING_BYTES = 1 << 20,     /* of small writes; one may have a quarter */
    WRITES_MAX = 1024,
    LAYERS_MAX = 512,
    MOVE_PIECES = 8192,         /* of a round of dev_move() */
    MOVE_SPREAD = 16,           /* blocks of a piece */
    SAMPLE_ROWS = 512,          /* of a round of draws */
    EXTRA_WORK_BYTES = 64 << 20 /* see cuda_ops_work_bytes() */
};

/* weight.layout */
enum { LAYOUT_PLAIN, LAYOUT_PANELS };

/* The experts of one layer. */
struct experts {
    const struct expert_weights *key;
    uint64_t table; /* struct moe_expert [n_experts] */
    int type;
};

struct backend {
    struct cuda_ops ops;
    struct kernel_ops table;
    char name[32];
    struct gpu *gpu;
    uint8_t *piece[2]; /* pinned */
    uint64_t raw[2];   /* where they arrive */
    int turn;
    uint8_t *ring; /* pinned: the data of small writes */
    size_t ring_used;
    struct kernel_piece *writes; /* pinned, [WRITES_MAX] */
    int n_writes, n_sent;        /* made so far and already launched, since the last sync() */
    uint8_t *moves;              /* pinned: lists of dev_move() */
    struct sample_row *draws;    /* pinned, [SAMPLE_ROWS] */
    int32_t *drawn;              /* pinned, [SAMPLE_ROWS] */
    uint64_t sampling;           /* the same on the device, one behind the other */
    struct experts layers[LAYERS_MAX];
    int n_layers;
};

static struct backend *backend_of(struct kernels *k)
{
    return k->self;
}

static int fail(struct kernels *k, const char *why)
{
    snprintf(k->error, sizeof(k->error), "%s", why);
    return -1;
}

/* ---- small writes ---- */

static void send_writes(struct backend *b)
{
    int first = b->n_sent;

    b->n_sent = b->n_writes;
    cuda_pieces_copy(b->gpu->stream, b->writes + first, b->n_sent - first, 1);
}

/* The ring is empty again when the device has read it. */
static void empty_ring(struct backend *b)
{
    b->gpu->ops->enter(b->gpu);
    send_writes(b);
    b->gpu->ops->wait(b->gpu);
    b->n_writes = b->n_sent = 0;
    b->ring_used = 0;
}

static bool overlaps(const struct kernel_piece *w, uint64_t dst, size_t bytes)
{
    return dst < w->dst.addr + w->bytes && w->dst.addr < dst + bytes;
}

static void small_write(struct backend *b, uint64_t dst, const void *src, size_t bytes)
{
    size_t room = (bytes + 15) / 16 * 16;

    if (b->n_writes == WRITES_MAX || b->ring_used + room > RING_BYTES)
        empty_ring(b);
    for (int i = b->n_sent; i < b->n_writes; i++)
        if (overlaps(&b->writes[i], dst, bytes)) { /* later writes win */
            send_writes(b);
            break;
        }
    memcpy(b->ring + b->ring_used, src, bytes);
    b->writes[b->n_writes++] =
        (struct kernel_piece){{dst}, {(uint64_t)(uintptr_t)(b->ring + b->ring_used)}, bytes};
    b->ring_used += room;
}

/* Every operation asks for this before it launches. */
struct cuda_ops *cuda_ops_of(struct kernels *k)
{
    struct backend *b = backend_of(k);

    b->gpu->ops->enter(b->gpu);
    if (b->n_writes > b->n_sent)
        send_writes(b);
    return &b->ops;
}

/* ---- pieces ---- */

struct copy {
    uint8_t *dst;
    const uint8_t *src;
    size_t bytes;
};

static void copy_part(void *arg, int part, int n_parts)
{
    const struct copy *c = arg;
    size_t first = c->bytes / (size_t)n_parts * (size_t)part;
    size_t end = part == n_parts - 1 ? c->bytes : c->bytes / (size_t)n_parts * (size_t)(part + 1);

    memcpy(c->dst + first, c->src + first, end - first);
}

/* Into the present piece, which is free. */
static void fill_piece(struct kernels *k, size_t at, const void *src, size_t bytes)
{
    struct copy c = {backend_of(k)->piece[backend_of(k)->turn] + at, src, bytes};

    if (bytes < PARALLEL_BYTES || k->env.parallel == NULL)
        memcpy(c.dst, src, bytes);
    else
        k->env.parallel(k->env.pool, copy_part, &c);
}

static void begin_piece(struct backend *b)
{
    b->gpu->ops->wait_mark(b->gpu, b->turn);
}

static void end_piece(struct backend *b)
{
    b->gpu->ops->mark(b->gpu, b->turn);
    b->turn ^= 1;
}

static void large_write(struct kernels *k, uint64_t dst, const void *src, size_t bytes)
{
    struct backend *b = backend_of(k);

    for (size_t at = 0; at < bytes; at += PIECE_BYTES) {
        size_t n = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;

        begin_piece(b);
        fill_piece(k, 0, (const uint8_t *)src + at, n);
        b->gpu->ops->to_device(b->gpu, dst + at, b->piece[b->turn], n);
        end_piece(b);
    }
}

/* ---- memory and order ---- */

static struct dev_ptr dev_alloc(struct kernels *k, size_t bytes)
{
    struct gpu *g = backend_of(k)->gpu;

    return (struct dev_ptr){g->ops->take(g, bytes)};
}

static void dev_free(struct kernels *k, struct dev_ptr p)
{
    struct gpu *g = backend_of(k)->gpu;

    if (!dev_is_null(p))
        g->ops->give(g, p.addr);
}

static void dev_write(struct kernels *k, struct dev_ptr dst, const void *src, size_t bytes)
{
    struct backend *b = backend_of(k);

    if (bytes == 0)
        return;
    if (bytes <= RING_BYTES / 4) {
        small_write(b, dst.addr, src, bytes);
        return;
    }
    cuda_ops_of(k); /* in order */
    large_write(k, dst.addr, src, bytes);
}

static int dev_sync(struct kernels *k)
{
    struct backend *b = backend_of(k);

    empty_ring(b);
    return b->gpu->error[0] == '\0' ? 0 : fail(k, b->gpu->error);
}

static int dev_read(struct kernels *k, void *dst, struct dev_ptr src, size_t bytes)
{
    struct backend *b = backend_of(k);

    for (size_t at = 0; at < bytes; at += PIECE_BYTES) {
        size_t n = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;

        cuda_ops_of(k);
        begin_piece(b);
        b->gpu->ops->to_host(b->gpu, b->piece[b->turn], src.addr + at, n);
        if (dev_sync(k) != 0)
            return -1;
        memcpy((uint8_t *)dst + at, b->piece[b->turn], n);
    }
    return dev_sync(k);
}

static void dev_copy(struct kernels *k, struct dev_ptr dst, struct dev_ptr src, size_t bytes)
{
    struct backend *b = backend_of(k);

    cuda_ops_of(k);
    b->gpu->ops->within(b->gpu, dst.addr, src.addr, bytes);
}

/* With what is queued done. */
static void *dev_host(struct kernels *k, struct dev_ptr p)
{
    if (!backend_of(k)->gpu->host_reaches)
        return NULL;
    empty_ring(backend_of(k));
    return (void *)(uintptr_t)p.addr;
}

/* ---- pieces ---- */

static int dev_share(struct kernels *k, void *host, size_t bytes)
{
    struct gpu *g = backend_of(k)->gpu;

    return g->ops->share(g, host, bytes) == 0 ? 0 : fail(k, g->error);
}

static void dev_unshare(struct kernels *k, void *host)
{
    struct gpu *g = backend_of(k)->gpu;

    g->ops->unshare(g, host);
}

/* The groups of one round fit their pinned lists. */
struct round {
    struct kernel_piece *pieces, *ends; /* as given, and for the checksum */
    int32_t *group_first;
    uint32_t *crc;
};

static struct round round_of(struct backend *b)
{
    uint8_t *at = b->moves;
    struct round r;

    r.pieces = (struct kernel_piece *)(void *)at;
    r.ends = r.pieces + MOVE_PIECES;
    r.group_first = (int32_t *)(void *)(r.ends + MOVE_PIECES);
    r.crc = (uint32_t *)(void *)(r.group_first + MOVE_PIECES + 1);
    return r;
}

/* Groups [g, n_groups) as far as they fit. @return the first that does not */
static size_t move_round(struct backend *b, const struct kernel_piece *pieces,
                         const uint32_t *group_end, size_t g, size_t n_groups, bool crc_of_dst,
                         uint32_t *crc)
{
    struct round r = round_of(b);
    struct pieces_crc_args a = {r.crc, r.ends, r.group_first};
    uint32_t first = g > 0 ? group_end[g - 1] : 0, n = 0;
    size_t from = g;

    for (; g < n_groups && g - from < MOVE_PIECES && group_end[g] - first <= MOVE_PIECES; g++) {
        r.group_first[g - from] = (int32_t)n;
        n = group_end[g] - first;
    }
    r.group_first[g - from] = (int32_t)n;
    for (uint32_t i = 0; i < n; i++) {
        r.pieces[i] = r.ends[i] = pieces[first + i];
        if (crc_of_dst)
            r.ends[i].src = r.ends[i].dst;
    }
    cuda_pieces_copy(b->gpu->stream, r.pieces, (int)n, MOVE_SPREAD);
    cuda_pieces_crc(b->gpu->stream, a, (int)(g - from));
    b->gpu->ops->wait(b->gpu);
    memcpy(crc + from, r.crc, (g - from) * sizeof(*crc));
    return g;
}

static int dev_move(struct kernels *k, const struct kernel_piece *pieces, size_t n,
                    const uint32_t *group_end, size_t n_groups, bool crc_of_dst, uint32_t *crc)
{
    struct backend *b = backend_of(k);
    size_t g = 0;

    (void)n;
    cuda_ops_of(k); /* after what is queued */
    while (g < n_groups) {
        size_t end = move_round(b, pieces, group_end, g, n_groups, crc_of_dst, crc);

        if (end == g)
            return fail(k, "a page of more pieces than there is room for");
        g = end;
    }
    return dev_sync(k);
}

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

    begin_piece(b);
    a.src = (const uint8_t *)(uintptr_t)b->raw[b->turn];
    if (src->scale_is_f32) {
        fill_piece(k, 0, src->scale, (size_t)n * sizeof(float));
        b->gpu->ops->to_device(b->gpu, dst, b->piece[b->turn], (size_t)n * sizeof(float));
    } else {
        fill_piece(k, 0, src->scale, (size_t)n);
        b->gpu->ops->to_device(b->gpu, b->raw[b->turn], b->piece[b->turn], (size_t)n);
        cuda_scales(b->gpu->stream, a);
    }
    end_piece(b);
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

    begin_piece(b);
    fill_piece(k, 0, (const uint8_t *)src->data + (size_t)first * row, bytes);
    if (scale_row > 0)
        fill_piece(k, scales_at, (const uint8_t *)src->scale + (size_t)first * scale_row,
                   (size_t)n * scale_row);
    b->gpu->ops->to_device(b->gpu, b->raw[b->turn], b->piece[b->turn],
                           scales_at + (size_t)n * scale_row);
    a.src = (const uint8_t *)(uintptr_t)b->raw[b->turn];
    a.src_scale = a.src + scales_at;
    cuda_panel_pack(b->gpu->stream, a);
    end_piece(b);
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
        return fail(k, why);
    }
    w.layout = panels ? LAYOUT_PANELS : LAYOUT_PLAIN;
    w.bytes = scales_at + (panels ? panel_scale_bytes(type, src->rows, src->cols) : 0);
    w.data = dev_alloc(k, w.bytes);
    if (dev_is_null(w.data)) {
        snprintf(why, sizeof(why), "no room for a weight of %zu bytes among %.1f GB on %s", w.bytes,
                 (double)b->gpu->memory_bytes / 1e9, b->gpu->name);
        return fail(k, why);
    }
    if (src->scale != NULL)
        w.scale = dev_at(w.data, scales_at);
    if (panels)
        load_panels(k, src, &w);
    else
        large_write(k, w.data.addr, src->data, bytes);
    if (b->gpu->error[0] != '\0') {
        dev_free(k, w.data);
        return fail(k, b->gpu->error);
    }
    *out = w;
    return 0;
}

static void weight_unload(struct kernels *k, struct weight *w)
{
    dev_free(k, w->data);
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
        return fail(k, "more layers of experts than 512");
    if (type_of_experts(experts, n) < 0)
        return fail(k, "experts of one layer are FP4 and FP8: the CUDA kernels take one of them");
    list = calloc((size_t)n, sizeof(*list));
    table = dev_alloc(k, (size_t)n * sizeof(*list));
    if (list == NULL || dev_is_null(table)) {
        free(list);
        return fail(k, "no memory for a table of experts");
    }
    cuda_experts_list(list, experts, n);
    large_write(k, table.addr, list, (size_t)n * sizeof(*list));
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
            dev_free(k, (struct dev_ptr){b->layers[i].table});
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

/* ---- recordings ---- */

static void record(struct kernels *k)
{
    struct backend *b = backend_of(k);

    cuda_ops_of(k);
    b->gpu->ops->record(b->gpu);
}

static void *recorded(struct kernels *k)
{
    struct backend *b = backend_of(k);
    void *recording = b->gpu->ops->recorded(b->gpu);

    if (recording == NULL)
        fail(k, b->gpu->error);
    return recording;
}

static void replay(struct kernels *k, void *recording)
{
    struct backend *b = backend_of(k);

    cuda_ops_of(k);
    b->gpu->ops->replay(b->gpu, recording);
}

static void forget(struct kernels *k, void *recording)
{
    struct backend *b = backend_of(k);

    b->gpu->ops->forget(b->gpu, recording);
}

/* ---- a device among others ---- */

static void device_room(struct kernels *k, struct kernel_room *out)
{
    struct gpu *g = backend_of(k)->gpu;

    out->total = g->total_bytes;
    g->ops->room(g, &out->used, &out->outside);
    out->left = g->memory_bytes - out->used;
}

static void *device_stream(struct kernels *k)
{
    struct gpu *g = backend_of(k)->gpu;

    g->ops->enter(g);
    return g->stream;
}

static void device_columns(struct kernels *k, struct dev_ptr out, struct dev_ptr in, int n,
                           size_t n_rows, size_t row_bytes)
{
    struct gpu *g = backend_of(k)->gpu;

    for (size_t r = 0; r < (size_t)n; r++)
        g->ops->rows(g, out.addr + r * row_bytes, (size_t)n * row_bytes,
                     in.addr + r * n_rows * row_bytes, row_bytes, row_bytes, n_rows);
}

static void device_mark(struct kernels *k, uint64_t n)
{
    struct gpu *g = backend_of(k)->gpu;

    g->ops->set_number(g, n);
}

static uint64_t device_marked(struct kernels *k)
{
    return *backend_of(k)->gpu->number;
}

/* ---- draws ---- */

/* Rows [row, row + n) of the logits; those without a draw get one that costs least. */
static void sample_rows(struct kernels *k, struct dev_ptr logits, const struct kernel_draw *draws,
                        int n_draws, int row, int n)
{
    struct backend *b = backend_of(k);
    size_t rows_bytes = (size_t)n * sizeof(struct sample_row);
    uint64_t ids = b->sampling + SAMPLE_ROWS * sizeof(struct sample_row);
    struct sample_args a = {
        .ids = (int32_t *)(uintptr_t)ids,
        .logits = (float *)(uintptr_t)logits.addr + (size_t)row * (size_t)k->dims.vocab,
        .rows = (const struct sample_row *)(uintptr_t)b->sampling,
        .work = b->ops.work,
        .vocab = k->dims.vocab,
    };

    for (int t = 0; t < n; t++)
        b->draws[t] = (struct sample_row){.top_p = 1, .n_top = -1};
    for (int i = 0; i < n_draws; i++) {
        const struct kernel_draw *d = &draws[i];

        b->draws[d->row - row] = (struct sample_row){.seed = d->seed,
                                                     .position = d->position,
                                                     .temperature = d->temperature,
                                                     .top_p = d->top_p,
                                                     .min_p = d->min_p,
                                                     .top_k = d->top_k,
                                                     .n_top = -1};
    }
    b->gpu->ops->to_device(b->gpu, b->sampling, b->draws, rows_bytes);
    cuda_sample(b->gpu->stream, a, n);
    b->gpu->ops->to_host(b->gpu, b->drawn, ids, (size_t)n * sizeof(int32_t));
}

static int sample(struct kernels *k, struct dev_ptr logits, const struct kernel_draw *draws, int n,
                  int32_t *ids)
{
    struct backend *b = backend_of(k);
    size_t fit = b->ops.work_bytes / cuda_sample_bytes(k->dims.vocab, 1);
    int most = fit < SAMPLE_ROWS ? (int)fit : SAMPLE_ROWS;

    for (int i = 0, end; i < n; i = end) {
        int first = draws[i].row;

        end = i;
        while (end < n && draws[end].row - first < most)
            end++;
        cuda_ops_of(k);
        sample_rows(k, logits, draws + i, end - i, first, draws[end - 1].row - first + 1);
        if (dev_sync(k) != 0)
            return -1;
        for (int j = i; j < end; j++)
            ids[j] = b->drawn[draws[j].row - first];
    }
    return 0;
}

/* ---- opening ---- */

static void backend_close(struct kernels *k)
{
    struct backend *b = backend_of(k);
    struct gpu *g = b->gpu;

    g->ops->wait(g);
    for (int i = 0; i < 2; i++)
        g->ops->give_pinned(g, b->piece[i]);
    g->ops->give_pinned(g, b->ring);
    g->ops->give_pinned(g, b->writes);
    g->ops->give_pinned(g, b->moves);
    g->ops->give_pinned(g, b->draws);
    g->ops->give_pinned(g, b->drawn);
    g->ops->close(g); /* with all memory */
    free(b);
}

static void fill(struct backend *b, const struct kernel_dims *dims)
{
    b->table = (struct kernel_ops){
        .name = b->name,
        .dev_alloc = dev_alloc,
        .dev_free = dev_free,
        .dev_write = dev_write,
        .dev_read = dev_read,
        .dev_copy = dev_copy,
        .sync = dev_sync,
        .dev_host = dev_host,
        .dev_share = dev_share,
        .dev_unshare = dev_unshare,
        .dev_move = dev_move,
        .weight_load = weight_load,
        .weight_unload = weight_unload,
        .experts_load = experts_load,
        .experts_unload = experts_unload,
        .record = record,
        .recorded = recorded,
        .replay = replay,
        .forget = forget,
        .close = backend_close,
        .room = device_room,
        .stream = device_stream,
        .dev_columns = device_columns,
        .mark = device_mark,
        .marked = device_marked,
        .sample = dims->vocab <= SAMPLE_VOCAB_MAX ? sample : NULL,
    };
    cuda_ops_fill(&b->table);
}

/* @return what there is no room for; NULL: all is there */
static const char *take_all(struct backend *b, const struct kernel_dims *dims)
{
    struct gpu *g = b->gpu;

    for (int i = 0; i < 2; i++) {
        b->piece[i] = g->ops->take_pinned(g, PIECE_BYTES);
        b->raw[i] = g->ops->take(g, PIECE_BYTES);
        if (b->piece[i] == NULL || b->raw[i] == 0)
            return "staging";
    }
    b->ring = g->ops->take_pinned(g, RING_BYTES);
    b->writes = g->ops->take_pinned(g, WRITES_MAX * sizeof(*b->writes));
    b->moves = g->ops->take_pinned(
        g, MOVE_PIECES * (2 * sizeof(struct kernel_piece) + 2 * sizeof(uint32_t)) + 64);
    b->draws = g->ops->take_pinned(g, SAMPLE_ROWS * sizeof(*b->draws));
    b->drawn = g->ops->take_pinned(g, SAMPLE_ROWS * sizeof(*b->drawn));
    b->sampling = g->ops->take(g, SAMPLE_ROWS * (sizeof(*b->draws) + sizeof(*b->drawn)));
    if (b->ring == NULL || b->writes == NULL || b->moves == NULL || b->draws == NULL ||
        b->drawn == NULL || b->sampling == 0)
        return "small writes";
    b->ops.work_bytes = cuda_ops_work_bytes(dims) + EXTRA_WORK_BYTES;
    b->ops.work = (void *)(uintptr_t)g->ops->take(g, b->ops.work_bytes);
    return b->ops.work == NULL ? "the operations' workspace" : NULL;
}

int cuda_backend_open(struct kernels *k, struct gpu *gpu, const struct kernel_dims *dims,
                      const struct kernel_env *env)
{
    struct backend *b = calloc(1, sizeof(*b));
    const char *why = cuda_ops_refuse(dims);
    int sm = 0;

    k->dims = *dims;
    k->env = *env;
    k->error[0] = '\0';
    if (b == NULL || why != NULL) {
        gpu->ops->close(gpu);
        free(b);
        snprintf(k->error, sizeof(k->error), "the CUDA kernels do not take this model: %s",
                 why != NULL ? why : "no memory");
        return -1;
    }
    b->gpu = gpu;
    b->ops.stream = gpu->stream;
    b->ops.n_sms = gpu->n_sms;
    why = take_all(b, dims);
    k->self = b;
    if (why != NULL) {
        snprintf(k->error, sizeof(k->error), "%.64s: no room for %s: %.2f GB were free", gpu->name,
                 why, (double)gpu->memory_bytes / 1e9);
        backend_close(k);
        k->self = NULL;
        return -1;
    }
    /* Trusted where it agrees with the products that every chip makes; the name says which it is,
     * because the bits are not the same. */
    b->ops.native_e4m3 = gpu->native_e4m3 && cuda_self_test(gpu);
    if (sscanf(gpu->name, "%*[^,], sm_%d", &sm) != 1)
        sm = 0;
    snprintf(b->name, sizeof(b->name), "cuda-sm%d%s", sm, b->ops.native_e4m3 ? "-e4m3" : "");
    fill(b, dims);
    k->ops = &b->table;
    return 0;
}
