/* Every method gives the definition's value, with and without a copy, for every length, alignment
 * and split. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/crc32c.h"

static const char *const methods[] = {"vpclmulqdq", "pclmulqdq", "table"};

/* By the definition: a bit at a time. */
static uint32_t slow(uint32_t crc, const uint8_t *p, size_t n)
{
    crc = ~crc;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0x82F63B78 & -(crc & 1));
    }
    return ~crc;
}

static void fill(uint8_t *p, size_t n)
{
    uint32_t x = 12345;

    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
}

static void published_values(void **state)
{
    uint8_t ones[32], up[32], zeros[32] = {0};

    (void)state;
    memset(ones, 0xff, sizeof(ones));
    for (int i = 0; i < 32; i++)
        up[i] = (uint8_t)i;
    assert_int_equal(crc32c(0, "123456789", 9), 0xE3069283);
    assert_int_equal(crc32c(0, "", 0), 0);
    assert_int_equal(crc32c(0, zeros, 32), 0x8A9136AA); /* RFC 3720, B.4 */
    assert_int_equal(crc32c(0, ones, 32), 0x62A8AB43);
    assert_int_equal(crc32c(0, up, 32), 0x46DD794E);
}

static void every_length_and_alignment_by_every_method(void **state)
{
    enum { MAX = 1500, ROOM = MAX + 256 };
    uint8_t *from = malloc(ROOM), *to = malloc(ROOM);

    (void)state;
    fill(from, ROOM);
    for (size_t n = 0; n < MAX; n += n < 600 ? 1 : 37)
        for (size_t m = 0; m < 3; m++) {
            size_t a = (n * 7) % 65, b = (n * 5) % 67;
            uint32_t want = slow(99, from + a, n);

            assert_int_equal(crc32c_by(methods[m], 99, NULL, from + a, n), want);
            memset(to, 0xA5, ROOM);
            assert_int_equal(crc32c_by(methods[m], 99, to + b, from + a, n), want);
            crc32c_copy_end();
            assert_memory_equal(to + b, from + a, n);
            for (size_t i = 0; i < ROOM; i++)
                if (i < b || i >= b + n)
                    assert_int_equal(to[i], 0xA5);
        }
    free(from);
    free(to);
}

static void splits_do_not_matter(void **state)
{
    enum { N = 5000 };
    uint8_t *p = malloc(N);
    uint32_t whole;

    (void)state;
    fill(p, N);
    whole = slow(0, p, N);
    for (size_t cut = 0; cut <= N; cut += 61)
        for (size_t m = 0; m < 3; m++)
            assert_int_equal(crc32c_by(methods[m], crc32c_by(methods[m], 0, NULL, p, cut), NULL,
                                       p + cut, N - cut),
                             whole);
    free(p);
}

static void a_flipped_bit_changes_the_value(void **state)
{
    uint8_t p[1024];
    uint32_t want;

    (void)state;
    fill(p, sizeof(p));
    want = crc32c(0, p, sizeof(p));
    for (size_t bit = 0; bit < sizeof(p) * 8; bit++) {
        p[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_not_equal(crc32c(0, p, sizeof(p)), want);
        p[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_values),
        cmocka_unit_test(every_length_and_alignment_by_every_method),
        cmocka_unit_test(splits_do_not_matter),
        cmocka_unit_test(a_flipped_bit_changes_the_value),
    };

    return cmocka_run_group_tests_name("crc32c", tests, NULL, NULL);
}
