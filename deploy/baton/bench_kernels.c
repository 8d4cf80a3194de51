#include "deploy/baton/bench_kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct kernel_dims bench_kernel_dims(void)
{
    return (struct kernel_dims){
        .hidden = 4096,
        .hc = 4,
        .n_heads = 64,
        .head_dim = 512,
        .rope_dim = 64,
        .q_lora_rank = 1024,
        .o_groups = 8,
        .o_lora_rank = 1024,
        .window = 128,
        .index_n_heads = 64,
        .index_head_dim = 128,
        .index_topk = 512,
        .n_experts = 256,
        .n_active = 6,
        .moe_inter = 2048,
        .vocab = 129280,
        .hc_iters = 20,
        .hc_eps = 1e-6,
        .norm_eps = 1e-6,
        .route_scale = 1.5,
        .swiglu_limit = 10,
        .max_rows = 512,
        .max_seqs = 8,
        .max_context = 1 << 20,
    };
}

/* ---- random memory ---- */

static uint64_t bits(struct kernel_bench *b)
{
    uint64_t z = b->seed += 0x9E3779B97F4A7C15u; /* SplitMix64 */

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* bf16 values of size 2^-3 .. 1, either sign. */
static void fill_bf16(struct kernel_bench *b, uint16_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t z = bits(b);

        out[i] = (uint16_t)((z & 0x807F) | (124 + (z >> 32) % 3) << 7);
    }
}

static void fill_f32(struct kernel_bench *b, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(int32_t)bits(b) * 0x1p-31f;
}

/* FP8 codes without NaN: the lowest mantissa bit of each is 0. */
static void fill_codes(struct kernel_bench *b, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i += 8) {
        uint64_t z = bits(b) & 0xFEFEFEFEFEFEFEFEu;

        memcpy(out + i, &z, n - i < 8 ? n - i : 8);
    }
}

static struct dev_ptr device(struct kernel_bench *b, const void *src, size_t bytes)
{
    struct dev_ptr p = b->k.ops->dev_alloc(&b->k, bytes);

    if (!dev_is_null(p) && src != NULL)
        b->k.ops->dev_write(&b->k, p, src, bytes);
    return p;
}

static struct dev_ptr device_bf16(struct kernel_bench *b, size_t n)
{
    uint16_t *x = malloc(n * 2);
    struct dev_ptr p = {0};

    if (x != NULL) {
        fill_bf16(b, x, n);
        p = device(b, x, n * 2);
    }
    free(x);
    return p;
}

static struct dev_ptr device_f32(struct kernel_bench *b, size_t n)
{
    float *x = malloc(n * 4);
    struct dev_ptr p = {0};

    if (x != NULL) {
        fill_f32(b, x, n);
        p = device(b, x, n * 4);
    }
    free(x);
    return p;
}

static int no_memory(const char *name)
{
    fprintf(stderr, "baton bench-kernels: no memory for %s: try a smaller --footprint-mb\n", name);
    return -1;
}

static bool wanted(const struct kernel_bench *b, const char *name)
{
    return b->only == NULL || strstr(name, b->only) != NULL;
}

/* ---- weights ---- */

/* A random matrix as a checkpoint has it; the caller frees data and scale. */
static bool make_source(struct kernel_bench *b, enum weight_type type, int64_t rows, int64_t cols,
                        struct weight_src *out)
{
    size_t n = (size_t)(rows * cols), n_scales = type == WEIGHT_FP4 ? n / 32 : n / 128 / 128 + 1;
    uint8_t *data = malloc(type == WEIGHT_BF16 ? 2 * n : n), *scale = malloc(n_scales);

    *out = (struct weight_src){.type = type, .rows = rows, .cols = cols, .data = data};
    if (data == NULL || scale == NULL) {
        free(data);
        free(scale);
        return false;
    }
    if (type == WEIGHT_BF16)
        fill_bf16(b, (uint16_t *)(void *)data, n);
    else
        fill_codes(b, data, type == WEIGHT_FP4 ? n / 2 : n);
    memset(scale, 120, n_scales);
    out->scale = scale;
    return true;
}

