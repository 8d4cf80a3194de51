/* Who goes next, in time of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "router/admission.h"

static struct admission *make(size_t requests, uint64_t tokens, uint64_t wait_us)
{
    struct admission_config c = {requests, tokens, wait_us};
    struct admission *a;
    struct status st;

    assert_int_equal(admission_new(&c, &a, &st), ST_OK);
    return a;
}

static enum status_code wait_in(struct admission *a, struct admission_item *i, uint32_t share,
                                double weight, int priority, uint32_t tokens)
{
    struct admission_want w = {share, weight, priority, tokens};
    struct status st;

    return admission_wait(a, i, &w, 0, &st);
}

static struct admission_item *take(struct admission *a, uint64_t now)
{
    struct admission_item *i = admission_next(a);

    if (i != NULL)
        admission_take(a, i, now);
    return i;
}

static void one_key_is_first_come_first_served(void **state)
{
    struct admission *a = make(100, 0, 0);
    struct admission_item i[10] = {0};

    (void)state;
    assert_null(take(a, 0));
    for (int k = 0; k < 10; k++)
        assert_int_equal(wait_in(a, &i[k], 0, 1, 0, (uint32_t)k), ST_OK);
    admission_leave(a, &i[3]);
    admission_leave(a, &i[3]); /* twice is once */
    admission_leave(a, &i[9]);
    for (int k = 0; k < 9; k++)
        if (k != 3)
            assert_ptr_equal(take(a, 0), &i[k]);
    assert_null(take(a, 0));
    assert_int_equal(admission_n(a), 0);
    assert_int_equal(admission_tokens(a), 0);
    admission_free(a);
}

static void higher_priority_goes_first_and_extremes_are_the_nearest(void **state)
{
    struct admission *a = make(100, 0, 0);
    struct admission_item i[4] = {0};

    (void)state;
    wait_in(a, &i[0], 0, 1, INT32_MIN, 1);
    wait_in(a, &i[1], 1, 1, 0, 1);
    wait_in(a, &i[2], 0, 1, INT32_MAX, 1);
    wait_in(a, &i[3], 1, 1, 3, 1);
    assert_ptr_equal(take(a, 0), &i[2]);
    assert_ptr_equal(take(a, 0), &i[3]);
    assert_ptr_equal(take(a, 0), &i[1]);
    assert_ptr_equal(take(a, 0), &i[0]);
    admission_free(a);
}

static void keys_share_by_tokens_and_weight_whoever_asks_more(void **state)
{
    enum { N = 3000 };
    struct admission *a = make(N, 0, 0);
    static struct admission_item i[N];
    double had[3] = {0};

    (void)state;
    for (int k = 0; k < N; k++) { /* key 0 asks most; key 1 asks big ones; key 2 counts double */
        int who = k % 10 < 6 ? 0 : k % 10 < 8 ? 1 : 2;

        assert_int_equal(wait_in(a, &i[k], (uint32_t)who, who == 2 ? 2 : 1, 0, who == 1 ? 999 : 99),
                         ST_OK);
    }
    for (int k = 0; k < 600; k++) {
        struct admission_item *item = take(a, 0);
        int at = (int)(item - i), who = at % 10 < 6 ? 0 : at % 10 < 8 ? 1 : 2;

        had[who] += who == 1 ? 1000 : 100;
    }
    assert_true(had[1] / had[0] > 0.9 && had[1] / had[0] < 1.1);
    assert_true(had[2] / had[0] > 1.8 && had[2] / had[0] < 2.2);
    while (take(a, 0) != NULL) {
    }
    admission_free(a);
}

static void who_was_away_does_not_come_back_with_a_claim(void **state)
{
    struct admission *a = make(1000, 0, 0);
    static struct admission_item i[200];
    int late = 0;

    (void)state;
    for (int k = 0; k < 100; k++)
        wait_in(a, &i[k], 0, 1, 0, 99);
    for (int k = 0; k < 50; k++)
        take(a, 0);
    for (int k = 100; k < 200; k++)
        wait_in(a, &i[k], 1, 1, 0, 99);
    for (int k = 0; k < 40; k++)
        late += take(a, 0) >= &i[100];
    assert_in_range(late, 18, 22); /* turns, not 40 in a row */
    while (take(a, 0) != NULL) {
    }
    admission_free(a);
}

static void limits_hold_by_requests_tokens_and_wait(void **state)
{
    struct admission *a = make(3, 1000, 0);
    struct admission_item i[8] = {0};

    (void)state;
    assert_int_equal(wait_in(a, &i[0], 0, 1, 0, 400), ST_OK);
    assert_int_equal(wait_in(a, &i[1], 0, 1, 0, 601), ST_EXHAUSTED);
    assert_int_equal(wait_in(a, &i[1], 0, 1, 0, 600), ST_OK);
    assert_int_equal(wait_in(a, &i[2], 0, 1, 0, 0), ST_OK);
    assert_int_equal(wait_in(a, &i[3], 0, 1, 0, 0), ST_EXHAUSTED);
    admission_leave(a, &i[1]);
    assert_int_equal(wait_in(a, &i[3], 0, 1, 0, 600), ST_OK);
    while (take(a, 0) != NULL) {
    }
    admission_free(a);
    a = make(100, 0, 5000);
    for (int k = 0; k < 8; k++)
        assert_int_equal(wait_in(a, &i[k], 0, 1, 0, 1), ST_OK); /* nothing is known yet */
    take(a, 1000);
    take(a, 3000); /* one each 2 ms, 6 wait */
    assert_int_equal(admission_estimate_us(a), 14000);
    assert_int_equal(wait_in(a, &i[0], 0, 1, 0, 1), ST_EXHAUSTED);
    while (take(a, 4000) != NULL) {
    }
    admission_free(a);
    a = make(0, 0, 0);
    assert_int_equal(wait_in(a, &i[0], 0, 1, 0, 1), ST_EXHAUSTED);
    admission_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_key_is_first_come_first_served),
        cmocka_unit_test(higher_priority_goes_first_and_extremes_are_the_nearest),
        cmocka_unit_test(keys_share_by_tokens_and_weight_whoever_asks_more),
        cmocka_unit_test(who_was_away_does_not_come_back_with_a_claim),
        cmocka_unit_test(limits_hold_by_requests_tokens_and_wait),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
