/* Operations on rows, streams and KV of every level (rows_levels.h: the CPU's, or the GPU's)
 * against kernels/ref, with golden inputs at each step (nothing accumulates), and the same tokens
 * cut into other spans, batches and threads: the same bits.
 *
 * One small layer of each ratio is run over a batch of three sequences; what the steps leave
 * (streams, entries, keys, rings, chosen entries, attention) is compared. */
#include "tests/unit/kernels/rows_levels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { SEQS = 3, PAGE_TOKENS = 256, PAGES_PER_SEQ = 5, SLACK = 16 };

/* Lengths of the three sequences; positions before `start` went through earlier calls. */
static int lengths[SEQS] = {ROWS_LONGEST, 129, 7}; /* the first: rows_longest */
enum { MAX_LENGTH = ROWS_LONGEST };

/* ---- one layer's inputs for every position of every sequence ---- */

struct inputs {
    struct kernel_dims d;
    int ratio;
    uint16_t *q, *kv, *iq, *iw; /* queries, latents before norm, index queries and weights */
    float *ckv, *cscore, *ikv, *iscore; /* compressor projections */
    float freq[64];
    struct weight_src kv_norm, c_norm, c_ape, i_norm, i_ape, sink;
};

static size_t at(int seq, int pos)
{
    return (size_t)(seq * MAX_LENGTH + pos);
}

static void inputs_make(struct inputs *in, int ratio, const struct kernel_dims *d)
{
    struct rig_random r = {(uint64_t)(1000 + ratio)};
    size_t n = (size_t)SEQS * MAX_LENGTH;
    int cols = ratio == 4 ? 2 * d->head_dim : d->head_dim;

    *in = (struct inputs){.d = *d, .ratio = ratio};
    in->q = malloc(n * (size_t)(d->n_heads * d->head_dim) * 2);
    in->kv = malloc(n * (size_t)d->head_dim * 2);
    in->iq = malloc(n * (size_t)(d->index_n_heads * d->index_head_dim) * 2);
    in->iw = malloc(n * (size_t)d->index_n_heads * 2);
    in->ckv = malloc(n * (size_t)cols * 4);
    in->cscore = malloc(n * (size_t)cols * 4);
    in->ikv = malloc(n * (size_t)d->index_head_dim * 2 * 4);
    in->iscore = malloc(n * (size_t)d->index_head_dim * 2 * 4);
    rig_bf16(&r, in->q, n * (size_t)(d->n_heads * d->head_dim), 2);
    rig_bf16(&r, in->kv, n * (size_t)d->head_dim, 1);
    rig_bf16(&r, in->iq, n * (size_t)(d->index_n_heads * d->index_head_dim), 1);
    rig_bf16(&r, in->iw, n * (size_t)d->index_n_heads, 1);
    rig_f32(&r, in->ckv, n * (size_t)cols, 1);
    rig_f32(&r, in->cscore, n * (size_t)cols, 2);
    rig_f32(&r, in->ikv, n * (size_t)d->index_head_dim * 2, 1);
    rig_f32(&r, in->iscore, n * (size_t)d->index_head_dim * 2, 2);
    for (int i = 0; i < d->rope_dim / 2; i++)
        in->freq[i] = powf(10000, -(float)i / (float)(d->rope_dim / 2));
    in->kv_norm = rig_weight(&r, WEIGHT_BF16, 1, d->head_dim);
    in->c_norm = rig_weight(&r, WEIGHT_BF16, 1, d->head_dim);
    in->c_ape = rig_weight(&r, WEIGHT_F32, ratio > 0 ? ratio : 1, cols);
    in->i_norm = rig_weight(&r, WEIGHT_BF16, 1, d->index_head_dim);
    in->i_ape = rig_weight(&r, WEIGHT_F32, 4, 2 * d->index_head_dim);
    in->sink = rig_weight(&r, WEIGHT_F32, 1, d->n_heads);
}

