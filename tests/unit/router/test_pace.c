/* How long a new request would wait. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "router/pace.h"

static void nobody_waits_while_there_are_places_or_nothing_is_known(void **state)
{
    struct pace p = {0};

    (void)state;
    assert_true(pace_wait_us(&p, 1000, 8) == 0);
    pace_end(&p, 80000);
    assert_true(pace_wait_us(&p, 7, 8) == 0);
}

static void one_place_comes_free_every_lifetime_over_places(void **state)
{
    struct pace p = {0};

    (void)state;
    pace_end(&p, 80000);
    assert_true(pace_wait_us(&p, 8, 8) == 10000);
    assert_true(pace_wait_us(&p, 17, 8) == 100000);
    for (int i = 0; i < 500; i++)
        pace_end(&p, 160000);
    assert_true(pace_wait_us(&p, 8, 8) > 19900 && pace_wait_us(&p, 8, 8) < 20100);
}

static void the_first_token_of_those_that_wait_raises_nothing(void **state)
{
    struct pace p = {0};

    (void)state;
    pace_first_token(&p, 100000, 1);
    for (int i = 0; i < 400; i++)
        pace_first_token(&p, 200000, 0);
    assert_true(p.ttft_us == 100000);
    for (int i = 0; i < 200; i++)
        pace_first_token(&p, 50000, 0);
    assert_true(p.ttft_us < 50100);
    for (int i = 0; i < 200; i++)
        pace_first_token(&p, 90000, 1);
    assert_true(p.ttft_us > 89900);
}

static void the_kth_end_is_found_whatever_the_order(void **state)
{
    uint64_t seed = 1, values[200], copy[200];

    (void)state;
    for (int round = 0; round < 2000; round++) {
        size_t n = 1 + (size_t)round % 200, k;

        for (size_t i = 0; i < n; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            values[i] = (seed >> 40) % (uint64_t)(1 + round % 50); /* many are equal */
        }
        k = 1 + (seed >> 33) % n;
        memcpy(copy, values, sizeof(copy));
        uint64_t got = pace_kth(copy, n, k);
        size_t less = 0, equal = 0;

        for (size_t i = 0; i < n; i++) {
            less += values[i] < got;
            equal += values[i] == got;
        }
        assert_true(less < k && k <= less + equal);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nobody_waits_while_there_are_places_or_nothing_is_known),
        cmocka_unit_test(one_place_comes_free_every_lifetime_over_places),
        cmocka_unit_test(the_kth_end_is_found_whatever_the_order),
        cmocka_unit_test(the_first_token_of_those_that_wait_raises_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
