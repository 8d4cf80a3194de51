/*
 * rdma_probe: what RDMA hardware this process can really use, and in words why not.
 *
 * "RDMA is required but not there" must name the fault: no device in the container, port down, no
 * address, memlock too small. UCX alone says "No such device". Every question to libibverbs and the
 * kernel goes through a table of functions, so that tests ask each of them without hardware.
 *
 * Threads   start-up only.
 */
#ifndef BATON_COMMON_TRANSFER_RDMA_PROBE_H
#define BATON_COMMON_TRANSFER_RDMA_PROBE_H

#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"

enum {
    RDMA_PORTS_MAX = 64,
    RDMA_MEMLOCK_LEAST = 64 << 20, /* bytes; below, not even UCX's own buffers can be registered */
};

/** What the probe asks. rdma_verbs_real() asks the machine. */
struct rdma_verbs {
    struct ibv_device **(*get_device_list)(int *n);
    void (*free_device_list)(struct ibv_device **list);
    const char *(*get_device_name)(struct ibv_device *device);
    struct ibv_context *(*open_device)(struct ibv_device *device);
    int (*close_device)(struct ibv_context *context);
    int (*query_device)(struct ibv_context *context, struct ibv_device_attr *attr);
    int (*query_port)(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attr);
    int (*query_gid)(struct ibv_context *context, uint8_t port, int index, union ibv_gid *gid);
    int (*kernel_devices)(void);     /* entries of /sys/class/infiniband */
    int (*device_files)(void);       /* 0, or the errno of reading and writing /dev/infiniband's */
    uint64_t (*memlock_bytes)(void); /* RLIMIT_MEMLOCK; UINT64_MAX: no limit (or CAP_IPC_LOCK) */
    int (*numa_node)(const char *device); /* of the adapter's slot; -1: not known */
    int (*own_node)(void); /* whose CPUs are all that we may run on; -1: those of several */
};

const struct rdma_verbs *rdma_verbs_real(void);

struct rdma_port {
    char device[IBV_SYSFS_NAME_MAX];
    uint8_t port;
    bool usable;
    bool far;          /* on another NUMA node than we are, while another usable port is near */
    int numa_node;     /* -1: not known */
    bool ethernet;     /* RoCE; else InfiniBand */
    uint32_t mtu;      /* bytes */
    double gbit_per_s; /* link rate */
    uint32_t n_gids;   /* that a peer elsewhere can reach */
    char why[128];     /* when not usable */
};

struct rdma_report {
    uint32_t n_ports, n_usable;
    struct rdma_port ports[RDMA_PORTS_MAX];
    uint64_t memlock_bytes;
    char why[256]; /* when there is no port at all: why */
};

struct rdma_wish {
    const char *devices; /* "mlx5_0:1,mlx5_1": only these ports count; NULL: all */
    int gid_index;       /* that UCX was told to use; -1: it chooses */
};

/** Looks. Never fails: what is wrong stands in the report. Without a wish for devices, the ports of
 * another node are far where this process is bound to one that has its own. */
void rdma_probe(const struct rdma_verbs *v, const struct rdma_wish *wish, struct rdma_report *out);

/** @return ST_OK when RDMA can be used; ST_UNAVAILABLE with every reason why not and what to do */
enum status_code rdma_require(const struct rdma_report *report, const struct rdma_wish *wish,
                              struct status *st);

/** May this process register so many bytes? ST_UNAVAILABLE with the numbers when it may not. */
enum status_code rdma_memlock_check(const struct rdma_report *report, uint64_t bytes,
                                    struct status *st);

/** "mlx5_0:1 InfiniBand 400 Gb/s, mtu 4096, active" or "...: port is down". */
void rdma_port_text(const struct rdma_port *p, char *buf, size_t n);

#endif
