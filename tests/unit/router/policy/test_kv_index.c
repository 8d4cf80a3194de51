/* kv_index against a plain table that remembers everything. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "router/policy/kv_index.h"

enum { BYTES = 64 << 20, HOLDERS = 40, PAGES = 3000 };

static struct kv_index *make(size_t bytes)
{
    struct kv_index *ix;
    struct status st;

    assert_int_equal(kv_index_new(bytes, 7, &ix, &st), ST_OK);
    return ix;
}

static uint64_t rnd(uint64_t *s)
{
    *s = *s * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return *s >> 33;
}

static uint64_t name_of(uint32_t page)
{
    return (page + 1) * UINT64_C(0x9e3779b97f4a7c15);
}

static bool finds(struct kv_index *ix, uint64_t page, uint32_t holder)
{
    const uint16_t *holders = NULL;
    size_t n = kv_index_find(ix, page, &holders), seen = 0;

    for (size_t i = 0; i < n; i++)
        seen += holders[i] == holder;
    assert_true(seen <= 1);
    return seen == 1;
}

static void it_agrees_with_a_plain_table_after_many_changes(void **state)
{
    static bool model[PAGES][HOLDERS];
    struct kv_index *ix = make(BYTES);
    uint32_t id[HOLDERS];
    uint64_t s = 1;

    (void)state;
    for (int h = 0; h < HOLDERS; h++)
        id[h] = kv_index_holder_new(ix);
    for (int i = 0; i < 200000; i++) {
        uint32_t page = (uint32_t)rnd(&s) % PAGES, h = (uint32_t)rnd(&s) % HOLDERS;
        uint32_t what = (uint32_t)rnd(&s) % 1000;

        if (what < 600) {
            assert_true(kv_index_insert(ix, name_of(page), id[h]));
            model[page][h] = true;
        } else if (what < 998) {
            kv_index_remove(ix, name_of(page), id[h]);
            model[page][h] = false;
        } else {
            kv_index_holder_drop(ix, id[h]);
            for (int p = 0; p < PAGES; p++)
                model[p][h] = false;
            if (what == 999)
                while (kv_index_sweep(ix, 100)) {
                }
            id[h] = kv_index_holder_new(ix);
        }
    }
    for (uint32_t page = 0; page < PAGES; page++)
        for (int h = 0; h < HOLDERS; h++) {
            assert_int_equal(finds(ix, name_of(page), id[h]), model[page][h]);
            assert_int_equal(kv_index_holds(ix, name_of(page), id[h]), model[page][h]);
        }
    kv_index_free(ix);
}

static void a_dropped_holder_is_forgotten_at_once_and_its_number_comes_back(void **state)
{
    struct kv_index *ix = make(BYTES);
    struct kv_index_stats st;
    uint32_t a = kv_index_holder_new(ix), b = kv_index_holder_new(ix), c;

    (void)state;
    for (uint32_t page = 0; page < 5000; page++) {
        kv_index_insert(ix, name_of(page), a);
        if (page % 2 == 0)
            kv_index_insert(ix, name_of(page), b);
    }
    kv_index_holder_drop(ix, a);
    assert_false(kv_index_holder_lives(ix, a));
    c = kv_index_holder_new(ix);
    assert_int_not_equal(c, a); /* its leftovers still stand in the tables */
    while (kv_index_sweep(ix, 10)) {
    }
    kv_index_stats(ix, &st);
    assert_int_equal(st.n_pages, 2500);
    assert_int_equal(kv_index_holder_new(ix), a);
    for (uint32_t page = 0; page < 5000; page++) {
        assert_false(finds(ix, name_of(page), a));
        assert_int_equal(finds(ix, name_of(page), b), page % 2 == 0);
    }
    kv_index_free(ix);
}

