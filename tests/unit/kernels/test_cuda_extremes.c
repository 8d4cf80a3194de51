/* The CUDA kernels where test_rows.c does not go: the geometry of releases,
 * heads that fill no block, keys that are NaN, contexts of a million tokens, one block and many. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/index.h"
#include "kernels/ref/ref.h"
#include "tests/unit/kernels/cuda_place.h"
#include "tests/unit/kernels/rows_levels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* ---- attention ---- */

enum { SEQS = 3, PAGES = 4, ROWS = 6, TABLE = 33 };

/* Three sequences; the rows of the batch go on where the rings end. */
struct scene {
    struct rig r;
    struct kernel_dims d;
    struct kernel_batch b;
    struct kernel_kv v;
    struct weight sink;
    struct weight_src sink_src;
    struct dev_ptr q, rows, chosen, freq;
    size_t q_bytes;
};

static const int starts[SEQS] = {1030, 4095, 0}, counts[SEQS] = {2, 1, 3};

/* A pool of n rows, `stride` apart. */
static void fill_rows(struct rig_random *r, uint8_t *at, int n, size_t stride,
                      const struct kernel_dims *d, int row_bytes)
{
    float x[512];

    for (int i = 0; i < n; i++) {
        rig_f32(r, x, (size_t)d->head_dim, i % 5 == 4 ? 1e-3f : 1);
        kv_row_pack(at + (size_t)i * stride, x, d->head_dim, d->rope_dim, row_bytes);
    }
}

static void scene_open(struct scene *s, int ratio, int n_heads)
{
    static uint16_t q[ROWS * 128 * 512];
    int32_t seq[ROWS], pos[ROWS], seq_row[SEQS + 1], slot[SEQS] = {2, 0, 1}, table[SEQS * TABLE];
    int32_t chosen[ROWS * 512];
    struct rig_random r = {(uint64_t)(ratio + n_heads)};
    int T = 0, row_bytes = 584;
    float freq[32];

    memset(s, 0, sizeof(*s));
    s->d = rig_dims();
    s->d.n_heads = n_heads;
    s->d.head_dim = 512;
    s->d.index_topk = 512;
    s->d.max_context = 8192;
    assert_true(rig_open(&s->r, CPU_ISA_REF, &s->d, 2));
    cuda_place_enter(&s->r.k);
    for (int i = 0; i < SEQS; i++) {
        seq_row[i] = T;
        for (int j = 0; j < TABLE; j++)
            table[i * TABLE + j] = (i + j * 3) % PAGES;
        for (int j = 0; j < counts[i]; j++, T++) {
            int visible = ratio == 4 ? (starts[i] + j + 1) / 4 : 0;

            seq[T] = i;
            pos[T] = starts[i] + j;
            for (int c = 0; c < 512; c++) /* all of them, or a permutation of some */
                chosen[T * 512 + c] = c < visible ? (c * 7 + j) % visible : -1;
        }
    }
    seq_row[SEQS] = T;
    for (int i = 0; i < 32; i++)
        freq[i] = powf(10000, -(float)i / 32);
    s->v = (struct kernel_kv){.ratio = ratio,
                              .entries_per_page = ratio > 0 ? 256 / ratio : 0,
                              .entry_off = 8,
                              .page_stride = 8 + 64 * (size_t)row_bytes,
                              .slot_stride = 24 + 144 * (size_t)row_bytes,
                              .window_off = 24,
                              .window_rows = 144,
                              .row_bytes = row_bytes};
    s->v.pages = rig_put(&s->r, NULL, PAGES * s->v.page_stride);
    s->v.states = rig_put(&s->r, NULL, SEQS * s->v.slot_stride);
    for (int i = 0; i < PAGES; i++)
        fill_rows(&r, (uint8_t *)rig_host(&s->r, s->v.pages) + (size_t)i * s->v.page_stride + 8, 64,
                  (size_t)row_bytes, &s->d, row_bytes);
    for (int i = 0; i < SEQS; i++)
        fill_rows(&r, (uint8_t *)rig_host(&s->r, s->v.states) + (size_t)i * s->v.slot_stride + 24,
                  144, (size_t)row_bytes, &s->d, row_bytes);
    s->rows = rig_put(&s->r, NULL, (size_t)(T * row_bytes));
    fill_rows(&r, rig_host(&s->r, s->rows), T, (size_t)row_bytes, &s->d, row_bytes);
    s->q_bytes = (size_t)(T * n_heads * 512) * 2;
    rig_bf16(&r, q, s->q_bytes / 2, 2);
    s->q = rig_put(&s->r, q, s->q_bytes);
    s->chosen = rig_put(&s->r, chosen, sizeof(chosen));
    s->freq = rig_put(&s->r, freq, sizeof(freq));
    s->sink_src = rig_weight(&r, WEIGHT_F32, 1, n_heads);
    assert_int_equal(s->r.k.ops->weight_load(&s->r.k, &s->sink_src, &s->sink), 0);
    s->b = (struct kernel_batch){.n_rows = T,
                                 .n_seqs = SEQS,
                                 .row_seq = rig_put(&s->r, seq, sizeof(seq)),
                                 .row_pos = rig_put(&s->r, pos, sizeof(pos)),
                                 .seq_row = rig_put(&s->r, seq_row, sizeof(seq_row)),
                                 .seq_start = rig_put(&s->r, starts, sizeof(starts)),
                                 .seq_slot = rig_put(&s->r, slot, sizeof(slot)),
                                 .block_table = rig_put(&s->r, table, sizeof(table)),
                                 .table_stride = TABLE};
}

