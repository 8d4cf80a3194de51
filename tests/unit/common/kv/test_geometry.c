/* The layout of KV pages and slots: sizes of the real models, no overlap, live runs. */
#include "common/kv/geometry.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void flash(struct kv_geometry *g)
{
    int ratios[44];
    struct status st;

    for (int i = 0; i < 44; i++)
        ratios[i] = i < 2 || i == 43 ? 0 : i % 2 == 0 ? 4 : 128;
    struct kv_geometry_params p = {44, ratios, 512, 64, 128, 128};
    assert_int_equal(kv_geometry_init(g, &p, &st), ST_OK);
}

static void flash_rows_and_pages_have_the_released_sizes(void **state)
{
    struct kv_geometry g;

    (void)state;
    flash(&g);
    assert_int_equal(g.row_bytes, 584);
    assert_int_equal(g.key_bytes, 68);
    /* 21 layers of ratio 4: 64 entries and keys each; 20 of ratio 128: 2 entries each. */
    assert_int_equal(g.page_bytes, (21 * 64 * (584 + 68) + 20 * 2 * 584 + 63) / 64 * 64);
    assert_int_equal(g.pool_bytes[KV_C4], 21 * 64 * 584);
    assert_int_equal(g.pool_bytes[KV_INDEXER], 21 * 64 * 68);
    assert_int_equal(g.pool_bytes[KV_C128], 20 * 2 * 584);
}

/* What a token of a 32K request costs; SGLang's default spends 7.7 to 9.3 KB. */
static void all_kv_of_a_long_flash_request_is_small(void **state)
{
    enum { TOKENS = 32768 };
    struct kv_geometry g;
    uint64_t live, kept;

    (void)state;
    flash(&g);
    live = kv_bytes_per_token(&g, TOKENS);
    kept = live + (kv_snapshot_bytes(&g) + TOKENS - 1) / TOKENS;
    print_message("%llu bytes a token, with the state at the end of its prompt %llu\n",
                  (unsigned long long)live, (unsigned long long)kept);
    assert_int_equal(live, (128 * g.page_bytes + g.slot_bytes + TOKENS - 1) / TOKENS);
    assert_true(live <= 4100);
    assert_true(kept * 10 <= 41 * 1024);
}

/* Marks [off, off + n) in a map; fails when a byte was taken before. */
static void claim(unsigned char *map, size_t size, size_t off, size_t n)
{
    assert_true(off + n <= size);
    for (size_t i = off; i < off + n; i++) {
        assert_int_equal(map[i], 0);
        map[i] = 1;
    }
}

static void parts_never_overlap_and_stay_inside(void **state)
{
    struct kv_geometry g;
    unsigned char *page, *slot;

    (void)state;
    flash(&g);
    page = calloc(1, g.page_bytes);
    slot = calloc(1, g.slot_bytes);
    for (int i = 0; i < g.n_layers; i++) {
        const struct kv_layer *l = &g.layers[i];

        claim(slot, g.slot_bytes, l->window_off, (size_t)g.window_rows * g.row_bytes);
        if (l->ratio == 0)
            continue;
        claim(page, g.page_bytes, l->entry_off, (size_t)l->entries * g.row_bytes);
        claim(slot, g.slot_bytes, l->comp_off, (size_t)l->comp_rows * l->comp_row_bytes);
        if (l->ratio == 4) {
            claim(page, g.page_bytes, l->key_off, (size_t)l->entries * g.key_bytes);
            claim(slot, g.slot_bytes, l->index_comp_off,
                  (size_t)l->comp_rows * l->index_comp_row_bytes);
        }
    }
    free(page);
    free(slot);
}

