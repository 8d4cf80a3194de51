#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/pool.h"
#include "common/base/topology.h"

/* ---- a machine in a folder ---- */

static char root[] = "/tmp/test_topology.XXXXXX";

static void put(const char *name, const char *text)
{
    char path[512];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", root, name);
    for (char *p = path + strlen(root) + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = '\0';
        mkdir(path, 0700);
        *p = '/';
    }
    f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

/* Two sockets of n_cores cores, two threads a core: the second threads of all cores come after all
 * first ones, as on most servers. */
static void make_machine(int n_cores)
{
    char name[128], text[64];

    for (int node = 0; node < 2; node++) {
        snprintf(name, sizeof(name), "node/node%d/cpulist", 2 * node); /* a hole in the numbers */
        snprintf(text, sizeof(text), "%d-%d,%d-%d\n", node * n_cores, node * n_cores + n_cores - 1,
                 (2 + node) * n_cores, (2 + node) * n_cores + n_cores - 1);
        put(name, text);
    }
    for (int cpu = 0; cpu < 4 * n_cores; cpu++) {
        int core = cpu % (2 * n_cores);

        snprintf(name, sizeof(name), "cpu/cpu%d/topology/thread_siblings_list", cpu);
        snprintf(text, sizeof(text), "%d,%d\n", core, core + 2 * n_cores);
        put(name, text);
    }
}

static int start(void **state)
{
    (void)state;
    return mkdtemp(root) == NULL ? -1 : 0;
}

static int stop(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof(command), "rm -r %s", root);
    return system(command) == 0 ? 0 : -1;
}

static bool all(int cpu)
{
    return cpu < 128;
}

static bool few(int cpu) /* a container's share */
{
    return cpu == 3 || cpu == 40 || cpu == 67;
}

/* ---- tests ---- */

static void threads_are_spread_over_nodes_and_cores(void **state)
{
    struct topology t;
    int at[128];
    bool used[128] = {false};

    (void)state;
    make_machine(32);
    topology_read(root, all, &t);
    assert_int_equal(t.n_cpus, 128);
    assert_int_equal(t.n_nodes, 2);

    topology_place(&t, 64, at); /* one per core, half on each node, neighbours together */
    for (int i = 0; i < 64; i++) {
        assert_int_equal(t.cpus[at[i]].node, i / 32);
        assert_int_equal(t.cpus[at[i]].sibling, 0);
        assert_false(used[t.cpus[at[i]].id]);
        used[t.cpus[at[i]].id] = true;
    }
    memset(used, 0, sizeof(used));
    topology_place(&t, 128, at); /* all */
    for (int i = 0; i < 128; i++) {
        assert_false(used[t.cpus[at[i]].id]);
        used[t.cpus[at[i]].id] = true;
    }
    topology_place(&t, 3, at);
    assert_int_equal(t.cpus[at[0]].node + t.cpus[at[1]].node + t.cpus[at[2]].node, 1);
}

static void only_usable_cpus_are_there(void **state)
{
    struct topology t;
    int at[4];

    (void)state;
    make_machine(32);
    topology_read(root, few, &t);
    assert_int_equal(t.n_cpus, 3);
    assert_int_equal(t.n_nodes, 2);
    assert_int_equal(t.cpus[0].id, 3); /* node 0: 3, and 67, the second of core 3 */
    assert_int_equal(t.cpus[1].id, 67);
    assert_int_equal(t.cpus[1].sibling, 1);
    assert_int_equal(t.cpus[2].id, 40);
    topology_place(&t, 4, at); /* more threads than CPUs */
    assert_int_equal(t.cpus[at[3]].id, 40);
}

static void a_machine_that_says_nothing_is_one_node(void **state)
{
    struct topology t;

    (void)state;
    topology_read("/nonexistent", few, &t);
    assert_int_equal(t.n_cpus, 3);
    assert_int_equal(t.n_nodes, 1);
}

/* ---- pools on a machine that is not there ---- */

struct tally {
    _Atomic int runs[200];
    _Atomic int wrong;
};

static void tick(void *arg, int part, int n_parts)
{
    struct tally *tally = arg;

    tally->runs[part]++;
    tally->wrong += part >= n_parts;
}

static void a_pool_of_128_threads_runs_each_part_once(void **state)
{
    static const int counts[] = {1, 2, 15, 16, 17, 33, 128, 200};
    struct topology t;

    (void)state;
    make_machine(32);
    topology_read(root, all, &t);
    for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
        struct tally tally = {0};
        struct status st;
        struct pool *p;
        int n = counts[c], most_node = 0;

        assert_int_equal(pool_new_on(&t, n, false, &p, &st), ST_OK);
        for (int i = 0; i < 50; i++)
            pool_run(p, tick, &tally);
        for (int i = 0; i < n; i++) {
            assert_int_equal(tally.runs[i], 50);
            assert_true(pool_node(p, i) >= most_node);
            most_node = pool_node(p, i);
        }
        assert_int_equal(tally.wrong, 0);
        assert_int_equal(pool_nodes(p), n > 1 ? 2 : 1);
        pool_free(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_are_spread_over_nodes_and_cores),
        cmocka_unit_test(only_usable_cpus_are_there),
        cmocka_unit_test(a_machine_that_says_nothing_is_one_node),
        cmocka_unit_test(a_pool_of_128_threads_runs_each_part_once),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
