#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/transfer/link_probe.h"

struct slab_args {
    int index;
    void *base; /* NULL: allocate */
    uint64_t bytes;
};

static uint64_t total_bytes(const struct transfer *t)
{
    uint64_t sum = 0;

    for (int i = 0; i < DESCRIPTOR_SLABS; i++)
        sum += t->slabs[i].bytes;
    return sum;
}

static enum status_code slab_map(struct transfer *t, void *arg, struct status *st)
{
    struct slab_args *a = arg;
    struct slab_region *s;
    ucp_mem_map_params_t params = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
                      UCP_MEM_MAP_PARAM_FIELD_FLAGS,
        .address = a->base,
        .length = a->bytes,
        .flags = a->base == NULL ? UCP_MEM_MAP_ALLOCATE : 0,
    };
    ucp_mem_attr_t attr = {.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS};
    ucp_mem_h memh;
    ucs_status_t rc;

    if (a->index < 0 || a->index >= DESCRIPTOR_SLABS || a->bytes == 0)
        return status_set(st, ST_INVALID, "slab %d of %llu bytes: index 0 to %d, at least a byte",
                          a->index, (unsigned long long)a->bytes, DESCRIPTOR_SLABS - 1);
    s = &t->slabs[a->index];
    if (s->bytes != 0 || t->peers != NULL)
        return status_set(st, ST_INVALID,
                          "slab %d: slabs are made once each, before the first peer", a->index);
    if (t->plan.rdma && rdma_memlock_check(&t->plan.report, total_bytes(t) + a->bytes, st) != ST_OK)
        return status_wrap(st, "slab %d", a->index);
    rc = ucp_mem_map(t->context, &params, &memh);
    if (rc == UCS_OK)
        rc = ucp_mem_query(memh, &attr);
    if (rc != UCS_OK)
        return status_set(st, ST_EXHAUSTED,
                          "slab %d: UCX cannot %s %llu bytes (%s): check free memory, the limits "
                          "of shared memory (kernel.shmmax, /dev/shm) and ulimit -l",
                          a->index, a->base == NULL ? "allocate" : "register",
                          (unsigned long long)a->bytes, ucs_status_string(rc));
    *s = (struct slab_region){.base = attr.address, .bytes = a->bytes, .memh = memh};
    a->base = attr.address;
    return status_ok(st);
}

int slab_advise(void *base, uint64_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)base & ~(page - 1);

    bytes += (uintptr_t)base - start;
    (void)madvise((void *)start, bytes, MADV_HUGEPAGE); /* not every kernel does */
#ifdef MADV_POPULATE_WRITE
    if (madvise((void *)start, bytes, MADV_POPULATE_WRITE) != 0 && errno != EINVAL)
        return errno; /* EINVAL: before Linux 5.14; there the pages come by use */
#endif
    return 0;
}

/* Makes the pages exist now: memory that the machine does not have is an error at the start, not
 * SIGBUS in mid-run. */
static enum status_code populate(void *base, uint64_t bytes, struct status *st)
{
    int err = slab_advise(base, bytes);

    if (err != 0)
        return status_set(st, ST_EXHAUSTED,
                          "%llu bytes of shared memory cannot be backed (%s): check free memory, "
                          "the container's memory limit and the size of /dev/shm",
                          (unsigned long long)bytes, strerror(err));
    return status_ok(st);
}

/* The plan's ALLOC_PRIO names only methods that map fresh memory, so the bytes are zero. */
static enum status_code alloc(struct transfer *t, int index, size_t bytes, void **out,
                              struct status *st)
{
    struct slab_args a = {.index = index, .bytes = bytes};

    if (transfer_call(t, slab_map, &a, st) != ST_OK)
        return st->code;
    if (populate(a.base, bytes, st) != ST_OK)
        return status_wrap(st, "slab %d", index);
    *out = a.base;
    return status_ok(st);
}

/* The last one is not for owners. */
static bool is_owners(int index, struct status *st)
{
    if (index >= 0 && index < TRANSFER_SLABS_MAX)
        return true;
    status_set(st, ST_INVALID, "slab %d: 0 to %d are there", index, TRANSFER_SLABS_MAX - 1);
    return false;
}

