#include "kernels/cuda/moe.h"
#include "kernels/cuda/product.h"

enum { SORT_THREADS = MOE_EXPERTS_MAX, TILE_FEW = 8, TILE_MANY = 64 };

/* ---- where things lie in the workspace ---- */

struct moe_work {
    int32_t *n_tiles;
    struct moe_tile *tiles;
    int32_t *sorted;  /* [slots] */
    uint16_t *hidden; /* [slots + T][f]; the shared expert's last */
    uint8_t *hidden_q;
};

CUDA_BOTH int64_t align_16(int64_t n)
{
    return (n + 15) / 16 * 16;
}

/* Tiles there can be: a last one of each expert that has any, and whole ones. */
CUDA_BOTH int tiles_max(int n_experts, int slots)
{
    return (n_experts < slots ? n_experts : slots) + slots / TILE_FEW + 1;
}

CUDA_BOTH int64_t moe_work_of(struct moe_work *w, unsigned char *at, int n_experts, int n_active, int f,
                          int T)
{
    int slots = T * n_active, rows = slots + T;
    int64_t size = 0;

    w->n_tiles = (int32_t *)(void *)at;
    size += 16;
    w->tiles = (struct moe_tile *)(void *)(at + size);
    size += align_16((int64_t)tiles_max(n_experts, slots) * (int64_t)sizeof(struct moe_tile));
    w->sorted = (int32_t *)(void *)(at + size);
    size += align_16((int64_t)slots * 4);
    w->hidden = (uint16_t *)(void *)(at + size);
    size += align_16((int64_t)rows * f * 2);
    w->hidden_q = at + size;
    return size + (int64_t)rows * (int64_t)cuda_quant_bytes(f);
}

CUDA_API size_t cuda_moe_work_bytes(int n_experts, int n_active, int f, int T)
{
    struct moe_work w;

    return (size_t)moe_work_of(&w, 0, n_experts, n_active, f, T < MOE_ROWS_MAX ? T : MOE_ROWS_MAX);
}

/* ---- sorting ---- */

struct sort_args {
    struct moe_args a;
    int tile; /* slots of one */
};

/* Inclusive sums over the block's threads, in place: shared, [SORT_THREADS]. */
CUDA_DEVICE void running_sums(int32_t *x)
{
    int i = (int)threadIdx.x;

    for (int step = 1; step < SORT_THREADS; step *= 2) {
        int32_t add;

        __syncthreads();
        add = i >= step ? x[i - step] : 0;
        __syncthreads();
        x[i] += add;
    }
    __syncthreads();
}

/*
 * One block, a thread an expert: counts, running sums of counts and of tiles, then slots to their
 * places. Order within an expert is as it comes: no bit depends on it. Bound by latency: 40
 * barriers, some 10 us.
 */
CUDA_KERNEL(moe_sort_kernel, struct sort_args)
{
    __shared__ uint32_t count[SORT_THREADS], place[SORT_THREADS];
    __shared__ int32_t slots[SORT_THREADS], tiles[SORT_THREADS];
    const struct moe_args *m = &a.a;
    struct moe_work w;
    int e = (int)threadIdx.x, n_slots = m->T * m->n_active, n, at, tile;

    moe_work_of(&w, m->work, m->n_experts, m->n_active, m->f, m->T);
    count[e] = 0;
    __syncthreads();
    for (int s = e; s < n_slots; s += SORT_THREADS)
        if (m->ids[s] >= m->first && m->ids[s] < m->first + m->n)
            dev_add(&count[m->ids[s]], 1);
    __syncthreads();
    n = (int)count[e];
    slots[e] = n;
    tiles[e] = (n + a.tile - 1) / a.tile;
    running_sums(slots);
    running_sums(tiles);
    at = slots[e] - n;
    tile = tiles[e] - (n + a.tile - 1) / a.tile;
    place[e] = (uint32_t)at;
    for (int first = 0; first < n; first += a.tile, tile++) {
        w.tiles[tile].expert = e;
        w.tiles[tile].first = at + first;
        w.tiles[tile].n = n - first < a.tile ? n - first : a.tile;
    }
    if (e == 0)
        *w.n_tiles = tiles[SORT_THREADS - 1];
    __syncthreads(); /* place */
    for (int s = e; s < n_slots; s += SORT_THREADS)
        if (m->ids[s] >= m->first && m->ids[s] < m->first + m->n)
            w.sorted[dev_add(&place[m->ids[s]], 1)] = s;
}

