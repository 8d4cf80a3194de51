/*
 * Operations against the oracle's golden vectors (tests/oracle/vectors/kernels).
 *
 * usage: test_golden_vectors VECTORS_DIR LEVEL
 * Level ref: every bit. Other levels (operations of the table only; cuda: its kernels, where
 * cuda_place.h runs them): at most 1 % of the bf16 results differ, by one step; f32 results within
 * 1e-5 of the tensor's RMS; chosen ids equal.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/pool.h"
#include "common/model/config.h"
#include "common/model/rope.h"
#include "common/model/safetensors.h"
#include "kernels/ref/ref.h"
#ifdef GOLDEN_CUDA
#include "tests/unit/kernels/cuda_place.h"
#endif

static const char *folder, *level;
static struct pool *pool;
static struct safetensors *file; /* of the present test */
static void *copies[64];         /* what get() made for it */
static size_t n_copies;

/* ---- vectors ---- */

static void open_file(const char *name)
{
    char path[4096];
    struct status st;

    snprintf(path, sizeof(path), "%s/%s.safetensors", folder, name);
    if (safetensors_open_file(path, &file, &st) != ST_OK)
        fail_msg("%s", st.msg);
}

static int close_file(void **state)
{
    (void)state;
    while (n_copies > 0)
        free(copies[--n_copies]);
    safetensors_close(file);
    file = NULL;
    return 0;
}

/* The named tensor's bytes, copied so that they are aligned; freed at the test's end. */
static void *get(const char *name)
{
    const struct tensor *t = safetensors_find(file, name);
    void *copy;

    assert_non_null(t);
    copy = aligned_alloc(64, (t->bytes + 63) / 64 * 64);
    memcpy(copy, t->data, t->bytes);
    assert_true(n_copies < sizeof(copies) / sizeof(copies[0]));
    copies[n_copies++] = copy;
    return copy;
}

static bool is_ref(void)
{
    return strcmp(level, "ref") == 0;
}

static bool is_cuda(void)
{
    return strcmp(level, "cuda") == 0;
}

static uint16_t no_negative_zero(uint16_t b)
{
    return b == 0x8000 ? 0 : b;
}

/* Neighbouring bf16 values have neighbouring bits, but across zero. */
static void check_bf16(const char *what, const uint16_t *got, const uint16_t *want, size_t n)
{
    size_t differ = 0;

    for (size_t i = 0; i < n; i++) {
        uint16_t a = no_negative_zero(got[i]), b = no_negative_zero(want[i]);

        if (a == b)
            continue;
        differ++;
        if (is_ref() || abs((int)a - (int)b) > 1)
            fail_msg("%s[%zu] is %g, golden %g", what, i, (double)bf16_decode(a),
                     (double)bf16_decode(b));
    }
    if (differ * 100 > n)
        fail_msg("%s: %zu of %zu elements differ", what, differ, n);
}

static void check_f32(const char *what, const float *got, const float *want, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += (double)want[i] * (double)want[i];
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= 1e-5 * sqrt(sum / (double)n)))
            fail_msg("%s[%zu] is %.9g, golden %.9g", what, i, (double)got[i], (double)want[i]);
}

/* ---- a backend ---- */

static void run(void *p, void (*fn)(void *arg, int part, int n_parts), void *arg)
{
    pool_run(p, fn, arg);
}

static struct kernel_dims tiny_dims(void)
{
    return (struct kernel_dims){
        .hidden = 256,
        .hc = 4,
        .n_heads = 4,
        .head_dim = 192,
        .rope_dim = 64,
        .q_lora_rank = 128,
        .o_groups = 2,
        .o_lora_rank = 64,
        .window = 128,
        .index_n_heads = 8,
        .index_head_dim = 128,
        .index_topk = 32,
        .n_experts = 16,
        .n_active = 4,
        .moe_inter = 128,
        .vocab = 512,
        .hc_iters = 20,
        .hc_eps = 1e-6,
        .norm_eps = 1e-6,
        .route_scale = 1.5,
        .swiglu_limit = 10,
        .max_rows = 512,
        .max_seqs = 8,
        .max_context = 4096,
    };
}

