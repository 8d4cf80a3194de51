/* The CPU's levels where random numbers do not go: keys with NaN codes, with scales at the ends of
 * E8M0, with the smallest and the largest codes; activations that are subnormal, huge or no number.
 */
#include "tests/lib/kernel_rig.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const int levels[] = {CPU_ISA_AVX2, CPU_ISA_AVX512, RIG_AVX512_OTHER_WAY, CPU_ISA_AMX};
enum { N_LEVELS = sizeof(levels) / sizeof(levels[0]) };

static float value(uint16_t bf16)
{
    uint32_t bits = (uint32_t)bf16 << 16;
    float x;

    memcpy(&x, &bits, 4);
    return x;
}

static bool is_nan(uint16_t bf16)
{
    return (bf16 & 0x7FFF) > 0x7F80;
}

/* ---- keys ---- */

/* One sequence of T tokens, all in this batch, that see a window and no entries. */
enum { T = 9, HEADS = 4, DIM = 192, PLAIN = DIM - 64, ROW = PLAIN + 128 + 2 + 6 };

static void make_rows(uint8_t rows[T][ROW])
{
    struct rig_random r = {11};

    for (int t = 0; t < T; t++) {
        for (int i = 0; i < PLAIN; i++) { /* any code but NaN */
            uint8_t code = (uint8_t)rig_bits(&r);

            rows[t][i] = (code & 127) == 127 ? 0x38 : code;
        }
        rig_bf16(&r, (uint16_t *)(void *)(rows[t] + PLAIN), 64, 1);
        memset(rows[t] + PLAIN + 128, 120, 2);
        memset(rows[t] + PLAIN + 130, 0, 6);
    }
    rows[1][PLAIN + 128] = 0;  /* 2^-127: products of subnormals */
    rows[2][PLAIN + 128] = 9;  /* the last scale below what 16-bit exponents hold */
    rows[2][PLAIN + 129] = 10; /* the first above */
    for (int i = 0; i < 64; i++)
        rows[3][i] = (uint8_t)(i % 8 | (i % 2 ? 0x80 : 0)); /* subnormal codes */
    memset(rows[4], 0x7E, 64);                              /* 448, all of them */
    memset(rows[4] + 64, 0xFE, 64);
}

/* [T][HEADS][DIM]; NULL: this processor does not run the level. */
static uint16_t *attend(int level, const uint8_t rows[T][ROW])
{
    struct kernel_dims d = rig_dims();
    int32_t zero[T] = {0}, pos[T], seq_row[2] = {0, T}, none[T * 32];
    static uint16_t q[T * HEADS * DIM];
    struct rig_random r = {12};
    float sink[HEADS] = {0, 1, -1, 2}, freq[32];
    struct weight_src src = {.type = WEIGHT_F32, .rows = 1, .cols = HEADS, .data = sink};
    struct weight w;
    struct rig rig;

    if (!rig_open(&rig, level, &d, 2))
        return NULL;
    rig_bf16(&r, q, T * HEADS * DIM, 1);
    for (int t = 0; t < T; t++)
        pos[t] = t;
    for (int i = 0; i < 32; i++)
        freq[i] = powf(10000, -(float)i / 32);
    memset(none, 0xFF, sizeof(none));
    struct kernel_kv v = {.ratio = 0,
                          .slot_stride = (128 + 16) * ROW,
                          .window_rows = 128 + 16,
                          .row_bytes = ROW,
                          .states = rig_put(&rig, NULL, (128 + 16) * ROW)};
    struct kernel_batch b = {.n_rows = T,
                             .n_seqs = 1,
                             .row_seq = rig_put(&rig, zero, sizeof(zero)),
                             .row_pos = rig_put(&rig, pos, sizeof(pos)),
                             .seq_row = rig_put(&rig, seq_row, sizeof(seq_row)),
                             .seq_start = rig_put(&rig, zero, 4),
                             .seq_slot = rig_put(&rig, zero, 4),
                             .block_table = rig_put(&rig, zero, 4),
                             .table_stride = 1};
    struct dev_ptr all[] = {rig_put(&rig, q, sizeof(q)),
                            rig_put(&rig, rows, T * ROW),
                            rig_put(&rig, none, sizeof(none)),
                            rig_put(&rig, freq, sizeof(freq)),
                            rig_put(&rig, NULL, sizeof(q)),
                            v.states,
                            b.row_seq,
                            b.row_pos,
                            b.seq_row,
                            b.seq_start,
                            b.seq_slot,
                            b.block_table};

    assert_int_equal(rig.k.ops->weight_load(&rig.k, &src, &w), 0);
    rig.k.ops->attention(&rig.k, all[4], all[0], all[1], all[2], &w, &b, &v, all[3]);
    uint16_t *out = rig_get(&rig, all[4], sizeof(q));

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        rig.k.ops->dev_free(&rig.k, all[i]);
    rig.k.ops->weight_unload(&rig.k, &w);
    rig_close(&rig);
    return out;
}

