/* kernels/ref/formats.h against the definitions of the formats: every code, every bf16 value, both
 * sides of every boundary. */
#include "kernels/ref/formats.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

static float next_up(float x)
{
    return nextafterf(x, INFINITY);
}

static float next_down(float x)
{
    return nextafterf(x, -INFINITY);
}

/* ---- bf16 ---- */

static void bf16_rounds_to_nearest_and_ties_to_even(void **state)
{
    (void)state;
    for (uint32_t b = 0; b < 0x7F7F; b++) { /* every gap between neighbours, finite ones */
        float lo = bf16_decode((uint16_t)b), middle = f32_from_bits(b << 16 | 0x8000);
        uint16_t even = (uint16_t)(b + (b & 1));

        assert_int_equal(bf16_encode(lo), b);
        assert_int_equal(bf16_encode(next_down(middle)), b);
        assert_int_equal(bf16_encode(middle), even);
        assert_int_equal(bf16_encode(next_up(middle)), b + 1);
        assert_int_equal(bf16_encode(-middle), even | 0x8000);
    }
}

static void bf16_overflows_to_infinity_and_keeps_nan(void **state)
{
    (void)state;
    assert_int_equal(bf16_encode(INFINITY), 0x7F80);
    assert_int_equal(bf16_encode(-INFINITY), 0xFF80);
    assert_int_equal(bf16_encode(0x1.FFp127f), 0x7F80); /* half a step above the largest */
    assert_int_equal(bf16_encode(next_down(0x1.FFp127f)), 0x7F7F);
    assert_int_equal(bf16_round(1e300), 0x7F80);
    for (uint32_t low = 1; low < 0x800000; low = low * 2 + 1) {
        assert_true(isnan(bf16_decode(bf16_encode(f32_from_bits(0x7F800000 | low)))));
        assert_true(isnan(bf16_decode(bf16_encode(f32_from_bits(0xFF800000 | low)))));
    }
}

static void a_double_becomes_bf16_through_f32(void **state)
{
    /* Just above a tie of bf16, but on it after rounding to f32: goes to even, as an f32 sum would.
     */
    (void)state;
    assert_int_equal(bf16_round(1 + 0x1p-8 + 0x1p-40), 0x3F80);
    assert_int_equal(bf16_round(1 + 0x1p-8 + 0x1p-23), 0x3F81);
    assert_true(bf16_grid(1 + 0x1p-8 + 0x1p-40) == 1);
}

/* ---- the 8 and 4 bit floats ---- */

/* Value of a code by the format's definition. */
static double small_float(int code, int mantissa_bits, int bias)
{
    int m = code & ((1 << mantissa_bits) - 1), e = code >> mantissa_bits;

    return e == 0 ? ldexp(m, 1 - bias - mantissa_bits)
                  : ldexp((1 << mantissa_bits) + m, e - bias - mantissa_bits);
}

static void e4m3_codes_have_the_values_of_the_format(void **state)
{
    (void)state;
    for (int c = 0; c < 127; c++) {
        assert_true((double)e4m3_decode((uint8_t)c) == small_float(c, 3, 7));
        assert_true((double)e4m3_decode((uint8_t)(c | 128)) == -small_float(c, 3, 7));
        assert_int_equal(e4m3_encode(e4m3_decode((uint8_t)c)), c);
        assert_int_equal(e4m3_encode(e4m3_decode((uint8_t)(c | 128))), c | 128);
    }
    assert_true(e4m3_decode(126) == 448);
    assert_true(isnan(e4m3_decode(0x7F)) && isnan(e4m3_decode(0xFF)));
    assert_int_equal(e4m3_encode(NAN) & 127, 127);
}

static void e4m3_rounds_to_nearest_and_ties_to_even(void **state)
{
    (void)state;
    for (int c = 0; c < 126; c++) {
        float middle = (e4m3_decode((uint8_t)c) + e4m3_decode((uint8_t)(c + 1))) / 2;

        assert_int_equal(e4m3_encode(next_down(middle)), c);
        assert_int_equal(e4m3_encode(middle), c + (c & 1));
        assert_int_equal(e4m3_encode(next_up(middle)), c + 1);
        assert_int_equal(e4m3_encode(-middle), (c + (c & 1)) | 128);
    }
    assert_int_equal(e4m3_encode(0x1p-140f), 0); /* far below the smallest step */
    assert_int_equal(e4m3_encode(-0x1p-140f), 0x80);
}

