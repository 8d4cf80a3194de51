/* What is found out about the way to a peer when it is opened. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/transfer/link_probe.h"
#include "fake_verbs.h"
#include "pair.h"

enum { POLLS = 2000, POLL_US = 5000 };

static void a_way_is_probed_when_it_is_opened(enum transfer_kind kind)
{
    struct pair p = pair_open(kind);
    struct transfer_link link;
    char via[128];

    for (int i = 0; i < POLLS && !node_link(&p.from, &link); i++)
        usleep(POLL_US);
    assert_true(node_link(&p.from, &link));
    node_transport(&p.from, via, sizeof(via)); /* known by now, without a put of ours */
    printf("%s: %.2f GB/s of %.2f, %.1f us\n", via, (double)link.bytes_per_s * 1e-9,
           (double)link.expected_bytes_per_s * 1e-9, link.latency_us);
    assert_int_equal(strncmp(via, kind == TRANSFER_SHM ? "shm" : "tcp", 3), 0);
    assert_true(link.bytes_per_s > 0 && link.latency_us > 0);
    assert_true((link.expected_bytes_per_s > 0) == (kind == TRANSFER_SHM));
    assert_int_equal(link.slow, link_is_slow(link.bytes_per_s, link.expected_bytes_per_s));
    assert_int_equal(node_count_other(&p.to, 0, CANARY), 0);
    assert_int_equal(node_count_other(&p.to, 1, CANARY), 0);
    pair_end(&p);
}

static void a_way_is_probed_when_it_is_opened_shm(void **state)
{
    (void)state;
    a_way_is_probed_when_it_is_opened(TRANSFER_SHM);
}

static void a_way_is_probed_when_it_is_opened_tcp(void **state)
{
    (void)state;
    a_way_is_probed_when_it_is_opened(TRANSFER_TCP);
}

static void a_limited_sender_does_not_probe(void **state)
{
    struct pair p = pair_open_limited(TRANSFER_SHM, 1000000);
    struct transfer_link link;

    (void)state;
    pair_check_small_put(&p.from, &p.to, 1);
    assert_false(node_link(&p.from, &link));
    pair_end(&p);
}

static void a_probe_uses_up_no_injected_fault(void **state)
{
    struct pair p = {pair_sender(TRANSFER_SHM), pair_receiver(TRANSFER_SHM, false)};
    struct transfer_piece piece = {.bytes = 4096};
    struct transfer_link link;
    struct status st;
    uint32_t crc;

    (void)state;
    node_flips(&p.from, 1);
    pair_connect(&p.from, &p.to);
    for (int i = 0; i < POLLS && !node_link(&p.from, &link); i++)
        usleep(POLL_US);
    assert_int_equal(node_put(&p.from, 1, &piece, 1, 1, &st), ST_OK);
    assert_int_equal(node_wait(&p.from, 1, &crc).status.code, ST_OK);
    assert_int_equal(node_verify(&p.to, &piece, 1, &crc, 1).status.code, ST_CORRUPT);
    pair_end(&p);
}

static void a_peer_that_ends_meanwhile_ends_the_probe(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        struct pair p = pair_open(i % 2 ? TRANSFER_SHM : TRANSFER_TCP);

        usleep((unsigned)i * 50);
        if (i % 4 < 2)
            node_kill(&p.to);
        else
            node_end(&p.to);
        node_close(&p.from);
        node_end(&p.from);
    }
}

static void the_expected_rate_is_the_port_s(void **state)
{
    struct fake_machine m = fake_machine_good();
    struct rdma_wish wish = {.gid_index = -1};
    struct rdma_report report;

    (void)state;
    rdma_probe(fake_verbs(&m), &wish, &report);
    assert_int_equal(link_rate_expected(&report, "rdma (rc_mlx5/mlx5_0:1)"), 400000000000ull / 8);
    assert_int_equal(link_rate_expected(&report, "rdma (rc_mlx5/mlx5_7:1)"), 0);
    assert_int_equal(link_rate_expected(&report, "tcp (tcp/lo)"), 0);
    assert_int_equal(link_rate_expected(&report, "unknown"), 0);
    assert_true(link_rate_expected(&report, "shm (sysv/memory)") > 0);
    assert_true(link_is_slow(10, 1000));
    assert_false(link_is_slow(600, 1000));
    assert_false(link_is_slow(1, 0)); /* not known */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_way_is_probed_when_it_is_opened_shm),
        cmocka_unit_test(a_way_is_probed_when_it_is_opened_tcp),
        cmocka_unit_test(a_limited_sender_does_not_probe),
        cmocka_unit_test(a_probe_uses_up_no_injected_fault),
        cmocka_unit_test(a_peer_that_ends_meanwhile_ends_the_probe),
        cmocka_unit_test(the_expected_rate_is_the_port_s),
    };

    return cmocka_run_group_tests_name("transfer link probe", tests, NULL, NULL);
}
