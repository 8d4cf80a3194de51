/*
 * gpu_cuda: one GPU through the CUDA runtime, which looks for the driver when it is first called: a
 * machine without one runs the binary, and is told so here.
 *
 * Memory is one range of addresses, reserved whole at open; physical memory is put under it in
 * chunks as it is taken, so that nothing moves and nothing is allocated once a worker serves. The
 * driver's calls for that are asked for by name: no library of the driver is linked.
 */
#include "kernels/cuda/gpu.h"

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/arena.h"

enum {
    CHUNKS_MAX = 4096,
    PINNED_MAX = 64,
    OLDEST_SM = 80,
    E4M3_SM = 89,
    CHUNK_BYTES = 64 << 20,
    DRIVER_BYTES = 512 << 20 /* left to the driver: contexts, printf, graphs */
};

struct driver {
    PFN_cuMemAddressReserve_v10020 reserve;
    PFN_cuMemAddressFree_v10020 unreserve;
    PFN_cuMemCreate_v10020 create;
    PFN_cuMemRelease_v10020 release;
    PFN_cuMemMap_v10020 map;
    PFN_cuMemUnmap_v10020 unmap;
    PFN_cuMemSetAccess_v10020 access;
    PFN_cuMemGetAllocationGranularity_v10020 granularity;
    PFN_cuDeviceGetAttribute_v2000 attribute;
    PFN_cuStreamWriteValue64_v11070 write_value;
};

struct chunk {
    CUmemGenericAllocationHandle handle;
    size_t bytes;
};

struct cuda_gpu {
    struct gpu g; /* first: what the backend has */
    int device;
    struct driver driver;
    struct arena arena;
    CUdeviceptr base;
    size_t mapped; /* bytes from base on that have memory */
    size_t granularity;
    CUmemAllocationProp prop;
    struct chunk chunks[CHUNKS_MAX];
    int n_chunks;
    void *pinned[PINNED_MAX];
    cudaEvent_t marks[2];
    bool marked[2];
    bool managed; /* memory is cudaMallocManaged()'s */
};

static struct cuda_gpu *of(struct gpu *g)
{
    return (struct cuda_gpu *)(void *)g;
}

/* The first failure stays. @return whether it went well */
static bool check(struct gpu *g, cudaError_t e, const char *what)
{
    if (e == cudaSuccess)
        return true;
    if (g->error[0] == '\0')
        snprintf(g->error, sizeof(g->error), "%s: %s: %s", g->name, what, cudaGetErrorString(e));
    return false;
}

static bool check_driver(struct gpu *g, CUresult e, const char *what)
{
    if (e == CUDA_SUCCESS)
        return true;
    if (g->error[0] == '\0')
        snprintf(g->error, sizeof(g->error), "%s: %s: driver error %d", g->name, what, (int)e);
    return false;
}

/* A thread has one device at a time, and remembers which: several ranks may have been opened by
 * one thread, and each is driven by its own. */
static void enter(struct gpu *g)
{
    static _Thread_local int current = -1;

    if (current != of(g)->device && check(g, cudaSetDevice(of(g)->device), "cudaSetDevice"))
        current = of(g)->device;
}

/* ---- memory ---- */

/* Physical memory under the range up to `end`. */
static bool map_to(struct cuda_gpu *c, size_t end)
{
    CUmemAccessDesc access = {.location = c->prop.location,
                              .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};

    while (!c->managed && c->mapped < end) {
        size_t need = end - c->mapped, bytes;
        struct chunk *k = &c->chunks[c->n_chunks];

        bytes = need > CHUNK_BYTES ? need : CHUNK_BYTES;
        bytes = (bytes + c->granularity - 1) / c->granularity * c->granularity;
        if (bytes > c->arena.size - c->mapped) /* the last one; the range is whole granules */
            bytes = c->arena.size - c->mapped;
        if (c->n_chunks == CHUNKS_MAX || c->driver.create(&k->handle, bytes, &c->prop, 0) != 0)
            return false;
        if (c->driver.map(c->base + c->mapped, bytes, 0, k->handle, 0) != 0) {
            c->driver.release(k->handle);
            return false;
        }
        k->bytes = bytes;
        c->n_chunks++;
        if (!check_driver(&c->g, c->driver.access(c->base + c->mapped, bytes, &access, 1),
                          "cuMemSetAccess"))
            return false;
        c->mapped += bytes;
    }
    return true;
}