static void e2m1_codes_have_the_values_of_the_format(void **state)
{
    static const float values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};

    (void)state;
    for (unsigned c = 0; c < 8; c++) {
        assert_true(e2m1_decode(c) == values[c] && (double)values[c] == small_float((int)c, 1, 1));
        assert_true(e2m1_decode(c | 8) == -values[c] && signbit(e2m1_decode(c | 8)));
        assert_int_equal(e2m1_encode(values[c]), c);
        assert_int_equal(e2m1_encode(-values[c]), c | 8);
    }
}

static void e2m1_rounds_to_nearest_and_ties_to_even(void **state)
{
    (void)state;
    for (unsigned c = 0; c < 7; c++) {
        float middle = (e2m1_decode(c) + e2m1_decode(c + 1)) / 2;

        assert_int_equal(e2m1_encode(next_down(middle)), c);
        assert_int_equal(e2m1_encode(middle), c + (c & 1));
        assert_int_equal(e2m1_encode(next_up(middle)), c + 1);
        assert_int_equal(e2m1_encode(-middle), (c + (c & 1)) | 8);
    }
}

/* ---- scales ---- */

static void e8m0_bytes_are_powers_of_two(void **state)
{
    (void)state;
    for (int e = 0; e < 255; e++)
        assert_true((double)e8m0_decode((uint8_t)e) == ldexp(1, e - 127));
    assert_true(isnan(e8m0_decode(255)));
}

static void e8m0_ceil_is_the_next_power_of_two(void **state)
{
    (void)state;
    for (int e = 1; e < 254; e++) {
        float power = ldexpf(1, e - 127);

        assert_int_equal(e8m0_ceil(power), e);
        assert_int_equal(e8m0_ceil(next_up(power)), e + 1);
        assert_int_equal(e8m0_ceil(next_down(2 * power)), e + 1);
    }
    assert_int_equal(e8m0_ceil(INFINITY), 255);
    assert_int_equal(e8m0_ceil(NAN), 255);
}

/* tests/oracle/README.md: for bf16 amax = m 2^e, FP8 has 2^(e - 8) while m <= 1.75, FP4 2^(e - 2)
 * while m <= 1.5, else twice that. */
static void block_scales_follow_the_exponent_of_the_largest(void **state)
{
    (void)state;
    for (uint32_t b = 0x0080; b < 0x7F80; b++) { /* all positive normal bf16 */
        float amax = bf16_decode((uint16_t)b);
        int e = (int)(b >> 7) - 127, m = (int)(b & 127); /* m: of 128 */
        int fp8 = e - 8 + (m > 96), fp4 = e - 2 + (m > 64);

        if (amax < 1e-4f)
            fp8 = -22; /* 1e-4 / 448, rounded up */
        if (fp4 < -126)
            fp4 = -126;
        assert_int_equal(fp8_scale(amax), fp8 + 127);
        assert_int_equal(fp4_scale(amax), fp4 + 127);
    }
    assert_int_equal(fp8_scale(0), 127 - 22);
    assert_int_equal(fp4_scale(0), 1);
}

/* ---- blocks and rows ---- */

/* A small generator: the same numbers everywhere. */
static float random_value(uint32_t *seed, float size)
{
    *seed = *seed * 1664525u + 1013904223u;
    return ((float)(*seed >> 8) / 0x1p23f - 1) * size;
}

enum { D = 192, R = 64, ROW_BYTES = 264 }; /* 128 codes, 64 bf16, 2 scales, padding */

static void a_kv_row_holds_what_it_was_given_rounded_once(void **state)
{
    uint32_t seed = 1;

    (void)state;
    for (int round = 0; round < 200; round++) {
        float x[D], once[D], twice[D], size = ldexpf(1, round - 100);
        uint8_t row[ROW_BYTES + 1], again[ROW_BYTES];

        row[ROW_BYTES] = 0xA5;
        for (int i = 0; i < D; i++)
            x[i] = bf16_grid((double)random_value(&seed, size));
        kv_row_pack(row, x, D, R, ROW_BYTES);
        kv_row_unpack(once, row, D, R);
        for (int i = D - R; i < D; i++)
            assert_true(once[i] == x[i]);
        for (int i = 0; i < D - R; i++) { /* half a step of 2^-3; below the normal ones, of 2^-9 */
            float scale = e8m0_decode(row[D + R + i / 64]);
            float slack = fmaxf(fabsf(x[i]) * 0x1p-4f, scale * 0x1p-10f);

            if (!(fabsf(once[i] - x[i]) <= slack))
                fail_msg("seed 1, round %d, element %d: %g became %g", round, i, (double)x[i],
                         (double)once[i]);
        }
        kv_row_pack(again, once, D, R, ROW_BYTES);
        kv_row_unpack(twice, again, D, R);
        assert_memory_equal(once, twice, sizeof(once));
        assert_int_equal(row[ROW_BYTES], 0xA5);
        for (int i = D - R + 2 * R + 2; i < ROW_BYTES; i++)
            assert_int_equal(row[i], 0);
    }
}

