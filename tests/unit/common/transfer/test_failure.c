/* Peers that die, come back, or come and go. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "pair.h"

static void a_killed_receiver_fails_the_put(enum transfer_kind kind)
{
    struct pair p = pair_open(kind);
    struct node_result r;

    pair_check_small_put(&p.from, &p.to, 0);
    pair_endless_put(&p, 1);
    pair_endless_put(&p, 2);
    node_kill(&p.to);
    r = node_wait(&p.from, 1, NULL);
    assert_int_equal(r.status.code, ST_UNAVAILABLE);
    r = node_wait(&p.from, 2, NULL);
    assert_int_equal(r.status.code, ST_UNAVAILABLE);
    /* What comes later fails as well, until it is closed. */
    pair_endless_put(&p, 3);
    assert_int_equal(node_wait(&p.from, 3, NULL).status.code, ST_UNAVAILABLE);
    node_close(&p.from);
    /* The sender itself is well: another receiver is served. */
    p.to = pair_receiver(kind, false);
    pair_connect(&p.from, &p.to);
    pair_check_small_put(&p.from, &p.to, 1);
    pair_end(&p);
}

static void a_killed_receiver_fails_the_put_over_shared_memory(void **state)
{
    (void)state;
    a_killed_receiver_fails_the_put(TRANSFER_SHM);
}

static void a_killed_receiver_fails_the_put_over_tcp(void **state)
{
    (void)state;
    a_killed_receiver_fails_the_put(TRANSFER_TCP);
}

static void a_receiver_serves_others_after_its_sender_was_killed(enum transfer_kind kind)
{
    struct pair p = pair_open(kind);
    struct node second = pair_sender(kind);

    pair_endless_put(&p, 1);
    pair_connect(&second, &p.to);
    pair_check_small_put(&second, &p.to, 1);
    node_kill(&p.from);
    pair_check_small_put(&second, &p.to, 2);
    p.from = pair_sender(kind);
    pair_connect(&p.from, &p.to);
    pair_check_small_put(&p.from, &p.to, 1);
    node_end(&second);
    pair_end(&p);
}

static void a_receiver_serves_others_after_its_sender_was_killed_shm(void **state)
{
    (void)state;
    a_receiver_serves_others_after_its_sender_was_killed(TRANSFER_SHM);
}

static void a_receiver_serves_others_after_its_sender_was_killed_tcp(void **state)
{
    (void)state;
    a_receiver_serves_others_after_its_sender_was_killed(TRANSFER_TCP);
}

/* The kernel of a frozen process goes on to acknowledge: only its full buffer tells. */
static void a_frozen_receiver_fails_the_put_over_tcp(void **state)
{
    struct pair p = pair_open(TRANSFER_TCP);
    struct node_result r;

    (void)state;
    pair_check_small_put(&p.from, &p.to, 0);
    node_freeze(&p.to);
    pair_endless_put(&p, 1);
    r = node_wait(&p.from, 1, NULL);
    assert_int_equal(r.status.code, ST_UNAVAILABLE);
    node_close(&p.from);
    node_thaw(&p.to);
    pair_connect(&p.from, &p.to);
    pair_check_small_put(&p.from, &p.to, 1);
    pair_end(&p);
}

/* What a kernel still holds of a frozen or running writer is not written once it is shut out. */
static void a_writer_that_was_shut_out_writes_no_more(bool frozen)
{
    struct pair p = {pair_sender(TRANSFER_TCP), pair_receiver(TRANSFER_TCP, false)};
    struct node other = pair_sender(TRANSFER_TCP);
    uint64_t writer = pair_connect_as_writer(&p.from, &p.to);

    pair_connect_as_writer(&other, &p.to);
    pair_check_small_put(&other, &p.to, 1);
    pair_check_small_put(&p.from, &p.to, 1);
    pair_endless_put(&p, 2);
    if (frozen)
        node_freeze(&p.from);
    assert_true(node_revoke(&p.to, writer));
    node_fill(&p.to, 0, CANARY, true);
    node_thaw(&p.from);
    assert_int_equal(node_wait(&p.from, 2, NULL).status.code, ST_UNAVAILABLE);
    assert_int_equal(node_count_other(&p.to, 0, CANARY), 0);
    assert_false(node_revoke(&p.to, writer)); /* once */
    pair_check_small_put(&other, &p.to, 2);   /* nobody else is touched */
    node_close(&p.from);
    node_end(&other);
    pair_end(&p);
}

static void a_running_writer_that_was_shut_out_writes_no_more(void **state)
{
    (void)state;
    a_writer_that_was_shut_out_writes_no_more(false);
}

static void a_frozen_writer_that_was_shut_out_writes_no_more(void **state)
{
    (void)state;
    a_writer_that_was_shut_out_writes_no_more(true);
}