static enum cpu_isa isa_of_level(void)
{
    enum cpu_isa isa = CPU_ISA_REF; /* of "cuda", too: it opens none */

    (void)kernels_cpu_named(level, &isa);
    return isa;
}

static void open_backend(struct kernels *k, const struct kernel_dims *dims)
{
    struct kernel_env env = {run, pool, pool_threads(pool)};
    enum cpu_isa isa = isa_of_level();

#ifdef GOLDEN_CUDA
    if (cuda_place_open(k, 0, dims, &env) != 0)
        fail_msg("%s", k->error);
    (void)isa;
#else
    if (kernels_open_cpu(k, isa, dims, &env) != 0)
        fail_msg("%s", k->error);
#endif
}

static void close_backend(struct kernels *k)
{
    assert_int_equal(k->ops->sync(k), 0);
    kernels_close(k);
}

static struct dev_ptr dev(struct kernels *k, size_t bytes, const void *src)
{
    struct dev_ptr p = k->ops->dev_alloc(k, bytes);

    if (src != NULL)
        k->ops->dev_write(k, p, src, bytes);
    return p;
}

static void *host(struct kernels *k, struct dev_ptr p)
{
    return k->ops->dev_host(k, p);
}

static struct weight weight(struct kernels *k, enum weight_type type, int64_t rows, int64_t cols,
                            const void *data, const void *scale)
{
    struct weight_src src = {.type = type,
                             .rows = rows,
                             .cols = cols,
                             .data = data,
                             .scale = scale,
                             .vector = rows == 1};
    struct weight w;

    assert_int_equal(k->ops->weight_load(k, &src, &w), 0);
    return w;
}

static void skip_unless_ref(void)
{
    if (!is_ref())
        skip(); /* no operation of the table does this alone */
}

/* ---- formats and small functions: ref ---- */

static void fp8_quantiser(void **state)
{
    const uint16_t *x;
    const uint8_t *q, *scale;
    const uint16_t *fake;

    (void)state;
    skip_unless_ref();
    open_file("quant_fp8");
    x = get("x"), q = get("q"), scale = get("scale"), fake = get("fake64");
    for (int b = 0; b < 6 * 512 / 128; b++) {
        float block[128];
        uint8_t codes[128];

        for (int i = 0; i < 128; i++)
            block[i] = bf16_decode(x[b * 128 + i]);
        assert_int_equal(fp8_quantise(codes, block, 128), scale[b]);
        for (int i = 0; i < 128; i++)
            assert_int_equal(codes[i] & (codes[i] & 127 ? 255 : 0),
                             q[b * 128 + i] & (q[b * 128 + i] & 127 ? 255 : 0));
        for (int half = 0; half < 2; half++) {
            float s = e8m0_decode(fp8_quantise(codes, block + 64 * half, 64));

            for (int i = 0; i < 64; i++)
                assert_float_equal(e4m3_decode(codes[i]) * s,
                                   bf16_decode(fake[b * 128 + half * 64 + i]), 0);
        }
    }
}

static void fp4_quantiser(void **state)
{
    const uint16_t *x, *fake;
    const uint8_t *q, *scale;

    (void)state;
    skip_unless_ref();
    open_file("quant_fp4");
    x = get("x"), q = get("q"), scale = get("scale"), fake = get("fake32");
    for (int b = 0; b < 6 * 128 / 32; b++) {
        float block[32];
        uint8_t pairs[16];

        for (int i = 0; i < 32; i++)
            block[i] = bf16_decode(x[b * 32 + i]);
        assert_int_equal(fp4_quantise(pairs, block, 32), scale[b]);
        for (int i = 0; i < 32; i++) {
            unsigned got = i & 1 ? pairs[i / 2] >> 4 : pairs[i / 2] & 15u;
            unsigned want = i & 1 ? q[b * 16 + i / 2] >> 4 : q[b * 16 + i / 2] & 15u;

            assert_float_equal(e2m1_decode(got), e2m1_decode(want), 0);
            assert_float_equal(e2m1_decode(got) * e8m0_decode(scale[b]),
                               bf16_decode(fake[b * 32 + i]), 0);
        }
    }
}