enum status_code transfer_slab_alloc(struct transfer *t, int index, size_t bytes, void **out,
                                     struct status *st)
{
    return is_owners(index, st) ? alloc(t, index, bytes, out, st) : st->code;
}

enum status_code slab_probe_alloc(struct transfer *t, struct status *st)
{
    void *base;

    return alloc(t, SLAB_PROBE, LINK_PROBE_BYTES, &base, st);
}

enum status_code transfer_slab_register(struct transfer *t, int index, void *base, size_t bytes,
                                        struct status *st)
{
    struct slab_args a = {.index = index, .base = base, .bytes = bytes};

    if (base == NULL)
        return status_set(st, ST_INVALID, "slab %d: no memory given", index);
    if (!is_owners(index, st))
        return st->code;
    return transfer_call(t, slab_map, &a, st);
}

void slabs_deinit(struct transfer *t)
{
    for (int i = 0; i < DESCRIPTOR_SLABS; i++)
        if (t->slabs[i].bytes > 0)
            (void)ucp_mem_unmap(t->context, t->slabs[i].memh);
}

struct describe_args {
    struct buf *out;
    uint64_t writer; /* 0: whoever reads it */
    transfer_end_fn on_end;
    void *arg;
};

static enum status_code describe(struct transfer *t, void *arg, struct status *st)
{
    struct describe_args *a = arg;
    struct descriptor d = {.incarnation = t->incarnation};
    void *rkeys[DESCRIPTOR_SLABS] = {NULL};
    ucp_address_t *address = NULL;
    size_t address_len, len = 0;
    ucs_status_t rc = ucp_worker_get_address(t->worker, &address, &address_len);

    for (int i = 0; rc == UCS_OK && i < DESCRIPTOR_SLABS; i++) {
        const struct slab_region *s = &t->slabs[i];

        if (s->bytes == 0)
            continue;
        rc = ucp_rkey_pack(t->context, s->memh, &rkeys[i], &len);
        if (rc == UCS_OK)
            d.slabs[i] =
                (struct descriptor_slab){(uintptr_t)s->base, s->bytes, rkeys[i], (uint32_t)len};
    }
    if (rc != UCS_OK) {
        status_set(st, ST_INTERNAL, "UCX cannot describe this worker: %s", ucs_status_string(rc));
    } else if (tcp_server_offer(t->server, a->writer, a->on_end, a->arg, &d.tcp, st) == ST_OK) {
        d.address = address;
        d.address_len = (uint32_t)address_len;
        descriptor_write(&d, a->out);
    }
    for (int i = 0; i < DESCRIPTOR_SLABS; i++)
        if (rkeys[i] != NULL)
            ucp_rkey_buffer_release(rkeys[i]);
    if (address != NULL)
        ucp_worker_release_address(t->worker, address);
    return st->code;
}

enum status_code transfer_describe(struct transfer *t, struct buf *out, struct status *st)
{
    struct describe_args a = {.out = out};

    return transfer_call(t, describe, &a, st);
}

static enum status_code describe_to(struct transfer *t, void *arg, struct status *st)
{
    ((struct describe_args *)arg)->writer = ++t->writers;
    return describe(t, arg, st);
}

enum status_code transfer_describe_to(struct transfer *t, transfer_end_fn on_end, void *arg,
                                      uint64_t *writer, struct buf *out, struct status *st)
{
    struct describe_args a = {.out = out, .on_end = on_end, .arg = arg};

    if (transfer_call(t, describe_to, &a, st) == ST_OK)
        *writer = a.writer;
    return st->code;
}

static enum status_code shut_out(struct transfer *t, void *arg, struct status *st)
{
    if (!tcp_server_revoke(t->server, *(uint64_t *)arg))
        return status_set(st, ST_UNAVAILABLE, "it may still write");
    return status_ok(st);
}

bool transfer_revoke(struct transfer *t, uint64_t writer)
{
    struct status st;

    return transfer_call(t, shut_out, &writer, &st) == ST_OK;
}
