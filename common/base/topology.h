/*
 * topology: the CPUs that this process may use, by NUMA node and core, as Linux shows them under
 * /sys/devices/system; and where the threads of a pool go.
 *
 * Promises  without NUMA (or where /sys says nothing) one node holds all usable CPUs.
 * Threads   none: plain data.
 * Limits    TOPOLOGY_CPUS CPUs, TOPOLOGY_NODES nodes; what is beyond is not used.
 */
#ifndef BATON_COMMON_BASE_TOPOLOGY_H
#define BATON_COMMON_BASE_TOPOLOGY_H

#include <stdbool.h>

enum { TOPOLOGY_CPUS = 1024, TOPOLOGY_NODES = 16 };

struct topology_cpu {
    int id;
    int node;    /* index, counting only nodes with usable CPUs */
    int sibling; /* how many CPUs of the same core stand before it: 0 is a core's first */
};

struct topology {
    int n_cpus, n_nodes;
    struct topology_cpu cpus[TOPOLOGY_CPUS]; /* by node, then sibling, then id */
};

/**
 * Reads the machine.
 * @param root    "/sys/devices/system", or a test's copy of its shape
 * @param usable  whether this process may use a CPU; NULL: sched_getaffinity() says
 */
void topology_read(const char *root, bool (*usable)(int cpu), struct topology *out);

/**
 * The CPU of each of n threads: nodes get equal shares (so that each node's memory is read by as
 * many) as far as they have CPUs, whole cores before second siblings, neighbours on one node. With
 * more threads than CPUs CPUs repeat.
 * @param cpus  out, [n] indexes into t->cpus
 */
void topology_place(const struct topology *t, int n, int *cpus);

#endif