static void the_cap_holds_and_what_is_asked_for_stays(void **state)
{
    struct kv_index *ix = make(2 << 20);
    struct kv_index_stats st;
    uint32_t h = kv_index_holder_new(ix);
    const uint16_t *holders;
    uint32_t hot = 0;

    (void)state;
    for (uint32_t page = 0; page < 100; page++)
        kv_index_insert(ix, name_of(page), h);
    for (uint32_t page = 100; page < 400000; page++) {
        kv_index_insert(ix, name_of(page), h);
        if (page % 500 == 0)
            for (uint32_t k = 0; k < 100; k++)
                (void)kv_index_find(ix, name_of(k), &holders);
        if (page % 10000 == 0) {
            kv_index_stats(ix, &st);
            assert_true(st.bytes <= 2 << 20);
        }
    }
    kv_index_stats(ix, &st);
    assert_true(st.n_pages > 50000);
    assert_true(st.dropped_total > 200000);
    for (uint32_t page = 0; page < 100; page++)
        hot += kv_index_holds(ix, name_of(page), h);
    assert_int_equal(hot, 100);
    kv_index_free(ix);
}

static void many_holders_of_one_page_are_all_found(void **state)
{
    struct kv_index *ix = make(BYTES);
    const uint16_t *holders;
    static uint32_t id[5000];

    (void)state;
    for (int i = 0; i < 5000; i++) {
        id[i] = kv_index_holder_new(ix);
        kv_index_insert(ix, 99, id[i]);
        kv_index_insert(ix, 99, id[i]); /* twice is once */
    }
    assert_int_equal(kv_index_find(ix, 99, &holders), 5000);
    for (int i = 0; i < 5000; i += 2)
        kv_index_remove(ix, 99, id[i]);
    assert_int_equal(kv_index_find(ix, 99, &holders), 2500);
    for (int i = 0; i < 5000; i++)
        assert_int_equal(kv_index_holds(ix, 99, id[i]), i % 2);
    for (int i = 1; i < 5000; i += 2)
        kv_index_remove(ix, 99, id[i]);
    assert_int_equal(kv_index_find(ix, 99, &holders), 0);
    kv_index_free(ix);
}

static void holders_run_out_and_a_zero_name_is_nobody(void **state)
{
    struct kv_index *ix = make(BYTES);
    struct status st;

    (void)state;
    for (int i = 0; i < KV_INDEX_HOLDERS_MAX; i++)
        assert_int_not_equal(kv_index_holder_new(ix), KV_INDEX_NO_HOLDER);
    assert_int_equal(kv_index_holder_new(ix), KV_INDEX_NO_HOLDER);
    kv_index_holder_drop(ix, 17);
    while (kv_index_sweep(ix, 1024)) {
    }
    assert_int_equal(kv_index_holder_new(ix), 17);
    assert_false(kv_index_insert(ix, 0, 17));
    assert_false(kv_index_holds(ix, 0, 17));
    kv_index_free(ix);
    assert_int_equal(kv_index_new(1000, 1, &ix, &st), ST_INVALID);
}

static void few_tables_grow_within_any_burst(void **state)
{
    enum { N = 3000000, FROM = 500000, BURST = 256 };
    struct kv_index *ix = make((size_t)256 << 20);
    uint32_t h = kv_index_holder_new(ix);
    struct kv_index_stats stats;
    unsigned grown = 0, most = 0;
    size_t bytes = 0;
    uint64_t s = 3;

    (void)state;
    for (uint32_t i = 0; i < N; i++) {
        uint64_t name = rnd(&s) << 32 ^ rnd(&s);

        assert_true(kv_index_insert(ix, name | 1, h));
        kv_index_stats(ix, &stats);
        grown += i >= FROM && stats.bytes != bytes;
        bytes = stats.bytes;
        if (i % BURST == 0) {
            most = grown > most ? grown : most;
            grown = 0;
        }
    }
    assert_true(most > 0 && most <= 8); /* of 1024 */
    kv_index_free(ix);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_agrees_with_a_plain_table_after_many_changes),
        cmocka_unit_test(a_dropped_holder_is_forgotten_at_once_and_its_number_comes_back),
        cmocka_unit_test(the_cap_holds_and_what_is_asked_for_stays),
        cmocka_unit_test(many_holders_of_one_page_are_all_found),
        cmocka_unit_test(few_tables_grow_within_any_burst),
        cmocka_unit_test(holders_run_out_and_a_zero_name_is_nobody),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
