#include "common/kv/geometry.h"

#include <assert.h>
#include <string.h>

/* Hashed into the fingerprint: raise it whenever the meaning of a byte in a page or slot changes.
 */
enum { LAYOUT_VERSION = 1 };

const char *kv_pool_name(enum kv_pool pool)
{
    static const char *const names[KV_N_POOLS] = {
        [KV_SWA] = "swa",           [KV_C4] = "c4",
        [KV_C128] = "c128",         [KV_INDEXER] = "indexer",
        [KV_C4_STATE] = "c4_state", [KV_C128_STATE] = "c128_state"};

    return names[pool];
}

static uint32_t round_up(uint32_t n, uint32_t to)
{
    return (n + to - 1) / to * to;
}

static enum status_code check_params(const struct kv_geometry_params *p, struct status *st)
{
    if (p->n_layers < 1 || p->n_layers > KV_LAYERS_MAX)
        return status_set(st, ST_INVALID, "KV layout: %d layers, supported are 1..%d", p->n_layers,
                          KV_LAYERS_MAX);
    if (p->head_dim < 1 || p->head_dim > 4096 || p->rope_dim < 0 || p->rope_dim > p->head_dim ||
        (p->head_dim - p->rope_dim) % 64 != 0 || p->rope_dim % 2 != 0)
        return status_set(
            st, ST_INVALID,
            "KV layout: head_dim %d with %d rotated dims; the unrotated ones must be a "
            "multiple of 64 (their FP8 blocks), the rotated ones even",
            p->head_dim, p->rope_dim);
    if (p->index_head_dim < 32 || p->index_head_dim > 4096 || p->index_head_dim % 32 != 0)
        return status_set(st, ST_INVALID,
                          "KV layout: index_head_dim %d is no multiple of 32 (its FP4 blocks)",
                          p->index_head_dim);
    if (p->window < 1 || p->window > 65536)
        return status_set(st, ST_INVALID,
                          "KV layout: sliding window of %d tokens, supported are 1..65536",
                          p->window);
    for (int i = 0; i < p->n_layers; i++)
        if (p->ratios[i] != 0 && p->ratios[i] != 4 && p->ratios[i] != 128)
            return status_set(
                st, ST_INVALID,
                "KV layout: layer %d has compression ratio %d, supported are 0, 4 and 128", i,
                p->ratios[i]);
    return status_ok(st);
}

/* Rows that a compressor still reads: ratio 4 its unfinished and its last finished group. */
static uint32_t comp_rows_read(int ratio)
{
    return ratio == 4 ? 8 : (uint32_t)ratio;
}

/* Gives every layer of one kind its place in the page; advances *at. */
static void place_page_part(struct kv_geometry *g, int ratio, enum kv_pool pool, uint64_t *at)
{
    for (int i = 0; i < g->n_layers; i++) {
        struct kv_layer *l = &g->layers[i];
        uint32_t bytes;

        if (l->ratio != ratio)
            continue;
        bytes = l->entries * (pool == KV_INDEXER ? g->key_bytes : g->row_bytes);
        *(pool == KV_INDEXER ? &l->key_off : &l->entry_off) = (uint32_t)*at;
        *at += bytes;
        g->pool_bytes[pool] += bytes;
    }
}