static uint64_t take(struct gpu *g, size_t bytes)
{
    struct cuda_gpu *c = of(g);
    size_t at;

    enter(g);
    if (!arena_take(&c->arena, bytes, &at))
        return 0;
    if (!map_to(c, c->arena.top) ||
        !check(g, cudaMemsetAsync((void *)(uintptr_t)(c->base + at), 0, bytes, g->stream),
               "cudaMemset")) {
        arena_give(&c->arena, at);
        return 0;
    }
    return c->base + at;
}

/* What is queued may still use it, and what comes after is queued behind that. */
static void give(struct gpu *g, uint64_t address)
{
    arena_give(&of(g)->arena, address - of(g)->base);
}

static void room(struct gpu *g, size_t *used, size_t *outside)
{
    struct cuda_gpu *c = of(g);
    size_t free_bytes = 0, total = 0, unmapped = c->managed ? 0 : c->arena.size - c->mapped;

    enter(g);
    check(g, cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo");
    *used = arena_used(&c->arena);
    *outside = free_bytes > unmapped ? free_bytes - unmapped : 0;
}

static void *take_pinned(struct gpu *g, size_t bytes)
{
    struct cuda_gpu *c = of(g);
    void *p = NULL;
    int i = 0;

    enter(g);
    while (i < PINNED_MAX && c->pinned[i] != NULL)
        i++;
    if (i == PINNED_MAX ||
        !check(g, cudaHostAlloc(&p, bytes, cudaHostAllocPortable), "pinned memory"))
        return NULL;
    c->pinned[i] = p;
    return p;
}

static void give_pinned(struct gpu *g, void *p)
{
    struct cuda_gpu *c = of(g);

    for (int i = 0; p != NULL && i < PINNED_MAX; i++)
        if (c->pinned[i] == p) {
            c->pinned[i] = NULL;
            check(g, cudaFreeHost(p), "cudaFreeHost");
            return;
        }
}

static int share(struct gpu *g, void *host, size_t bytes)
{
    void *seen = NULL;

    enter(g);
    if (!check(g, cudaHostRegister(host, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped),
               "cudaHostRegister (memlock limit?)") ||
        !check(g, cudaHostGetDevicePointer(&seen, host, 0), "cudaHostGetDevicePointer"))
        return -1;
    if (seen == host)
        return 0;
    cudaHostUnregister(host);
    snprintf(g->error, sizeof(g->error), "%.60s sees host memory at another address", g->name);
    return -1;
}

static void unshare(struct gpu *g, void *host)
{
    enter(g);
    check(g, cudaHostUnregister(host), "cudaHostUnregister");
}

/* ---- order ---- */

static void copy(struct gpu *g, void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind)
{
    enter(g);
    check(g, cudaMemcpyAsync(dst, src, bytes, kind, g->stream), "cudaMemcpy");
}

static void to_device(struct gpu *g, uint64_t dst, const void *pinned, size_t bytes)
{
    copy(g, (void *)(uintptr_t)dst, pinned, bytes, cudaMemcpyHostToDevice);
}

static void to_host(struct gpu *g, void *pinned, uint64_t src, size_t bytes)
{
    copy(g, pinned, (const void *)(uintptr_t)src, bytes, cudaMemcpyDeviceToHost);
}

static void within(struct gpu *g, uint64_t dst, uint64_t src, size_t bytes)
{
    copy(g, (void *)(uintptr_t)dst, (const void *)(uintptr_t)src, bytes, cudaMemcpyDeviceToDevice);
}

static void rows(struct gpu *g, uint64_t dst, size_t dst_pitch, uint64_t src, size_t src_pitch,
                 size_t bytes, size_t n_rows)
{
    enter(g);
    check(g,
          cudaMemcpy2DAsync((void *)(uintptr_t)dst, dst_pitch, (const void *)(uintptr_t)src,
                            src_pitch, bytes, n_rows, cudaMemcpyDeviceToDevice, g->stream),
          "cudaMemcpy2D");
}

/* A write of the stream's own: a host function there would stop the device for it. */
static void set_number(struct gpu *g, uint64_t n)
{
    enter(g);
    check_driver(g, of(g)->driver.write_value(g->stream, (CUdeviceptr)(uintptr_t)g->number, n, 0),
                 "cuStreamWriteValue64");
}

static void mark(struct gpu *g, int which)
{
    enter(g);
    of(g)->marked[which] =
        check(g, cudaEventRecord(of(g)->marks[which], g->stream), "cudaEventRecord");
}

static void wait_mark(struct gpu *g, int which)
{
    enter(g);
    if (of(g)->marked[which])
        check(g, cudaEventSynchronize(of(g)->marks[which]), "a kernel");
    of(g)->marked[which] = false;
}

static int wait_all(struct gpu *g)
{
    enter(g);
    check(g, cudaGetLastError(), "a launch");
    check(g, cudaStreamSynchronize(g->stream), "a kernel");
    return g->error[0] == '\0' ? 0 : -1;
}

/* ---- recordings: CUDA graphs ---- */

static void record(struct gpu *g)
{
    enter(g);
    check(g, cudaStreamBeginCapture(g->stream, cudaStreamCaptureModeThreadLocal), "capture");
}

static void *recorded(struct gpu *g)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;

    if (!check(g, cudaStreamEndCapture(g->stream, &graph), "capture"))
        return NULL;
    if (check(g, cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate") &&
        !check(g, cudaGraphUpload(exec, g->stream), "cudaGraphUpload")) {
        cudaGraphExecDestroy(exec);
        exec = NULL;
    }
    cudaGraphDestroy(graph);
    return exec;
}

static void replay(struct gpu *g, void *recording)
{
    enter(g);
    check(g, cudaGraphLaunch(recording, g->stream), "cudaGraphLaunch");
}

static void forget(struct gpu *g, void *recording)
{
    enter(g);
    if (recording != NULL)
        check(g, cudaGraphExecDestroy(recording), "cudaGraphExecDestroy");
}

/* ---- closing ---- */

static void free_memory(struct cuda_gpu *c)
{
    size_t at = 0;

    if (c->managed && c->base != 0)
        cudaFree((void *)(uintptr_t)c->base);
    if (c->managed || c->base == 0)
        return;
    for (int i = 0; i < c->n_chunks; i++) {
        c->driver.unmap(c->base + at, c->chunks[i].bytes);
        c->driver.release(c->chunks[i].handle);
        at += c->chunks[i].bytes;
    }
    c->driver.unreserve(c->base, c->arena.size);
}

static void gpu_close(struct gpu *g)
{
    struct cuda_gpu *c = of(g);

    enter(g);
    if (g->stream != NULL)
        cudaStreamSynchronize(g->stream);
    free_memory(c);
    for (int i = 0; i < PINNED_MAX; i++)
        if (c->pinned[i] != NULL)
            cudaFreeHost(c->pinned[i]);
    for (int i = 0; i < 2; i++)
        if (c->marks[i] != NULL)
            cudaEventDestroy(c->marks[i]);
    if (g->stream != NULL)
        cudaStreamDestroy(g->stream);
    arena_deinit(&c->arena);
    free(c);
}

static const struct gpu_ops cuda_gpu_ops = {
    .enter = enter,
    .take = take,
    .give = give,
    .room = room,
    .take_pinned = take_pinned,
    .give_pinned = give_pinned,
    .share = share,
    .unshare = unshare,
    .to_device = to_device,
    .to_host = to_host,
    .within = within,
    .rows = rows,
    .set_number = set_number,
    .mark = mark,
    .wait_mark = wait_mark,
    .wait = wait_all,
    .record = record,
    .recorded = recorded,
    .replay = replay,
    .forget = forget,
    .close = gpu_close,
};

/* ---- opening ---- */

/* Why there is no device to open; NULL: there is. */
static const char *no_device(int ordinal, char *text, size_t n)
{
    int count = 0, driver = 0, runtime = 0;
    cudaError_t e = cudaGetDeviceCount(&count);

    if (e == cudaSuccess && ordinal >= 0 && ordinal < count)
        return NULL;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0)
        snprintf(text, n, "there is no NVIDIA driver on this machine (libcuda.so.1)");
    else if (e == cudaErrorInsufficientDriver)
        snprintf(text, n, "the NVIDIA driver is for CUDA %d.%d, this build needs %d.%d",
                 driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    else if (e != cudaSuccess)
        snprintf(text, n, "CUDA does not start: %s", cudaGetErrorString(e));
    else
        snprintf(text, n, "there is no GPU %d: the driver shows %d (CUDA_VISIBLE_DEVICES?)",
                 ordinal, count);
    return text;
}

static bool find_driver(struct gpu *g, struct driver *d)
{
    const struct {
        const char *name;
        void *fn;
    } names[] = {
        {"cuMemAddressReserve", &d->reserve},
        {"cuMemAddressFree", &d->unreserve},
        {"cuMemCreate", &d->create},
        {"cuMemRelease", &d->release},
        {"cuMemMap", &d->map},
        {"cuMemUnmap", &d->unmap},
        {"cuMemSetAccess", &d->access},
        {"cuMemGetAllocationGranularity", &d->granularity},
        {"cuDeviceGetAttribute", &d->attribute},
        {"cuStreamWriteValue64", &d->write_value},
    };

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        enum cudaDriverEntryPointQueryResult found;

        if (cudaGetDriverEntryPointByVersion(names[i].name, (void **)names[i].fn, 12000,
                                             cudaEnableDefault, &found) != cudaSuccess ||
            found != cudaDriverEntryPointSuccess) {
            snprintf(g->error, sizeof(g->error), "the NVIDIA driver has no %s", names[i].name);
            return false;
        }
    }
    return true;
}

