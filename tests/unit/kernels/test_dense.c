/* Dense operations and experts of every level (rows_levels.h: the CPU's, or the GPU's) against
 * kernels/ref, and against themselves: the bits of a row depend on nothing but the row. */
#include "tests/unit/kernels/rows_levels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* Products of many tokens, and experts of some. */
#define T_MAX rows_tokens

/* y of one backend for `T` rows of x, through act_quant for quantised weights. Caller frees. */
static uint16_t *product(struct rig *r, const struct weight_src *src, const uint16_t *x, int T,
                         int groups)
{
    const struct kernel_ops *ops = r->k.ops;
    int cols = (int)src->cols;
    size_t y_bytes = (size_t)T * (size_t)src->rows * 2;
    struct dev_ptr xp = rig_put(r, x, (size_t)T * (size_t)cols * 2 * (size_t)groups);
    struct dev_ptr y = rig_put(r, NULL, y_bytes);
    struct weight w;

    assert_int_equal(ops->weight_load(&r->k, src, &w), 0);
    if (groups > 1) {
        ops->linear_grouped(&r->k, y, xp, &w, T, groups);
    } else if (src->type == WEIGHT_BF16) {
        ops->linear(&r->k, y, xp, &w, T, false);
    } else {
        struct dev_ptr xq = rig_put(r, NULL, (size_t)T * ops->act_quant_bytes(&r->k, cols));

        ops->act_quant(&r->k, xq, xp, T, cols);
        ops->linear_q(&r->k, y, xq, &w, T);
        ops->dev_free(&r->k, xq);
    }
    uint16_t *out = rig_get(r, y, y_bytes);

    ops->dev_free(&r->k, xp);
    ops->dev_free(&r->k, y);
    ops->weight_unload(&r->k, &w);
    return out;
}

struct shape {
    enum weight_type type;
    int rows, cols, groups;
};

