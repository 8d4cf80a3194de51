#include "common/transfer/rdma_probe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* ---- the machine ---- */

static int real_query_port(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attr)
{
    return ibv_query_port(context, port, attr); /* a macro: it cannot stand in the table itself */
}

static int real_kernel_devices(void)
{
    DIR *d = opendir("/sys/class/infiniband");
    int n = 0;

    if (d == NULL)
        return 0;
    for (const struct dirent *e = readdir(d); e != NULL; e = readdir(d))
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* One uverbs file that opens is enough; else the last reason. */
static int real_device_files(void)
{
    DIR *d = opendir("/dev/infiniband");
    int err = ENOENT;

    if (d == NULL)
        return errno;
    for (const struct dirent *e = readdir(d); e != NULL && err != 0; e = readdir(d)) {
        char path[64];

        if (strncmp(e->d_name, "uverbs", 6) != 0 || strlen(e->d_name) > 32)
            continue;
        snprintf(path, sizeof(path), "/dev/infiniband/%.32s", e->d_name);
        err = access(path, R_OK | W_OK) == 0 ? 0 : errno;
    }
    closedir(d);
    return err;
}

/* CAP_IPC_LOCK is bit 14 of the effective set. */
static bool may_lock_freely(void)
{
    FILE *f = fopen("/proc/self/status", "re");
    unsigned long long caps = 0;
    char line[256];

    if (f == NULL)
        return false;
    while (fgets(line, sizeof(line), f) != NULL)
        if (sscanf(line, "CapEff: %llx", &caps) == 1)
            break;
    fclose(f);
    return (caps >> 14) & 1;
}

static uint64_t real_memlock_bytes(void)
{
    struct rlimit limit;

    if (may_lock_freely() || getrlimit(RLIMIT_MEMLOCK, &limit) != 0 ||
        limit.rlim_cur == RLIM_INFINITY)
        return UINT64_MAX;
    return limit.rlim_cur;
}

static int real_numa_node(const char *device)
{
    char path[128];
    int node = -1;
    FILE *f;

    snprintf(path, sizeof(path), "/sys/class/infiniband/%.64s/device/numa_node", device);
    f = fopen(path, "re");
    if (f == NULL)
        return -1;
    if (fscanf(f, "%d", &node) != 1)
        node = -1;
    fclose(f);
    return node;
}

/* A CPU's folder has a link "node<N>" to its node. */
static int node_of_cpu(int cpu)
{
    char path[64];
    int node = -1;
    DIR *d;

    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d", cpu);
    d = opendir(path);
    if (d == NULL)
        return -1;
    for (const struct dirent *e = readdir(d); e != NULL && node < 0; e = readdir(d))
        if (sscanf(e->d_name, "node%d", &node) != 1)
            node = -1;
    closedir(d);
    return node;
}

static int real_own_node(void)
{
    cpu_set_t set;
    int node = -1;

    if (sched_getaffinity(0, sizeof(set), &set) != 0)
        return -1;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        int of = CPU_ISSET(cpu, &set) ? node_of_cpu(cpu) : -2;

        if (of == -1 || (of >= 0 && node >= 0 && of != node))
            return -1;
        if (of >= 0)
            node = of;
    }
    return node;
}

const struct rdma_verbs *rdma_verbs_real(void)
{
    static const struct rdma_verbs real = {
        .get_device_list = ibv_get_device_list,
        .free_device_list = ibv_free_device_list,
        .get_device_name = ibv_get_device_name,
        .open_device = ibv_open_device,
        .close_device = ibv_close_device,
        .query_device = ibv_query_device,
        .query_port = real_query_port,
        .query_gid = ibv_query_gid,
        .kernel_devices = real_kernel_devices,
        .device_files = real_device_files,
        .memlock_bytes = real_memlock_bytes,
        .numa_node = real_numa_node,
        .own_node = real_own_node,
    };

    return &real;
}

