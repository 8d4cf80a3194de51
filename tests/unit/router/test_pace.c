/* How long a new request would wait. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nobody_waits_while_there_are_places_or_nothing_is_known),
        cmocka_unit_test(one_place_comes_free_every_lifetime_over_places),
        cmocka_unit_test(the_first_token_of_those_that_wait_raises_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