static int attribute(int device, enum cudaDeviceAttr what)
{
    int value = 0;

    cudaDeviceGetAttribute(&value, what, device);
    return value;
}

/* Name, age, size. */
static bool look_at(struct cuda_gpu *c)
{
    struct cudaDeviceProp p;
    int sm;

    if (!check(&c->g, cudaGetDeviceProperties(&p, c->device), "cudaGetDeviceProperties"))
        return false;
    sm = 10 * attribute(c->device, cudaDevAttrComputeCapabilityMajor) +
         attribute(c->device, cudaDevAttrComputeCapabilityMinor);
    snprintf(c->g.name, sizeof(c->g.name), "%.48s, sm_%d", p.name, sm);
    c->g.n_sms = attribute(c->device, cudaDevAttrMultiProcessorCount);
    c->g.native_e4m3 = sm >= E4M3_SM;
    if (sm < OLDEST_SM)
        snprintf(c->g.error, sizeof(c->g.error), "%s is too old: the kernels need sm_%d or later",
                 c->g.name, OLDEST_SM);
    return sm >= OLDEST_SM;
}

/* The range of addresses that all memory comes from. */
static bool reserve(struct cuda_gpu *c, const struct gpu_options *opt)
{
    size_t free_bytes = 0, total = 0, size;
    double share = opt->memory_share > 0 ? opt->memory_share : 1;
    void *managed = NULL;

    if (!check(&c->g, cudaMemGetInfo(&free_bytes, &total), "cudaMemGetInfo"))
        return false;
    size = (size_t)((double)(free_bytes > DRIVER_BYTES ? free_bytes - DRIVER_BYTES : 0) * share);
    if (opt->host_reaches) {
        c->managed = c->g.host_reaches = true;
        c->granularity = ARENA_UNIT;
    } else if (!check_driver(&c->g,
                             c->driver.granularity(&c->granularity, &c->prop,
                                                   CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
                             "cuMemGetAllocationGranularity")) {
        return false;
    }
    size = size / c->granularity * c->granularity;
    c->g.memory_bytes = size;
    c->g.total_bytes = total;
    arena_init(&c->arena, size);
    if (size == 0) {
        snprintf(c->g.error, sizeof(c->g.error), "%s has %.2f GB free of %.2f: too little",
                 c->g.name, (double)free_bytes / 1e9, (double)total / 1e9);
        return false;
    }
    if (!c->managed)
        return check_driver(&c->g, c->driver.reserve(&c->base, size, c->granularity, 0, 0),
                            "cuMemAddressReserve");
    if (!check(&c->g, cudaMallocManaged(&managed, size, cudaMemAttachGlobal), "managed memory"))
        return false;
    c->base = (CUdeviceptr)(uintptr_t)managed;
    return true;
}

/* What memory is to be: of this device; for network cards to read; for other hosts to map. */
static bool describe(struct cuda_gpu *c, const struct gpu_options *opt)
{
    int has = 0;

    c->prop =
        (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                              .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = c->device}};
    c->driver.attribute(&has, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, c->device);
    if (!has) {
        snprintf(c->g.error, sizeof(c->g.error), "%s: the driver cannot map memory (CUDA VMM)",
                 c->g.name);
        return false;
    }
    has = 0;
    c->driver.attribute(&has, CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED,
                        c->device);
    c->prop.allocFlags.gpuDirectRDMACapable = has != 0;
    if (!opt->fabric)
        return true;
    has = 0;
    c->driver.attribute(&has, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED, c->device);
    if (!has) {
        snprintf(c->g.error, sizeof(c->g.error),
                 "%s: driver or hardware has no fabric handles (an NVLink domain of several hosts, "
                 "with IMEX running): KV cannot travel over NVLink between hosts",
                 c->g.name);
        return false;
    }
    c->prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_FABRIC;
    return true;
}

