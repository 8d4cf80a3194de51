/* Bytes that arrive, where they should and nowhere else, over every transport of one machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/crc32c.h"
#include "pair.h"

/* Scatters n pieces over slab 0 of both sides: unit i of one goes to a shuffled unit of the other;
 * lengths vary, so that every unit ends in canaries. */
static struct transfer_piece *scatter(size_t n, uint32_t n_groups)
{
    struct transfer_piece *pieces = calloc(n, sizeof(*pieces));
    uint64_t unit = SLAB / n;

    for (size_t i = 0; i < n; i++) {
        size_t j = (i * 7919 + 13) % n; /* a permutation: 7919 is prime and does not divide n */

        pieces[i] = (struct transfer_piece){
            .local_off = i * unit + i % 7,
            .remote_off = j * unit + i % 3,
            .bytes = 1 + (i * 2654435761u) % (unit - 8),
            .group = (uint32_t)(i * n_groups / n),
        };
    }
    return pieces;
}

static void check_arrived(struct pair *p, const struct transfer_piece *pieces, size_t n)
{
    uint8_t *want = malloc(SLAB), *got = malloc(SLAB);

    memset(want, CANARY, SLAB);
    for (size_t i = 0; i < n; i++)
        for (uint64_t k = 0; k < pieces[i].bytes; k++)
            want[pieces[i].remote_off + k] = node_byte(1000, pieces[i].local_off + k);
    node_read(&p->to, 0, 0, SLAB, got);
    for (size_t i = 0; i < SLAB; i++)
        if (want[i] != got[i])
            fail_msg("byte %zu: %02x arrived, %02x expected", i, got[i], want[i]);
    free(want);
    free(got);
}

static void check_groups(const struct transfer_piece *pieces, size_t n, const uint32_t *crc,
                         uint32_t n_groups)
{
    uint32_t *want = calloc(n_groups, sizeof(*want));

    for (size_t i = 0; i < n; i++) {
        uint8_t *bytes = malloc(pieces[i].bytes);

        for (uint64_t k = 0; k < pieces[i].bytes; k++)
            bytes[k] = node_byte(1000, pieces[i].local_off + k);
        want[pieces[i].group] = crc32c(want[pieces[i].group], bytes, pieces[i].bytes);
        free(bytes);
    }
    assert_memory_equal(want, crc, n_groups * sizeof(*want));
    free(want);
}

/* The pieces as the receiver verifies them: its own offsets. */
static struct transfer_piece *as_received(const struct transfer_piece *pieces, size_t n)
{
    struct transfer_piece *own = malloc(n * sizeof(*own));

    for (size_t i = 0; i < n; i++) {
        own[i] = pieces[i];
        own[i].local_off = pieces[i].remote_off;
    }
    return own;
}

static void scattered_pieces_arrive(enum transfer_kind kind, const char *transport)
{
    enum { N = 5000, GROUPS = 96 };
    struct pair p = pair_open(kind);
    struct transfer_piece *pieces = scatter(N, GROUPS), *own = as_received(pieces, N);
    struct node_result r;
    uint32_t crc[GROUPS];
    char name[128];
    struct status st;

    assert_int_equal(node_put(&p.from, 1, pieces, N, GROUPS, &st), ST_OK);
    r = node_wait(&p.from, 1, crc);
    assert_int_equal(r.status.code, ST_OK);
    assert_int_equal(r.calls, 1);
    assert_int_equal(r.n_groups, GROUPS);
    check_arrived(&p, pieces, N);
    check_groups(pieces, N, crc, GROUPS);
    assert_int_equal(node_verify(&p.to, own, N, crc, GROUPS).status.code, ST_OK);
    node_transport(&p.from, name, sizeof(name));
    if (strncmp(name, transport, strlen(transport)) != 0)
        fail_msg("transport is '%s', expected %s", name, transport);
    free(pieces);
    free(own);
    pair_end(&p);
}