/* ---- ports ---- */

/* Lanes times Gbit/s of one; both are codes of the InfiniBand specification. */
static double link_rate(const struct ibv_port_attr *a)
{
    static const struct {
        uint8_t code;
        double gbit;
    } speeds[] = {{1, 2.5}, {2, 5}, {4, 10}, {8, 10}, {16, 14}, {32, 25}, {64, 50}, {128, 100}};
    int lanes = a->active_width == 1   ? 1
                : a->active_width == 2 ? 4
                : a->active_width == 4 ? 8
                : a->active_width == 8 ? 12
                                       : 2;

    for (size_t i = 0; i < sizeof(speeds) / sizeof(speeds[0]); i++)
        if (speeds[i].code == a->active_speed)
            return lanes * speeds[i].gbit;
    return 0;
}

static bool gid_is_zero(const union ibv_gid *g)
{
    static const union ibv_gid zero;

    return memcmp(g, &zero, sizeof(zero)) == 0;
}

/* fe80::/10, good only on one cable; an InfiniBand GID with that prefix is the default subnet. */
static bool gid_is_link_local(const union ibv_gid *g)
{
    return g->raw[0] == 0xfe && (g->raw[1] & 0xc0) == 0x80;
}

static void look_at_gids(const struct rdma_verbs *v, struct ibv_context *context, int table_len,
                         int wanted, struct rdma_port *p)
{
    for (int i = 0; i < table_len; i++) {
        union ibv_gid g;

        if (v->query_gid(context, p->port, i, &g) != 0 || gid_is_zero(&g) ||
            (p->ethernet && gid_is_link_local(&g)))
            continue;
        p->n_gids++;
        if (i == wanted)
            return;
    }
    if (p->n_gids == 0)
        snprintf(p->why, sizeof(p->why),
                 "no GID that a peer can reach: give %s an IP address (of %d entries none counts)",
                 p->ethernet ? "its network interface" : "the port", table_len);
    else if (wanted >= 0)
        snprintf(
            p->why, sizeof(p->why),
            "UCX_IB_GID_INDEX=%d names no GID that a peer can reach: unset it or choose another",
            wanted);
}

static void look_at_port(const struct rdma_verbs *v, struct ibv_context *context,
                         const struct rdma_wish *wish, struct rdma_port *p)
{
    static const char *const states[] = {"in no known state",
                                         "down: is the cable in, is the link administratively up?",
                                         "initialising: is a subnet manager running?",
                                         "armed: is a subnet manager running?",
                                         "active",
                                         "deferring"};
    struct ibv_port_attr a = {0};
    int err = v->query_port(context, p->port, &a);

    if (err != 0) {
        snprintf(p->why, sizeof(p->why), "cannot be queried: %s", strerror(err < 0 ? errno : err));
        return;
    }
    p->ethernet = a.link_layer == IBV_LINK_LAYER_ETHERNET;
    p->mtu = a.active_mtu >= IBV_MTU_256 && a.active_mtu <= IBV_MTU_4096
                 ? 128u << (unsigned)a.active_mtu
                 : 0;
    p->gbit_per_s = link_rate(&a);
    if (a.state != IBV_PORT_ACTIVE)
        snprintf(p->why, sizeof(p->why), "port is %s",
                 states[a.state <= IBV_PORT_ACTIVE_DEFER ? a.state : 0]);
    else if (!p->ethernet && a.lid == 0)
        snprintf(p->why, sizeof(p->why), "no LID: is a subnet manager running?");
    else
        look_at_gids(v, context, a.gid_tbl_len, wish->gid_index, p);
    p->usable = p->why[0] == '\0';
}

static struct rdma_port *port_new(struct rdma_report *r, const char *device, uint8_t port)
{
    struct rdma_port *p;

    if (r->n_ports == RDMA_PORTS_MAX)
        return NULL;
    p = &r->ports[r->n_ports++];
    snprintf(p->device, sizeof(p->device), "%s", device);
    p->port = port;
    return p;
}