static void scene_close(struct scene *s)
{
    struct dev_ptr all[] = {s->q,         s->rows,        s->chosen,     s->freq,
                            s->v.pages,   s->v.states,    s->b.row_seq,  s->b.row_pos,
                            s->b.seq_row, s->b.seq_start, s->b.seq_slot, s->b.block_table};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        s->r.k.ops->dev_free(&s->r.k, all[i]);
    s->r.k.ops->weight_unload(&s->r.k, &s->sink);
    rig_weight_free(&s->sink_src);
    cuda_place_leave(&s->r.k);
    rig_close(&s->r);
}

static uint16_t *attend_ref(struct scene *s)
{
    struct dev_ptr o = rig_put(&s->r, NULL, s->q_bytes);
    uint16_t *out;

    s->r.k.ops->attention(&s->r.k, o, s->q, s->rows, s->chosen, &s->sink, &s->b, &s->v, s->freq);
    out = rig_get(&s->r, o, s->q_bytes);
    s->r.k.ops->dev_free(&s->r.k, o);
    return out;
}

static uint16_t *attend_cuda(struct scene *s, bool split)
{
    uint16_t *out = cuda_place_alloc(s->q_bytes);
    struct attention_args a = {.o = out,
                               .q = ref_ptr(s->q),
                               .rows = ref_ptr(s->rows),
                               .chosen = ref_ptr(s->chosen),
                               .sink = ref_ptr(s->sink.data),
                               .freq = ref_ptr(s->freq),
                               .b = s->b,
                               .kv = s->v,
                               .n_heads = s->d.n_heads,
                               .head_dim = 512,
                               .rope_dim = 64,
                               .window = s->d.window,
                               .index_topk = s->d.index_topk};

    a.n_splits = cuda_attention_splits(s->v.ratio, s->d.window, s->d.index_topk, 8192);
    if (split)
        a.partial =
            malloc(cuda_attention_partial_bytes(s->d.n_heads, 512, a.n_splits, s->b.n_rows));
    cuda_attention(0, a);
    cuda_place_free(a.partial);
    return out;
}

static void attention_of_the_geometry_of_releases(void **state)
{
    static const int cases[][2] = {{0, 64}, {4, 40}, {128, 1}, {4, 128}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct scene s;

        scene_open(&s, cases[i][0], cases[i][1]);
        uint16_t *want = attend_ref(&s), *whole = attend_cuda(&s, false);
        uint16_t *split = attend_cuda(&s, true);

        rig_rows_bf16("attention", whole, want, (size_t)(s.b.n_rows * s.d.n_heads), 512);
        rig_same_bytes("one block and many", split, whole, s.q_bytes);
        free(want);
        cuda_place_free(whole);
        cuda_place_free(split);
        scene_close(&s);
    }
}

/* A NaN scale spoils the dims of its block and, through the logits, all that see the key; no one
 * else. */
static void a_nan_key_spoils_those_who_see_it(void **state)
{
    struct scene s;

    (void)state;
    scene_open(&s, 4, 3);
    uint8_t *own = rig_host(&s.r, s.rows); /* row 4: the second of the third sequence */

    own[4 * 584 + 448 + 128 + 3] = 255;
    uint16_t *want = attend_ref(&s), *got = attend_cuda(&s, false);

    for (int t = 0; t < s.b.n_rows; t++) {
        bool spoiled = isnan(bf16_decode(want[t * 3 * 512]));

        assert_true(spoiled == (t == 4 || t == 5));
        for (int i = 0; i < 3 * 512; i++)
            assert_true(isnan(bf16_decode(got[t * 3 * 512 + i])) == spoiled);
    }
    free(want);
    cuda_place_free(got);
    scene_close(&s);
}

/* ---- the choice among a million tokens ---- */

enum { CONTEXT = 1 << 20, HI = 3, KEY_PAGES = 700 };