static void hadamard(void **state)
{
    const uint16_t *x, *y;

    (void)state;
    skip_unless_ref();
    open_file("hadamard");
    x = get("x"), y = get("y");
    for (int r = 0; r < 5; r++) {
        float row[128];
        uint16_t got[128];

        for (int i = 0; i < 128; i++)
            row[i] = bf16_decode(x[r * 128 + i]);
        ref_hadamard(row, 128);
        for (int i = 0; i < 128; i++)
            got[i] = bf16_encode(row[i]);
        check_bf16("y", got, y + r * 128, 128);
    }
}

static void check_rotation(const float *freq, const uint16_t *want, int sign)
{
    const int32_t *positions = get("positions");
    const uint16_t *x = get("x");

    for (int r = 0; r < 12; r++) {
        float row[192];
        uint16_t got[192];

        for (int i = 0; i < 192; i++)
            row[i] = bf16_decode(x[r * 192 + i]);
        ref_rotate(row, 192, 64, positions[r / 2], freq, sign);
        for (int i = 0; i < 192; i++)
            got[i] = bf16_encode(row[i]);
        check_bf16("rotated", got, want + r * 192, 192);
    }
}

static void rope(void **state)
{
    struct model_config c = {.rope_dim = 64,
                             .rope_theta = 10000,
                             .compress_rope_theta = 160000,
                             .yarn_factor = 16,
                             .yarn_beta_fast = 32,
                             .yarn_beta_slow = 1,
                             .yarn_original = 65536};
    float freq[32];

    (void)state;
    skip_unless_ref();
    open_file("rope");
    rope_frequencies(&c, false, freq);
    assert_memory_equal(freq, get("freq_plain"), sizeof(freq));
    check_rotation(freq, get("y_plain"), 1);
    check_rotation(freq, get("back_plain"), -1);
    rope_frequencies(&c, true, freq);
    assert_memory_equal(freq, get("freq_yarn"), sizeof(freq));
    check_rotation(freq, get("y_yarn"), 1);
    check_rotation(freq, get("back_yarn"), -1);
}

static void swiglu(void **state)
{
    const uint16_t *gate, *up, *h, *weighted;
    const float *w;

    (void)state;
    skip_unless_ref();
    open_file("swiglu");
    gate = get("gate"), up = get("up"), h = get("h"), weighted = get("h_weighted"), w = get("w");
    for (int i = 0; i < 4 * 128; i++) {
        double v = ref_swiglu(bf16_decode(gate[i]), bf16_decode(up[i]), 10);
        uint16_t plain = bf16_round(v), times_w = bf16_round(v * (double)w[i / 128]);

        check_bf16("h", &plain, &h[i], 1);
        check_bf16("h_weighted", &times_w, &weighted[i], 1);
    }
}