/* ---- the two products ---- */

/* The tile of this block: grid [panels][tiles, or in the shared expert's pass tokens / tile]. */
CUDA_DEVICE int tile_of(const struct moe_args *a, const struct moe_work *w, int tile,
                        struct moe_tile *out)
{
    if (!a->shared_pass) {
        if ((int)blockIdx.y >= *w->n_tiles)
            return 0;
        *out = w->tiles[blockIdx.y];
        return 1;
    }
    out->expert = a->n_experts;
    out->first = (int)blockIdx.y * tile;
    out->n = a->T - out->first < tile ? a->T - out->first : tile;
    return 1;
}

/* Slot j of a tile: for the shared expert slots go on after those of the others. */
CUDA_DEVICE int slot_of(const struct moe_args *a, const struct moe_work *w,
                        const struct moe_tile *t, int j)
{
    int at = t->first + (j < t->n ? j : 0);

    return a->shared_pass ? a->T * a->n_active + at : w->sorted[at];
}

CUDA_DEVICE int token_of_slot(const struct moe_args *a, int slot)
{
    int routed = a->T * a->n_active;

    return slot < routed ? slot / a->n_active : slot - routed;
}

CUDA_DEVICE float swiglu(float gate, float up, float limit)
{
    if (limit > 0) {
        gate = gate > limit ? limit : gate;
        up = dev_clamp(up, limit);
    }
    return gate * (1 / (1 + expf(-gate))) * up;
}

/* hidden[slot] = bf16(swiglu(w1 x, w3 x) * weight), both products of one tile in one block. */
CUDA_DEVICE void up_tile(const struct moe_args *a, float *out, const uint8_t **x, int *slots,
                         int n_tiles, struct product_kind kind)
{
    float gate[PRODUCT_TOKENS_MAX * PANEL_ROWS / PRODUCT_THREADS];
    struct moe_expert e;
    struct moe_work w;
    struct moe_tile t;
    struct panels m;
    int each = 0, i = (int)threadIdx.x;

    moe_work_of(&w, a->work, a->n_experts, a->n_active, a->f, a->T);
    if (!tile_of(a, &w, 8 * n_tiles, &t))
        return; /* the whole block */
    e = a->shared_pass ? a->shared : a->table[t.expert];
    for (int j = i; j < 8 * n_tiles; j += PRODUCT_THREADS) {
        slots[j] = slot_of(a, &w, &t, j);
        x[j] = a->xq + (int64_t)token_of_slot(a, slots[j]) * (int64_t)cuda_quant_bytes(a->d);
    }
    __syncthreads();
    m.rows = a->f;
    m.cols = a->d;
    m.data = e.w1;
    m.scale = e.s1;
    product_tile(out, &m, (int)blockIdx.x, x, t.n, n_tiles, kind);
    for (int at = i; at < 8 * n_tiles * PANEL_ROWS; at += PRODUCT_THREADS)
        gate[each++] = out[at / PANEL_ROWS * (PANEL_ROWS + 1) + at % PANEL_ROWS];
    m.data = e.w3;
    m.scale = e.s3;
    product_tile(out, &m, (int)blockIdx.x, x, t.n, n_tiles, kind);
    each = 0;
    for (int at = i; at < 8 * n_tiles * PANEL_ROWS; at += PRODUCT_THREADS) {
        int j = at / PANEL_ROWS, r = at % PANEL_ROWS;
        float g = dev_bf16_grid(gate[each++]);
        float u = dev_bf16_grid(out[j * (PANEL_ROWS + 1) + r]);

        if (j < t.n) {
            float weight = a->shared_pass ? 1 : a->weights[slots[j]];

            w.hidden[(int64_t)slots[j] * a->f + (int)blockIdx.x * PANEL_ROWS + r] =
                dev_to_bf16(swiglu(g, u, a->limit) * weight);
        }
    }
}