static void scattered_pieces_arrive_over_shared_memory(void **state)
{
    (void)state;
    scattered_pieces_arrive(TRANSFER_SHM, "shm (");
}

static void scattered_pieces_arrive_over_tcp(void **state)
{
    (void)state;
    scattered_pieces_arrive(TRANSFER_TCP, "tcp (");
}

static void auto_takes_shared_memory_on_one_machine(void **state)
{
    (void)state;
    scattered_pieces_arrive(TRANSFER_AUTO, "shm (");
}

static void a_flipped_bit_is_found_by_verify(void **state)
{
    enum { N = 300, GROUPS = 10 };
    struct pair p = pair_open(TRANSFER_SHM);
    struct transfer_piece *pieces = scatter(N, GROUPS), *own = as_received(pieces, N);
    uint32_t crc[GROUPS];
    struct node_result r;
    struct status st;

    (void)state;
    node_flips(&p.from, 1);
    assert_int_equal(node_put(&p.from, 1, pieces, N, GROUPS, &st), ST_OK);
    assert_int_equal(node_wait(&p.from, 1, crc).status.code, ST_OK);
    check_groups(pieces, N, crc, GROUPS); /* of the true bytes */
    r = node_verify(&p.to, own, N, crc, GROUPS);
    assert_int_equal(r.status.code, ST_CORRUPT);
    assert_non_null(strstr(r.status.msg, "group 0"));
    assert_non_null(strstr(r.status.msg, "1 of 10"));
    /* Only one put was to be spoilt: sending again repairs it. */
    assert_int_equal(node_put(&p.from, 2, pieces, N, GROUPS, &st), ST_OK);
    assert_int_equal(node_wait(&p.from, 2, crc).status.code, ST_OK);
    assert_int_equal(node_verify(&p.to, own, N, crc, GROUPS).status.code, ST_OK);
    free(pieces);
    free(own);
    pair_end(&p);
}

static void a_put_of_nothing_is_a_flush(void **state)
{
    struct pair p = pair_open(TRANSFER_SHM);
    struct transfer_piece empty = {.slab = 0, .local_off = SLAB, .remote_off = SLAB};
    struct node_result r;
    struct status st;

    (void)state;
    assert_int_equal(node_put(&p.from, 1, NULL, 0, 0, &st), ST_OK);
    r = node_wait(&p.from, 1, NULL);
    assert_int_equal(r.status.code, ST_OK);
    assert_int_equal(r.bytes, 0);
    assert_int_equal(node_put(&p.from, 2, &empty, 1, 1, &st), ST_OK);
    r = node_wait(&p.from, 2, NULL);
    assert_int_equal(r.status.code, ST_OK);
    assert_int_equal(node_count_other(&p.to, 0, CANARY), 0);
    pair_end(&p);
}

static void a_piece_outside_either_slab_is_refused_before_anything_is_sent(void **state)
{
    static const struct transfer_piece bad[] = {
        {.local_off = SLAB, .bytes = 1},
        {.remote_off = SLAB, .bytes = 1},
        {.local_off = 1, .bytes = SLAB},
        {.remote_off = 1, .bytes = SLAB},
        {.local_off = UINT64_MAX, .bytes = 2},
        {.remote_off = UINT64_MAX - 1, .bytes = 8},
        {.bytes = UINT64_MAX},
        {.slab = -1, .bytes = 1},
        {.slab = TRANSFER_SLABS_MAX, .bytes = 1},
        {.slab = 2, .bytes = 1},                        /* neither side has it */
        {.slab = 1, .local_off = SLAB / 2, .bytes = 1}, /* in slab 0 it would fit */
        {.bytes = 1, .group = 2},
    };
    struct pair p = pair_open(TRANSFER_SHM);
    struct status st;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct transfer_piece pieces[2] = {{.bytes = 64}, bad[i]};
        uint32_t crc[2] = {0};

        assert_int_equal(node_put(&p.from, i, pieces, 2, 2, &st), ST_INVALID);
        assert_non_null(strstr(st.msg, "piece 1"));
        if (bad[i].remote_off == 0) {
            struct node_result r = node_verify(&p.to, pieces, 2, crc, 2);

            assert_int_equal(r.status.code, ST_INVALID);
        }
    }
    assert_int_equal(node_put(&p.from, 63, NULL, 0, 0, &st), ST_OK); /* flushes what there was */
    assert_int_equal(node_wait(&p.from, 63, NULL).status.code, ST_OK);
    assert_int_equal(node_count_other(&p.to, 0, CANARY), 0);
    pair_end(&p);
}