static void sparse_attention(void **state)
{
    enum { T = 3, H = 16, D = 512, M = 90, K = 70 };
    const uint16_t *q, *kv, *want;
    const int32_t *ids;
    const float *sink;
    static float keys[K * D];

    (void)state;
    skip_unless_ref();
    open_file("sparse_attention");
    q = get("q"), kv = get("kv"), want = get("o"), ids = get("ids"), sink = get("sink");
    for (int t = 0; t < T; t++) {
        int m = 0;

        for (; m < K && ids[t * K + m] >= 0; m++)
            for (int i = 0; i < D; i++)
                keys[m * D + i] = bf16_decode(kv[ids[t * K + m] * D + i]);
        for (int h = 0; h < H; h++) {
            float row[D], o[D];
            double probs[K];
            uint16_t got[D];

            for (int i = 0; i < D; i++)
                row[i] = bf16_decode(q[(t * H + h) * D + i]);
            ref_attend(o, row, keys, m, D, (double)sink[h], probs);
            for (int i = 0; i < D; i++)
                got[i] = bf16_encode(o[i]);
            check_bf16("o", got, want + (t * H + h) * D, D);
        }
    }
}

/* ---- operations of the table: every level ---- */

static void check_gemm(const char *name, enum weight_type type, int T, int rows, int cols)
{
    struct kernel_dims d = tiny_dims();
    struct kernels k;
    struct dev_ptr x, xq, y;
    struct weight w;

    open_file(name);
    open_backend(&k, &d);
    w = weight(&k, type, rows, cols, get("w"), get("scale"));
    x = dev(&k, (size_t)(T * cols) * 2, get("x"));
    xq = dev(&k, (size_t)T * k.ops->act_quant_bytes(&k, cols), NULL);
    y = dev(&k, (size_t)(T * rows) * 2, NULL);
    k.ops->act_quant(&k, xq, x, T, cols);
    k.ops->linear_q(&k, y, xq, &w, T);
    check_bf16("y", host(&k, y), get("y"), (size_t)(T * rows));
    k.ops->dev_free(&k, x);
    k.ops->dev_free(&k, xq);
    k.ops->dev_free(&k, y);
    k.ops->weight_unload(&k, &w);
    close_backend(&k);
}

static void fp8_gemm(void **state)
{
    (void)state;
    check_gemm("gemm_fp8", WEIGHT_FP8, 5, 200, 384);
}

static void fp4_gemm(void **state)
{
    (void)state;
    check_gemm("gemm_fp4", WEIGHT_FP4, 5, 96, 256);
}

static void rms_norm(void **state)
{
    struct kernel_dims d = tiny_dims();
    struct kernels k;
    struct dev_ptr x;
    struct weight w;

    (void)state;
    open_file("rms_norm");
    open_backend(&k, &d);
    w = weight(&k, WEIGHT_BF16, 1, 384, get("w"), NULL);
    x = dev(&k, 4 * 384 * 2, get("x"));
    k.ops->rms_norm(&k, x, x, &w, 4, 384);
    check_bf16("y", host(&k, x), get("y"), 4 * 384);
    k.ops->dev_free(&k, x);
    k.ops->weight_unload(&k, &w);
    close_backend(&k);
}

static void head_norm(void **state)
{
    struct kernel_dims d = tiny_dims();
    struct kernels k;
    struct kernel_batch b = {.n_rows = 3, .n_seqs = 1};
    int32_t positions[3] = {0, 0, 0}; /* position 0 rotates nothing */
    float freq[32];
    struct dev_ptr q, f;

    (void)state;
    d.head_dim = 512;
    for (int i = 0; i < 32; i++)
        freq[i] = 1;
    open_file("head_norm");
    open_backend(&k, &d);
    q = dev(&k, 3 * 4 * 512 * 2, get("q"));
    f = dev(&k, sizeof(freq), freq);
    b.row_pos = dev(&k, sizeof(positions), positions);
    k.ops->q_norm_rope(&k, q, &b, f);
    check_bf16("y", host(&k, q), get("y"), 3 * 4 * 512);
    k.ops->dev_free(&k, q);
    k.ops->dev_free(&k, f);
    k.ops->dev_free(&k, b.row_pos);
    close_backend(&k);
}