static void inputs_free(struct inputs *in)
{
    free(in->q);
    free(in->kv);
    free(in->iq);
    free(in->iw);
    free(in->ckv);
    free(in->cscore);
    free(in->ikv);
    free(in->iscore);
    rig_weight_free(&in->kv_norm);
    rig_weight_free(&in->c_norm);
    rig_weight_free(&in->c_ape);
    rig_weight_free(&in->i_norm);
    rig_weight_free(&in->i_ape);
    rig_weight_free(&in->sink);
}

/* ---- the KV of that layer, and what a run leaves ---- */

struct layer_run {
    struct rig *r;
    const struct inputs *in;
    struct kernel_kv kv;
    struct weight kv_norm, sink;
    struct compressor_weights comp, index;
    struct dev_ptr freq;
    size_t page_bytes, slot_bytes;
    uint16_t *o, *iq, *iw; /* [SEQS * MAX_LENGTH] rows */
    int32_t *chosen;
};

static void load(struct rig *r, const struct weight_src *src, struct weight *w)
{
    assert_int_equal(r->k.ops->weight_load(&r->k, src, w), 0);
}

static void run_open(struct layer_run *run, struct rig *r, const struct inputs *in)
{
    const struct kernel_dims *d = &in->d;
    size_t n = (size_t)SEQS * MAX_LENGTH;
    int plain = d->head_dim - d->rope_dim;
    int row_bytes = (plain + 2 * d->rope_dim + plain / 64 + 7) / 8 * 8;
    int cols = in->ratio == 4 ? 2 * d->head_dim : d->head_dim;
    struct kernel_kv kv = {.ratio = in->ratio, .row_bytes = row_bytes, .key_bytes = 68};

    *run = (struct layer_run){.r = r, .in = in};
    kv.window_rows = d->window + SLACK;
    kv.comp_rows = in->ratio == 4 ? 8 + SLACK : 128 + SLACK;
    kv.entries_per_page = in->ratio > 0 ? PAGE_TOKENS / in->ratio : 0;
    kv.entry_off = 64;
    kv.key_off = 64 + (size_t)kv.entries_per_page * (size_t)row_bytes;
    run->page_bytes = kv.page_stride = kv.key_off + (size_t)kv.entries_per_page * 68 + 56;
    kv.window_off = 32;
    kv.comp_off = (32 + (size_t)kv.window_rows * (size_t)row_bytes + 63) / 64 * 64;
    kv.index_comp_off = kv.comp_off + (size_t)kv.comp_rows * (size_t)cols * 8;
    run->slot_bytes = kv.slot_stride =
        kv.index_comp_off + (size_t)kv.comp_rows * (size_t)d->index_head_dim * 2 * 8;
    kv.pages = rig_put(r, NULL, SEQS * PAGES_PER_SEQ * kv.page_stride);
    kv.states = rig_put(r, NULL, SEQS * kv.slot_stride);
    run->kv = kv;
    run->freq = rig_put(r, in->freq, sizeof(in->freq));
    load(r, &in->kv_norm, &run->kv_norm);
    load(r, &in->sink, &run->sink);
    load(r, &in->c_ape, &run->comp.ape);
    load(r, &in->c_norm, &run->comp.norm);
    load(r, &in->i_ape, &run->index.ape);
    load(r, &in->i_norm, &run->index.norm);
    run->o = calloc(n, (size_t)(d->n_heads * d->head_dim) * 2);
    run->iq = calloc(n, (size_t)(d->index_n_heads * d->index_head_dim) * 2);
    run->iw = calloc(n, (size_t)d->index_n_heads * 2);
    run->chosen = calloc(n, (size_t)d->index_topk * 4);
}

static void run_close(struct layer_run *run)
{
    const struct kernel_ops *ops = run->r->k.ops;
    struct kernels *k = &run->r->k;
    struct weight *w[] = {&run->kv_norm,   &run->sink,      &run->comp.ape,
                          &run->comp.norm, &run->index.ape, &run->index.norm};

    for (int i = 0; i < 6; i++)
        ops->weight_unload(k, w[i]);
    ops->dev_free(k, run->kv.pages);
    ops->dev_free(k, run->kv.states);
    ops->dev_free(k, run->freq);
    free(run->o);
    free(run->iq);
    free(run->iw);
    free(run->chosen);
}