static void a_full_page_is_one_run(void **state)
{
    struct kv_geometry g;
    struct kv_run runs[3 * KV_LAYERS_MAX];

    (void)state;
    flash(&g);
    assert_int_equal(kv_page_runs(&g, 256, runs, 3 * KV_LAYERS_MAX), 1);
    assert_int_equal(runs[0].offset, 0);
    assert_int_equal(runs[0].bytes, 21 * 64 * (584 + 68) + 20 * 2 * 584);
    assert_int_equal(kv_page_runs(&g, 3, runs, 3 * KV_LAYERS_MAX), 0);
    assert_int_equal(kv_page_runs(&g, 4, runs, 3 * KV_LAYERS_MAX), 42);
    assert_int_equal(runs[0].bytes, 584);
}

static uint64_t total(const struct kv_run *runs, size_t n, uint64_t bound)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < n; i++) {
        assert_true((uint64_t)runs[i].offset + runs[i].bytes <= bound);
        for (size_t j = 0; j < i; j++) /* disjoint */
            assert_true(runs[j].offset + runs[j].bytes <= runs[i].offset ||
                        runs[i].offset + runs[i].bytes <= runs[j].offset);
        sum += runs[i].bytes;
    }
    return sum;
}

static void slot_runs_hold_exactly_what_the_next_token_reads(void **state)
{
    struct kv_geometry g;
    struct kv_run runs[6 * KV_LAYERS_MAX];

    (void)state;
    flash(&g);
    for (uint64_t length = 1; length < 700; length += length < 20 ? 1 : 13) {
        size_t n = kv_slot_runs(&g, length, runs, 6 * KV_LAYERS_MAX);
        uint64_t window = length < 128 ? length : 128;
        uint64_t c4 = length % 4 + (length >= 4 ? 4 : 0);
        uint64_t want = 44 * window * 584 + 21 * c4 * (2 * 1024 * 4 + 2 * 256 * 4) +
                        20 * (length % 128) * (2 * 512 * 4);

        assert_int_equal(total(runs, n, g.slot_bytes), want);
    }
}

static void different_layouts_have_different_fingerprints(void **state)
{
    struct kv_geometry a, b;
    int ratios[3] = {0, 4, 128}, swapped[3] = {0, 128, 4};
    struct status st;
    struct kv_geometry_params p = {3, ratios, 192, 64, 128, 128};

    (void)state;
    assert_int_equal(kv_geometry_init(&a, &p, &st), ST_OK);
    assert_int_equal(kv_geometry_init(&b, &p, &st), ST_OK);
    assert_int_equal(kv_geometry_fingerprint(&a), kv_geometry_fingerprint(&b));
    p.ratios = swapped;
    assert_int_equal(kv_geometry_init(&b, &p, &st), ST_OK);
    assert_int_not_equal(kv_geometry_fingerprint(&a), kv_geometry_fingerprint(&b));
}

static void impossible_layouts_are_refused_with_the_numbers(void **state)
{
    int ratios[2] = {0, 5};
    struct kv_geometry g;
    struct status st;
    struct kv_geometry_params p = {2, ratios, 192, 64, 128, 128};

    (void)state;
    assert_int_equal(kv_geometry_init(&g, &p, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "ratio 5"));
    ratios[1] = 4;
    p.head_dim = 200;
    assert_int_equal(kv_geometry_init(&g, &p, &st), ST_INVALID);
    p.head_dim = 192;
    p.n_layers = KV_LAYERS_MAX + 1;
    assert_int_equal(kv_geometry_init(&g, &p, &st), ST_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flash_rows_and_pages_have_the_released_sizes),
        cmocka_unit_test(all_kv_of_a_long_flash_request_is_small),
        cmocka_unit_test(parts_never_overlap_and_stay_inside),
        cmocka_unit_test(a_full_page_is_one_run),
        cmocka_unit_test(slot_runs_hold_exactly_what_the_next_token_reads),
        cmocka_unit_test(different_layouts_have_different_fingerprints),
        cmocka_unit_test(impossible_layouts_are_refused_with_the_numbers),
    };

    return cmocka_run_group_tests_name("kv geometry", tests, NULL, NULL);
}
