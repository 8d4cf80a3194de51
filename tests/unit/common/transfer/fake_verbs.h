/*
 * fake_verbs: RDMA hardware out of a table, for tests.
 *
 * Threads   one test at a time: the table it shows is a variable of the file.
 */
#ifndef TESTS_UNIT_COMMON_TRANSFER_FAKE_VERBS_H
#define TESTS_UNIT_COMMON_TRANSFER_FAKE_VERBS_H

#include "common/transfer/rdma_probe.h"

enum { FAKE_DEVICES_MAX = 4, FAKE_PORTS_MAX = 2, FAKE_GIDS_MAX = 4 };

struct fake_port {
    int query_error; /* errno, 0: well */
    struct ibv_port_attr attr;
    union ibv_gid gids[FAKE_GIDS_MAX];
};

struct fake_device {
    const char *name;
    int open_error; /* errno, 0: opens */
    int n_ports;
    int numa_node;
    struct fake_port ports[FAKE_PORTS_MAX];
};

struct fake_machine {
    bool no_list; /* ibv_get_device_list() returns NULL, as without kernel support */
    int n_devices;
    struct fake_device devices[FAKE_DEVICES_MAX];
    int kernel_devices;
    int device_files; /* errno */
    uint64_t memlock_bytes;
    int own_node;
    int open_now, lists_now; /* out: what was not given back */
};

/** Shows m from now on. */
const struct rdma_verbs *fake_verbs(struct fake_machine *m);

/** A machine with one active InfiniBand port "mlx5_0:1" and one active RoCE port "mlx5_1:1". */
struct fake_machine fake_machine_good(void);

#endif
