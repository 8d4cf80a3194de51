/* Pages and slots: all-or-none, shared owners, quarantine. */
#include "common/kv/slab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static struct slab *make(uint32_t n)
{
    struct slab *s = NULL;
    struct status st;

    assert_int_equal(slab_new("page", n, &s, &st), ST_OK);
    return s;
}

static void take_is_all_or_none(void **state)
{
    struct slab *s = make(4);
    uint32_t ids[5] = {99, 99, 99, 99, 99};
    struct status st;

    (void)state;
    assert_int_equal(slab_take(s, 5, ids, &st), ST_EXHAUSTED);
    assert_int_equal(ids[0], 99);
    assert_non_null(strstr(st.msg, "5 pages needed, 4 free"));
    assert_int_equal(slab_take(s, 4, ids, &st), ST_OK);
    assert_int_equal(slab_n_free(s), 0);
    slab_give(s, ids, 4);
    assert_int_equal(slab_n_free(s), 4);
    slab_free(s);
}

static void a_shared_unit_is_free_after_its_last_owner(void **state)
{
    struct slab *s = make(2);
    uint32_t id;
    struct status st;

    (void)state;
    assert_int_equal(slab_take(s, 1, &id, &st), ST_OK);
    slab_ref(s, &id, 1);
    slab_give(s, &id, 1);
    assert_int_equal(slab_n_free(s), 1);
    slab_give(s, &id, 1);
    assert_int_equal(slab_n_free(s), 2);
    slab_free(s);
}

static void a_quarantined_unit_is_not_handed_out_until_released(void **state)
{
    struct slab *s = make(2);
    uint32_t ids[2], other[2];
    struct status st;

    (void)state;
    assert_int_equal(slab_take(s, 2, ids, &st), ST_OK);
    slab_quarantine(s, ids, 1);
    slab_give(s, ids, 2);
    assert_int_equal(slab_n_free(s), 1);
    assert_int_equal(slab_n_quarantined(s), 1);
    assert_int_equal(slab_take(s, 2, other, &st), ST_EXHAUSTED);
    assert_int_equal(slab_take(s, 1, other, &st), ST_OK);
    assert_int_equal(other[0], ids[1]);
    slab_release(s, ids, 1);
    assert_int_equal(slab_n_quarantined(s), 0);
    assert_int_equal(slab_n_free(s), 1);
    slab_give(s, other, 1);
    slab_free(s);
}

static void random_owners_always_leave_the_counts_right(void **state)
{
    enum { N = 64 };
    struct slab *s = make(N);
    uint32_t owned[N], n = 0, seed = 7;
    struct status st;

    (void)state;
    for (int step = 0; step < 20000; step++) {
        seed = seed * 1664525u + 1013904223u;
        uint32_t want = (seed >> 16) % 5;

        if (seed & 1 && slab_take(s, want, owned + n, &st) == ST_OK) {
            n += want;
        } else if (n >= want) {
            n -= want;
            slab_quarantine(s, owned + n, want);
            slab_give(s, owned + n, want);
            assert_int_equal(slab_n_quarantined(s), want);
            slab_release(s, owned + n, want);
        }
        assert_int_equal(slab_n_free(s) + n, N);
    }
    slab_give(s, owned, n);
    assert_int_equal(slab_n_free(s), N);
    slab_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(take_is_all_or_none),
        cmocka_unit_test(a_shared_unit_is_free_after_its_last_owner),
        cmocka_unit_test(a_quarantined_unit_is_not_handed_out_until_released),
        cmocka_unit_test(random_owners_always_leave_the_counts_right),
    };

    return cmocka_run_group_tests_name("slab", tests, NULL, NULL);
}