static void free_source(struct weight_src *src)
{
    free((void *)(uintptr_t)src->data);
    free((void *)(uintptr_t)src->scale);
}

/* Copies of one matrix, as many as the footprint holds. */
struct copies {
    struct weight *w;
    int n;
};

static void free_copies(struct kernel_bench *b, struct copies *c)
{
    for (int i = 0; i < c->n; i++)
        b->k.ops->weight_unload(&b->k, &c->w[i]);
    free(c->w);
    *c = (struct copies){0};
}

static bool make_copies(struct kernel_bench *b, enum weight_type type, int64_t rows, int64_t cols,
                        struct copies *out)
{
    struct weight_src src;
    struct copies c = {0};
    size_t bytes = (size_t)(rows * cols) *
                   (type == WEIGHT_BF16  ? 4
                    : type == WEIGHT_FP8 ? 2
                                         : 1) /
                   2;
    int want = (int)(b->footprint / bytes) + 1;

    c.w = calloc((size_t)want, sizeof(*c.w));
    if (c.w == NULL || !make_source(b, type, rows, cols, &src)) {
        free(c.w);
        return false;
    }
    while (c.n < want && b->k.ops->weight_load(&b->k, &src, &c.w[c.n]) == 0)
        c.n++;
    free_source(&src);
    *out = c;
    if (c.n == want)
        return true;
    free_copies(b, out);
    return false;
}

/* ---- products ---- */

struct product {
    struct kernel_bench *b;
    struct copies weights;
    struct dev_ptr x, y; /* x: bf16, or its quantised form */
    int T;
    bool quantised, y_f32;
};

static void run_product(void *arg, int64_t i)
{
    struct product *p = arg;
    const struct weight *w = &p->weights.w[i % p->weights.n];
    const struct kernel_ops *ops = p->b->k.ops;

    if (p->quantised)
        ops->linear_q(&p->b->k, p->y, p->x, w, p->T);
    else
        ops->linear(&p->b->k, p->y, p->x, w, p->T, p->y_f32);
}

static int bench_products(struct kernel_bench *b, enum weight_type type, int rows, int cols)
{
    static const char *const types[] = {
        [WEIGHT_BF16] = "bf16", [WEIGHT_FP8] = "fp8", [WEIGHT_FP4] = "fp4"};
    static const int counts[] = {1, 2, 4, 16, 64, 512};
    const struct kernel_ops *ops = b->k.ops;
    struct product p = {.b = b, .quantised = type != WEIGHT_BF16, .y_f32 = true};
    char name[32], shape[64];
    int status = 0;

    bool any = false;

    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof(name), "%s %s", types[type], i == 0 ? "gemv" : "gemm");
        any |= wanted(b, name);
    }
    if (!any)
        return 0;
    if (!make_copies(b, type, rows, cols, &p.weights))
        return no_memory(types[type]);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]) && status == 0; i++) {
        p.T = counts[i];
        snprintf(name, sizeof(name), "%s %s", types[type], p.T == 1 ? "gemv" : "gemm");
        snprintf(shape, sizeof(shape), "[%d][%d], %d token%s", rows, cols, p.T,
                 p.T == 1 ? "" : "s");
        if (!wanted(b, name))
            continue;
        p.x = device_bf16(b, (size_t)p.T * (size_t)cols);
        p.y = device(b, NULL, (size_t)p.T * (size_t)rows * 4);
        if (p.quantised) {
            struct dev_ptr xq = device(b, NULL, (size_t)p.T * ops->act_quant_bytes(&b->k, cols));

            if (!dev_is_null(xq) && !dev_is_null(p.x))
                ops->act_quant(&b->k, xq, p.x, p.T, cols);
            ops->dev_free(&b->k, p.x);
            p.x = xq;
        }
        if (dev_is_null(p.x) || dev_is_null(p.y))
            status = no_memory(name);
        else if (p.T == 1)
            b->measure(b, name, shape, LIMIT_READ, (double)p.weights.w[0].bytes, run_product, &p);
        else
            b->measure(b, name, shape, LIMIT_DOT, 2.0 * p.T * rows * cols, run_product, &p);
        ops->dev_free(&b->k, p.x);
        ops->dev_free(&b->k, p.y);
    }
    free_copies(b, &p.weights);
    return status;
}

