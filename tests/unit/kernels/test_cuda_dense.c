/* kernels/cuda/dense.cu against kernels/ref; and the same rows in other
 * batches: the same bits. */
#include "kernels/cuda/dense.h"
#include "tests/lib/kernel_rig.h"
#include "tests/unit/kernels/cuda_place.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { ROWS = 7, COLS_MAX = 1024 };

/* Opens ref and makes x [ROWS][COLS_MAX]; out [ROWS][COLS_MAX] is zero. */
static void open_with_rows(struct rig *r, struct rig_random *random, struct dev_ptr *x,
                           struct dev_ptr *want)
{
    struct kernel_dims d = rig_dims();
    uint16_t *values = malloc((size_t)ROWS * COLS_MAX * 2);

    assert_true(rig_open(r, CPU_ISA_REF, &d, 1));
    cuda_place_enter(&r->k);
    rig_bf16(random, values, (size_t)ROWS * COLS_MAX, 2);
    *x = rig_put(r, values, (size_t)ROWS * COLS_MAX * 2);
    memset(values, 0, (size_t)ROWS * COLS_MAX * 2);
    *want = rig_put(r, values, (size_t)ROWS * COLS_MAX * 2);
    free(values);
}

static void close_rows(struct rig *r, struct dev_ptr x, struct dev_ptr want)
{
    r->k.ops->dev_free(&r->k, x);
    r->k.ops->dev_free(&r->k, want);
    cuda_place_leave(&r->k);
    rig_close(r);
}

static void rms_norm_agrees_with_the_reference(void **state)
{
    static const int widths[] = {1, 7, 127, 128, 129, 1000};
    struct rig_random random = {1};
    struct rig r;
    struct dev_ptr x, want;
    uint16_t *got = cuda_place_alloc((size_t)ROWS * COLS_MAX * 2);

    (void)state;
    open_with_rows(&r, &random, &x, &want);
    for (size_t i = 0; i < sizeof(widths) / sizeof(widths[0]); i++) {
        struct weight_src src = rig_weight(&random, WEIGHT_BF16, 1, widths[i]);
        struct weight w;
        struct rms_norm_args args = {got, rig_host(&r, x), NULL, widths[i],
                                     (float)r.k.dims.norm_eps};

        assert_int_equal(r.k.ops->weight_load(&r.k, &src, &w), 0);
        args.w = rig_host(&r, w.data);
        r.k.ops->rms_norm(&r.k, want, x, &w, ROWS, widths[i]);
        cuda_rms_norm(0, args, ROWS);
        rig_same_bf16("rms_norm", got, rig_host(&r, want), (size_t)(ROWS * widths[i]));
        r.k.ops->weight_unload(&r.k, &w);
        rig_weight_free(&src);
    }
    cuda_place_free(got);
    close_rows(&r, x, want);
}

static void act_quant_gives_the_bits_of_the_reference(void **state)
{
    struct rig_random random = {2};
    struct rig r;
    struct dev_ptr x, want;
    uint16_t *got = cuda_place_alloc((size_t)ROWS * COLS_MAX * 2), *in;

    (void)state;
    open_with_rows(&r, &random, &x, &want);
    in = rig_host(&r, x);
    memset(in, 0, 128 * 2);    /* a block of zeros: the least scale */
    in[200] = 0x7FC0;          /* a NaN spoils its block and no other */
    in[300] = 0x7F7F;          /* the largest finite */
    in[COLS_MAX + 5] = 0x0001; /* a subnormal */
    r.k.ops->act_quant(&r.k, want, x, ROWS, COLS_MAX);
    cuda_act_quant(0, (struct act_quant_args){got, in, COLS_MAX}, ROWS);
    for (size_t i = 0; i < (size_t)ROWS * COLS_MAX; i++) { /* which NaN it is says nothing */
        uint16_t *ref = rig_host(&r, want);

        if ((got[i] & 0x7FFF) > 0x7F80 && (ref[i] & 0x7FFF) > 0x7F80)
            got[i] = ref[i];
    }
    rig_same_bytes("act_quant", got, rig_host(&r, want), (size_t)ROWS * COLS_MAX * 2);
    cuda_place_free(got);
    close_rows(&r, x, want);
}

static void check_linear(struct rig *r, struct rig_random *random, struct dev_ptr x,
                         struct dev_ptr want, enum weight_type type, int rows, int cols, int groups,
                         bool y_f32)
{
    static const int types[] = {
        [WEIGHT_BF16] = DENSE_BF16, [WEIGHT_FP8] = DENSE_FP8, [WEIGHT_FP4] = DENSE_FP4};
    struct weight_src src = rig_weight(random, type, rows, cols);
    struct weight w;
    size_t row_bytes = (size_t)rows * (y_f32 ? 4 : 2);
    uint8_t *got = cuda_place_alloc(ROWS * row_bytes), *alone = cuda_place_alloc(row_bytes);
    struct linear_args args = {.y = got,
                               .x = rig_host(r, x),
                               .type = types[type],
                               .rows = rows,
                               .cols = cols,
                               .groups = groups,
                               .y_f32 = y_f32};

    assert_int_equal(r->k.ops->weight_load(&r->k, &src, &w), 0);
    args.w = rig_host(r, w.data);
    args.scale = type == WEIGHT_BF16 ? NULL : rig_host(r, w.scale);
    if (groups > 1)
        r->k.ops->linear_grouped(&r->k, want, x, &w, ROWS, groups);
    else
        r->k.ops->linear(&r->k, want, x, &w, ROWS, y_f32);
    cuda_linear(0, args, ROWS);
    if (y_f32)
        rig_same_f32("linear f32", (float *)got, rig_host(r, want), (size_t)(ROWS * rows));
    else
        rig_same_bf16("linear", (uint16_t *)got, rig_host(r, want), (size_t)(ROWS * rows));
    for (int t = 0; t < ROWS; t++) { /* a row alone: the same bits */
        args.x = (const uint16_t *)rig_host(r, x) + t * groups * cols;
        args.y = alone;
        cuda_linear(0, args, 1);
        rig_same_bytes("a row alone", alone, got + (size_t)t * row_bytes, row_bytes);
    }
    r->k.ops->weight_unload(&r->k, &w);
    rig_weight_free(&src);
    cuda_place_free(got);
    cuda_place_free(alone);
}

static void products_agree_and_do_not_depend_on_the_batch(void **state)
{
    struct rig_random random = {3};
    struct rig r;
    struct dev_ptr x, want;

    (void)state;
    open_with_rows(&r, &random, &x, &want);
    check_linear(&r, &random, x, want, WEIGHT_BF16, 33, 256, 1, false);
    check_linear(&r, &random, x, want, WEIGHT_BF16, 17, 65, 1, true);
    check_linear(&r, &random, x, want, WEIGHT_FP8, 130, 192, 1, false); /* tiles not full */
    check_linear(&r, &random, x, want, WEIGHT_FP4, 40, 1024, 1, false);
    check_linear(&r, &random, x, want, WEIGHT_FP8, 64, 384, 2, false);
    close_rows(&r, x, want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rms_norm_agrees_with_the_reference),
        cmocka_unit_test(act_quant_gives_the_bits_of_the_reference),
        cmocka_unit_test(products_agree_and_do_not_depend_on_the_batch),
    };

    if (!cuda_place_ready())
        return CUDA_PLACE_SKIPPED;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