/* One new span of a sequence. */
struct part {
    int seq, start, n;
};

/* Rows of `parts` of a per-position array, dense; device memory. */
static struct dev_ptr gather(struct rig *r, const void *all, size_t row, const struct part *parts,
                             int n_parts, int T)
{
    uint8_t *dense = malloc((size_t)T * row + 1);
    size_t to = 0;

    for (int i = 0; i < n_parts; i++) {
        size_t bytes = (size_t)parts[i].n * row;

        memcpy(dense + to, (const uint8_t *)all + at(parts[i].seq, parts[i].start) * row, bytes);
        to += bytes;
    }
    struct dev_ptr p = rig_put(r, dense, (size_t)T * row);

    free(dense);
    return p;
}

static void scatter(struct rig *r, void *all, struct dev_ptr p, size_t row,
                    const struct part *parts, int n_parts)
{
    size_t from = 0;

    for (int i = 0; i < n_parts; i++) {
        size_t bytes = (size_t)parts[i].n * row;

        assert_int_equal(r->k.ops->dev_read(&r->k,
                                            (uint8_t *)all + at(parts[i].seq, parts[i].start) * row,
                                            dev_at(p, from), bytes),
                         0);
        from += bytes;
    }
    r->k.ops->dev_free(&r->k, p);
}

struct batch_arrays {
    int32_t row_seq[SEQS * MAX_LENGTH], row_pos[SEQS * MAX_LENGTH];
    int32_t seq_row[SEQS + 1], seq_start[SEQS], seq_slot[SEQS], table[SEQS * PAGES_PER_SEQ];
};

/* Runs the KV part of a layer over one ragged batch. golden: indexer queries and choices are taken
 * from there, so that a flipped rounding of one step does not show in the next. */