static void a_cancelled_put_ends_once_and_writes_nothing_after(enum transfer_kind kind)
{
    struct pair p = pair_open(kind);
    struct transfer_piece small = {.slab = 1, .bytes = 100};
    struct node_result r;
    struct status st;

    pair_endless_put(&p, 1);
    /* The small one ends while the endless one is under way: they take turns. */
    assert_int_equal(node_put(&p.from, 2, &small, 1, 1, &st), ST_OK);
    assert_int_equal(node_wait(&p.from, 2, NULL).status.code, ST_OK);
    assert_int_equal(node_peek(&p.from, 1).calls, 0);
    node_cancel(&p.from, 1);
    node_cancel(&p.from, 1);
    node_cancel(&p.from, 77); /* nobody's */
    r = node_wait(&p.from, 1, NULL);
    assert_int_equal(r.status.code, ST_CANCELLED);
    node_fill(&p.to, 0, CANARY, true);
    node_cancel(&p.from, 1); /* late */
    assert_int_equal(node_put(&p.from, 3, &small, 1, 1, &st), ST_OK);
    assert_int_equal(node_wait(&p.from, 3, NULL).status.code, ST_OK);
    assert_int_equal(node_count_other(&p.to, 0, CANARY), 0);
    assert_int_equal(node_peek(&p.from, 1).calls, 1);
    pair_end(&p);
}

static void a_cancelled_put_ends_once_over_shared_memory(void **state)
{
    (void)state;
    a_cancelled_put_ends_once_and_writes_nothing_after(TRANSFER_SHM);
}

static void a_cancelled_put_ends_once_over_tcp(void **state)
{
    (void)state;
    a_cancelled_put_ends_once_and_writes_nothing_after(TRANSFER_TCP);
}

/* A put that takes the link of pair_limited() for seconds; what is put meanwhile waits together. */
static void occupy(struct pair *p, uint64_t id)
{
    struct transfer_piece piece = {.bytes = 256 << 10};
    struct status st;

    assert_int_equal(node_put(&p->from, id, &piece, 1, 1, &st), ST_OK);
    node_hurry(&p->from, id); /* it may not have had its turn yet when the others are hurried */
}

/* The long handoff (name 1) is puts 1 to 8, the short ones are put 9 and put 10. */
static void queue_long_and_short(struct pair *p)
{
    struct transfer_piece piece = {.slab = 1, .bytes = 1000};
    struct status st;

    pair_check_small_put(&p->from, &p->to, 0); /* connected */
    occupy(p, 11);
    for (uint64_t id = 1; id <= 8; id++)
        assert_int_equal(node_put_of(&p->from, id, 1, &piece, 1, 1, &st), ST_OK);
    assert_int_equal(node_put(&p->from, 9, &piece, 1, 1, &st), ST_OK);
    assert_int_equal(node_put(&p->from, 10, &piece, 1, 1, &st), ST_OK);
}

static void handoffs_take_turns_whatever_their_lengths(void **state)
{
    static const uint64_t order[] = {11, 1, 9, 10, 2, 3, 4, 5, 6, 7, 8};
    struct pair p = pair_open_limited(TRANSFER_SHM, 100000);

    (void)state;
    queue_long_and_short(&p);
    for (uint32_t i = 0; i < sizeof(order) / sizeof(order[0]); i++)
        assert_int_equal(node_wait(&p.from, order[i], NULL).nth, i + 2);
    pair_end(&p);
}