static void hyper_connections(void **state)
{
    enum { T = 5, HC = 4, D = 256 };
    struct kernel_dims d = tiny_dims();
    struct kernels k;
    int32_t rows[T] = {0, 1, 2, 3, 4};
    struct dev_ptr streams, x, post, comb, y, out, index;
    struct weight fn, scale, base;

    (void)state;
    open_file("hyper_connections");
    open_backend(&k, &d);
    fn = weight(&k, WEIGHT_F32, 24, HC * D, get("fn"), NULL);
    scale = weight(&k, WEIGHT_F32, 1, 3, get("scale"), NULL);
    base = weight(&k, WEIGHT_F32, 1, 24, get("base"), NULL);
    streams = dev(&k, T * HC * D * 2, get("streams"));
    y = dev(&k, T * D * 2, get("y"));
    x = dev(&k, T * D * 2, NULL);
    out = dev(&k, T * HC * D * 2, NULL);
    post = dev(&k, T * HC * 4, NULL);
    comb = dev(&k, T * HC * HC * 4, NULL);
    index = dev(&k, sizeof(rows), rows);
    k.ops->hc_read(&k, x, post, comb, streams, &fn, &scale, &base, NULL, T);
    check_bf16("x", host(&k, x), get("x"), T * D);
    check_f32("post", host(&k, post), get("post"), T * HC);
    check_f32("comb", host(&k, comb), get("comb"), T * HC * HC);
    k.ops->hc_write(&k, out, y, streams, post, comb, T);
    check_bf16("written", host(&k, out), get("written"), T * HC * D);
    k.ops->hc_head(&k, x, streams, index, &fn, &scale, &base, NULL, T);
    check_bf16("head_x", host(&k, x), get("head_x"), T * D);
    close_backend(&k);
}

static void gate(void **state)
{
    enum { T = 6, E = 16, K = 4, D = 256 };
    struct kernel_dims d = tiny_dims();
    struct kernels k;
    struct dev_ptr x, ids, w, tokens;
    struct weight gate_w, bias, table;

    (void)state;
    open_file("gate");
    open_backend(&k, &d);
    gate_w = weight(&k, WEIGHT_BF16, E, D, get("gate"), NULL);
    bias = weight(&k, WEIGHT_F32, 1, E, get("bias"), NULL);
    table = weight(&k, WEIGHT_I64, 32, K, get("tid2eid"), NULL);
    x = dev(&k, T * D * 2, get("x"));
    tokens = dev(&k, T * 4, get("tokens"));
    ids = dev(&k, T * K * 4, NULL);
    w = dev(&k, T * K * 4, NULL);
    k.ops->gate(&k, ids, w, x, &gate_w, &bias, NULL, tokens, T);
    assert_memory_equal(host(&k, ids), get("ids"), T * K * 4);
    check_f32("weights", host(&k, w), get("weights"), T * K);
    k.ops->gate(&k, ids, w, x, &gate_w, NULL, &table, tokens, T);
    assert_memory_equal(host(&k, ids), get("hash_ids"), T * K * 4);
    check_f32("hash_weights", host(&k, w), get("hash_weights"), T * K);
    close_backend(&k);
}

/* One sequence from position 0 in slot 0, its pages in order. */
struct batch {
    struct kernel_batch b;
    struct kernel_kv v;
};

static struct batch one_sequence(struct kernels *k, int T, int ratio, int cols)
{
    int32_t seq[512] = {0}, pos[512], seq_row[2] = {0, T}, zero = 0, table[2] = {0, 1};
    struct batch s = {.b = {.n_rows = T, .n_seqs = 1, .table_stride = 2}};