static void step(struct layer_run *run, const struct part *parts, int n_parts,
                 const struct layer_run *golden)
{
    static struct batch_arrays a;
    struct rig *r = run->r;
    struct kernels *k = &r->k;
    const struct kernel_ops *ops = k->ops;
    const struct inputs *in = run->in;
    const struct kernel_dims *d = &in->d;
    size_t cols = (size_t)(in->ratio == 4 ? 2 * d->head_dim : d->head_dim);
    size_t q_row = (size_t)(d->n_heads * d->head_dim) * 2;
    size_t iq_row = (size_t)(d->index_n_heads * d->index_head_dim) * 2;
    size_t iw_row = (size_t)d->index_n_heads * 2, chosen_row = (size_t)d->index_topk * 4;
    int T = 0;

    for (int i = 0; i < n_parts; i++) {
        a.seq_row[i] = T;
        a.seq_start[i] = parts[i].start;
        a.seq_slot[i] = (parts[i].seq * 2 + 1) % SEQS;
        for (int j = 0; j < PAGES_PER_SEQ; j++) /* pages of a sequence are not neighbours */
            a.table[i * PAGES_PER_SEQ + j] = (j * SEQS + parts[i].seq) * 7 % (SEQS * PAGES_PER_SEQ);
        for (int j = 0; j < parts[i].n; j++, T++) {
            a.row_seq[T] = i;
            a.row_pos[T] = parts[i].start + j;
        }
    }
    a.seq_row[n_parts] = T;

    struct kernel_batch b = {
        .n_rows = T,
        .n_seqs = n_parts,
        .row_seq = rig_put(r, a.row_seq, (size_t)T * 4),
        .row_pos = rig_put(r, a.row_pos, (size_t)T * 4),
        .seq_row = rig_put(r, a.seq_row, (size_t)(n_parts + 1) * 4),
        .seq_start = rig_put(r, a.seq_start, (size_t)n_parts * 4),
        .seq_slot = rig_put(r, a.seq_slot, (size_t)n_parts * 4),
        .block_table = rig_put(r, a.table, (size_t)(n_parts * PAGES_PER_SEQ) * 4),
        .table_stride = PAGES_PER_SEQ,
    };
    struct dev_ptr kv = gather(r, in->kv, (size_t)d->head_dim * 2, parts, n_parts, T);
    struct dev_ptr q = gather(r, in->q, q_row, parts, n_parts, T);
    struct dev_ptr rows = rig_put(r, NULL, (size_t)T * (size_t)run->kv.row_bytes);
    struct dev_ptr o = rig_put(r, NULL, (size_t)T * q_row), chosen = {0};

    ops->kv_latent(k, rows, kv, &run->kv_norm, &b, run->freq, &run->kv);
    if (in->ratio == 4) {
        struct dev_ptr iq = gather(r, in->iq, iq_row, parts, n_parts, T);
        struct dev_ptr iw = gather(r, in->iw, iw_row, parts, n_parts, T);
        struct dev_ptr ikv = gather(r, in->ikv, (size_t)d->index_head_dim * 8, parts, n_parts, T);
        struct dev_ptr is = gather(r, in->iscore, (size_t)d->index_head_dim * 8, parts, n_parts, T);

        ops->index_query(k, iq, iw, &b, run->freq);
        ops->compress(k, ikv, is, &run->index, &b, &run->kv, run->freq, true);
        ops->dev_free(k, ikv);
        ops->dev_free(k, is);
        if (golden != NULL) {
            struct dev_ptr gq = gather(r, golden->iq, iq_row, parts, n_parts, T);

            scatter(r, run->iq, iq, iq_row, parts, n_parts);
            iq = gq;
        }
        chosen = rig_put(r, NULL, (size_t)T * chosen_row);
        ops->index_select(k, chosen, iq, iw, &b, &run->kv);
        if (golden != NULL) {
            struct dev_ptr gc = gather(r, golden->chosen, chosen_row, parts, n_parts, T);

            scatter(r, run->chosen, chosen, chosen_row, parts, n_parts);
            chosen = gc;
            ops->dev_free(k, iq);
        } else {
            scatter(r, run->iq, iq, iq_row, parts, n_parts);
        }
        scatter(r, run->iw, iw, iw_row, parts, n_parts);
    }
    if (in->ratio != 0) {
        struct dev_ptr ckv = gather(r, in->ckv, cols * 4, parts, n_parts, T);
        struct dev_ptr cs = gather(r, in->cscore, cols * 4, parts, n_parts, T);

        ops->compress(k, ckv, cs, &run->comp, &b, &run->kv, run->freq, false);
        ops->dev_free(k, ckv);
        ops->dev_free(k, cs);
    }
    ops->q_norm_rope(k, q, &b, run->freq);
    ops->attention(k, o, q, rows, chosen, &run->sink, &b, &run->kv, run->freq);
    ops->window_commit(k, rows, &b, &run->kv);
    assert_int_equal(ops->sync(k), 0);
    scatter(r, run->o, o, q_row, parts, n_parts);
    if (golden == NULL && !dev_is_null(chosen))
        scatter(r, run->chosen, chosen, chosen_row, parts, n_parts);
    else
        ops->dev_free(k, chosen);
    struct dev_ptr all[] = {b.row_seq,     b.row_pos, b.seq_row, b.seq_start, b.seq_slot,
                            b.block_table, kv,        q,         rows};

    for (int i = 0; i < 9; i++)
        ops->dev_free(k, all[i]);
}

/* All sequences, `chunk` tokens of each at a time, together in one batch. */
static void run_all(struct layer_run *run, int chunk, const struct layer_run *golden)
{
    for (int start = 0; start < MAX_LENGTH; start += chunk) {
        struct part parts[SEQS];
        int n = 0;

        for (int s = 0; s < SEQS; s++) {
            int left = lengths[s] - start;

            if (left > 0)
                parts[n++] = (struct part){s, start, left < chunk ? left : chunk};
        }
        step(run, parts, n, golden);
    }
}