static bool wishes_all(const struct rdma_wish *wish)
{
    return wish->devices == NULL || wish->devices[0] == '\0' || strcmp(wish->devices, "all") == 0;
}

/* "mlx5_0:1" names a port, "mlx5_0" all of a device. */
static bool is_wished(const struct rdma_wish *wish, const char *device, unsigned port)
{
    char full[IBV_SYSFS_NAME_MAX + 8];

    if (wishes_all(wish))
        return true;
    snprintf(full, sizeof(full), "%s:%u", device, port);
    for (const char *at = wish->devices; *at != '\0';) {
        size_t n = strcspn(at, ",");

        if ((n == strlen(full) && strncmp(at, full, n) == 0) ||
            (n == strlen(device) && strncmp(at, device, n) == 0))
            return true;
        at += n;
        at += *at == ',';
    }
    return false;
}

static void look_at_device(const struct rdma_verbs *v, struct ibv_device *device,
                           const struct rdma_wish *wish, struct rdma_report *r)
{
    const char *name = v->get_device_name(device);
    struct ibv_context *context;
    struct ibv_device_attr attr;
    struct rdma_port *p;

    context = v->open_device(device);
    if (context == NULL) {
        int err = errno;

        p = is_wished(wish, name, 1) ? port_new(r, name, 1) : NULL;
        if (p != NULL)
            snprintf(p->why, sizeof(p->why), "the device does not open: %s%s", strerror(err),
                     err == EACCES || err == EPERM ? " (permissions of /dev/infiniband/uverbs*)"
                                                   : "");
        return;
    }
    if (v->query_device(context, &attr) != 0)
        attr.phys_port_cnt = 1;
    for (unsigned port = 1; port <= attr.phys_port_cnt; port++) {
        p = is_wished(wish, name, port) ? port_new(r, name, (uint8_t)port) : NULL;
        if (p == NULL)
            continue;
        p->numa_node = v->numa_node(name);
        look_at_port(v, context, wish, p);
    }
    v->close_device(context);
}

static void say_why_none(const struct rdma_verbs *v, struct rdma_report *r)
{
    int in_kernel = v->kernel_devices(), files = v->device_files();

    if (in_kernel == 0)
        snprintf(
            r->why, sizeof(r->why),
            "the kernel knows no RDMA device (/sys/class/infiniband is empty): no adapter, its "
            "driver is not loaded, or it was not given to this container");
    else if (files == ENOENT)
        snprintf(r->why, sizeof(r->why),
                 "the kernel has %d RDMA devices, but /dev/infiniband is not in this container: "
                 "request the rdma device resource, or pass --device /dev/infiniband",
                 in_kernel);
    else if (files != 0)
        snprintf(r->why, sizeof(r->why),
                 "the kernel has %d RDMA devices, but /dev/infiniband/uverbs* cannot be opened: %s",
                 in_kernel, strerror(files));
    else
        snprintf(r->why, sizeof(r->why),
                 "the kernel has %d RDMA devices, but libibverbs lists none: the user-space driver "
                 "of the adapter is missing (package ibverbs-providers)",
                 in_kernel);
}

/* A write from another node's memory crosses the link between the nodes. */
static void mark_far(const struct rdma_verbs *v, struct rdma_report *r)
{
    int own = v->own_node();
    bool any_near = false;

    for (uint32_t i = 0; i < r->n_ports; i++)
        any_near |= r->ports[i].usable && own >= 0 && r->ports[i].numa_node == own;
    for (uint32_t i = 0; i < r->n_ports; i++)
        r->ports[i].far = any_near && r->ports[i].numa_node >= 0 && r->ports[i].numa_node != own;
}