static const struct shape shapes[] = {
    {WEIGHT_FP4, 96, 256, 1},   {WEIGHT_FP4, 64, 128, 1},   {WEIGHT_FP4, 200, 1024, 1},
    {WEIGHT_FP8, 200, 384, 1},  {WEIGHT_FP8, 1, 128, 1},    {WEIGHT_FP8, 129, 1024, 1},
    {WEIGHT_FP8, 128, 384, 2},  {WEIGHT_FP8, 96, 128, 4},   {WEIGHT_FP8, 256, 512, 2},
    {WEIGHT_BF16, 63, 256, 1},  {WEIGHT_BF16, 65, 7, 1},    {WEIGHT_BF16, 2, 63, 1},
    {WEIGHT_BF16, 130, 65, 1},  {WEIGHT_BF16, 64, 7168, 1}, {WEIGHT_BF16, 7, 1, 1},
    {WEIGHT_BF16, 300, 130, 1}, {WEIGHT_BF16, 1, 256, 1},
};
enum { N_SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

/* Whether the levels here take it. */
static bool is_taken(const struct shape *s)
{
    bool whole = s->groups == 1 || s->rows / s->groups % 16 == 0; /* panels of a group */

    return s->cols % rows_cols_unit == 0 && (whole || rows_cols_unit == 1);
}

static void products_agree_with_the_reference(void **state)
{
    struct kernel_dims dims = rig_dims();
    struct rig ref;

    (void)state;
    assert_true(rig_open(&ref, CPU_ISA_REF, &dims, 2));
    for (int level = 0; level < rows_n_levels; level++) {
        struct rig fast;

        if (!rows_open(level, &fast, &dims, 3))
            continue;
        for (int i = 0; i < N_SHAPES; i++) {
            if (!is_taken(&shapes[i]))
                continue;
            const struct shape *s = &shapes[i];
            struct rig_random random = {(uint64_t)i};
            struct weight_src src = rig_weight(&random, s->type, s->rows, s->cols);

            src.vector = false;
            int T = i % 3 == 0 ? 1 : i % 3 == 1 ? 7 : T_MAX / 2 + 1;
            size_t n = (size_t)T * (size_t)s->cols * (size_t)s->groups;
            uint16_t *x = malloc(n * 2);
            char what[80];

            rig_bf16(&random, x, n, 1);
            snprintf(what, sizeof(what), "%s, seed %d: type %d, [%d][%d], T %d", fast.k.ops->name,
                     i, s->type, s->rows, s->cols, T);
            uint16_t *want = product(&ref, &src, x, T, s->groups);
            uint16_t *got = product(&fast, &src, x, T, s->groups);

            rig_same_bf16(what, got, want, (size_t)T * (size_t)s->rows);
            free(want);
            free(got);
            free(x);
            rig_weight_free(&src);
        }
        rows_close(&fast);
    }
    rig_close(&ref);
}

/* One row at a time, several, all at once, one thread or three: the same bits. */
static void a_row_has_the_same_bits_in_any_company(void **state)
{
    struct kernel_dims dims = rig_dims();

    (void)state;
    for (int level = 0; level < rows_n_levels; level++) {
        struct rig one, three;

        if (!rows_open(level, &one, &dims, 1))
            continue;
        assert_true(rows_open(level, &three, &dims, 3));
        for (int i = 0; i < N_SHAPES; i++) {
            if (!is_taken(&shapes[i]))
                continue;
            const struct shape *s = &shapes[i];
            struct rig_random random = {(uint64_t)(100 + i)};
            struct weight_src src = rig_weight(&random, s->type, s->rows, s->cols);

            src.vector = false;
            size_t x_row = (size_t)s->cols * (size_t)s->groups;
            uint16_t *x = malloc((size_t)T_MAX * x_row * 2);

            rig_bf16(&random, x, (size_t)T_MAX * x_row, 1);
            uint16_t *whole = product(&three, &src, x, T_MAX, s->groups);

            for (int t = 0, n = 1; t < T_MAX; t += n, n = n % 13 + 1) {
                int some = T_MAX - t < n ? T_MAX - t : n;
                uint16_t *part = product(&one, &src, x + (size_t)t * x_row, some, s->groups);

                rig_same_bytes("rows of a product", part, whole + (size_t)t * (size_t)s->rows,
                               (size_t)some * (size_t)s->rows * 2);
                free(part);
            }
            free(whole);
            free(x);
            rig_weight_free(&src);
        }
        rows_close(&three);
        rows_close(&one);
    }
}

/* ---- weights as mapped ---- */

static void mapped_weights_give_the_bits_of_packed_ones(void **state)
{
    struct kernel_dims dims = rig_dims();

    (void)state;
    for (int level = 0; level < rows_n_levels; level++) {
        struct rig packed, mapped;

        if (!rows_open(level, &packed, &dims, 1))
            continue;
        assert_true(rows_open_mapped(level, &mapped, &dims, 3));
        for (int i = 0; i < N_SHAPES; i++) {
            if (!is_taken(&shapes[i]))
                continue;
            const struct shape *s = &shapes[i];
            struct rig_random random = {(uint64_t)(300 + i)};
            struct weight_src src = rig_weight(&random, s->type, s->rows, s->cols);

            src.vector = false;
            size_t x_row = (size_t)s->cols * (size_t)s->groups;
            uint16_t *x = malloc((size_t)T_MAX * x_row * 2);

            rig_bf16(&random, x, (size_t)T_MAX * x_row, 1);
            uint16_t *want = product(&packed, &src, x, T_MAX, s->groups),
                     *got = product(&mapped, &src, x, T_MAX, s->groups);

            rig_same_bytes("mapped and packed", got, want, (size_t)T_MAX * (size_t)s->rows * 2);
            free(want);
            free(got);
            free(x);
            rig_weight_free(&src);
        }
        rows_close(&mapped);
        rows_close(&packed);
    }
}

/* ---- levels among themselves ---- */

static void all_levels_give_the_same_bits(void **state)
{
    struct kernel_dims dims = rig_dims();
    struct rig a, b;

    (void)state;
    if (!rows_alike)
        skip();
    if (!rows_open(0, &a, &dims, 1))
        return;
    for (int level = 1; level < rows_n_levels; level++) {
        if (!rows_open(level, &b, &dims, 1))
            continue;
        for (int i = 0; i < N_SHAPES; i++) {

            const struct shape *s = &shapes[i];
            struct rig_random random = {(uint64_t)(200 + i)};
            struct weight_src src = rig_weight(&random, s->type, s->rows, s->cols);

            src.vector = false;
            size_t n = (size_t)9 * (size_t)s->cols * (size_t)s->groups;
            uint16_t *x = malloc(n * 2);

            rig_bf16(&random, x, n, 1);
            uint16_t *ya = product(&a, &src, x, 9, s->groups),
                     *yb = product(&b, &src, x, 9, s->groups);

            rig_same_bytes("both levels", ya, yb, (size_t)9 * (size_t)s->rows * 2);
            free(ya);
            free(yb);
            free(x);
            rig_weight_free(&src);
        }
        rows_close(&b);
    }
    rows_close(&a);
}

/* ---- scales at the ends of their range ---- */

static void extreme_scales_do_as_the_format_says(void **state)
{
    struct kernel_dims dims = rig_dims();
    struct rig ref;
    static const uint8_t scales[] = {0, 1, 255, 64, 190};

    (void)state;
    assert_true(rig_open(&ref, CPU_ISA_REF, &dims, 1));
    for (int level = 0; level < rows_n_levels; level++) {
        struct rig fast;

        if (!rows_open(level, &fast, &dims, 1))
            continue;
        for (int i = 0; i < 10; i++) {
            struct rig_random random = {(uint64_t)(300 + i)};
            enum weight_type type = i % 2 ? WEIGHT_FP4 : WEIGHT_FP8;
            struct weight_src src = rig_weight(&random, type, 64, 256);
            uint16_t x[3 * 256];

            memset((void *)(uintptr_t)src.scale, scales[i / 2], type == WEIGHT_FP8 ? 1 : 128);
            rig_bf16(&random, x, 3 * 256, 1);
            uint16_t *want = product(&ref, &src, x, 3, 1), *got = product(&fast, &src, x, 3, 1);

            rig_same_bf16("extreme scale", got, want, (size_t)3 * 64);
            free(want);
            free(got);
            rig_weight_free(&src);
        }
        rows_close(&fast);
    }
    rig_close(&ref);
}

/* The rows that hold it are NaN; the AVX2 level may spoil their neighbours in the tile, but no
 * others. */
static void a_nan_code_is_not_lost(void **state)
{
    struct kernel_dims dims = rig_dims();

    (void)state;
    for (int level = 0; level < rows_n_levels; level++) {
        struct rig_random random = {350};
        struct weight_src src = rig_weight(&random, WEIGHT_FP8, 256, 256);
        uint16_t x[2 * 256];
        struct rig fast;

        ((uint8_t *)(uintptr_t)src.data)[130 * 256 + 7] = 0xFF;
        rig_bf16(&random, x, 2 * 256, 1);
        if (rows_open(level, &fast, &dims, 1)) {
            uint16_t *y = product(&fast, &src, x, 2, 1);

            for (int t = 0; t < 2; t++) {
                assert_true((y[t * 256 + 130] & 0x7FFF) > 0x7F80);
                for (int r = 0; r < 128; r++)
                    assert_true((y[t * 256 + r] & 0x7FFF) < 0x7F80);
            }
            free(y);
            rows_close(&fast);
        }
        rig_weight_free(&src);
    }
}

static void f32_scales_are_read_like_bytes(void **state)
{
    struct kernel_dims dims = rig_dims();

    (void)state;
    for (int level = 0; level < rows_n_levels; level++) {
        struct rig fast;

        if (!rows_open(level, &fast, &dims, 1))
            continue;
        for (int i = 0; i < 2; i++) {
            struct rig_random random = {(uint64_t)(400 + i)};
            struct weight_src src = rig_weight(&random, i ? WEIGHT_FP4 : WEIGHT_FP8, 256, 256);
            struct weight_src wide = src;
            size_t n = i ? 256 * 8 : 4;
            float *scale = malloc(n * sizeof(*scale));
            uint16_t x[2 * 256];

            for (size_t j = 0; j < n; j++)
                scale[j] = 1.f / (float)(1 << (127 - ((const uint8_t *)src.scale)[j]));
            wide.scale = scale;
            wide.scale_is_f32 = true;
            rig_bf16(&random, x, 2 * 256, 1);
            uint16_t *want = product(&fast, &src, x, 2, 1), *got = product(&fast, &wide, x, 2, 1);

            rig_same_bytes("f32 scales", got, want, (size_t)2 * 256 * 2);
            free(want);
            free(got);
            free(scale);
            rig_weight_free(&src);
        }
        rows_close(&fast);
    }
}

/* ---- activations ---- */

static void quantised_activations_are_the_reference_s(void **state)
{
    struct kernel_dims dims = rig_dims();
    struct rig ref;
    enum { T = 64, N = 384 };
    uint16_t *x = malloc(T * N * 2);
    struct rig_random random = {7};

    (void)state;
    assert_true(rig_open(&ref, CPU_ISA_REF, &dims, 1));
    for (int t = 0; t < T; t++) /* tiny to huge rows; some blocks 0, ties, steps of the grid */
        rig_bf16(&random, x + t * N, N, t < 40 ? ldexpf(1, t - 20) : 1);
    memset(x + 3 * N, 0, 256);
    for (int i = 0; i < 256; i++)
        x[41 * N + i] = (uint16_t)(0x3F80 + i);
    for (int i = 0; i < 128; i++)
        x[42 * N + i] = (uint16_t)(0x3880 + 8 * i);
    for (int level = 0; level < rows_n_levels; level++) {
        struct rig fast;
        struct rig *rigs[2] = {&ref, &fast};
        uint16_t *rows[2];

        if (!rows_open(level, &fast, &dims, 2))
            continue;
        for (int i = 0; i < 2; i++) {
            const struct kernel_ops *ops = rigs[i]->k.ops;
            struct dev_ptr xp = rig_put(rigs[i], x, T * N * 2);
            size_t row = ops->act_quant_bytes(&rigs[i]->k, N);
            struct dev_ptr xq = rig_put(rigs[i], NULL, T * row);

            ops->act_quant(&rigs[i]->k, xq, xp, T, N);
            uint8_t *all = rig_get(rigs[i], xq, T * row);

            rows[i] = malloc(T * N * 2);
            for (int t = 0; t < T; t++)
                if (i == 0)
                    memcpy(rows[i] + t * N, all + (size_t)t * row, N * 2);
                else
                    rows_decode(rows[i] + t * N, all + (size_t)t * row, N);
            free(all);
            ops->dev_free(&rigs[i]->k, xp);
            ops->dev_free(&rigs[i]->k, xq);
        }
        for (int i = 0; i < T * N; i++)
            if (rows[0][i] != rows[1][i] && (rows[0][i] | rows[1][i]) != 0x8000)
                fail_msg("row %d, element %d: x %04x, got %04x, expected %04x", i / N, i % N, x[i],
                         rows[1][i], rows[0][i]);
        free(rows[0]);
        free(rows[1]);
        rows_close(&fast);
    }
    rig_close(&ref);
    free(x);
}

/* ---- experts ---- */

struct layer {
    struct weight_src src[3 * 17];
    struct weight_src gate, bias, table;
};

static void layer_make(struct layer *l, const struct kernel_dims *d, enum weight_type experts)
{
    struct rig_random random = {11};

    for (int e = 0; e <= d->n_experts; e++) {
        enum weight_type type = e == 0 ? WEIGHT_FP8 : experts;

        for (int i = 0; i < 3; i++)
            l->src[3 * e + i] = rig_weight(&random, type, i == 1 ? d->hidden : d->moe_inter,
                                           i == 1 ? d->moe_inter : d->hidden);
    }
    l->gate = rig_weight(&random, WEIGHT_BF16, d->n_experts, d->hidden);
    l->bias = rig_weight(&random, WEIGHT_F32, 1, d->n_experts);
    int64_t *table = malloc((size_t)(d->vocab * d->n_active) * sizeof(*table));

    for (int i = 0; i < d->vocab; i++)
        for (int j = 0; j < d->n_active; j++)
            table[i * d->n_active + j] = (i * 7 + j * 5) % d->n_experts;
    l->table = (struct weight_src){WEIGHT_I64, d->vocab, d->n_active, table, NULL, false, false};
}

static void layer_free(struct layer *l, const struct kernel_dims *d)
{
    for (int i = 0; i < 3 * (d->n_experts + 1); i++)
        rig_weight_free(&l->src[i]);
    rig_weight_free(&l->gate);
    rig_weight_free(&l->bias);
    rig_weight_free(&l->table);
}

struct moe_result {
    int32_t *ids;
    float *weights;
    uint16_t *y;
};

/* Three ranks' shares of the experts, added over the ranks and then over the experts, must give
 * what moe() gave. */
static void check_parts(struct rig *r, const struct expert_weights *e, struct dev_ptr xq,
                        struct dev_ptr ids, struct dev_ptr weights, int T, const uint16_t *want)
{
    const struct kernel_ops *ops = r->k.ops;
    const struct kernel_dims *d = &r->k.dims;
    size_t n = (size_t)(T * (d->n_active + 1) * d->hidden);
    struct dev_ptr parts = rig_put(r, NULL, n * 2);
    struct dev_ptr y = rig_put(r, NULL, (size_t)(T * d->hidden) * 2);
    uint16_t *all = calloc(n, 2), *got;