/* Each sequence by itself, in spans of uneven length, single tokens among them. */
static void run_apart(struct layer_run *run)
{
    static const int spans[] = {1, 130, 3, 1, 300, 128, 2, 64};

    for (int s = SEQS - 1; s >= 0; s--)
        for (int start = 0, i = 0; start < lengths[s]; i++) {
            int n = spans[i % 8] < lengths[s] - start ? spans[i % 8] : lengths[s] - start;
            struct part p = {s, start, n};

            step(run, &p, 1, NULL);
            start += n;
        }
}

static struct kernel_dims dims_with_rows(void)
{
    struct kernel_dims d = rig_dims();

    d.max_rows = SEQS * MAX_LENGTH;
    return d;
}

/* ---- comparisons ---- */

/* n bytes of a pool of both. At most 1 % (codes: one grid step; scales and bf16 rarely) differ;
 * exact: none. */
static void same_pool(const char *what, struct rig *a, struct dev_ptr got_at, struct rig *b,
                      struct dev_ptr want_at, size_t n, bool exact)
{
    uint8_t *got = rig_get(a, got_at, n), *want = rig_get(b, want_at, n);
    size_t n_off = 0;

    for (size_t i = 0; i < n; i++)
        n_off += got[i] != want[i];
    if (n_off > (exact ? 0 : n / 100))
        fail_msg("%s: %zu of %zu bytes differ", what, n_off, n);
    free(got);
    free(want);
}

static void same_choices(const int32_t *got, const int32_t *want, size_t n)
{
    size_t n_off = 0;

    for (size_t i = 0; i < n; i++)
        n_off += got[i] != want[i];
    if (n_off > n / 100)
        fail_msg("%zu of %zu choices differ", n_off, n);
}

static void kv_operations_agree_with_the_reference(void **state)
{
    struct kernel_dims d = dims_with_rows();
    static const int ratios[] = {0, 4, 128};
    struct rig ref;

    (void)state;
    assert_true(rig_open(&ref, CPU_ISA_REF, &d, 2));
    for (int i = 0; i < 3; i++) {
        struct inputs in;
        struct layer_run want;
        size_t n = (size_t)SEQS * MAX_LENGTH;

        inputs_make(&in, ratios[i], &d);
        run_open(&want, &ref, &in);
        run_all(&want, 400, NULL);
        for (int level = 0; level < rows_n_row_levels; level++) {
            struct layer_run got;
            struct rig fast;

            if (!rows_open(level, &fast, &d, 3))
                continue;
            run_open(&got, &fast, &in);
            run_all(&got, 400, &want);
            rig_rows_bf16("attention", got.o, want.o, n, (size_t)(d.n_heads * d.head_dim));
            rig_same_bf16("index queries", got.iq, want.iq,
                          n * (size_t)(d.index_n_heads * d.index_head_dim));
            rig_same_bf16("index weights", got.iw, want.iw, n * (size_t)d.index_n_heads);
            same_choices(got.chosen, want.chosen, n * (size_t)d.index_topk);
            same_pool("pages", got.r, got.kv.pages, want.r, want.kv.pages,
                      SEQS * PAGES_PER_SEQ * got.page_bytes, false);
            same_pool("states", got.r, got.kv.states, want.r, want.kv.states, SEQS * got.slot_bytes,
                      false);
            run_close(&got);
            rows_close(&fast);
        }
        run_close(&want);
        inputs_free(&in);
    }
    rig_close(&ref);
}

