/* Two hosts, as far as the network is concerned:
 *
 *   namespace baton-a-PID                       namespace baton-b-PID
 *   bta-PID 10.77.1.1/24 ─────── veth ─────── btb-PID 10.77.1.2/24
 *   the sender                                  the receiver
 *
 * Both have a loopback interface that is up, and share this machine's memory: what keeps them on
 * the network is --kv-transport tcp. Needs root; says so and passes where it is not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "pair.h"

static char from_ns[32], to_ns[32], from_if[16], to_if[16];

/* Runs a shell command; false when it fails. */
static bool shell(const char *fmt, ...)
{
    char command[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(command, sizeof(command), fmt, ap);
    va_end(ap);
    return system(command) == 0;
}

static int make_network(void **state)
{
    int pid = (int)getpid();

    (void)state;
    snprintf(from_ns, sizeof(from_ns), "baton-a-%d", pid);
    snprintf(to_ns, sizeof(to_ns), "baton-b-%d", pid);
    snprintf(from_if, sizeof(from_if), "bta%d", pid % 100000);
    snprintf(to_if, sizeof(to_if), "btb%d", pid % 100000);
    if (geteuid() != 0 || !shell("ip netns add %s 2>/dev/null", from_ns)) {
        from_ns[0] = '\0';
        printf("skipped: network namespaces need root and iproute2\n");
        return 0;
    }
    if (!shell("ip netns add %s", to_ns) ||
        !shell("ip link add %s netns %s type veth peer name %s netns %s", from_if, from_ns, to_if,
               to_ns) ||
        !shell("ip -n %s addr add 10.77.1.1/24 dev %s", from_ns, from_if) ||
        !shell("ip -n %s addr add 10.77.1.2/24 dev %s", to_ns, to_if) ||
        !shell("ip -n %s link set lo up && ip -n %s link set %s up", from_ns, from_ns, from_if) ||
        !shell("ip -n %s link set lo up && ip -n %s link set %s up", to_ns, to_ns, to_if))
        return -1;
    return 0;
}

static int drop_network(void **state)
{
    (void)state;
    if (from_ns[0] != '\0')
        shell("ip netns del %s; ip netns del %s", from_ns, to_ns);
    return 0;
}

static struct pair pair_across(const char *devices)
{
    struct transfer_options opt = {.transport = TRANSFER_TCP, .devices = devices};
    struct pair p;
    struct status st;

    if (from_ns[0] == '\0')
        skip();
    p.from = node_fork_in(from_ns);
    p.to = node_fork_in(to_ns);
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
    snprintf(want, sizeof(want), "tcp (tcp/%s)", from_if);
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
    assert_true(shell("ip -n %s link set %s down", to_ns, to_if));
    r = node_wait(&p.from, 2, NULL);
    assert_int_equal(r.status.code, ST_UNAVAILABLE);
    node_close(&p.from);
    assert_true(shell("ip -n %s link set %s up", to_ns, to_if));
    /* What the kernel remembers of the neighbour that did not answer would fail a connection. */
    assert_true(shell("ip -n %s neigh flush all", from_ns));
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
    assert_true(shell("ip -n %s route add blackhole 10.77.1.1/32", to_ns));
    pair_connect(&p.from, &p.to);
    assert_int_equal(node_put(&p.from, 1, &piece, 1, 1, &st), ST_OK);
    r = node_wait(&p.from, 1, NULL);
    assert_int_equal(r.status.code, ST_UNAVAILABLE);
    assert_non_null(strstr(r.status.msg, "10.77.1.2: no answer"));
    assert_true(shell("ip -n %s route del blackhole 10.77.1.1/32", to_ns));
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

    return cmocka_run_group_tests_name("transfer across namespaces", tests, make_network,
                                       drop_network);
}
