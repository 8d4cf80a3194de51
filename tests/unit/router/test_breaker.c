/* The breaker in time of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "router/breaker.h"

enum { MS = 1000 };

static void only_failures_of_the_workers_making_count(void **state)
{
    const enum status_code mine[] = {ST_UNAVAILABLE, ST_CORRUPT, ST_INTERNAL},
                           not_mine[] = {ST_OK, ST_INVALID, ST_EXHAUSTED, ST_CANCELLED, ST_TIMEOUT};

    (void)state;
    for (int i = 0; i < 3; i++)
        assert_true(breaker_counts(mine[i]));
    for (int i = 0; i < 5; i++)
        assert_false(breaker_counts(not_mine[i]));
}

static void it_opens_after_failures_in_a_row_and_not_before(void **state)
{
    struct breaker b = {0};

    (void)state;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i + 1 < BREAKER_FAILS; i++) {
            breaker_bad(&b, 0);
            assert_true(breaker_allows(&b));
        }
        breaker_good(&b); /* one that went well forgives the ones before */
    }
    for (int i = 0; i < BREAKER_FAILS; i++)
        breaker_bad(&b, 0);
    assert_false(breaker_allows(&b));
    assert_int_equal(b.opened_total, 1);
}

static void one_request_finds_out_and_closes_it(void **state)
{
    struct breaker b = {0};

    (void)state;
    for (int i = 0; i < BREAKER_FAILS; i++)
        breaker_bad(&b, 1000 * MS);
    assert_false(breaker_tick(&b, 1000 * MS + BREAKER_MIN_MS * MS - 1));
    assert_true(breaker_tick(&b, 1000 * MS + BREAKER_MIN_MS * MS));
    assert_false(breaker_tick(&b, 2000 * MS)); /* changed once */
    assert_true(breaker_allows(&b));
    assert_true(breaker_began(&b));
    assert_false(breaker_allows(&b)); /* only one */
    assert_false(breaker_began(&b));
    breaker_unsaid(&b, false); /* another request's end says nothing */
    assert_false(breaker_allows(&b));
    breaker_unsaid(&b, true); /* its client left: the next one finds out */
    assert_true(breaker_allows(&b));
    assert_true(breaker_began(&b));
    breaker_good(&b);
    assert_true(breaker_allows(&b));
    assert_false(breaker_began(&b));
}

static void the_wait_doubles_up_to_its_bound(void **state)
{
    struct breaker b = {0};
    uint64_t now = 0;
    unsigned want = BREAKER_MIN_MS;

    (void)state;
    for (int i = 0; i < BREAKER_FAILS; i++)
        breaker_bad(&b, now);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(b.wait_ms, want);
        now = b.until_us;
        assert_true(breaker_tick(&b, now));
        assert_true(breaker_began(&b));
        breaker_bad(&b, now);
        want = want * 2 < BREAKER_MAX_MS ? want * 2 : BREAKER_MAX_MS;
    }
    breaker_bad(&b, now + 1); /* late failures of requests from before: no longer wait */
    assert_int_equal(b.until_us, now + BREAKER_MAX_MS * MS);
    breaker_good(&b);
    assert_int_equal(b.wait_ms, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_failures_of_the_workers_making_count),
        cmocka_unit_test(it_opens_after_failures_in_a_row_and_not_before),
        cmocka_unit_test(one_request_finds_out_and_closes_it),
        cmocka_unit_test(the_wait_doubles_up_to_its_bound),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