static void a_hurried_handoff_goes_first_and_in_its_order(void **state)
{
    static const uint64_t order[] = {11, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9};
    struct pair p = pair_open_limited(TRANSFER_SHM, 100000);

    (void)state;
    queue_long_and_short(&p);
    node_hurry(&p.from, 1);
    node_hurry(&p.from, 10);
    node_hurry(&p.from, 77); /* nobody's */
    for (uint32_t i = 0; i < sizeof(order) / sizeof(order[0]); i++)
        assert_int_equal(node_wait(&p.from, order[i], NULL).nth, i + 2);
    pair_end(&p);
}

static void closing_ends_puts_as_unavailable(enum transfer_kind kind)
{
    struct pair p = pair_open(kind);
    struct node_result r;

    pair_endless_put(&p, 1);
    pair_endless_put(&p, 2);
    node_close(&p.from);
    r = node_peek(&p.from, 1);
    assert_int_equal(r.calls, 1);
    assert_int_equal(r.status.code, ST_UNAVAILABLE);
    assert_int_equal(node_peek(&p.from, 2).calls, 1);
    node_fill(&p.to, 0, CANARY, true);
    assert_int_equal(node_count_other(&p.to, 0, CANARY), 0);
    pair_end(&p);
}

static void closing_ends_puts_as_unavailable_over_shared_memory(void **state)
{
    (void)state;
    closing_ends_puts_as_unavailable(TRANSFER_SHM);
}

static void closing_ends_puts_as_unavailable_over_tcp(void **state)
{
    (void)state;
    closing_ends_puts_as_unavailable(TRANSFER_TCP);
}

static void stopping_ends_puts_as_cancelled(void **state)
{
    struct pair p = pair_open(TRANSFER_TCP);
    struct node_result r;

    (void)state;
    pair_endless_put(&p, 1);
    pair_endless_put(&p, 2);
    node_stop(&p.from);
    r = node_peek(&p.from, 1);
    assert_int_equal(r.calls, 1);
    assert_int_equal(r.status.code, ST_CANCELLED);
    assert_int_equal(node_peek(&p.from, 2).calls, 1);
    pair_end(&p);
}

static void memory_of_the_callers_works_as_well(void **state)
{
    enum { N = 500, GROUPS = 7 };
    struct pair p = pair_open_with(TRANSFER_AUTO, true);
    struct transfer_piece *pieces = scatter(N, GROUPS);
    uint32_t crc[GROUPS];
    struct status st;

    (void)state;
    assert_int_equal(node_put(&p.from, 1, pieces, N, GROUPS, &st), ST_OK);
    assert_int_equal(node_wait(&p.from, 1, crc).status.code, ST_OK);
    check_arrived(&p, pieces, N);
    free(pieces);
    pair_end(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scattered_pieces_arrive_over_shared_memory),
        cmocka_unit_test(scattered_pieces_arrive_over_tcp),
        cmocka_unit_test(auto_takes_shared_memory_on_one_machine),
        cmocka_unit_test(memory_of_the_callers_works_as_well),
        cmocka_unit_test(a_flipped_bit_is_found_by_verify),
        cmocka_unit_test(a_put_of_nothing_is_a_flush),
        cmocka_unit_test(a_piece_outside_either_slab_is_refused_before_anything_is_sent),
        cmocka_unit_test(a_cancelled_put_ends_once_over_shared_memory),
        cmocka_unit_test(a_cancelled_put_ends_once_over_tcp),
        cmocka_unit_test(handoffs_take_turns_whatever_their_lengths),
        cmocka_unit_test(a_hurried_handoff_goes_first_and_in_its_order),
        cmocka_unit_test(closing_ends_puts_as_unavailable_over_shared_memory),
        cmocka_unit_test(closing_ends_puts_as_unavailable_over_tcp),
        cmocka_unit_test(stopping_ends_puts_as_cancelled),
    };

    return cmocka_run_group_tests_name("transfer put", tests, NULL, NULL);
}
