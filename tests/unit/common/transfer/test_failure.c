/* Peers that die, come back, or come and go. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
    kill(p.to.pid, SIGSTOP);
    pair_endless_put(&p, 1);
    r = node_wait(&p.from, 1, NULL);
    assert_int_equal(r.status.code, ST_UNAVAILABLE);
    node_close(&p.from);
    kill(p.to.pid, SIGCONT);
    pair_connect(&p.from, &p.to);
    pair_check_small_put(&p.from, &p.to, 1);
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

static void reconnecting_leaves_no_file_descriptors(enum transfer_kind kind)
{
    struct pair p = {pair_sender(kind), pair_receiver(kind, false)};
    int from_start = 0, to_start = 0;

    for (int i = 0; i < 100; i++) {
        pair_connect(&p.from, &p.to);
        pair_check_small_put(&p.from, &p.to, 1);
        node_close(&p.from);
        if (i == 4) { /* what UCX opens once is open now */
            from_start = node_count_fds(&p.from);
            to_start = node_count_fds(&p.to);
        }
    }
    printf("file descriptors: sender %d -> %d, receiver %d -> %d\n", from_start,
           node_count_fds(&p.from), to_start, node_count_fds(&p.to));
    assert_true(node_count_fds(&p.from) <= from_start);
    assert_true(node_count_fds(&p.to) <= to_start + 2); /* the last close may be under way */
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
        cmocka_unit_test(a_descriptor_of_a_dead_receiver_gives_unavailable_shm),
        cmocka_unit_test(a_descriptor_of_a_dead_receiver_gives_unavailable_tcp),
        cmocka_unit_test(reconnecting_leaves_no_file_descriptors_shm),
        cmocka_unit_test(reconnecting_leaves_no_file_descriptors_tcp),
    };

    return cmocka_run_group_tests_name("transfer failure", tests, NULL, NULL);
}