/* parts[row of slot] = bf16(w2 hidden). */
CUDA_DEVICE void down_tile(const struct moe_args *a, float *out, const uint8_t **x, int *slots,
                           int n_tiles, struct product_kind kind)
{
    struct moe_expert e;
    struct moe_work w;
    struct moe_tile t;
    struct panels m;

    moe_work_of(&w, a->work, a->n_experts, a->n_active, a->f, a->T);
    if (!tile_of(a, &w, 8 * n_tiles, &t))
        return; /* the whole block */
    e = a->shared_pass ? a->shared : a->table[t.expert];
    for (int j = (int)threadIdx.x; j < 8 * n_tiles; j += PRODUCT_THREADS) {
        slots[j] = slot_of(a, &w, &t, j);
        x[j] = w.hidden_q + (int64_t)slots[j] * (int64_t)cuda_quant_bytes(a->f);
    }
    __syncthreads();
    m.rows = a->d;
    m.cols = a->f;
    m.data = e.w2;
    m.scale = e.s2;
    product_tile(out, &m, (int)blockIdx.x, x, t.n, n_tiles, kind);
    for (int at = (int)threadIdx.x; at < t.n * PANEL_ROWS; at += PRODUCT_THREADS) {
        int j = at / PANEL_ROWS, r = at % PANEL_ROWS, token = token_of_slot(a, slots[j]);
        int part = a->shared_pass ? a->n_active : slots[j] % a->n_active;

        a->parts[((int64_t)token * (a->n_active + 1) + part) * a->d +
                 (int)blockIdx.x * PANEL_ROWS + r] =
            dev_to_bf16(out[j * (PANEL_ROWS + 1) + r]);
    }
}