static void spans_batches_and_threads_change_no_bit(void **state)
{
    struct kernel_dims d = dims_with_rows();
    static const int ratios[] = {0, 4, 128};

    (void)state;
    for (int level = 0; level < rows_n_row_levels; level++)
        for (int i = 0; i < 3; i++) {
            struct inputs in;
            struct layer_run whole, apart;
            struct rig three, one;
            size_t n = (size_t)SEQS * MAX_LENGTH;

            if (!rows_open(level, &three, &d, 3))
                continue;
            assert_true(rows_open(level, &one, &d, 1));
            inputs_make(&in, ratios[i], &d);
            run_open(&whole, &three, &in);
            run_open(&apart, &one, &in);
            run_all(&whole, MAX_LENGTH, NULL);
            run_apart(&apart);
            rig_same_bytes("attention", apart.o, whole.o, n * (size_t)(d.n_heads * d.head_dim) * 2);
            rig_same_bytes("choices", apart.chosen, whole.chosen, n * (size_t)d.index_topk * 4);
            same_pool("pages", &one, apart.kv.pages, &three, whole.kv.pages,
                      SEQS * PAGES_PER_SEQ * whole.page_bytes, true);
            run_close(&whole);
            run_close(&apart);
            inputs_free(&in);
            rows_close(&one);
            rows_close(&three);
        }
}

/* ---- norms and streams ---- */

struct streams_result {
    uint16_t *x, *norm, *written, *head, *joined;
    float *post, *comb;
};

enum { T = 37 };

static struct streams_result run_streams(struct rig *r, const uint16_t *streams, const uint16_t *y,
                                         const struct weight_src *w, int t0, int rows)
{
    const struct kernel_ops *ops = r->k.ops;
    struct kernels *k = &r->k;
    size_t d = (size_t)k->dims.hidden, hc = (size_t)k->dims.hc, n = (size_t)rows;
    struct dev_ptr s = rig_put(r, streams + (size_t)t0 * hc * d, n * hc * d * 2);
    struct dev_ptr yp = rig_put(r, y + (size_t)t0 * d, n * d * 2);
    struct dev_ptr x = rig_put(r, NULL, n * d * 2), post = rig_put(r, NULL, n * hc * 4);
    struct dev_ptr comb = rig_put(r, NULL, n * hc * hc * 4), head = rig_put(r, NULL, n * d * 2);
    struct dev_ptr norm = rig_put(r, NULL, n * d * 2);
    struct dev_ptr joined = rig_put(r, NULL, n * hc * d * 2);
    int32_t order[T];
    struct weight fn, scale, base, gain, head_fn;
    struct weight_src head_src = w[0];
    struct streams_result out;

    head_src.rows = k->dims.hc;
    for (int i = 0; i < rows; i++)
        order[i] = rows - 1 - i;
    struct dev_ptr op = rig_put(r, order, n * 4);

    load(r, &w[0], &fn);
    load(r, &w[1], &scale);
    load(r, &w[2], &base);
    load(r, &w[3], &gain);
    load(r, &head_src, &head_fn);
    ops->hc_read(k, x, post, comb, s, &fn, &scale, &base, t0 % 2 ? NULL : &gain, rows);
    ops->hc_head(k, head, s, op, &head_fn, &scale, &base, &gain, rows);
    ops->rms_norm(k, norm, yp, &gain, rows, (int)d);
    ops->mtp_join(k, joined, yp, s, rows);
    out.x = rig_get(r, x, n * d * 2);
    out.post = rig_get(r, post, n * hc * 4);
    out.comb = rig_get(r, comb, n * hc * hc * 4);
    ops->hc_write(k, s, yp, s, post, comb, rows); /* in place */
    out.written = rig_get(r, s, n * hc * d * 2);
    out.head = rig_get(r, head, n * d * 2);
    out.norm = rig_get(r, norm, n * d * 2);
    out.joined = rig_get(r, joined, n * hc * d * 2);
    struct weight *loaded[] = {&fn, &scale, &base, &gain, &head_fn};
    struct dev_ptr all[] = {s, yp, x, post, comb, head, norm, joined, op};

    for (int i = 0; i < 5; i++)
        ops->weight_unload(k, loaded[i]);
    for (int i = 0; i < 9; i++)
        ops->dev_free(k, all[i]);
    return out;
}

static void streams_free(struct streams_result *s)
{
    free(s->x);
    free(s->norm);
    free(s->written);
    free(s->head);
    free(s->joined);
    free(s->post);
    free(s->comb);
}