/* ---- experts ---- */

enum {
    N_EXPERTS = 256,
    N_LOADED = 64
}; /* the others are the same memory: ids stay below N_LOADED */

struct moe_case {
    struct kernel_bench *b;
    struct expert_weights experts[N_EXPERTS], shared;
    int n_loaded;
    struct dev_ptr xq, y, ids, weights;
    int32_t *host_ids;
    int T;
};

/* Other experts at each call. */
static void run_moe(void *arg, int64_t i)
{
    struct moe_case *m = arg;
    struct kernels *k = &m->b->k;
    int n = m->T * k->dims.n_active;

    for (int j = 0; j < n; j++)
        m->host_ids[j] =
            (int32_t)((i * k->dims.n_active + j * 37 % 61 + j % k->dims.n_active) % N_LOADED);
    k->ops->dev_write(k, m->ids, m->host_ids, (size_t)n * 4);
    k->ops->moe(k, m->y, m->xq, m->ids, m->weights, m->experts, &m->shared, m->T);
}

static bool load_expert(struct kernel_bench *b, enum weight_type type, struct expert_weights *e)
{
    int d = b->k.dims.hidden, f = b->k.dims.moe_inter;
    struct weight *w[3] = {&e->w1, &e->w2, &e->w3};
    struct weight_src src;
    bool ok = true;

    for (int i = 0; i < 3 && ok; i++) {
        ok = make_source(b, type, i == 1 ? d : f, i == 1 ? f : d, &src);
        if (ok) {
            ok = b->k.ops->weight_load(&b->k, &src, w[i]) == 0;
            free_source(&src);
        }
    }
    return ok;
}

static void unload_expert(struct kernel_bench *b, struct expert_weights *e)
{
    b->k.ops->weight_unload(&b->k, &e->w1);
    b->k.ops->weight_unload(&b->k, &e->w2);
    b->k.ops->weight_unload(&b->k, &e->w3);
}

static int bench_moe(struct kernel_bench *b)
{
    static struct moe_case m;
    static const int counts[] = {1, 16, 512};
    const struct kernel_ops *ops = b->k.ops;
    int d = b->k.dims.hidden, f = b->k.dims.moe_inter, n_active = b->k.dims.n_active;
    bool ok = true;
    char shape[64];

    if (!wanted(b, "moe"))
        return 0;
    memset(&m, 0, sizeof(m));
    m.b = b;
    ok = load_expert(b, WEIGHT_FP8, &m.shared);
    for (; m.n_loaded < N_LOADED && ok; m.n_loaded++)
        ok = load_expert(b, WEIGHT_FP4, &m.experts[m.n_loaded]);
    for (int i = N_LOADED; i < N_EXPERTS; i++)
        m.experts[i] = m.experts[i % N_LOADED];
    m.host_ids = malloc(512 * 4 * (size_t)n_active);
    for (int i = 0; i < 3 && ok; i++) {
        struct dev_ptr x = device_bf16(b, (size_t)(counts[i] * d));

        m.T = counts[i];
        m.xq = device(b, NULL, (size_t)m.T * ops->act_quant_bytes(&b->k, d));
        m.y = device(b, NULL, (size_t)(m.T * d) * 2);
        m.ids = device(b, NULL, (size_t)(m.T * n_active) * 4);
        m.weights = device_f32(b, (size_t)(m.T * n_active));
        ops->act_quant(&b->k, m.xq, x, m.T, d);
        snprintf(shape, sizeof(shape), "%d + 1 experts of [%d][%d] fp4, %d token%s", n_active, f, d,
                 m.T, m.T == 1 ? "" : "s");
        if (m.T == 1)
            b->measure(b, "moe", shape, LIMIT_READ, 3.0 * d * f * (n_active * 4.25 / 8 + 1),
                       run_moe, &m);
        else
            b->measure(b, "moe", shape, LIMIT_DOT, 6.0 * m.T * d * f * (n_active + 1), run_moe, &m);
        struct dev_ptr all[] = {x, m.xq, m.y, m.ids, m.weights};

        for (int j = 0; j < 5; j++)
            ops->dev_free(&b->k, all[j]);
    }
    for (int i = 0; i < m.n_loaded; i++)
        unload_expert(b, &m.experts[i]);
    unload_expert(b, &m.shared);
    free(m.host_ids);
    return ok ? 0 : no_memory("moe");
}

