/* Every way in which RDMA can be missing, and what the probe says of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <string.h>
#include <cmocka.h>

#include "fake_verbs.h"

static const struct rdma_wish any = {.gid_index = -1};

/* Probes m, requires RDMA, checks that nothing stays open. */
static enum status_code require(struct fake_machine *m, const struct rdma_wish *wish,
                                struct rdma_report *r, struct status *st)
{
    rdma_probe(fake_verbs(m), wish, r);
    assert_int_equal(m->open_now, 0);
    assert_int_equal(m->lists_now, 0);
    return rdma_require(r, wish, st);
}

static void refused(struct fake_machine *m, const struct rdma_wish *wish, const char *word)
{
    struct rdma_report r;
    struct status st;

    assert_int_equal(require(m, wish, &r, &st), ST_UNAVAILABLE);
    if (strstr(st.msg, word) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", st.msg, word);
}

static void good_ports_are_found_and_described(void **state)
{
    struct fake_machine m = fake_machine_good();
    struct rdma_report r;
    struct status st;
    char text[256];

    (void)state;
    assert_int_equal(require(&m, &any, &r, &st), ST_OK);
    assert_int_equal(r.n_ports, 2);
    assert_int_equal(r.n_usable, 2);
    rdma_port_text(&r.ports[0], text, sizeof(text));
    assert_string_equal(text, "mlx5_0:1 InfiniBand 400 Gb/s, mtu 4096, active");
    rdma_port_text(&r.ports[1], text, sizeof(text));
    assert_string_equal(text, "mlx5_1:1 RoCE 100 Gb/s, mtu 1024, active");
    assert_int_equal(r.ports[1].n_gids, 1);
}

static void no_device_names_what_is_missing(void **state)
{
    struct fake_machine m = {.no_list = true, .memlock_bytes = UINT64_MAX};

    (void)state;
    refused(&m, &any, "no RDMA device");
    m.no_list = false;
    refused(&m, &any, "no RDMA device");
    m.kernel_devices = 4;
    m.device_files = ENOENT;
    refused(&m, &any, "/dev/infiniband is not in this container");
    m.device_files = EACCES;
    refused(&m, &any, "cannot be opened: Permission denied");
    m.device_files = 0;
    refused(&m, &any, "ibverbs-providers");
}

static void a_device_that_does_not_open_says_why(void **state)
{
    struct fake_machine m = fake_machine_good();

    (void)state;
    m.n_devices = 1;
    m.devices[0].open_error = EACCES;
    refused(&m, &any, "mlx5_0:1: the device does not open: Permission denied (permissions");
    m.devices[0].open_error = ENOMEM;
    refused(&m, &any, "Cannot allocate memory");
}

static void a_port_that_is_not_active_says_in_which_state_it_is(void **state)
{
    static const struct {
        enum ibv_port_state state;
        const char *word;
    } cases[] = {{IBV_PORT_DOWN, "port is down"},
                 {IBV_PORT_INIT, "subnet manager"},
                 {IBV_PORT_ARMED, "armed"},
                 {IBV_PORT_NOP, "no known state"},
                 {(enum ibv_port_state)99, "no known state"}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fake_machine m = fake_machine_good();

        m.n_devices = 1;
        m.devices[0].ports[0].attr.state = cases[i].state;
        refused(&m, &any, cases[i].word);
    }
}

static void ports_without_an_address_are_not_usable(void **state)
{
    struct fake_machine m = fake_machine_good();

    (void)state;
    m.n_devices = 1;
    m.devices[0].ports[0].attr.lid = 0;
    refused(&m, &any, "no LID");
    m = fake_machine_good();
    m.devices[0].open_error = EIO;
    memset(&m.devices[1].ports[0].gids[2], 0, sizeof(union ibv_gid)); /* link-local stays */
    refused(&m, &any, "no GID that a peer can reach");
    m.devices[1].ports[0].query_error = EINVAL;
    refused(&m, &any, "cannot be queried");
}

static void a_wrong_gid_index_is_named(void **state)
{
    struct fake_machine m = fake_machine_good();
    struct rdma_wish wish = {.devices = "mlx5_1:1", .gid_index = 1};
    struct rdma_report r;
    struct status st;

    (void)state;
    refused(&m, &wish, "UCX_IB_GID_INDEX=1");
    wish.gid_index = 0; /* link-local */
    refused(&m, &wish, "UCX_IB_GID_INDEX=0");
    wish.gid_index = 17; /* beyond the table */
    refused(&m, &wish, "UCX_IB_GID_INDEX=17");
    wish.gid_index = 2;
    assert_int_equal(require(&m, &wish, &r, &st), ST_OK);
}

static void only_listed_ports_count(void **state)
{
    struct fake_machine m = fake_machine_good();
    struct rdma_wish wish = {.devices = "mlx5_0", .gid_index = -1};
    struct rdma_report r;
    struct status st;

    (void)state;
    assert_int_equal(require(&m, &wish, &r, &st), ST_OK);
    assert_int_equal(r.n_ports, 1);
    wish.devices = "mlx5_0:2";
    refused(&m, &wish, "none of the devices mlx5_0:2");
    wish.devices = "mlx5";
    refused(&m, &wish, "none of the devices mlx5");
    wish.devices = "mlx5_0:1,mlx5_7:1";
    refused(&m, &wish, "mlx5_7:1");
    m.devices[1].ports[0].attr.state = IBV_PORT_DOWN;
    wish.devices = "mlx5_0:1,mlx5_1:1"; /* one rail of two is not what was asked for */
    refused(&m, &wish, "mlx5_1:1: port is down");
    assert_int_equal(require(&m, &any, &r, &st), ST_OK); /* without a list one is enough */
    assert_int_equal(r.n_usable, 1);
}

static void a_small_memlock_limit_is_refused_with_the_numbers(void **state)
{
    struct fake_machine m = fake_machine_good();
    struct rdma_report r;
    struct status st;

    (void)state;
    m.memlock_bytes = 8 << 20;
    refused(&m, &any, "limit of locked memory is 8 MiB");
    m.memlock_bytes = 1ull << 30;
    assert_int_equal(require(&m, &any, &r, &st), ST_OK);
    assert_int_equal(rdma_memlock_check(&r, 1ull << 30, &st), ST_OK);
    assert_int_equal(rdma_memlock_check(&r, 2ull << 30, &st), ST_UNAVAILABLE);
    assert_non_null(strstr(st.msg, "2048 MiB"));
}

static void the_real_table_answers_on_this_machine(void **state)
{
    struct rdma_report r;
    struct status st;

    (void)state;
    rdma_probe(rdma_verbs_real(), &any, &r);
    if (r.n_usable == 0) {
        assert_int_equal(rdma_require(&r, &any, &st), ST_UNAVAILABLE);
        assert_true(strlen(st.msg) > 20);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_ports_are_found_and_described),
        cmocka_unit_test(no_device_names_what_is_missing),
        cmocka_unit_test(a_device_that_does_not_open_says_why),
        cmocka_unit_test(a_port_that_is_not_active_says_in_which_state_it_is),
        cmocka_unit_test(ports_without_an_address_are_not_usable),
        cmocka_unit_test(a_wrong_gid_index_is_named),
        cmocka_unit_test(only_listed_ports_count),
        cmocka_unit_test(a_small_memlock_limit_is_refused_with_the_numbers),
        cmocka_unit_test(the_real_table_answers_on_this_machine),
    };

    return cmocka_run_group_tests_name("rdma probe", tests, NULL, NULL);
}
