/* Faults of the transport, each told twice: with a requirement the worker does not start, and the
 * reason names the fault; without, it starts, and what carries the KV is shown as it is.
 *
 * Faults of devices come out of the injected verbs table, the others from the environment and from
 * the network (network.h). */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/transfer/transport.h"
#include "fake_verbs.h"
#include "network.h"
#include "pair.h"

/* What is wrong, and where it shows. */
struct fault {
    const char *name;
    void (*make)(struct fake_machine *m, struct transport_facts *f, struct transfer_options *o);
    const char *word;    /* of the refusal */
    const char *without; /* UCX's transports when nothing is required; NULL: refused as well */
};

static void device_hidden(struct fake_machine *m, struct transport_facts *f,
                          struct transfer_options *o)
{
    (void)f;
    (void)o;
    *m = (struct fake_machine){
        .kernel_devices = 2, .device_files = ENOENT, .memlock_bytes = UINT64_MAX};
}

static void device_not_permitted(struct fake_machine *m, struct transport_facts *f,
                                 struct transfer_options *o)
{
    device_hidden(m, f, o);
    m->device_files = EACCES;
}

static void no_provider(struct fake_machine *m, struct transport_facts *f,
                        struct transfer_options *o)
{
    device_hidden(m, f, o);
    m->device_files = 0;
}

static void one_device(struct fake_machine *m)
{
    m->n_devices = 1;
}

static void port_down(struct fake_machine *m, struct transport_facts *f, struct transfer_options *o)
{
    (void)f;
    (void)o;
    one_device(m);
    m->devices[0].ports[0].attr.state = IBV_PORT_DOWN;
}

static void no_subnet_manager(struct fake_machine *m, struct transport_facts *f,
                              struct transfer_options *o)
{
    port_down(m, f, o);
    m->devices[0].ports[0].attr.state = IBV_PORT_INIT;
}

static void memlock_small(struct fake_machine *m, struct transport_facts *f,
                          struct transfer_options *o)
{
    (void)f;
    (void)o;
    m->memlock_bytes = 64 << 10;
}

static void wrong_gid(struct fake_machine *m, struct transport_facts *f, struct transfer_options *o)
{
    (void)o;
    m->devices[0].open_error = EIO;
    f->ucx_gid_index = "17";
}

static void no_routable_gid(struct fake_machine *m, struct transport_facts *f,
                            struct transfer_options *o)
{
    (void)f;
    (void)o;
    m->devices[0].open_error = EIO;
    memset(&m->devices[1].ports[0].gids[2], 0, sizeof(union ibv_gid));
}

static void rail_without_lid(struct fake_machine *m, struct transport_facts *f,
                             struct transfer_options *o)
{
    (void)f;
    (void)o;
    one_device(m);
    m->devices[0].ports[0].attr.lid = 0;
}

static void ucx_tls_contradicts(struct fake_machine *m, struct transport_facts *f,
                                struct transfer_options *o)
{
    (void)m;
    (void)o;
    f->ucx_tls = "sm,tcp";
}

static void net_devices_contradict(struct fake_machine *m, struct transport_facts *f,
                                   struct transfer_options *o)
{
    (void)m;
    f->ucx_net_devices = "mlx5_1:1";
    o->devices = "mlx5_0:1";
}

static void a_rail_of_two_is_down(struct fake_machine *m, struct transport_facts *f,
                                  struct transfer_options *o)
{
    (void)f;
    o->devices = "mlx5_0:1,mlx5_1:1";
    m->devices[1].ports[0].attr.state = IBV_PORT_DOWN;
}

static const struct fault faults[] = {
    {"device hidden", device_hidden, "/dev/infiniband is not in this container", "sm,self"},
    {"device not permitted", device_not_permitted, "Permission denied", "sm,self"},
    {"no provider library", no_provider, "ibverbs-providers", "sm,self"},
    {"port down", port_down, "port is down", "sm,self"},
    {"no subnet manager", no_subnet_manager, "subnet manager", "sm,self"},
    {"memlock small", memlock_small, "limit of locked memory", "sm,self"},
    {"wrong gid", wrong_gid, "UCX_IB_GID_INDEX=17", "sm,self"},
    {"no gid that routes", no_routable_gid, "no GID that a peer can reach", "sm,self"},
    {"rail without lid", rail_without_lid, "no LID", "sm,self"},
    {"UCX_TLS contradicts", ucx_tls_contradicts, "UCX_TLS=sm,tcp", "sm,self"},
    {"UCX_NET_DEVICES contradicts", net_devices_contradict, "UCX_NET_DEVICES", NULL},
    {"one rail of two down", a_rail_of_two_is_down, "mlx5_1:1: port is down", "ib,sm,self"},
};

static enum status_code plan_with(const struct fault *fault, enum transfer_kind require,
                                  struct transport_plan *plan, struct status *st)
{
    struct fake_machine m = fake_machine_good();
    struct transport_facts facts = {.verbs = NULL};
    struct transfer_options opt = {.require = require};

    fault->make(&m, &facts, &opt);
    facts.verbs = fake_verbs(&m);
    return transport_plan_make(&opt, &facts, plan, st);
}

static void with_a_requirement_each_fault_is_refused_by_name(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        struct transport_plan plan;
        struct status st;

        if (plan_with(&faults[i], TRANSFER_RDMA, &plan, &st) == ST_OK)
            fail_msg("%s: accepted", faults[i].name);
        if (strstr(st.msg, faults[i].word) == NULL)
            fail_msg("%s: \"%s\" does not say \"%s\"", faults[i].name, st.msg, faults[i].word);
    }
}