/* Pages come again, so that many scores are equal; some keys are NaN, some are 0. */
static void choices_among_a_million_tokens_are_exact(void **state)
{
    struct kernel_dims d = rig_dims();
    struct rig_random random = {5};
    struct kernel_kv v = {
        .ratio = 4, .page_stride = 64 * 68, .entries_per_page = 64, .key_bytes = 68};
    static int32_t table[2 * CONTEXT / 256];
    int32_t pos[3] = {CONTEXT - 1, CONTEXT / 2 + 17, 900}, seq[3] = {0, 1, 1};
    uint16_t q[3 * HI * 128], w[3 * HI];
    struct rig ref, fast;
    int32_t *chosen[2];

    (void)state;
    d.index_n_heads = HI;
    d.index_topk = 1024;
    d.max_context = CONTEXT;
    uint8_t *keys = calloc(KEY_PAGES, v.page_stride);

    for (int i = 0; i < KEY_PAGES * 64; i++) {
        float x[128];

        rig_f32(&random, x, 128, i % 11 == 0 ? 0 : 1);
        if (i % 501 == 7)
            x[i % 128] = NAN;
        key_row_pack(keys + (size_t)i * 68, x, 128);
    }
    for (int i = 0; i < 2 * CONTEXT / 256; i++)
        table[i] = (int32_t)(rig_bits(&random) % KEY_PAGES);
    for (int i = 0; i < 3 * HI * 128; i++)
        q[i] = bf16_encode((float)((int)(rig_bits(&random) % 13) - 6));
    rig_bf16(&random, w, 3 * HI, 0.1f);
    assert_true(rig_open(&ref, CPU_ISA_REF, &d, 2));
    assert_true(rows_open(0, &fast, &d, 2));
    for (int i = 0; i < 2; i++) {
        struct rig *r = i == 0 ? &ref : &fast;
        struct kernel_batch b = {.n_rows = 3,
                                 .n_seqs = 2,
                                 .row_seq = rig_put(r, seq, sizeof(seq)),
                                 .row_pos = rig_put(r, pos, sizeof(pos)),
                                 .block_table = rig_put(r, table, sizeof(table)),
                                 .table_stride = CONTEXT / 256};
        struct dev_ptr qp = rig_put(r, q, sizeof(q)), wp = rig_put(r, w, sizeof(w));
        struct dev_ptr out = rig_put(r, NULL, 3 * 1024 * 4);

        v.pages = rig_put(r, keys, KEY_PAGES * v.page_stride);
        r->k.ops->index_select(&r->k, out, qp, wp, &b, &v);
        chosen[i] = rig_get(r, out, 3 * 1024 * 4);

        struct dev_ptr all[] = {v.pages, b.row_seq, b.row_pos, b.block_table, qp, wp, out};

        for (int j = 0; j < 7; j++)
            r->k.ops->dev_free(&r->k, all[j]);
    }
    rig_same_bytes("chosen", chosen[1], chosen[0], 3 * 1024 * 4);
    free(chosen[0]);
    free(chosen[1]);
    free(keys);
    rows_close(&fast);
    rig_close(&ref);
}

/* ---- the gate ---- */

/* The experts of a release; every row's scores come twice, so that equal ones are common. */
static void gates_choose_as_the_reference(void **state)
{
    enum { T = 9, E = 384, N = 8 };
    struct kernel_dims d = rig_dims();
    struct rig_random random = {6};
    struct weight_src src[2] = {rig_weight(&random, WEIGHT_BF16, E, d.hidden),
                                rig_weight(&random, WEIGHT_F32, 1, E)};
    uint16_t x[T * 256], *gate = (uint16_t *)(uintptr_t)src[0].data;
    float *bias = (float *)(uintptr_t)src[1].data;
    void *ids[2];
    float *weights[2];
    struct rig ref, fast;

    (void)state;
    d.n_experts = E;
    d.n_active = N;
    memcpy(gate + E / 2 * d.hidden, gate, (size_t)(E / 2 * d.hidden) * 2);
    memcpy(bias + E / 2, bias, E / 2 * 4);
    rig_bf16(&random, x, (size_t)(T * d.hidden), 1);
    assert_true(rig_open(&ref, CPU_ISA_REF, &d, 2));
    assert_true(rows_open(0, &fast, &d, 2));
    for (int i = 0; i < 2; i++) {
        struct rig *r = i == 0 ? &ref : &fast;
        struct dev_ptr xp = rig_put(r, x, sizeof(x)), none = {0};
        struct dev_ptr id = rig_put(r, NULL, T * N * 4), weight = rig_put(r, NULL, T * N * 4);
        struct weight w[2];

        for (int j = 0; j < 2; j++)
            assert_int_equal(r->k.ops->weight_load(&r->k, &src[j], &w[j]), 0);
        r->k.ops->gate(&r->k, id, weight, xp, &w[0], &w[1], NULL, none, T);
        ids[i] = rig_get(r, id, T * N * 4);
        weights[i] = rig_get(r, weight, T * N * 4);
        for (int j = 0; j < 2; j++)
            r->k.ops->weight_unload(&r->k, &w[j]);
        r->k.ops->dev_free(&r->k, xp);
        r->k.ops->dev_free(&r->k, id);
        r->k.ops->dev_free(&r->k, weight);
    }
    rig_same_bytes("ids", ids[1], ids[0], T * N * 4);
    rig_same_f32("weights", weights[1], weights[0], T * N);
    for (int i = 0; i < 2; i++) {
        free(ids[i]);
        free(weights[i]);
        rig_weight_free(&src[i]);
    }
    rows_close(&fast);
    rig_close(&ref);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_of_the_geometry_of_releases),
        cmocka_unit_test(a_nan_key_spoils_those_who_see_it),
        cmocka_unit_test(choices_among_a_million_tokens_are_exact),
        cmocka_unit_test(gates_choose_as_the_reference),
    };

    if (!cuda_place_ready())
        return CUDA_PLACE_SKIPPED;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