static bool make_streams(struct cuda_gpu *c)
{
    cudaStream_t stream = NULL;

    if (!check(&c->g, cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream"))
        return false;
    c->g.stream = stream;
    c->g.number = take_pinned(&c->g, sizeof(*c->g.number));
    if (c->g.number == NULL)
        return false;
    *c->g.number = 0;
    for (int i = 0; i < 2; i++)
        if (!check(&c->g, cudaEventCreateWithFlags(&c->marks[i], cudaEventDisableTiming),
                   "an event"))
            return false;
    return true;
}

struct gpu *gpu_cuda_open(const struct gpu_options *opt, char *error, size_t error_len)
{
    struct cuda_gpu *c;

    if (no_device(opt->ordinal, error, error_len) != NULL)
        return NULL;
    c = calloc(1, sizeof(*c));
    if (c == NULL) {
        snprintf(error, error_len, "no memory for a GPU");
        return NULL;
    }
    c->g.ops = &cuda_gpu_ops;
    c->device = opt->ordinal;
    enter(&c->g);
    if (c->g.error[0] == '\0' && look_at(c) && find_driver(&c->g, &c->driver) && describe(c, opt) &&
        make_streams(c) && reserve(c, opt))
        return &c->g;
    snprintf(error, error_len, "%s", c->g.error);
    gpu_close(&c->g);
    return NULL;
}
