/* Which bytes of a sequence travel, and in which groups: both sides must build the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/worker/handoff.h"

enum { PAGES_MAX = 8 };

static const uint32_t ours[PAGES_MAX] = {5, 3, 8, 1, 0, 2, 7, 4};
static const uint32_t theirs[PAGES_MAX] = {1, 2, 3, 4, 5, 6, 7, 8};
static const struct handoff_units units = {ours, theirs, 2, 3};

static void flash(struct kv_geometry *g)
{
    int ratios[44];
    struct kv_geometry_params p = {44, ratios, 512, 64, 128, 128};
    struct status st;

    for (int i = 0; i < 44; i++)
        ratios[i] = i < 2 || i == 43 ? 0 : i % 2 == 0 ? 4 : 128;
    assert_int_equal(kv_geometry_init(g, &p, &st), ST_OK);
}

static void whole(struct handoff_list *l, const struct kv_geometry *g, uint64_t n_tokens)
{
    struct status st;
    uint32_t end = kv_pages_for(n_tokens) + handoff_slot_groups(g, n_tokens);

    assert_int_equal(handoff_list_init(l, g, &units, n_tokens, 0, end, &st), ST_OK);
    assert_int_equal(l->n_groups, end);
}

/* Field by field: what lies between them is anything. */
static void same_piece(const struct transfer_piece *a, const struct transfer_piece *b)
{
    assert_int_equal(a->slab, b->slab);
    assert_int_equal(a->local_off, b->local_off);
    assert_int_equal(a->remote_off, b->remote_off);
    assert_int_equal(a->bytes, b->bytes);
    assert_int_equal(a->group, b->group);
}

static const uint64_t lengths[] = {1, 3, 4, 127, 128, 129, 255, 256, 257, 1000, 1024, 2048};

/* However the groups are divided, the parts are the whole. */
static void parts_in_any_division_are_the_whole(void **state)
{
    struct kv_geometry g;

    (void)state;
    flash(&g);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
        for (uint32_t step = 1; step < 12; step++) {
            struct handoff_list all, part;
            struct status st;
            size_t at = 0;

            whole(&all, &g, lengths[i]);
            for (uint32_t first = 0; first < all.n_groups; first += step) {
                uint32_t end = first + step < all.n_groups ? first + step : all.n_groups;

                assert_int_equal(handoff_list_init(&part, &g, &units, lengths[i], first, end, &st),
                                 ST_OK);
                assert_int_equal(part.n_groups, end - first);
                for (size_t k = 0; k < part.n_pieces; k++, at++) {
                    part.pieces[k].group += first;
                    same_piece(&part.pieces[k], &all.pieces[at]);
                }
                handoff_list_deinit(&part);
            }
            assert_int_equal(at, all.n_pieces);
            handoff_list_deinit(&all);
        }
}

static void a_handoff_of_1k_tokens_is_small_and_its_groups_are(void **state)
{
    struct kv_geometry g;
    struct handoff_list l;
    uint64_t bytes[PAGES_MAX + HANDOFF_SLOT_GROUPS_MAX] = {0};

    (void)state;
    flash(&g);
    whole(&l, &g, 1024);
    print_message("1,024 tokens of Flash: %.2f MB in %zu pieces and %u groups\n",
                  (double)l.bytes * 1e-6, l.n_pieces, l.n_groups);
    assert_true(l.bytes <= 9000000);
    for (size_t i = 0; i < l.n_pieces; i++)
        bytes[l.pieces[i].group] += l.pieces[i].bytes;
    for (uint32_t i = 0; i < l.n_groups; i++)
        assert_true(bytes[i] > 0 && bytes[i] <= 5 << 18); /* none takes long to compare */
    handoff_list_deinit(&l);
}

static void the_slot_s_groups_are_bounded(void **state)
{
    struct kv_geometry g;

    (void)state;
    flash(&g);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        uint32_t n = handoff_slot_groups(&g, lengths[i]);

        assert_true(n >= 1 && n <= HANDOFF_SLOT_GROUPS_MAX);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_in_any_division_are_the_whole),
        cmocka_unit_test(a_handoff_of_1k_tokens_is_small_and_its_groups_are),
        cmocka_unit_test(the_slot_s_groups_are_bounded),
    };

    return cmocka_run_group_tests_name("handoff list", tests, NULL, NULL);
}