    for (int rank = 0, first = 0; rank < 3; rank++) {
        int end = rank == 2 ? d->n_experts : first + rank; /* the first rank has no expert */

        ops->moe_parts(&r->k, parts, xq, ids, weights, e + 1, rank == 1 ? e : NULL, first,
                       end - first, T);
        got = rig_get(r, parts, n * 2);
        for (size_t i = 0; i < n; i++) {
            assert_true(got[i] == 0 || all[i] == 0); /* one owner each */
            all[i] |= got[i];
        }
        free(got);
        first = end;
    }
    ops->dev_write(&r->k, parts, all, n * 2);
    ops->moe_sum(&r->k, y, parts, ids, T);
    got = rig_get(r, y, (size_t)(T * d->hidden) * 2);
    rig_same_bytes("moe in parts", got, want, (size_t)(T * d->hidden) * 2);
    free(got);
    free(all);
    ops->dev_free(&r->k, parts);
    ops->dev_free(&r->k, y);
}

/* Gate and experts of one backend for rows [t0, t0 + T) of x. given: ids and weights to use, or
 * NULL. */
static struct moe_result run_moe(struct rig *r, const struct layer *l, const uint16_t *x,
                                 const int32_t *tokens, int T, bool hashed,
                                 const struct moe_result *given)
{
    const struct kernel_ops *ops = r->k.ops;
    const struct kernel_dims *d = &r->k.dims;
    struct expert_weights e[17];
    struct weight gate, bias, table;
    size_t n = (size_t)T * (size_t)d->n_active;
    struct dev_ptr xp = rig_put(r, x, (size_t)(T * d->hidden) * 2);
    struct dev_ptr xq = rig_put(r, NULL, (size_t)T * ops->act_quant_bytes(&r->k, d->hidden));
    struct dev_ptr y = rig_put(r, NULL, (size_t)(T * d->hidden) * 2);
    struct dev_ptr ids = rig_put(r, NULL, n * 4), weights = rig_put(r, NULL, n * 4);
    struct dev_ptr tok = rig_put(r, tokens, (size_t)T * 4);
    struct moe_result out;

    for (int i = 0; i <= d->n_experts; i++) {
        assert_int_equal(ops->weight_load(&r->k, &l->src[3 * i], &e[i].w1), 0);
        assert_int_equal(ops->weight_load(&r->k, &l->src[3 * i + 1], &e[i].w2), 0);
        assert_int_equal(ops->weight_load(&r->k, &l->src[3 * i + 2], &e[i].w3), 0);
    }
    if (ops->experts_load != NULL)
        assert_int_equal(ops->experts_load(&r->k, e + 1), 0);
    assert_int_equal(ops->weight_load(&r->k, &l->gate, &gate), 0);
    assert_int_equal(ops->weight_load(&r->k, &l->bias, &bias), 0);
    assert_int_equal(ops->weight_load(&r->k, &l->table, &table), 0);
    ops->gate(&r->k, ids, weights, xp, &gate, hashed ? NULL : &bias, hashed ? &table : NULL, tok,
              T);
    out.ids = rig_get(r, ids, n * 4);
    out.weights = rig_get(r, weights, n * 4);
    if (given != NULL) {
        ops->dev_write(&r->k, ids, given->ids, n * 4);
        ops->dev_write(&r->k, weights, given->weights, n * 4);
    }
    ops->act_quant(&r->k, xq, xp, T, d->hidden);
    ops->moe(&r->k, y, xq, ids, weights, e + 1, e, T);
    out.y = rig_get(r, y, (size_t)(T * d->hidden) * 2);
    check_parts(r, e, xq, ids, weights, T, out.y);
    if (ops->experts_unload != NULL)
        ops->experts_unload(&r->k, e + 1);
    for (int i = 0; i <= d->n_experts; i++) {
        ops->weight_unload(&r->k, &e[i].w1);
        ops->weight_unload(&r->k, &e[i].w2);
        ops->weight_unload(&r->k, &e[i].w3);
    }
    ops->weight_unload(&r->k, &gate);
    ops->weight_unload(&r->k, &bias);
    ops->weight_unload(&r->k, &table);
    struct dev_ptr all[] = {xp, xq, y, ids, weights, tok};

    for (int i = 0; i < 6; i++)
        ops->dev_free(&r->k, all[i]);
    return out;
}

static void result_free(struct moe_result *m)
{
    free(m->ids);
    free(m->weights);
    free(m->y);
}

static void experts_agree_with_the_reference(void **state)
{
    struct kernel_dims d = rig_dims();
    enum { T = 40 };
    uint16_t *x = malloc((size_t)(T * d.hidden) * 2);
    int32_t tokens[T];
    struct rig_random random = {5};
    struct rig ref;

    (void)state;
    rig_bf16(&random, x, (size_t)(T * d.hidden), 1);
    for (int t = 0; t < T; t++)
        tokens[t] = t * 11 % d.vocab;
    assert_true(rig_open(&ref, CPU_ISA_REF, &d, 2));
    for (int kind = 0; kind < 2; kind++) {
        struct layer l;

        layer_make(&l, &d, kind == 0 ? WEIGHT_FP4 : WEIGHT_FP8);
        struct moe_result want = run_moe(&ref, &l, x, tokens, T, kind == 1, NULL);

        for (int level = 0; level < rows_n_levels; level++) {
            struct rig fast;

            if (!rows_open(level, &fast, &d, 3))
                continue;
            struct moe_result got = run_moe(&fast, &l, x, tokens, T, kind == 1, &want);

            rig_same_bytes("expert ids", got.ids, want.ids, (size_t)(T * d.n_active) * 4);
            rig_same_f32("expert weights", got.weights, want.weights, (size_t)(T * d.n_active));
            rig_rows_bf16(fast.k.ops->name, got.y, want.y, T, (size_t)d.hidden);
            result_free(&got);
            rows_close(&fast);
        }
        result_free(&want);
        layer_free(&l, &d);
    }
    rig_close(&ref);
    free(x);
}

static void a_token_s_experts_do_not_depend_on_its_batch(void **state)
{
    struct kernel_dims d = rig_dims();
    int T = T_MAX * 3 / 5;
    uint16_t *x = malloc((size_t)(T * d.hidden) * 2);
    int32_t tokens[ROWS_TOKENS_MAX];
    struct rig_random random = {6};
    struct layer l;

    (void)state;
    rig_bf16(&random, x, (size_t)(T * d.hidden), 1);
    for (int t = 0; t < T; t++)
        tokens[t] = t % 3; /* few experts, many tokens each */
    layer_make(&l, &d, WEIGHT_FP4);
    for (int level = 0; level < rows_n_levels; level++)
        for (int hashed = 0; hashed < 2; hashed++) {
            struct rig one, three, mapped;

            if (!rows_open(level, &one, &d, 1))
                continue;
            assert_true(rows_open(level, &three, &d, 3));
            struct moe_result all = run_moe(&three, &l, x, tokens, T, hashed, NULL);

            assert_true(rows_open_mapped(level, &mapped, &d, 2));
            struct moe_result same = run_moe(&mapped, &l, x, tokens, T, hashed, NULL);

            rig_same_bytes("y as mapped", same.y, all.y, (size_t)(T * d.hidden) * 2);
            result_free(&same);
            rows_close(&mapped);

            for (int t = 0, n = 1; t < T; t += n, n = n * 3 % 17 + 1) {
                int some = T - t < n ? T - t : n;
                struct moe_result part =
                    run_moe(&one, &l, x + t * d.hidden, tokens + t, some, hashed, NULL);

                rig_same_bytes("ids", part.ids, all.ids + t * d.n_active,
                               (size_t)(some * d.n_active) * 4);
                rig_same_bytes("weights", part.weights, all.weights + t * d.n_active,
                               (size_t)(some * d.n_active) * 4);
                rig_same_bytes("y", part.y, all.y + t * d.hidden, (size_t)(some * d.hidden) * 2);
                result_free(&part);
            }
            result_free(&all);
            rows_close(&three);
            rows_close(&one);
        }
    layer_free(&l, &d);
    free(x);
}

/* ---- opening ---- */

static void a_level_above_the_processor_s_is_refused(void **state)
{
    struct kernel_dims dims = rig_dims();
    struct kernel_env env = {0};
    struct kernels k;

    (void)state;
    for (int isa = kernels_cpu_best() + 1; isa <= CPU_ISA_AMX; isa++) {
        assert_int_equal(kernels_open_cpu(&k, (enum cpu_isa)isa, &dims, &env), -1);
        assert_non_null(strstr(k.error, kernels_cpu_names[isa]));
    }
}

static void an_fp4_matrix_of_odd_width_is_refused(void **state)
{
    struct kernel_dims dims = rig_dims();

    (void)state;
    for (int level = 0; level < rows_n_levels; level++) {
        struct rig r;
        struct weight w;
        struct weight_src src = {WEIGHT_FP4, 64, 40, "", "", false, false};

        if (!rows_open(level, &r, &dims, 1))
            continue;
        assert_int_equal(r.k.ops->weight_load(&r.k, &src, &w), -1);
        assert_non_null(strstr(r.k.error, "40"));
        rows_close(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_agree_with_the_reference),
        cmocka_unit_test(a_row_has_the_same_bits_in_any_company),
        cmocka_unit_test(mapped_weights_give_the_bits_of_packed_ones),
        cmocka_unit_test(all_levels_give_the_same_bits),
        cmocka_unit_test(extreme_scales_do_as_the_format_says),
        cmocka_unit_test(a_nan_code_is_not_lost),
        cmocka_unit_test(f32_scales_are_read_like_bytes),
        cmocka_unit_test(quantised_activations_are_the_reference_s),
        cmocka_unit_test(experts_agree_with_the_reference),
        cmocka_unit_test(a_token_s_experts_do_not_depend_on_its_batch),
        cmocka_unit_test(a_level_above_the_processor_s_is_refused),
        cmocka_unit_test(an_fp4_matrix_of_odd_width_is_refused),
    };

    if (!rows_ready())
        return 77; /* meson: skipped */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
