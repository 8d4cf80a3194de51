/* Which transports a plan allows, what is refused and with which words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "common/transfer/transport.h"
#include "fake_verbs.h"
#include "node.h"

static struct fake_machine with_rdma, without_rdma = {.no_list = true, .memlock_bytes = UINT64_MAX};

static enum status_code make(struct fake_machine *m, const char *env_tls, const char *env_devices,
                             struct transfer_options opt, struct transport_plan *plan,
                             struct status *st)
{
    struct transport_facts facts = {
        .ucx_tls = env_tls, .ucx_net_devices = env_devices, .verbs = fake_verbs(m)};

    return transport_plan_make(&opt, &facts, plan, st);
}

static void planned(struct fake_machine *m, const char *env_tls, struct transfer_options opt,
                    const char *tls, bool sockets)
{
    struct transport_plan plan;
    struct status st;

    if (make(m, env_tls, NULL, opt, &plan, &st) != ST_OK)
        fail_msg("%s", st.msg);
    assert_string_equal(plan.tls, tls);
    assert_int_equal(plan.sockets, sockets);
}

static void refused(struct fake_machine *m, const char *env_tls, const char *env_devices,
                    struct transfer_options opt, enum status_code code, const char *word)
{
    struct transport_plan plan;
    struct status st;

    assert_int_equal(make(m, env_tls, env_devices, opt, &plan, &st), code);
    if (strstr(st.msg, word) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", st.msg, word);
}

#define OPT(...) ((struct transfer_options){__VA_ARGS__})

static void auto_takes_what_the_machine_has(void **state)
{
    (void)state;
    planned(&with_rdma, NULL, OPT(0), "ib,sm,self", true);
    planned(&without_rdma, NULL, OPT(0), "sm,self", true);
}

static void one_kind_is_a_wall(void **state)
{
    (void)state;
    planned(&with_rdma, NULL, OPT(.transport = TRANSFER_RDMA), "ib,self", false);
    planned(&with_rdma, NULL, OPT(.require = TRANSFER_RDMA), "ib,self", false);
    planned(&with_rdma, NULL, OPT(.transport = TRANSFER_SHM), "sm,self", false);
    planned(&with_rdma, NULL, OPT(.transport = TRANSFER_TCP), "self", true);
    planned(&with_rdma, NULL, OPT(.transport = TRANSFER_NVLINK), "cuda,self", false);
}

static const char *devices_on(struct fake_machine *m, int own_node, const char *devices)
{
    static struct transport_plan plan;
    struct status st;

    m->own_node = own_node;
    assert_int_equal(make(m, NULL, NULL, OPT(.devices = devices), &plan, &st), ST_OK);
    return plan.ucx_devices;
}

static void ports_of_the_own_numa_node_are_the_default(void **state)
{
    struct fake_machine m = fake_machine_good();

    (void)state;
    m.devices[0].numa_node = 0;
    m.devices[1].numa_node = 1;
    assert_string_equal(devices_on(&m, 0, NULL), "mlx5_0:1");
    assert_string_equal(devices_on(&m, 1, NULL), "mlx5_1:1");
    assert_string_equal(devices_on(&m, -1, NULL), "all");         /* on several nodes */
    assert_string_equal(devices_on(&m, 2, NULL), "all");          /* none is near */
    assert_string_equal(devices_on(&m, 0, "mlx5_1"), "mlx5_1:1"); /* who asks is right */
    m.devices[1].numa_node = -1;                                  /* not known: not called far */
    assert_string_equal(devices_on(&m, 0, NULL), "all");
    m.devices[1].numa_node = 1;
    m.devices[0].ports[0].attr.state = IBV_PORT_DOWN; /* the near one cannot be used */
    assert_string_equal(devices_on(&m, 0, NULL), "all");
}

static void required_rdma_that_is_not_there_is_refused_with_the_reason(void **state)
{
    struct fake_machine down = fake_machine_good();

    (void)state;
    refused(&without_rdma, NULL, NULL, OPT(.require = TRANSFER_RDMA), ST_UNAVAILABLE,
            "--kv-require rdma: RDMA is not there: the kernel knows no RDMA device");
    refused(&without_rdma, NULL, NULL, OPT(.transport = TRANSFER_RDMA), ST_UNAVAILABLE,
            "--kv-transport rdma");
    down.n_devices = 1;
    down.devices[0].ports[0].attr.state = IBV_PORT_DOWN;
    refused(&down, NULL, NULL, OPT(.require = TRANSFER_RDMA), ST_UNAVAILABLE, "port is down");
    planned(&down, NULL, OPT(0), "sm,self", true); /* without the requirement it goes on */
}