/* ---- streams ---- */

struct hyper_case {
    struct kernel_bench *b;
    struct dev_ptr streams, x, y, post, comb;
    struct weight fn, scale, base, norm;
    int T;
};

static void run_hc_read(void *arg, int64_t i)
{
    struct hyper_case *h = arg;

    (void)i;
    h->b->k.ops->hc_read(&h->b->k, h->x, h->post, h->comb, h->streams, &h->fn, &h->scale, &h->base,
                         &h->norm, h->T);
}

static void run_hc_write(void *arg, int64_t i)
{
    struct hyper_case *h = arg;

    (void)i;
    h->b->k.ops->hc_write(&h->b->k, h->streams, h->y, h->streams, h->post, h->comb, h->T);
}

static void run_norm(void *arg, int64_t i)
{
    struct hyper_case *h = arg;

    (void)i;
    h->b->k.ops->rms_norm(&h->b->k, h->x, h->y, &h->norm, h->T, h->b->k.dims.hidden);
}

static int bench_streams(struct kernel_bench *b)
{
    const struct kernel_ops *ops = b->k.ops;
    int d = b->k.dims.hidden, hc = b->k.dims.hc, n_fn = (2 + hc) * hc;
    static const int counts[] = {1, 512};
    float *constants = malloc((size_t)(n_fn * hc * d) * 4);
    uint16_t *gain = malloc((size_t)d * 2);
    struct weight_src fn = {.type = WEIGHT_F32, .rows = n_fn, .cols = hc * d, .data = constants};
    struct weight_src few = {.type = WEIGHT_F32, .rows = 1, .cols = n_fn, .data = constants};
    struct weight_src norm = {.type = WEIGHT_BF16, .rows = 1, .cols = d, .data = gain};
    struct hyper_case h = {.b = b};
    char shape[64];

    if (constants == NULL || gain == NULL) {
        free(constants);
        free(gain);
        return no_memory("streams");
    }
    fill_f32(b, constants, (size_t)(n_fn * hc * d));
    fill_bf16(b, gain, (size_t)d);
    ops->weight_load(&b->k, &fn, &h.fn);
    ops->weight_load(&b->k, &few, &h.scale);
    ops->weight_load(&b->k, &few, &h.base);
    ops->weight_load(&b->k, &norm, &h.norm);
    for (int i = 0; i < 2; i++) {
        double t = h.T = counts[i];
        size_t n = (size_t)h.T;

        h.streams = device_bf16(b, n * (size_t)(hc * d));
        h.x = device_bf16(b, n * (size_t)d);
        h.y = device_bf16(b, n * (size_t)d);
        h.post = device_f32(b, n * (size_t)hc);
        h.comb = device_f32(b, n * (size_t)(hc * hc));
        snprintf(shape, sizeof(shape), "%d x %d, %d token%s", hc, d, h.T, h.T == 1 ? "" : "s");
        if (wanted(b, "hc_read")) {
            if (h.T == 1)
                b->measure(b, "hc_read", shape, LIMIT_READ, 4.0 * n_fn * hc * d, run_hc_read, &h);
            else
                b->measure(b, "hc_read", shape, LIMIT_FMA, 2.0 * t * n_fn * hc * d, run_hc_read,
                           &h);
        }
        if (wanted(b, "hc_write"))
            b->measure(b, "hc_write", shape, LIMIT_READ, t * (4.0 * hc + 2) * d, run_hc_write, &h);
        if (wanted(b, "rms_norm"))
            b->measure(b, "rms_norm", shape, LIMIT_READ, t * 4.0 * d, run_norm, &h);
        struct dev_ptr all[] = {h.streams, h.x, h.y, h.post, h.comb};

        for (int j = 0; j < 5; j++)
            ops->dev_free(&b->k, all[j]);
    }
    free(constants);
    free(gain);
    return 0;
}