static void place_slot_parts(struct kv_geometry *g, const struct kv_geometry_params *p,
                             uint64_t *at)
{
    for (int i = 0; i < g->n_layers; i++) {
        struct kv_layer *l = &g->layers[i];

        l->window_off = (uint32_t)*at;
        *at += (uint64_t)g->window_rows * g->row_bytes;
        g->pool_bytes[KV_SWA] += (uint64_t)g->window_rows * g->row_bytes;
    }
    for (int i = 0; i < g->n_layers; i++) {
        struct kv_layer *l = &g->layers[i];
        enum kv_pool pool = l->ratio == 4 ? KV_C4_STATE : KV_C128_STATE;
        uint32_t halves = l->ratio == 4 ? 2 : 1;
        uint64_t before = *at;

        if (l->ratio == 0)
            continue;
        l->comp_rows = comp_rows_read(l->ratio) + KV_DRAFT_SLACK;
        l->comp_row_bytes = 2 * halves * (uint32_t)p->head_dim * sizeof(float);
        l->comp_off = (uint32_t)*at;
        *at += (uint64_t)l->comp_rows * l->comp_row_bytes;
        if (l->ratio == 4) {
            l->index_comp_row_bytes = 4 * (uint32_t)p->index_head_dim * sizeof(float);
            l->index_comp_off = (uint32_t)*at;
            *at += (uint64_t)l->comp_rows * l->index_comp_row_bytes;
        }
        g->pool_bytes[pool] += *at - before;
    }
}

enum status_code kv_geometry_init(struct kv_geometry *g, const struct kv_geometry_params *p,
                                  struct status *st)
{
    uint64_t page = 0, slot = 0;

    if (check_params(p, st) != ST_OK)
        return st->code;
    memset(g, 0, sizeof(*g));
    g->n_layers = p->n_layers;
    g->window = p->window;
    g->window_rows = (uint32_t)p->window + KV_DRAFT_SLACK;
    g->row_bytes = round_up((uint32_t)(p->head_dim - p->rope_dim) + 2 * (uint32_t)p->rope_dim +
                                (uint32_t)(p->head_dim - p->rope_dim) / 64,
                            8);
    g->key_bytes = (uint32_t)(p->index_head_dim / 2 + p->index_head_dim / 32);
    for (int i = 0; i < p->n_layers; i++) {
        g->layers[i].ratio = p->ratios[i];
        g->layers[i].entries = p->ratios[i] == 0 ? 0 : KV_PAGE_TOKENS / (uint32_t)p->ratios[i];
    }
    place_page_part(g, 4, KV_C4, &page);
    place_page_part(g, 4, KV_INDEXER, &page);
    place_page_part(g, 128, KV_C128, &page);
    place_slot_parts(g, p, &slot);
    if (slot > UINT32_MAX || page > UINT32_MAX)
        return status_set(st, ST_INVALID,
                          "KV layout: a page of %llu or a slot of %llu bytes is too large",
                          (unsigned long long)page, (unsigned long long)slot);
    /* A model without compression has nothing to page; one unit keeps the arithmetic whole. */
    g->page_bytes = page == 0 ? 64 : round_up((uint32_t)page, 64);
    g->slot_bytes = round_up((uint32_t)slot, 64);
    return status_ok(st);
}

/* FNV-1a: short, and fixed for ever; collisions between real layouts are no concern at 64 bits. */
static uint64_t hash_u64(uint64_t h, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        h = (h ^ ((v >> (8 * i)) & 0xFF)) * 0x100000001B3u;
    return h;
}

uint64_t kv_geometry_fingerprint(const struct kv_geometry *g)
{
    const uint16_t one = 1;
    uint64_t h = 0xCBF29CE484222325u;

    h = hash_u64(h, LAYOUT_VERSION);
    h = hash_u64(h, *(const uint8_t *)&one); /* byte order */
    h = hash_u64(h, KV_PAGE_TOKENS);
    h = hash_u64(h, (uint64_t)g->n_layers);
    h = hash_u64(h, (uint64_t)g->window);
    h = hash_u64(h, g->window_rows);
    h = hash_u64(h, g->row_bytes);
    h = hash_u64(h, g->key_bytes);
    h = hash_u64(h, g->page_bytes);
    h = hash_u64(h, g->slot_bytes);
    for (int i = 0; i < g->n_layers; i++) {
        const struct kv_layer *l = &g->layers[i];

        h = hash_u64(h, (uint64_t)l->ratio);
        h = hash_u64(h, l->entry_off);
        h = hash_u64(h, l->key_off);
        h = hash_u64(h, l->window_off);
        h = hash_u64(h, l->comp_off);
        h = hash_u64(h, l->comp_row_bytes);
        h = hash_u64(h, l->comp_rows);
        h = hash_u64(h, l->index_comp_off);
        h = hash_u64(h, l->index_comp_row_bytes);
    }
    return h;
}

