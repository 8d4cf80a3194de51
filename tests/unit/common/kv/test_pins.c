/* Pins against a plain array of end times, under random holds, drops and jumps of the clock. */
#include "common/kv/pins.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { UNITS = 40 };

struct rig {
    struct pins *pins;
    uint64_t now_s, end_s[UNITS]; /* 0: not held */
    uint64_t random;
    uint32_t n_ended;
};

static uint32_t below(struct rig *r, uint32_t n)
{
    r->random = r->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(r->random >> 33) % n;
}

static void on_ended(void *arg, uint32_t unit)
{
    struct rig *r = arg;

    assert_true(r->end_s[unit] > 0 && r->end_s[unit] <= r->now_s);
    assert_false(pins_has(r->pins, unit));
    r->end_s[unit] = 0;
    r->n_ended++;
}

static void check(const struct rig *r)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < UNITS; i++) {
        assert_int_equal(pins_end_s(r->pins, i), r->end_s[i]);
        assert_int_equal(pins_has(r->pins, i), r->end_s[i] > 0);
        assert_true(r->end_s[i] == 0 || r->end_s[i] > r->now_s);
        n += r->end_s[i] > 0;
    }
    assert_int_equal(pins_n(r->pins), n);
}

static void pass(struct rig *r, uint64_t seconds)
{
    r->now_s += seconds;
    pins_advance(r->pins, r->now_s, on_ended, r);
}

static void a_pin_ends_in_its_second_and_not_before(void **state)
{
    struct rig r = {.random = 1};
    struct status st;

    (void)state;
    assert_int_equal(pins_new(UNITS, &r.pins, &st), ST_OK);
    pass(&r, 1000000);
    pins_hold(r.pins, 7, 10);
    r.end_s[7] = r.now_s + 10;
    pins_hold(r.pins, 7, 3); /* the longer one stays */
    check(&r);
    pass(&r, 9);
    check(&r);
    assert_int_equal(r.n_ended, 0);
    pass(&r, 1);
    check(&r);
    assert_int_equal(r.n_ended, 1);
    pins_hold(r.pins, 7, UINT32_MAX); /* no longer than is possible */
    assert_int_equal(pins_end_s(r.pins, 7), r.now_s + PINS_SECONDS_MAX);
    pins_free(r.pins);
}

static void random_pins_end_when_they_should(void **state)
{
    struct rig r = {.random = 2};
    struct status st;

    (void)state;
    assert_int_equal(pins_new(UNITS, &r.pins, &st), ST_OK);
    for (int step = 0; step < 20000; step++) {
        uint32_t unit = below(&r, UNITS);

        switch (below(&r, 4)) {
        case 0:
        case 1: {
            uint32_t seconds = below(&r, below(&r, 2) ? 20 : PINS_SECONDS_MAX + 1);

            pins_hold(r.pins, unit, seconds);
            if (seconds > 0 && r.end_s[unit] < r.now_s + seconds)
                r.end_s[unit] = r.now_s + seconds;
            break;
        }
        case 2:
            pins_drop(r.pins, unit);
            r.end_s[unit] = 0;
            break;
        default: /* a tick, a while, or longer than a turn of the wheel */
            pass(&r, below(&r, 100) == 0 ? 9000 : below(&r, below(&r, 3) == 0 ? 500 : 3));
            break;
        }
        check(&r);
    }
    assert_true(r.n_ended > 1000);
    pins_free(r.pins);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pin_ends_in_its_second_and_not_before),
        cmocka_unit_test(random_pins_end_when_they_should),
    };

    return cmocka_run_group_tests_name("pins", tests, NULL, NULL);
}