static void an_index_key_is_rounded_once(void **state)
{
    uint32_t seed = 2;

    (void)state;
    for (int round = 0; round < 200; round++) {
        float x[128], once[128], twice[128], size = ldexpf(1, round - 100);
        uint8_t key[68];

        for (int i = 0; i < 128; i++)
            x[i] = bf16_grid((double)random_value(&seed, size));
        key_row_pack(key, x, 128);
        key_row_unpack(once, key, 128);
        for (int i = 0; i < 128; i++)
            assert_true(fabsf(once[i] - x[i]) <= e8m0_decode(key[64 + i / 32])); /* gap 4..6 */
        key_row_pack(key, once, 128);
        key_row_unpack(twice, key, 128);
        assert_memory_equal(once, twice, sizeof(once));
    }
}

static void the_low_nibble_comes_first(void **state)
{
    float x[32] = {1, -6, 0.5f};
    uint8_t pairs[16];

    (void)state;
    assert_int_equal(fp4_quantise(pairs, x, 32), 127); /* largest 6: scale 1 */
    assert_int_equal(pairs[0], 0xF2);
    assert_int_equal(pairs[1], 0x01);
}

static void a_nan_or_an_infinity_spoils_its_block_and_no_other(void **state)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};

    (void)state;
    for (int k = 0; k < 3; k++)
        for (int at = 0; at < 128; at += 21) {
            float x[D], y[D];
            uint8_t row[ROW_BYTES], key[68];
            uint16_t b[256];

            for (int i = 0; i < D; i++)
                x[i] = 1;
            x[at] = bad[k];
            kv_row_pack(row, x, D, R, ROW_BYTES);
            kv_row_unpack(y, row, D, R);
            for (int i = 0; i < D; i++)
                assert_true(i / 64 == at / 64 ? isnan(y[i]) : y[i] == 1);
            key_row_pack(key, x, 128);
            key_row_unpack(y, key, 128);
            for (int i = 0; i < 128; i++)
                assert_true(i / 32 == at / 32 ? isnan(y[i]) : y[i] == 1);
            for (int i = 0; i < 256; i++)
                b[i] = bf16_encode(i == at ? bad[k] : 1);
            fp8_grid_row(b, b, 256);
            for (int i = 0; i < 256; i++)
                assert_true(i < 128 ? isnan(bf16_decode(b[i])) : b[i] == 0x3F80);
        }
}

static void zeros_stay_zeros(void **state)
{
    float x[D] = {0}, y[D];
    uint8_t row[ROW_BYTES];

    (void)state;
    x[3] = -0.0f;
    kv_row_pack(row, x, D, R, ROW_BYTES);
    kv_row_unpack(y, row, D, R);
    for (int i = 0; i < D; i++)
        assert_true(y[i] == 0);
    assert_true(signbit(y[3]) && !signbit(y[2]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bf16_rounds_to_nearest_and_ties_to_even),
        cmocka_unit_test(bf16_overflows_to_infinity_and_keeps_nan),
        cmocka_unit_test(a_double_becomes_bf16_through_f32),
        cmocka_unit_test(e4m3_codes_have_the_values_of_the_format),
        cmocka_unit_test(e4m3_rounds_to_nearest_and_ties_to_even),
        cmocka_unit_test(e2m1_codes_have_the_values_of_the_format),
        cmocka_unit_test(e2m1_rounds_to_nearest_and_ties_to_even),
        cmocka_unit_test(e8m0_bytes_are_powers_of_two),
        cmocka_unit_test(e8m0_ceil_is_the_next_power_of_two),
        cmocka_unit_test(block_scales_follow_the_exponent_of_the_largest),
        cmocka_unit_test(a_kv_row_holds_what_it_was_given_rounded_once),
        cmocka_unit_test(an_index_key_is_rounded_once),
        cmocka_unit_test(the_low_nibble_comes_first),
        cmocka_unit_test(a_nan_or_an_infinity_spoils_its_block_and_no_other),
        cmocka_unit_test(zeros_stay_zeros),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