/* ---- attention and indexer, over one long sequence ---- */

enum { COMP_COLS = 1024, COMP_ROWS = 8 + 16 };
enum { ENTRIES = 64, ROW_BYTES = 584, KEY_BYTES = 68, CONTEXT = 1 << 20, N_PAGES = CONTEXT / 256 };

struct kv_case {
    struct kernel_bench *b;
    struct kernel_batch batch;
    struct kernel_kv kv;
    struct dev_ptr q, o, rows, chosen, freq, iq, iw;
    struct weight sink;
};

static void run_attention(void *arg, int64_t i)
{
    struct kv_case *c = arg;

    (void)i;
    c->b->k.ops->attention(&c->b->k, c->o, c->q, c->rows, c->chosen, &c->sink, &c->batch, &c->kv,
                           c->freq);
}

static void run_select(void *arg, int64_t i)
{
    struct kv_case *c = arg;

    (void)i;
    c->b->k.ops->index_select(&c->b->k, c->chosen, c->iq, c->iw, &c->batch, &c->kv);
}

/* ---- its compressors ---- */

struct compress_case {
    struct kv_case *c;
    struct compressor_weights w;
    struct dev_ptr kv, score;
};

static void run_compress(void *arg, int64_t i)
{
    struct compress_case *p = arg;
    struct kv_case *c = p->c;

    (void)i;
    c->b->k.ops->compress(&c->b->k, p->kv, p->score, &p->w, &c->batch, &c->kv, c->freq, false);
}

/* T rows of the projections, of which each fourth (and the last) ends an entry. Bound: bytes of
 * both projections, each read once, and what the first entry takes from the ring: half the columns
 * of seven rows. */
static int bench_compress(struct kernel_bench *b, struct kv_case *c, int T)
{
    const struct kernel_ops *ops = b->k.ops;
    size_t n = (size_t)T * COMP_COLS;
    float *ape = malloc(4 * COMP_COLS * sizeof(*ape));
    uint16_t *gain = malloc(COMP_COLS * sizeof(*gain));
    struct compress_case p = {.c = c, .kv = device_f32(b, n), .score = device_f32(b, n)};
    char shape[64];
    int status = 0;

    if (ape == NULL || gain == NULL || dev_is_null(p.kv) || dev_is_null(p.score)) {
        status = no_memory("compress");
    } else {
        struct weight_src ape_src = {.type = WEIGHT_F32, .rows = 4, .cols = COMP_COLS, .data = ape};
        struct weight_src norm_src = {
            .type = WEIGHT_BF16, .rows = 1, .cols = COMP_COLS / 2, .data = gain, .vector = true};

        fill_f32(b, ape, 4 * COMP_COLS);
        fill_bf16(b, gain, COMP_COLS);
        ops->weight_load(&b->k, &ape_src, &p.w.ape);
        ops->weight_load(&b->k, &norm_src, &p.w.norm);
        snprintf(shape, sizeof(shape), "ratio 4, %d columns, %d token%s", COMP_COLS, T,
                 T == 1 ? "" : "s");
        b->measure(b, "compress", shape, LIMIT_READ, (double)n * 8 + 7 * 4.0 * COMP_COLS,
                   run_compress, &p);
        ops->weight_unload(&b->k, &p.w.ape);
        ops->weight_unload(&b->k, &p.w.norm);
    }
    ops->dev_free(&b->k, p.kv);
    ops->dev_free(&b->k, p.score);
    free(ape);
    free(gain);
    return status;
}