/* NaN in the same places, and what is none within the limits. */
static void same_attention(const uint8_t rows[T][ROW])
{
    enum { N = T * HEADS * DIM };
    uint16_t *want = attend(CPU_ISA_REF, rows);

    for (int level = 0; level < N_LEVELS; level++) {
        uint16_t *got = attend(levels[level], rows);
        uint16_t numbers[2][N];

        if (got == NULL)
            continue;
        for (int i = 0; i < N; i++) {
            if (is_nan(got[i]) != is_nan(want[i]))
                fail_msg("level %d, token %d, element %d: got %g, expected %g", levels[level],
                         i / (HEADS * DIM), i % (HEADS * DIM), (double)value(got[i]),
                         (double)value(want[i]));
            numbers[0][i] = is_nan(got[i]) ? 0 : got[i];
            numbers[1][i] = is_nan(want[i]) ? 0 : want[i];
        }
        rig_same_bf16("attention", numbers[0], numbers[1], N);
        free(got);
    }
    free(want);
}

static void keys_of_all_scales_and_codes(void **state)
{
    uint8_t rows[T][ROW];

    (void)state;
    make_rows(rows);
    same_attention(rows);
}

static void a_nan_key_spoils_those_who_see_it(void **state)
{
    uint8_t rows[T][ROW];
    uint16_t *out;

    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        make_rows(rows);
        if (kind == 0)
            rows[6][70] = 0x7F;
        else if (kind == 1)
            rows[6][0] = 0xFF;
        else
            rows[6][PLAIN + 129] = 255; /* the scale */
        same_attention(rows);
    }
    for (int level = 0; level < N_LEVELS; level++) {
        out = attend(levels[level], rows);
        for (int i = 0; out != NULL && i < T * HEADS * DIM; i++)
            assert_int_equal(is_nan(out[i]), i / (HEADS * DIM) >= 6);
        free(out);
    }
}

/* ---- activations ---- */

enum { N_X = 8 * 128 };

static void make_activations(uint16_t *x)
{
    struct rig_random r = {13};

    rig_bf16(&r, x, N_X, 1);
    for (int i = 0; i < 128; i++) {
        x[i] = (uint16_t)((i + 1) | (i % 2) << 15); /* subnormals only: the scale has a floor */
        x[128 + i] = (uint16_t)(0x7F00 + i);        /* the largest */
        x[256 + i] = i % 3 ? x[256 + i] : (uint16_t)(1 + i); /* subnormals among others */
    }
    x[3 * 128] = 0x7F7F; /* one that leaves nothing of its neighbours */
    x[4 * 128 + 5] = 0x7FC0;
    x[5 * 128 + 127] = 0xFFC1;
    memset(x + 6 * 128, 0, 256);
    x[7 * 128 + 9] = 0x7F80;
}

static void activations_beyond_the_grid(void **state)
{
    struct kernel_dims d = rig_dims();
    uint16_t x[N_X], *want = NULL;

    (void)state;
    make_activations(x);
    for (int level = -1; level < N_LEVELS; level++) {
        struct rig r;

        if (!rig_open(&r, level < 0 ? CPU_ISA_REF : levels[level], &d, 1))
            continue;
        struct dev_ptr in = rig_put(&r, x, sizeof(x));
        struct dev_ptr out = rig_put(&r, NULL, r.k.ops->act_quant_bytes(&r.k, N_X));

        r.k.ops->act_quant(&r.k, out, in, 1, N_X);
        uint16_t *got = rig_get(&r, out, sizeof(x));

        for (int i = 0; want != NULL && i < N_X; i++)
            if (is_nan(got[i]) != is_nan(want[i]) ||
                (!is_nan(got[i]) && value(got[i]) != value(want[i])))
                fail_msg("level %d, element %d: x %04x, got %04x, expected %04x", levels[level], i,
                         x[i], got[i], want[i]);
        if (want == NULL)
            want = got;
        else
            free(got);
        r.k.ops->dev_free(&r.k, in);
        r.k.ops->dev_free(&r.k, out);
        rig_close(&r);
    }
    free(want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_of_all_scales_and_codes),
        cmocka_unit_test(a_nan_key_spoils_those_who_see_it),
        cmocka_unit_test(activations_beyond_the_grid),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