static void a_writer_shut_out_before_it_came_finds_the_door_closed(void **state)
{
    struct transfer_piece piece = {.slab = 1, .bytes = 100};
    struct pair p = {pair_sender(TRANSFER_TCP), pair_receiver(TRANSFER_TCP, false)};
    char desc[DESC_MAX];
    uint64_t writer = 0;
    struct node_result r;
    struct status st;
    size_t len = node_describe_to(&p.to, &writer, desc, sizeof(desc));

    (void)state;
    assert_true(node_revoke(&p.to, writer)); /* nothing is written before a lifeline stands */
    assert_int_equal(node_open(&p.from, desc, len, &st), ST_OK);
    assert_int_equal(node_put(&p.from, 1, &piece, 1, 1, &st), ST_OK);
    r = node_wait(&p.from, 1, NULL);
    assert_int_equal(r.status.code, ST_UNAVAILABLE);
    assert_non_null(strstr(r.status.msg, "does not know our token"));
    node_close(&p.from);
    pair_end(&p);
}

static void a_descriptor_of_a_dead_receiver_gives_unavailable(enum transfer_kind kind)
{
    struct transfer_piece piece = {.slab = 1, .bytes = 100};
    struct pair p = {pair_sender(kind), pair_receiver(kind, false)};
    struct status st;
    char desc[DESC_MAX];
    size_t len = node_describe(&p.to, desc, sizeof(desc));

    node_kill(&p.to);
    /* Either opening or the put says so. */
    if (node_open(&p.from, desc, len, &st) == ST_OK) {
        assert_int_equal(node_put(&p.from, 1, &piece, 1, 1, &st), ST_OK);
        assert_int_equal(node_wait(&p.from, 1, NULL).status.code, ST_UNAVAILABLE);
        node_close(&p.from);
    } else {
        assert_int_equal(st.code, ST_UNAVAILABLE);
    }
    p.to = pair_receiver(kind, false);
    pair_connect(&p.from, &p.to);
    pair_check_small_put(&p.from, &p.to, 1);
    pair_end(&p);
}

static void a_descriptor_of_a_dead_receiver_gives_unavailable_shm(void **state)
{
    (void)state;
    a_descriptor_of_a_dead_receiver_gives_unavailable(TRANSFER_SHM);
}

static void a_descriptor_of_a_dead_receiver_gives_unavailable_tcp(void **state)
{
    (void)state;
    a_descriptor_of_a_dead_receiver_gives_unavailable(TRANSFER_TCP);
}

/* The last close may still be under way. */
static void assert_settles(int (*count)(struct node *), struct node *n, int most)
{
    for (int i = 0; i < 100 && count(n) > most; i++)
        usleep(50000);
    assert_true(count(n) <= most);
}

static void reconnecting_leaves_no_file_descriptors(enum transfer_kind kind)
{
    struct pair p = {pair_sender(kind), pair_receiver(kind, false)};
    int from_start = 0, to_start = 0, from_maps = 0, to_maps = 0;
    int rounds = getenv("BATON_TEST_FULL") != NULL ? 1000 : 100;

    for (int i = 0; i < rounds; i++) {
        pair_connect(&p.from, &p.to);
        pair_check_small_put(&p.from, &p.to, 1);
        node_close(&p.from);
        if (i == 4) { /* what UCX opens once is open now */
            from_start = node_count_fds(&p.from);
            to_start = node_count_fds(&p.to);
            from_maps = node_count_segments(&p.from);
            to_maps = node_count_segments(&p.to);
        }
    }
    printf("file descriptors: sender %d -> %d, receiver %d -> %d\n", from_start,
           node_count_fds(&p.from), to_start, node_count_fds(&p.to));
    printf("shared memory: sender %d -> %d, receiver %d -> %d\n", from_maps,
           node_count_segments(&p.from), to_maps, node_count_segments(&p.to));
    assert_settles(node_count_segments, &p.from, from_maps);
    assert_settles(node_count_segments, &p.to, to_maps);
    assert_settles(node_count_fds, &p.from, from_start);
    assert_settles(node_count_fds, &p.to, to_start);
    pair_end(&p);
}

static void reconnecting_leaves_no_file_descriptors_shm(void **state)
{
    (void)state;
    reconnecting_leaves_no_file_descriptors(TRANSFER_SHM);
}

static void reconnecting_leaves_no_file_descriptors_tcp(void **state)
{
    (void)state;
    reconnecting_leaves_no_file_descriptors(TRANSFER_TCP);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_killed_receiver_fails_the_put_over_shared_memory),
        cmocka_unit_test(a_killed_receiver_fails_the_put_over_tcp),
        cmocka_unit_test(a_frozen_receiver_fails_the_put_over_tcp),
        cmocka_unit_test(a_receiver_serves_others_after_its_sender_was_killed_shm),
        cmocka_unit_test(a_receiver_serves_others_after_its_sender_was_killed_tcp),
        cmocka_unit_test(a_running_writer_that_was_shut_out_writes_no_more),
        cmocka_unit_test(a_frozen_writer_that_was_shut_out_writes_no_more),
        cmocka_unit_test(a_writer_shut_out_before_it_came_finds_the_door_closed),
        cmocka_unit_test(a_descriptor_of_a_dead_receiver_gives_unavailable_shm),
        cmocka_unit_test(a_descriptor_of_a_dead_receiver_gives_unavailable_tcp),
        cmocka_unit_test(reconnecting_leaves_no_file_descriptors_shm),
        cmocka_unit_test(reconnecting_leaves_no_file_descriptors_tcp),
    };

    return cmocka_run_group_tests_name("transfer failure", tests, NULL, NULL);
}