/* Collects runs, joining one to the last where they touch. */
struct run_list {
    struct kv_run *runs;
    size_t n, cap;
};

static void add_run(struct run_list *l, uint32_t offset, uint32_t bytes)
{
    struct kv_run *last = l->n > 0 ? &l->runs[l->n - 1] : NULL;

    if (bytes == 0)
        return;
    if (last != NULL && last->offset + last->bytes == offset) {
        last->bytes += bytes;
        return;
    }
    assert(l->n < l->cap);
    l->runs[l->n++] = (struct kv_run){offset, bytes};
}

size_t kv_page_runs(const struct kv_geometry *g, uint32_t n_tokens, struct kv_run *runs, size_t cap)
{
    static const struct {
        int ratio;
        bool keys;
    } parts[] = {{4, false}, {4, true}, {128, false}}; /* in the order of the page */
    struct run_list list = {runs, 0, cap};

    assert(n_tokens <= KV_PAGE_TOKENS);
    for (size_t part = 0; part < sizeof(parts) / sizeof(parts[0]); part++)
        for (int i = 0; i < g->n_layers; i++) {
            const struct kv_layer *l = &g->layers[i];
            uint32_t row = parts[part].keys ? g->key_bytes : g->row_bytes;

            if (l->ratio == parts[part].ratio)
                add_run(&list, parts[part].keys ? l->key_off : l->entry_off,
                        n_tokens / (uint32_t)l->ratio * row);
        }
    return list.n;
}

/* The rows of positions [first, end) of a ring: one run, or two around its end, lower offset first.
 */
static void add_ring(struct run_list *list, uint32_t off, uint32_t row_bytes, uint32_t rows,
                     uint64_t first, uint64_t end)
{
    uint32_t a = (uint32_t)(first % rows), n = (uint32_t)(end - first);

    assert(end - first <= rows);
    if (a + n > rows) {
        uint32_t wrapped = a + n - rows;

        add_run(list, off, wrapped * row_bytes);
        n = rows - a;
    }
    add_run(list, off + a * row_bytes, n * row_bytes);
}

/* First position whose compressor row is still read after `length` tokens. */
static uint64_t comp_first_live(int ratio, uint64_t length)
{
    uint64_t group = length / (uint64_t)ratio * (uint64_t)ratio;

    return ratio == 4 && group >= 4 ? group - 4 : group;
}

size_t kv_slot_runs(const struct kv_geometry *g, uint64_t length, struct kv_run *runs, size_t cap)
{
    struct run_list list = {runs, 0, cap};
    uint64_t window = (uint64_t)g->window;

    for (int i = 0; i < g->n_layers; i++)
        add_ring(&list, g->layers[i].window_off, g->row_bytes, g->window_rows,
                 length > window ? length - window : 0, length);
    for (int i = 0; i < g->n_layers; i++) {
        const struct kv_layer *l = &g->layers[i];
        uint64_t first;

        if (l->ratio == 0)
            continue;
        first = comp_first_live(l->ratio, length);
        add_ring(&list, l->comp_off, l->comp_row_bytes, l->comp_rows, first, length);
        if (l->ratio == 4)
            add_ring(&list, l->index_comp_off, l->index_comp_row_bytes, l->comp_rows, first,
                     length);
    }
    return list.n;
}

uint64_t kv_snapshot_bytes(const struct kv_geometry *g)
{
    struct kv_run runs[6 * KV_LAYERS_MAX];
    size_t n = kv_slot_runs(g, KV_PAGE_TOKENS, runs, sizeof(runs) / sizeof(runs[0]));
    uint64_t bytes = 0;

    for (size_t i = 0; i < n; i++)
        bytes += runs[i].bytes;
    return (bytes + 63) & ~(uint64_t)63;
}