static void streams_agree_and_do_not_depend_on_company(void **state)
{
    struct kernel_dims d = rig_dims();
    struct rig_random random = {77};
    size_t n = (size_t)T * (size_t)d.hidden, hc = (size_t)d.hc;
    uint16_t *streams = malloc(n * hc * 2), *y = malloc(n * 2);
    struct weight_src w[4] = {rig_weight(&random, WEIGHT_F32, (2 + d.hc) * d.hc, d.hc * d.hidden),
                              rig_weight(&random, WEIGHT_F32, 1, 3),
                              rig_weight(&random, WEIGHT_F32, 1, (2 + d.hc) * d.hc),
                              rig_weight(&random, WEIGHT_BF16, 1, d.hidden)};
    struct rig ref;

    (void)state;
    rig_bf16(&random, streams, n * hc, 1);
    rig_bf16(&random, y, n, 1);
    assert_true(rig_open(&ref, CPU_ISA_REF, &d, 2));
    struct streams_result want = run_streams(&ref, streams, y, w, 0, T);

    for (int level = 0; level < rows_n_row_levels; level++) {
        struct rig fast, one;

        if (!rows_open(level, &fast, &d, 3))
            continue;
        assert_true(rows_open(level, &one, &d, 1));
        struct streams_result got = run_streams(&fast, streams, y, w, 0, T);

        rig_same_bf16("hc_read x", got.x, want.x, n);
        rig_same_f32("post", got.post, want.post, T * hc);
        rig_same_f32("comb", got.comb, want.comb, T * hc * hc);
        rig_same_bf16("hc_write", got.written, want.written, n * hc);
        rig_same_bf16("hc_head", got.head, want.head, n);
        rig_same_bf16("rms_norm", got.norm, want.norm, n);
        rig_same_bf16("mtp_join", got.joined, want.joined, n * hc);
        for (int t = 0; t < T; t += 2) {
            struct streams_result row = run_streams(&one, streams, y, w, t, 1);

            rig_same_bytes("x alone", row.x, got.x + t * d.hidden, (size_t)d.hidden * 2);
            rig_same_bytes("written alone", row.written,
                           got.written + (size_t)t * hc * (size_t)d.hidden,
                           hc * (size_t)d.hidden * 2);
            streams_free(&row);
        }
        streams_free(&got);
        rows_close(&one);
        rows_close(&fast);
    }
    streams_free(&want);
    rig_close(&ref);
    for (int i = 0; i < 4; i++)
        rig_weight_free(&w[i]);
    free(streams);
    free(y);
}

/* ---- many candidates, many of them equal ---- */

static void choices_among_many_equal_scores_are_the_earliest(void **state)
{
    struct kernel_dims d = rig_dims();
    struct inputs in;

    (void)state;
    d.max_rows = SEQS * MAX_LENGTH;
    d.index_topk = 100;
    inputs_make(&in, 4, &d);
    /* all weights 0: every score is 0 */
    memset(in.iw, 0, (size_t)SEQS * MAX_LENGTH * (size_t)d.index_n_heads * 2);
    for (int level = 0; level < rows_n_row_levels; level++) {
        struct layer_run run;
        struct rig fast;

        if (!rows_open(level, &fast, &d, 2))
            continue;
        run_open(&run, &fast, &in);
        run_all(&run, 512, NULL);
        for (int pos = 0; pos < lengths[0]; pos += 13)
            for (int i = 0; i < d.index_topk; i++) {
                int want = i < (pos + 1) / 4 ? i : -1;

                assert_int_equal(run.chosen[at(0, pos) * (size_t)d.index_topk + (size_t)i], want);
            }
        run_close(&run);
        rows_close(&fast);
    }
    inputs_free(&in);
}

int main(void)
{
    if (!rows_ready())
        return 77; /* meson: skipped */
    lengths[0] = rows_longest;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streams_agree_and_do_not_depend_on_company),
        cmocka_unit_test(kv_operations_agree_with_the_reference),
        cmocka_unit_test(spans_batches_and_threads_change_no_bit),
        cmocka_unit_test(choices_among_many_equal_scores_are_the_earliest),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