    for (int i = 0; i < T; i++)
        pos[i] = i;
    s.b.row_seq = dev(k, (size_t)T * 4, seq);
    s.b.row_pos = dev(k, (size_t)T * 4, pos);
    s.b.seq_row = dev(k, sizeof(seq_row), seq_row);
    s.b.seq_start = dev(k, 4, &zero);
    s.b.seq_slot = dev(k, 4, &zero);
    s.b.block_table = dev(k, sizeof(table), table);
    s.v = (struct kernel_kv){.ratio = ratio,
                             .page_stride = 65536,
                             .entries_per_page = 256 / ratio,
                             .key_off = 32768,
                             .comp_rows = ratio == 4 ? 24 : 144,
                             .window_rows = 144,
                             .row_bytes = 264,
                             .key_bytes = 68};
    s.v.slot_stride = (size_t)s.v.comp_rows * (size_t)cols * 8;
    s.v.pages = dev(k, 2 * s.v.page_stride, NULL);
    s.v.states = dev(k, s.v.slot_stride, NULL);
    return s;
}

static void check_entries(struct kernels *k, const struct batch *s, int n, int dim, bool keys)
{
    const uint16_t *want = get("entries");

    for (int g = 0; g < n; g++) {
        const uint8_t *page = (const uint8_t *)host(k, s->v.pages) +
                              (size_t)(g / s->v.entries_per_page) * s->v.page_stride;
        size_t row = (size_t)(g % s->v.entries_per_page);
        float x[512];
        uint16_t got[512];

        if (keys)
            key_row_unpack(x, page + s->v.key_off + row * 68, dim);
        else
            kv_row_unpack(x, page + row * 264, dim, 64);
        for (int i = 0; i < dim; i++)
            got[i] = bf16_encode(x[i]);
        if (is_ref() || is_cuda()) /* on an FP8 or FP4 grid: no rounding flips in these vectors */
            check_bf16("entries", got, want + g * dim, (size_t)dim);
    }
}

static void check_compressor(const char *name, int T, int ratio, int cols, int dim, bool for_index)
{
    struct model_config c = {.rope_dim = 64,
                             .rope_theta = 10000,
                             .compress_rope_theta = 160000,
                             .yarn_factor = 16,
                             .yarn_beta_fast = 32,
                             .yarn_beta_slow = 1,
                             .yarn_original = 65536};
    struct kernel_dims d = tiny_dims();
    struct compressor_weights w;
    struct kernels k;
    struct dev_ptr x, kv, score, f;
    struct batch s;
    float freq[32];

    open_file(name);
    open_backend(&k, &d);
    rope_frequencies(&c, true, freq);
    s = one_sequence(&k, T, ratio, cols);
    w = (struct compressor_weights){weight(&k, WEIGHT_BF16, cols, 256, get("wkv"), NULL),
                                    weight(&k, WEIGHT_BF16, cols, 256, get("wgate"), NULL),
                                    weight(&k, WEIGHT_F32, ratio, cols, get("ape"), NULL),
                                    weight(&k, WEIGHT_BF16, 1, dim, get("norm"), NULL)};
    x = dev(&k, (size_t)T * 256 * 2, get("x"));
    kv = dev(&k, (size_t)(T * cols) * 4, NULL);
    score = dev(&k, (size_t)(T * cols) * 4, NULL);
    f = dev(&k, sizeof(freq), freq);
    k.ops->linear(&k, kv, x, &w.wkv, T, true);
    k.ops->linear(&k, score, x, &w.wgate, T, true);
    k.ops->compress(&k, kv, score, &w, &s.b, &s.v, f, for_index);
    check_entries(&k, &s, T / ratio, dim, for_index);
    if (ratio == 128) { /* the unfinished group: rows of positions 256 .. 299 */
        const float *want_kv = get("state_kv"), *want_score = get("state_score");

        for (int p = 256; p < T; p++) {
            const float *row = (const float *)host(&k, s.v.states) + (size_t)(p % 144 * 2 * cols);

            check_f32("state_kv", row, want_kv + p % 128 * cols, (size_t)cols);
            check_f32("state_score", row + cols, want_score + p % 128 * cols, (size_t)cols);
        }
    }
    close_backend(&k);
}

static void compressor_of_ratio_4(void **state)
{
    (void)state;
    check_compressor("compressor_4", 13, 4, 384, 192, false);
}

