/* Senders and receivers in network namespaces of their own: see network.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "network.h"
#include "pair.h"

static struct pair pair_across(const char *devices)
{
    struct transfer_options opt = {.transport = TRANSFER_TCP, .devices = devices};
    struct pair p;
    struct status st;

    if (network_get()->from_ns[0] == '\0')
        skip();
    p.from = node_fork_in(network_get()->from_ns);
    p.to = node_fork_in(network_get()->to_ns);
    assert_int_equal(node_start(&p.to, &opt, &st), ST_OK);
    opt.devices = NULL;
    assert_int_equal(node_start(&p.from, &opt, &st), ST_OK);
    node_slab(&p.from, 1, SLAB / 8, false);
    node_slab(&p.to, 1, SLAB / 8, false);
    node_slab(&p.from, 0, SLAB, false);
    node_slab(&p.to, 0, SLAB, false);
    node_fill(&p.from, 1, 1001, false);
    node_fill(&p.from, 0, 1000, false);
    return p;
}

static void bytes_cross_two_network_namespaces_over_tcp(void **state)
{
    struct pair p = pair_across(NULL);
    struct transfer_piece all = {.slab = 0, .bytes = SLAB};
    struct node_result r;
    struct status st;
    uint32_t crc;
    char name[128], want[64];

    (void)state;
    pair_connect(&p.from, &p.to);
    pair_check_small_put(&p.from, &p.to, 1);
    assert_int_equal(node_put(&p.from, 2, &all, 1, 1, &st), ST_OK);
    r = node_wait(&p.from, 2, &crc);
    assert_int_equal(r.status.code, ST_OK);
    assert_int_equal(node_verify(&p.to, &all, 1, &crc, 1).status.code, ST_OK);
    node_transport(&p.from, name, sizeof(name));
    snprintf(want, sizeof(want), "tcp (tcp/%s)", network_get()->from_if);
    assert_string_equal(name, want);
    pair_end(&p);
}

static void a_cut_cable_fails_the_put(void **state)
{
    struct pair p = pair_across(NULL);
    struct node_result r;

    (void)state;
    pair_connect(&p.from, &p.to);
    pair_check_small_put(&p.from, &p.to, 1);
    pair_endless_put(&p, 2);
    assert_true(
        network_shell("ip -n %s link set %s down", network_get()->to_ns, network_get()->to_if));
    r = node_wait(&p.from, 2, NULL);
    assert_int_equal(r.status.code, ST_UNAVAILABLE);
    node_close(&p.from);
    assert_true(
        network_shell("ip -n %s link set %s up", network_get()->to_ns, network_get()->to_if));
    /* What the kernel remembers of the neighbour that did not answer would fail a connection. */
    assert_true(network_shell("ip -n %s neigh flush all", network_get()->from_ns));
    pair_connect(&p.from, &p.to);
    pair_check_small_put(&p.from, &p.to, 1);
    pair_end(&p);
}

static void a_peer_that_only_has_loopback_is_refused_by_name(void **state)
{
    struct pair p = pair_across("lo");
    char desc[DESC_MAX];
    struct status st;
    size_t len = node_describe(&p.to, desc, sizeof(desc));

    (void)state;
    assert_int_equal(node_open(&p.from, desc, len, &st), ST_UNAVAILABLE);
    assert_non_null(strstr(st.msg, "no address but loopback"));
    pair_end(&p);
}

static void a_closed_port_is_named(void **state)
{
    struct pair p = pair_across(NULL);
    struct transfer_piece piece = {.slab = 1, .bytes = 100};
    struct node_result r;
    struct status st;

    (void)state;
    /* Nothing answers: as behind a firewall that drops. */
    assert_true(network_shell("ip -n %s route add blackhole 10.77.1.1/32", network_get()->to_ns));
    pair_connect(&p.from, &p.to);
    assert_int_equal(node_put(&p.from, 1, &piece, 1, 1, &st), ST_OK);
    r = node_wait(&p.from, 1, NULL);
    assert_int_equal(r.status.code, ST_UNAVAILABLE);
    assert_non_null(strstr(r.status.msg, "10.77.1.2: no answer"));
    assert_true(network_shell("ip -n %s route del blackhole 10.77.1.1/32", network_get()->to_ns));
    node_close(&p.from);
    pair_end(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_cross_two_network_namespaces_over_tcp),
        cmocka_unit_test(a_cut_cable_fails_the_put),
        cmocka_unit_test(a_peer_that_only_has_loopback_is_refused_by_name),
        cmocka_unit_test(a_closed_port_is_named),
    };

    return cmocka_run_group_tests_name("transfer across namespaces", tests, network_make,
                                       network_drop);
}