/* Codes everywhere, scales (after the codes and the rotated dims) of one. */
static void fill_rows(struct kernel_bench *b, uint8_t *rows, int n, int row_bytes, int first_scale,
                      int n_scales)
{
    for (int i = 0; i < n; i++, rows += row_bytes) {
        fill_codes(b, rows, (size_t)row_bytes);
        if (n_scales == 7) /* latents: 64 bf16 after 448 codes */
            fill_bf16(b, (uint16_t *)(void *)(rows + 448), 64);
        memset(rows + first_scale, 120, (size_t)n_scales);
    }
}

static bool kv_open(struct kernel_bench *b, struct kv_case *c)
{
    size_t page = (size_t)ENTRIES * (ROW_BYTES + KEY_BYTES);
    size_t ring = (size_t)(128 + 16) * ROW_BYTES;
    size_t comp = (size_t)COMP_ROWS * 2 * COMP_COLS * sizeof(float);
    float freq[32];

    *c = (struct kv_case){.b = b};
    c->kv = (struct kernel_kv){.ratio = 4,
                               .page_stride = page,
                               .key_off = (size_t)ENTRIES * ROW_BYTES,
                               .entries_per_page = ENTRIES,
                               .slot_stride = ring + comp,
                               .comp_off = ring,
                               .window_rows = 128 + 16,
                               .comp_rows = COMP_ROWS,
                               .row_bytes = ROW_BYTES,
                               .key_bytes = KEY_BYTES};
    c->kv.pages = device(b, NULL, page * N_PAGES);
    c->kv.states = device(b, NULL, ring + comp);
    for (int i = 0; i < 32; i++)
        freq[i] = 1.f / (float)(1 << i / 2);
    c->freq = device(b, freq, sizeof(freq));
    if (dev_is_null(c->kv.pages) || dev_is_null(c->kv.states) || dev_is_null(c->freq))
        return false;
    for (int p = 0; p < N_PAGES; p++) {
        uint8_t *at = b->k.ops->dev_host(&b->k, dev_at(c->kv.pages, (size_t)p * page));

        if (p > 0 && p % 64 != 0) { /* random enough */
            memcpy(at, at - page, page);
            continue;
        }
        fill_rows(b, at, ENTRIES, ROW_BYTES, 448 + 128, 7);
        fill_rows(b, at + c->kv.key_off, ENTRIES, KEY_BYTES, 64, 4);
    }
    fill_rows(b, b->k.ops->dev_host(&b->k, c->kv.states), 128 + 16, ROW_BYTES, 448 + 128, 7);
    return true;
}

/* T rows that end at position `last` of the one sequence. */
static void kv_batch(struct kv_case *c, int T, int last)
{
    struct kernel_bench *b = c->b;
    const struct kernel_dims *d = &b->k.dims;
    int32_t zero[512] = {0}, pos[512], table[N_PAGES], two[2] = {0, T}, start = last + 1 - T;
    int32_t *chosen = malloc((size_t)(T * d->index_topk) * 4);
    uint8_t *rows = malloc((size_t)T * ROW_BYTES);
    int n_entries = last / 4;

    for (int t = 0; t < T; t++)
        pos[t] = start + t;
    for (int p = 0; p < N_PAGES; p++)
        table[p] = (int32_t)((int64_t)p * 1237 % N_PAGES);
    for (int i = 0; chosen != NULL && i < T * d->index_topk; i++)
        chosen[i] = (int32_t)(bits(b) % (uint64_t)n_entries);
    if (rows != NULL)
        fill_rows(b, rows, T, ROW_BYTES, 448 + 128, 7);
    c->batch = (struct kernel_batch){.n_rows = T, .n_seqs = 1, .table_stride = N_PAGES};
    c->batch.row_seq = device(b, zero, (size_t)T * 4);
    c->batch.row_pos = device(b, pos, (size_t)T * 4);
    c->batch.seq_row = device(b, two, sizeof(two));
    c->batch.seq_start = device(b, &start, 4);
    c->batch.seq_slot = device(b, zero, 4);
    c->batch.block_table = device(b, table, sizeof(table));
    c->q = device_bf16(b, (size_t)T * (size_t)(d->n_heads * d->head_dim));
    c->o = device(b, NULL, (size_t)T * (size_t)(d->n_heads * d->head_dim) * 2);
    c->iq = device_bf16(b, (size_t)T * (size_t)(d->index_n_heads * d->index_head_dim));
    c->iw = device_bf16(b, (size_t)T * (size_t)d->index_n_heads);
    c->chosen = device(b, chosen, (size_t)(T * d->index_topk) * 4);
    c->rows = device(b, rows, (size_t)T * ROW_BYTES);
    free(chosen);
    free(rows);
}