static void compressor_of_ratio_128(void **state)
{
    (void)state;
    check_compressor("compressor_128", 300, 128, 192, 192, false);
}

static void compressor_of_the_indexer(void **state)
{
    (void)state;
    check_compressor("compressor_index", 13, 4, 256, 128, true);
}

/* Each row is a sequence of its own whose position makes `visible` keys visible; all share the
 * pages. */
static void indexer(void **state)
{
    enum { T = 4, HI = 8, DI = 128, G = 75, K = 32 };
    struct kernel_dims d = tiny_dims();
    struct kernels k;
    struct kernel_batch b = {.n_rows = T, .n_seqs = T, .table_stride = 2};
    struct kernel_kv v = {
        .ratio = 4, .page_stride = 64 * 68, .entries_per_page = 64, .key_bytes = 68};
    int32_t seq[T] = {0, 1, 2, 3}, seq_row[T + 1] = {0, 1, 2, 3, 4}, table[2 * T], pos[T];
    struct dev_ptr q, w, chosen;
    const uint16_t *keys;
    const int32_t *visible;

    (void)state;
    open_file("indexer");
    open_backend(&k, &d);
    keys = get("keys"), visible = get("visible");
    v.pages = dev(&k, 2 * v.page_stride, NULL);
    for (int g = 0; g < G; g++) {
        float x[DI];

        for (int i = 0; i < DI; i++)
            x[i] = bf16_decode(keys[g * DI + i]);
        key_row_pack((uint8_t *)host(&k, v.pages) + (size_t)(g / 64) * v.page_stride +
                         (size_t)(g % 64) * 68,
                     x, DI);
    }
    for (int t = 0; t < T; t++) {
        pos[t] = 4 * visible[t] - 1;
        table[2 * t] = 0;
        table[2 * t + 1] = 1;
    }
    b.row_seq = dev(&k, sizeof(seq), seq);
    b.row_pos = dev(&k, sizeof(pos), pos);
    b.seq_row = dev(&k, sizeof(seq_row), seq_row);
    b.seq_start = b.row_pos;
    b.seq_slot = b.row_seq;
    b.block_table = dev(&k, sizeof(table), table);
    q = dev(&k, T * HI * DI * 2, get("q"));
    w = dev(&k, T * HI * 2, get("weight"));
    chosen = dev(&k, T * K * 4, NULL);
    k.ops->index_select(&k, chosen, q, w, &b, &v);
    assert_memory_equal(host(&k, chosen), get("ids"), T * K * 4);
    close_backend(&k);
}

int main(int argc, char **argv)
{
#define T(name) cmocka_unit_test_teardown(name, close_file)
    const struct CMUnitTest tests[] = {
        T(fp8_quantiser),
        T(fp4_quantiser),
        T(hadamard),
        T(rope),
        T(swiglu),
        T(sparse_attention),
        T(fp8_gemm),
        T(fp4_gemm),
        T(rms_norm),
        T(head_norm),
        T(hyper_connections),
        T(gate),
        T(compressor_of_ratio_4),
        T(compressor_of_ratio_128),
        T(compressor_of_the_indexer),
        T(indexer),
    };
    struct status st;
    int rc;

    if (argc != 3)
        return 2;
    folder = argv[1];
    level = argv[2];
    if (!is_ref() && !is_cuda() && kernels_cpu_best() < isa_of_level()) {
        printf("this processor has no %s\n", level);
        return 77; /* meson: skipped */
    }
#ifdef GOLDEN_CUDA
    if (!cuda_place_ready())
        return CUDA_PLACE_SKIPPED;
#endif
    if (pool_new(2, &pool, &st) != ST_OK)
        return 1;
    rc = cmocka_run_group_tests_name("golden kernel vectors", tests, NULL, NULL);
    pool_free(pool);
    return rc;
}