#define MOE_KERNELS(name, n_tiles, type, native)                                                   \
    CUDA_BOUNDED_KERNEL(moe_up_##name, struct moe_args, PRODUCT_THREADS, 2)                        \
    {                                                                                              \
        __shared__ float out[PRODUCT_WARPS * 8 * (n_tiles) * (PANEL_ROWS + 1)];                    \
        __shared__ const uint8_t *x[8 * (n_tiles)];                                                \
        __shared__ int slots[8 * (n_tiles)];                                                       \
        struct product_kind kind = {type, 0, native};                                              \
                                                                                                   \
        up_tile(&a, out, x, slots, n_tiles, kind);                                                 \
    }                                                                                              \
    CUDA_BOUNDED_KERNEL(moe_down_##name, struct moe_args, PRODUCT_THREADS, 2)                      \
    {                                                                                              \
        __shared__ float out[PRODUCT_WARPS * 8 * (n_tiles) * (PANEL_ROWS + 1)];                    \
        __shared__ const uint8_t *x[8 * (n_tiles)];                                                \
        __shared__ int slots[8 * (n_tiles)];                                                       \
        struct product_kind kind = {type, 0, native};                                              \
                                                                                                   \
        down_tile(&a, out, x, slots, n_tiles, kind);                                               \
    }

MOE_KERNELS(fp4_few, 1, PANEL_FP4, 0)
MOE_KERNELS(fp4_many, 8, PANEL_FP4, 0)
MOE_KERNELS(fp4_few_native, 1, PANEL_FP4, 1)
MOE_KERNELS(fp4_many_native, 8, PANEL_FP4, 1)
MOE_KERNELS(fp8_few, 1, PANEL_FP8, 0)
MOE_KERNELS(fp8_many, 8, PANEL_FP8, 0)
MOE_KERNELS(fp8_few_native, 1, PANEL_FP8, 1)
MOE_KERNELS(fp8_many_native, 8, PANEL_FP8, 1)

/* ---- zeroes ---- */

CUDA_KERNEL(moe_zero_kernel, struct moe_args)
{
    int64_t t = blockIdx.x, n = (int64_t)(a.n_active + 1) * a.d / 2;
    uint32_t *row = (uint32_t *)(void *)(a.parts + t * (a.n_active + 1) * a.d);

    for (int64_t i = (int64_t)blockIdx.y * CUDA_BLOCK + (int)threadIdx.x; i < n;
         i += (int64_t)gridDim.y * CUDA_BLOCK)
        row[i] = 0;
}

/* ---- launching ---- */

#define LAUNCH_MOE(name)                                                                           \
    do {                                                                                           \
        if (down)                                                                                  \
            CUDA_LAUNCH(moe_down_##name, struct moe_args, args.d / PANEL_ROWS, tiles,              \
                        PRODUCT_THREADS, s, args);                                                 \
        else                                                                                       \
            CUDA_LAUNCH(moe_up_##name, struct moe_args, args.f / PANEL_ROWS, tiles,                \
                        PRODUCT_THREADS, s, args);                                                 \
    } while (0)

static void launch(cuda_stream s, struct moe_args args, int few, int tiles, int down)
{
    if (args.type == PANEL_FP4 && args.native && few)
        LAUNCH_MOE(fp4_few_native);
    else if (args.type == PANEL_FP4 && args.native)
        LAUNCH_MOE(fp4_many_native);
    else if (args.type == PANEL_FP4 && few)
        LAUNCH_MOE(fp4_few);
    else if (args.type == PANEL_FP4)
        LAUNCH_MOE(fp4_many);
    else if (args.native && few)
        LAUNCH_MOE(fp8_few_native);
    else if (args.native)
        LAUNCH_MOE(fp8_many_native);
    else if (few)
        LAUNCH_MOE(fp8_few);
    else
        LAUNCH_MOE(fp8_many);
}

CUDA_API void cuda_moe_parts(cuda_stream s, struct moe_args args)
{
    /* Small tiles until experts have more than one of them on average: then a matrix is read once.
     */
    int slots = args.T * args.n_active, few = slots <= TILE_FEW * args.n_experts;
    int shared_few = args.T <= TILE_FEW;
    int tiles = tiles_max(args.n_experts, slots);
    int shared_tiles = (int)panel_ceil(args.T, shared_few ? TILE_FEW : TILE_MANY);
    struct sort_args sort = {args, few ? TILE_FEW : TILE_MANY};
    struct act_quant_args quant;
    struct moe_args pass;
    struct moe_work w;

    if (args.T == 0)
        return;
    args.shared_pass = 0;
    sort.a.shared_pass = 0;
    pass = args; /* the shared expert's: FP8 */
    pass.shared_pass = 1;
    pass.type = PANEL_FP8;
    if (!few)
        tiles = (args.n_experts < slots ? args.n_experts : slots) + slots / TILE_MANY + 1;
    moe_work_of(&w, args.work, args.n_experts, args.n_active, args.f, args.T);
    if (!args.has_shared || args.first > 0 || args.n < args.n_experts)
        CUDA_LAUNCH(moe_zero_kernel, struct moe_args, args.T, 8, CUDA_BLOCK, s, args);
    CUDA_LAUNCH(moe_sort_kernel, struct sort_args, 1, 1, SORT_THREADS, s, sort);
    launch(s, args, few, tiles, 0);
    if (args.has_shared)
        launch(s, pass, shared_few, shared_tiles, 0);
    quant.xq = w.hidden_q;
    quant.x = w.hidden;
    quant.n = args.f;
    cuda_act_quant(s, quant, slots + args.T); /* rows of no expert here are quantised for nothing */
    launch(s, args, few, tiles, 1);
    if (args.has_shared)
        launch(s, pass, shared_few, shared_tiles, 1);
}

/* ---- the sum ---- */

/* Grid [T][columns]; a thread a column. In double, as the reference: the shared expert, then the
 * others by ascending id. Bound by bytes: 2 (n_active + 2) d a token. */
CUDA_KERNEL(moe_sum_kernel, struct moe_sum_args)
{
    __shared__ int order[MOE_ACTIVE_MAX];
    int64_t t = blockIdx.x;
    const int32_t *ids = a.ids + t * a.n_active;
    const uint16_t *parts = a.parts + t * (a.n_active + 1) * a.d;
    int i = (int)threadIdx.x, c = (int)blockIdx.y * CUDA_BLOCK + i;

    if (i < a.n_active) {
        int before = 0;

        for (int j = 0; j < a.n_active; j++)
            before += ids[j] < ids[i] || (ids[j] == ids[i] && j < i);
        order[before] = i;
    }
    __syncthreads();
    if (c < a.d) {
        double sum = (double)dev_from_bf16(parts[(int64_t)a.n_active * a.d + c]);

        for (int j = 0; j < a.n_active; j++)
            sum += (double)dev_from_bf16(parts[(int64_t)order[j] * a.d + c]);
        a.y[t * a.d + c] = dev_to_bf16((float)sum);
    }
}

CUDA_API void cuda_moe_sum(cuda_stream s, struct moe_sum_args args, int T)
{
    if (T > 0)
        CUDA_LAUNCH(moe_sum_kernel, struct moe_sum_args, T, panel_ceil(args.d, CUDA_BLOCK),
                    CUDA_BLOCK, s, args);
}