static void options_that_contradict_each_other_are_invalid(void **state)
{
    (void)state;
    refused(&with_rdma, NULL, NULL, OPT(.transport = TRANSFER_TCP, .require = TRANSFER_RDMA),
            ST_INVALID, "--kv-transport tcp contradicts --kv-require rdma");
}

static void ucx_tls_that_forbids_what_is_asked_for_is_refused(void **state)
{
    static const struct {
        const char *env;
        enum transfer_kind kind;
        bool good;
    } cases[] = {
        {"tcp", TRANSFER_RDMA, false},     {"tcp,sm", TRANSFER_RDMA, false},
        {"rc", TRANSFER_RDMA, true},       {"rc_x,ud_verbs", TRANSFER_RDMA, true},
        {"all", TRANSFER_RDMA, true},      {"", TRANSFER_RDMA, true},
        {"^ib", TRANSFER_RDMA, false},     {"^tcp", TRANSFER_RDMA, true},
        {"^tcp", TRANSFER_TCP, false},     {"^rc", TRANSFER_RDMA, true},
        {"rc,sm", TRANSFER_TCP, false},    {"rc", TRANSFER_SHM, false},
        {"posix,cma", TRANSFER_SHM, true}, {"^sm", TRANSFER_SHM, false},
        {"self", TRANSFER_SHM, false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct transport_plan plan;
        struct status st;
        enum status_code code =
            make(&with_rdma, cases[i].env, NULL, OPT(.transport = cases[i].kind), &plan, &st);

        if ((code == ST_OK) != cases[i].good)
            fail_msg("UCX_TLS=%s and %s: %s", cases[i].env, transport_kind_name(cases[i].kind),
                     st.msg);
        if (!cases[i].good)
            assert_non_null(strstr(st.msg, "UCX_TLS="));
    }
    refused(&without_rdma, "rc", NULL, OPT(0), ST_UNAVAILABLE, "leaves nothing");
}

static void ucx_tls_is_kept_within_the_plan(void **state)
{
    (void)state;
    planned(&with_rdma, "rc_x,posix,tcp", OPT(0), "rc_x,posix,self", true);
    planned(&with_rdma, "rc_x,posix", OPT(0), "rc_x,posix,self", false);
    planned(&with_rdma, "rc_x,posix", OPT(.transport = TRANSFER_SHM), "posix,self", false);
    planned(&with_rdma, "^cma", OPT(0), "^cma,cuda,tcp", true);
    planned(&with_rdma, "^cma", OPT(.transport = TRANSFER_SHM), "^cma,ib,cuda,tcp", false);
    planned(&with_rdma, "all", OPT(.transport = TRANSFER_SHM), "sm,self", false);
}

static void net_devices_that_contradict_the_flag_are_refused(void **state)
{
    struct transport_plan plan;
    struct status st;

    (void)state;
    refused(&with_rdma, NULL, "eth0", OPT(.devices = "mlx5_0:1"), ST_UNAVAILABLE,
            "UCX_NET_DEVICES=eth0");
    refused(&with_rdma, NULL, "mlx5_0:1", OPT(.devices = "mlx5_0:1,mlx5_1:1"), ST_UNAVAILABLE,
            "mlx5_1:1 is not in it");
    refused(&with_rdma, NULL, "eth0", OPT(.require = TRANSFER_RDMA), ST_UNAVAILABLE,
            "none of the devices eth0");
    assert_int_equal(make(&with_rdma, NULL, "all", OPT(.devices = "mlx5_0:1"), &plan, &st), ST_OK);
    assert_string_equal(plan.ucx_devices, "mlx5_0:1");
    assert_int_equal(
        make(&with_rdma, NULL, "mlx5_0:1,eth0", OPT(.devices = "mlx5_0:1"), &plan, &st), ST_OK);
    assert_int_equal(make(&with_rdma, NULL, NULL, OPT(.devices = "mlx5_1,lo"), &plan, &st), ST_OK);
    assert_string_equal(plan.ucx_devices, "mlx5_1:1"); /* UCX is not told of lo */
    assert_string_equal(plan.devices, "mlx5_1,lo");
    assert_int_equal(make(&with_rdma, NULL, NULL, OPT(0), &plan, &st), ST_OK);
    assert_string_equal(plan.ucx_devices, "all");
}

static void tcp_needs_an_interface_of_the_list(void **state)
{
    (void)state;
    refused(&with_rdma, NULL, NULL, OPT(.transport = TRANSFER_TCP, .devices = "eth77"),
            ST_UNAVAILABLE, "no network interface of eth77");
}

static void the_lane_that_carries_puts_is_read_back(void **state)
{
    static const char shm[] =
        "#  lane[0]:  1:sysv/memory.0 md[0] -> md[0]/sysv/sysdev[255] rma_bw#0 "
        "am am_bw#0\n#  lane[1]:  2:cma/memory.0 md[3] -> md[3] rma_bw#1\n";
    static const char tcp[] = "#\n#   lane[0]:  3:tcp/eth0.7 md[1] -> md[1]/tcp/sysdev[255] am\n";
    static const char rdma[] =
        "# lane[0]: 4:ud_mlx5/mlx5_0:1.0 md[4] -> md[4] am wireup\n"
        "# lane[1]: 5:rc_mlx5/mlx5_0:1.0 md[4] -> md[4]/ib/sysdev[0] rma_bw#0 rma#0 am\n";
    char text[128];

    (void)state;
    transport_parse_info(shm, text, sizeof(text));
    assert_string_equal(text, "shm (sysv/memory)");
    transport_parse_info(tcp, text, sizeof(text));
    assert_string_equal(text, "tcp (tcp/eth0)");
    transport_parse_info(rdma, text, sizeof(text));
    assert_string_equal(text, "rdma (rc_mlx5/mlx5_0:1)");
    transport_parse_info("", text, sizeof(text));
    assert_string_equal(text, "unknown");
    transport_parse_info("lane[0]: garbage", text, sizeof(text));
    assert_string_equal(text, "unknown");
    transport_parse_info("lane[0]: 1:neu/x", text, sizeof(text));
    assert_string_equal(text, "unknown");
}

/* ---- the same through transfer_start(), on this machine ---- */

static void a_worker_does_not_start_without_what_it_requires(void **state)
{
    struct transfer_options opt = {.require = TRANSFER_RDMA};
    struct rdma_wish any = {.gid_index = -1};
    struct rdma_report r;
    struct node n;
    struct status st;

    (void)state;
    rdma_probe(rdma_verbs_real(), &any, &r);
    if (r.n_usable > 0) {
        printf("skipped: this machine has RDMA\n");
        skip();
    }
    n = node_fork();
    assert_int_equal(node_start(&n, &opt, &st), ST_UNAVAILABLE);
    assert_non_null(strstr(st.msg, "--kv-require rdma: RDMA is not there"));
    opt = (struct transfer_options){.transport = TRANSFER_SHM};
    node_setenv(&n, "UCX_TLS", "tcp");
    assert_int_equal(node_start(&n, &opt, &st), ST_UNAVAILABLE);
    assert_non_null(strstr(st.msg, "UCX_TLS=tcp"));
    node_setenv(&n, "UCX_TLS", "all");
    assert_int_equal(node_start(&n, &opt, &st), ST_OK);
    node_end(&n);
}

static int setup(void **state)
{
    (void)state;
    with_rdma = fake_machine_good();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(auto_takes_what_the_machine_has),
        cmocka_unit_test(one_kind_is_a_wall),
        cmocka_unit_test(ports_of_the_own_numa_node_are_the_default),
        cmocka_unit_test(required_rdma_that_is_not_there_is_refused_with_the_reason),
        cmocka_unit_test(options_that_contradict_each_other_are_invalid),
        cmocka_unit_test(ucx_tls_that_forbids_what_is_asked_for_is_refused),
        cmocka_unit_test(ucx_tls_is_kept_within_the_plan),
        cmocka_unit_test(net_devices_that_contradict_the_flag_are_refused),
        cmocka_unit_test(tcp_needs_an_interface_of_the_list),
        cmocka_unit_test(the_lane_that_carries_puts_is_read_back),
        cmocka_unit_test(a_worker_does_not_start_without_what_it_requires),
    };

    return cmocka_run_group_tests_name("transport policy", tests, setup, NULL);
}
