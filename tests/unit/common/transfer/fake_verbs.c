#include "fake_verbs.h"

#include <errno.h>
#include <string.h>

static struct fake_machine *shown;
static struct ibv_device *handles[FAKE_DEVICES_MAX + 1];

/* Handles are never looked into: a device is its index plus one, a context the same. */
static struct fake_device *device_at(const void *handle)
{
    return &shown->devices[(uintptr_t)handle - 1];
}

static struct ibv_device **get_device_list(int *n)
{
    *n = 0;
    if (shown->no_list) {
        errno = ENOSYS;
        return NULL;
    }
    for (int i = 0; i < shown->n_devices; i++)
        handles[i] = (struct ibv_device *)(uintptr_t)(i + 1);
    *n = shown->n_devices;
    shown->lists_now++;
    return handles;
}

static void free_device_list(struct ibv_device **list)
{
    (void)list;
    shown->lists_now--;
}

static const char *get_device_name(struct ibv_device *device)
{
    return device_at(device)->name;
}

static struct ibv_context *open_device(struct ibv_device *device)
{
    if (device_at(device)->open_error != 0) {
        errno = device_at(device)->open_error;
        return NULL;
    }
    shown->open_now++;
    return (struct ibv_context *)device;
}

static int close_device(struct ibv_context *context)
{
    (void)context;
    shown->open_now--;
    return 0;
}

static int query_device(struct ibv_context *context, struct ibv_device_attr *attr)
{
    memset(attr, 0, sizeof(*attr));
    attr->phys_port_cnt = (uint8_t)device_at(context)->n_ports;
    return 0;
}

static int query_port(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attr)
{
    const struct fake_port *p = &device_at(context)->ports[port - 1];

    *attr = p->attr;
    return p->query_error;
}

static int query_gid(struct ibv_context *context, uint8_t port, int index, union ibv_gid *gid)
{
    *gid = device_at(context)->ports[port - 1].gids[index];
    return 0;
}

static int kernel_devices(void)
{
    return shown->kernel_devices;
}

static int device_files(void)
{
    return shown->device_files;
}

static uint64_t memlock_bytes(void)
{
    return shown->memlock_bytes;
}

static int numa_node(const char *device)
{
    for (int i = 0; i < shown->n_devices; i++)
        if (strcmp(shown->devices[i].name, device) == 0)
            return shown->devices[i].numa_node;
    return -1;
}

static int own_node(void)
{
    return shown->own_node;
}

const struct rdma_verbs *fake_verbs(struct fake_machine *m)
{
    static const struct rdma_verbs table = {
        .get_device_list = get_device_list,
        .free_device_list = free_device_list,
        .get_device_name = get_device_name,
        .open_device = open_device,
        .close_device = close_device,
        .query_device = query_device,
        .query_port = query_port,
        .query_gid = query_gid,
        .kernel_devices = kernel_devices,
        .device_files = device_files,
        .memlock_bytes = memlock_bytes,
        .numa_node = numa_node,
        .own_node = own_node,
    };

    shown = m;
    return &table;
}

struct fake_machine fake_machine_good(void)
{
    struct fake_machine m = {
        .n_devices = 2,
        .kernel_devices = 2,
        .memlock_bytes = UINT64_MAX,
        .devices = {{.name = "mlx5_0", .n_ports = 1}, {.name = "mlx5_1", .n_ports = 1}},
    };

    m.devices[0].ports[0] = (struct fake_port){
        .attr = {.state = IBV_PORT_ACTIVE,
                 .link_layer = IBV_LINK_LAYER_INFINIBAND,
                 .lid = 7,
                 .active_mtu = IBV_MTU_4096,
                 .active_width = 2,
                 .active_speed = 128,
                 .gid_tbl_len = 1},
        .gids = {{.raw = {0xfe, 0x80, [15] = 1}}},
    };
    m.devices[1].ports[0] = (struct fake_port){
        .attr = {.state = IBV_PORT_ACTIVE,
                 .link_layer = IBV_LINK_LAYER_ETHERNET,
                 .active_mtu = IBV_MTU_1024,
                 .active_width = 2,
                 .active_speed = 32,
                 .gid_tbl_len = 3},
        .gids = {{.raw = {0xfe, 0x80, [15] = 2}},
                 {.raw = {0}},
                 {.raw = {[10] = 0xff, [11] = 0xff, 10, 0, 0, 5}}},
    };
    return m;
}