void rdma_probe(const struct rdma_verbs *v, const struct rdma_wish *wish, struct rdma_report *out)
{
    int n = 0;
    struct ibv_device **list = v->get_device_list(&n);

    memset(out, 0, sizeof(*out));
    out->memlock_bytes = v->memlock_bytes();
    for (int i = 0; list != NULL && i < n; i++)
        look_at_device(v, list[i], wish, out);
    for (uint32_t i = 0; i < out->n_ports; i++)
        out->n_usable += out->ports[i].usable;
    if (wishes_all(wish))
        mark_far(v, out);
    if (list == NULL || n == 0)
        say_why_none(v, out);
    else if (out->n_ports == 0)
        snprintf(out->why, sizeof(out->why), "none of the devices %.120s is an RDMA port here",
                 wish->devices != NULL ? wish->devices : "");
    if (list != NULL)
        v->free_device_list(list);
}

void rdma_port_text(const struct rdma_port *p, char *buf, size_t n)
{
    if (p->usable)
        snprintf(buf, n, "%s:%u %s %.0f Gb/s, mtu %u, active%s", p->device, p->port,
                 p->ethernet ? "RoCE" : "InfiniBand", p->gbit_per_s, p->mtu,
                 p->far ? ", not used: on another NUMA node than this process (--kv-devices)" : "");
    else
        snprintf(buf, n, "%s:%u: %s", p->device, p->port, p->why);
}

/* Every listed device must be a port that was found. */
static enum status_code wishes_found(const struct rdma_report *r, const struct rdma_wish *wish,
                                     struct status *st)
{
    const char *at = wish->devices != NULL ? wish->devices : "";

    if (strcmp(at, "all") == 0)
        return status_ok(st);
    while (*at != '\0') {
        size_t n = strcspn(at, ",");
        struct rdma_wish one = {.gid_index = -1};
        char name[IBV_SYSFS_NAME_MAX + 8];
        bool found = false;

        snprintf(name, sizeof(name), "%.*s", (int)n, at);
        one.devices = name;
        for (uint32_t i = 0; i < r->n_ports; i++)
            found |= is_wished(&one, r->ports[i].device, r->ports[i].port) && r->ports[i].usable;
        if (!found)
            return status_set(st, ST_UNAVAILABLE, "device %s of --kv-devices", name);
        at += n;
        at += *at == ',';
    }
    return status_ok(st);
}

enum status_code rdma_require(const struct rdma_report *r, const struct rdma_wish *wish,
                              struct status *st)
{
    char reasons[384] = "", text[256];
    struct status missing;

    if (r->n_usable > 0 && wishes_found(r, wish, &missing) == ST_OK)
        return rdma_memlock_check(r, RDMA_MEMLOCK_LEAST, st);
    for (uint32_t i = 0; i < r->n_ports; i++) {
        size_t at = strlen(reasons);

        if (r->ports[i].usable)
            continue;
        rdma_port_text(&r->ports[i], text, sizeof(text));
        snprintf(reasons + at, sizeof(reasons) - at, "%s%s", at > 0 ? "; " : "", text);
    }
    if (r->n_usable > 0)
        return status_set(st, ST_UNAVAILABLE, "RDMA: %s is not usable%s%s", missing.msg,
                          reasons[0] != '\0' ? ": " : ": no such port", reasons);
    return status_set(st, ST_UNAVAILABLE, "RDMA is not there: %s",
                      r->n_ports > 0 ? reasons : r->why);
}

enum status_code rdma_memlock_check(const struct rdma_report *r, uint64_t bytes, struct status *st)
{
    if (r->memlock_bytes >= bytes)
        return status_ok(st);
    return status_set(
        st, ST_UNAVAILABLE,
        "RDMA: %llu MiB of memory are to be registered, the limit of locked memory is "
        "%llu MiB: raise it (ulimit -l unlimited, LimitMEMLOCK=infinity, in a "
        "container --ulimit memlock=-1 or the capability IPC_LOCK)",
        (unsigned long long)(bytes >> 20), (unsigned long long)(r->memlock_bytes >> 20));
}