static void kv_batch_free(struct kv_case *c)
{
    struct dev_ptr all[] = {c->batch.row_seq,
                            c->batch.row_pos,
                            c->batch.seq_row,
                            c->batch.seq_start,
                            c->batch.seq_slot,
                            c->batch.block_table,
                            c->q,
                            c->o,
                            c->iq,
                            c->iw,
                            c->chosen,
                            c->rows};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        c->b->k.ops->dev_free(&c->b->k, all[i]);
}

static int bench_kv(struct kernel_bench *b)
{
    const struct kernel_dims *d = &b->k.dims;
    float sink[64] = {0};
    struct weight_src src = {.type = WEIGHT_F32, .rows = 1, .cols = 64, .data = sink};
    double per_key = 4.0 * d->n_heads * d->head_dim;
    double per_score = 2.0 * d->index_n_heads * d->index_head_dim;
    struct kv_case c;
    char shape[64];

    int status = 0;

    if (!wanted(b, "attention") && !wanted(b, "index_select") && !wanted(b, "compress"))
        return 0;
    if (!kv_open(b, &c))
        return no_memory("the KV of a long sequence");
    b->k.ops->weight_load(&b->k, &src, &c.sink);
    for (int T = 1; T <= 64 && wanted(b, "attention"); T *= 64) {
        kv_batch(&c, T, 32767);
        snprintf(shape, sizeof(shape), "64 heads, %d + %d keys, %d token%s", d->window,
                 d->index_topk, T, T == 1 ? "" : "s");
        b->measure(b, "attention", shape, LIMIT_DOT, T * per_key * (d->window + d->index_topk),
                   run_attention, &c);
        kv_batch_free(&c);
    }
    for (int i = 0; i < 2 && wanted(b, "index_select"); i++) {
        int T = i == 0 ? 1 : 16, context = i == 0 ? CONTEXT : 32768;

        kv_batch(&c, T, context - 1);
        snprintf(shape, sizeof(shape), "%d candidates, %d token%s", context / 4, T,
                 T == 1 ? "" : "s");
        b->measure(b, "index_select", shape, LIMIT_DOT, T * per_score * (context / 4), run_select,
                   &c);
        kv_batch_free(&c);
    }
    for (int T = 1; T <= 512 && wanted(b, "compress") && status == 0; T += 511) {
        kv_batch(&c, T, 32767);
        status = bench_compress(b, &c, T);
        kv_batch_free(&c);
    }
    b->k.ops->dev_free(&b->k, c.kv.pages);
    b->k.ops->dev_free(&b->k, c.kv.states);
    b->k.ops->dev_free(&b->k, c.freq);
    return status;
}

int bench_kernels_run(struct kernel_bench *b)
{
    static const struct {
        enum weight_type type;
        int rows, cols;
    } products[] = {
        {WEIGHT_FP4, 2048, 4096},
        {WEIGHT_FP4, 7168, 3072},
        {WEIGHT_FP8, 4096, 4096},
        {WEIGHT_BF16, 2048, 4096},
    };

    for (size_t i = 0; i < sizeof(products) / sizeof(products[0]); i++)
        if (bench_products(b, products[i].type, products[i].rows, products[i].cols) != 0)
            return -1;
    return bench_moe(b) != 0 || bench_streams(b) != 0 || bench_kv(b) != 0 ? -1 : 0;
}