static void without_one_the_plan_holds_what_is_left(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        struct transport_plan plan;
        struct status st;
        enum status_code code = plan_with(&faults[i], TRANSFER_AUTO, &plan, &st);

        if (faults[i].without == NULL) { /* two device lists that differ have no remainder */
            assert_int_not_equal(code, ST_OK);
            continue;
        }
        if (code != ST_OK)
            fail_msg("%s: %s", faults[i].name, st.msg);
        if (strcmp(plan.tls, faults[i].without) != 0)
            fail_msg("%s: %s", faults[i].name, plan.tls);
    }
}

static void nvlink_that_is_not_there_is_refused_with_the_reason(void **state)
{
    struct transfer_options opt = {.transport = TRANSFER_NVLINK};
    struct node n = node_fork();
    struct status st;

    (void)state;
    if (node_start(&n, &opt, &st) == ST_OK) {
        printf("skipped: this machine has NVLink through UCX\n");
    } else {
        assert_int_equal(st.code, ST_UNAVAILABLE);
        assert_non_null(strstr(st.msg, "nvlink"));
    }
    node_end(&n);
}

/* ---- on the network ---- */

static struct node across(const char *netns, enum transfer_kind kind, const char *devices)
{
    struct transfer_options opt = {.transport = kind, .devices = devices};
    struct node n = node_fork_in(netns);
    struct status st;

    if (node_start(&n, &opt, &st) != ST_OK)
        fail_msg("%s", st.msg);
    node_slab(&n, 0, SLAB, false);
    node_slab(&n, 1, SLAB / 8, false);
    node_fill(&n, 1, 1001, false);
    return n;
}

static void must_have_network(void)
{
    if (network_get()->from_ns[0] == '\0')
        skip();
}

/* The descriptor came (the control port is open), and nothing answers on the data port. */
static void a_data_port_behind_a_firewall_is_named(void **state)
{
    const struct network *n = network_get();
    struct transfer_piece piece = {.slab = 1, .bytes = 100};
    struct pair p;
    struct node_result r;
    struct status st;

    (void)state;
    must_have_network();
    p = (struct pair){across(n->from_ns, TRANSFER_TCP, NULL), across(n->to_ns, TRANSFER_TCP, NULL)};
    assert_true(network_shell("ip -n %s route add blackhole 10.77.1.1/32", n->to_ns));
    pair_connect(&p.from, &p.to);
    assert_int_equal(node_put(&p.from, 1, &piece, 1, 1, &st), ST_OK);
    r = node_wait(&p.from, 1, NULL);
    assert_true(network_shell("ip -n %s route del blackhole 10.77.1.1/32", n->to_ns));
    assert_int_equal(r.status.code, ST_UNAVAILABLE);
    assert_non_null(strstr(r.status.msg, "no connection to port"));
    assert_non_null(strstr(r.status.msg, "is it open between the workers?"));
    node_close(&p.from);
    pair_end(&p);
}

static void an_address_without_a_route_is_named(void **state)
{
    const struct network *n = network_get();
    struct transfer_piece piece = {.slab = 1, .bytes = 100};
    struct pair p;
    struct node_result r;
    struct status st;

    (void)state;
    must_have_network();
    p = (struct pair){across(n->from_ns, TRANSFER_TCP, NULL), across(n->to_ns, TRANSFER_TCP, NULL)};
    assert_true(network_shell("ip -n %s route add unreachable 10.77.1.2/32", n->from_ns));
    pair_connect(&p.from, &p.to);
    assert_int_equal(node_put(&p.from, 1, &piece, 1, 1, &st), ST_OK);
    r = node_wait(&p.from, 1, NULL);
    assert_true(network_shell("ip -n %s route del unreachable 10.77.1.2/32", n->from_ns));
    assert_int_equal(r.status.code, ST_UNAVAILABLE);
    assert_non_null(strstr(r.status.msg, "10.77.1.2: No route to host"));
    node_close(&p.from);
    pair_end(&p);
}

static void loopback_addresses_lead_to_nobody_else(void **state)
{
    const struct network *n = network_get();
    struct pair p;
    char desc[DESC_MAX];
    struct status st;
    size_t len;

    (void)state;
    must_have_network();
    p = (struct pair){across(n->from_ns, TRANSFER_TCP, NULL), across(n->to_ns, TRANSFER_TCP, "lo")};
    len = node_describe(&p.to, desc, sizeof(desc));
    assert_int_equal(node_open(&p.from, desc, len, &st), ST_UNAVAILABLE);
    assert_non_null(strstr(st.msg, "no address but loopback"));
    pair_end(&p);
}

static void what_carries_the_bytes_is_shown_as_it_is(void **state)
{
    static const struct {
        enum transfer_kind kind;
        const char *shown;
    } cases[] = {{TRANSFER_AUTO, "shm ("}, {TRANSFER_SHM, "shm ("}, {TRANSFER_TCP, "tcp (tcp/"}};
    char text[128];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct pair p = pair_open(cases[i].kind);

        pair_check_small_put(&p.from, &p.to, 0);
        node_transport(&p.from, text, sizeof(text));
        if (strncmp(text, cases[i].shown, strlen(cases[i].shown)) != 0)
            fail_msg("%s", text);
        pair_end(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(with_a_requirement_each_fault_is_refused_by_name),
        cmocka_unit_test(without_one_the_plan_holds_what_is_left),
        cmocka_unit_test(nvlink_that_is_not_there_is_refused_with_the_reason),
        cmocka_unit_test(a_data_port_behind_a_firewall_is_named),
        cmocka_unit_test(an_address_without_a_route_is_named),
        cmocka_unit_test(loopback_addresses_lead_to_nobody_else),
        cmocka_unit_test(what_carries_the_bytes_is_shown_as_it_is),
    };

    return cmocka_run_group_tests_name("transfer faults", tests, network_make, network_drop);
}
