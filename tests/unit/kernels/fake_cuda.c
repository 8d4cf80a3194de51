#include "tests/unit/kernels/fake_cuda.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { GRANULE = 2 << 20, RUNTIME = 13000 };

struct fake_cuda fake_cuda;

/* The name of the calling function is what a test lets fail. */
static cudaError_t result_of(const char *call)
{
    return fake_cuda.fails != NULL && strcmp(fake_cuda.fails, call) == 0 ? cudaErrorMemoryAllocation
                                                                         : cudaSuccess;
}

#define RESULT() result_of(__func__)

/* ---- driver ---- */

static CUresult mem_reserve(CUdeviceptr *at, size_t bytes, size_t align, CUdeviceptr where,
                            unsigned long long flags)
{
    void *p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    (void)align;
    (void)where;
    (void)flags;
    if (p == MAP_FAILED)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *at = (CUdeviceptr)(uintptr_t)p;
    fake_cuda.n_ranges++;
    return CUDA_SUCCESS;
}

static CUresult mem_free(CUdeviceptr at, size_t bytes)
{
    fake_cuda.n_ranges--;
    return munmap((void *)(uintptr_t)at, bytes) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult mem_create(CUmemGenericAllocationHandle *handle, size_t bytes,
                           const CUmemAllocationProp *prop, unsigned long long flags)
{
    (void)prop;
    (void)flags;
    if (bytes > fake_cuda.physical || bytes % GRANULE != 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    fake_cuda.physical -= bytes;
    fake_cuda.n_physical++;
    *handle = bytes;
    return CUDA_SUCCESS;
}

static CUresult mem_release(CUmemGenericAllocationHandle handle)
{
    fake_cuda.physical += handle;
    fake_cuda.n_physical--;
    return CUDA_SUCCESS;
}

static CUresult mem_map(CUdeviceptr at, size_t bytes, size_t offset,
                        CUmemGenericAllocationHandle handle, unsigned long long flags)
{
    (void)offset;
    (void)flags;
    return at != 0 && bytes == handle &&
                   (fake_cuda.fails == NULL || strcmp(fake_cuda.fails, "cuMemMap") != 0)
               ? CUDA_SUCCESS
               : CUDA_ERROR_INVALID_VALUE;
}

static CUresult mem_unmap(CUdeviceptr at, size_t bytes)
{
    return mprotect((void *)(uintptr_t)at, bytes, PROT_NONE) == 0 ? CUDA_SUCCESS
                                                                  : CUDA_ERROR_INVALID_VALUE;
}

static CUresult mem_access(CUdeviceptr at, size_t bytes, const CUmemAccessDesc *desc, size_t n)
{
    (void)desc;
    (void)n;
    return mprotect((void *)(uintptr_t)at, bytes, PROT_READ | PROT_WRITE) == 0
               ? CUDA_SUCCESS
               : CUDA_ERROR_INVALID_VALUE;
}

static CUresult mem_granularity(size_t *out, const CUmemAllocationProp *prop,
                                CUmemAllocationGranularity_flags which)
{
    (void)prop;
    (void)which;
    *out = GRANULE;
    return CUDA_SUCCESS;
}

static CUresult device_attribute(int *out, CUdevice_attribute what, CUdevice device)
{
    (void)device;
    *out = what == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED ? fake_cuda.vmm
           : what == CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED      ? fake_cuda.fabric
                                                                           : 0;
    return CUDA_SUCCESS;
}

static CUresult write_value(CUstream stream, CUdeviceptr at, cuuint64_t value, unsigned flags)
{
    (void)stream;
    (void)flags;
    *(cuuint64_t *)(uintptr_t)at = value;
    return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **fn, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *found)
{
    static const struct {
        const char *name;
        void (*fn)(void);
    } all[] = {
        {"cuMemAddressReserve", (void (*)(void))mem_reserve},
        {"cuMemAddressFree", (void (*)(void))mem_free},
        {"cuMemCreate", (void (*)(void))mem_create},
        {"cuMemRelease", (void (*)(void))mem_release},
        {"cuMemMap", (void (*)(void))mem_map},
        {"cuMemUnmap", (void (*)(void))mem_unmap},
        {"cuMemSetAccess", (void (*)(void))mem_access},
        {"cuMemGetAllocationGranularity", (void (*)(void))mem_granularity},
        {"cuDeviceGetAttribute", (void (*)(void))device_attribute},
        {"cuStreamWriteValue64", (void (*)(void))write_value},
    };

    (void)version;
    (void)flags;
    *found = cudaDriverEntryPointSymbolNotFound;
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        if (strcmp(all[i].name, symbol) == 0 &&
            (fake_cuda.lacks == NULL || strcmp(fake_cuda.lacks, symbol) != 0)) {
            memcpy(fn, &all[i].fn, sizeof(*fn));
            *found = cudaDriverEntryPointSuccess;
        }
    return cudaSuccess;
}

/* ---- the device ---- */

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = fake_cuda.n_devices;
    if (fake_cuda.driver < RUNTIME)
        return cudaErrorInsufficientDriver;
    return *n > 0 ? RESULT() : cudaErrorNoDevice;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = fake_cuda.driver;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = RUNTIME;
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t e)
{
    return e == cudaErrorMemoryAllocation ? "out of memory" : "an error";
}

cudaError_t cudaGetLastError(void)
{
    return RESULT();
}

cudaError_t cudaSetDevice(int device)
{
    return device < fake_cuda.n_devices ? RESULT() : cudaErrorInvalidDevice;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    (void)device;
    memset(p, 0, sizeof(*p));
    snprintf(p->name, sizeof(p->name), "Fake GPU");
    return RESULT();
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr what, int device)
{
    (void)device;
    *value = what == cudaDevAttrComputeCapabilityMajor   ? fake_cuda.sm / 10
             : what == cudaDevAttrComputeCapabilityMinor ? fake_cuda.sm % 10
                                                         : 7;
    return RESULT();
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total)
{
    *free = fake_cuda.free;
    *total = fake_cuda.total;
    return RESULT();
}

/* ---- memory ---- */

cudaError_t cudaMallocManaged(void **p, size_t bytes, unsigned flags)
{
    (void)flags;
    *p = calloc(1, bytes);
    return RESULT();
}

cudaError_t cudaFree(void *p)
{
    free(p);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags)
{
    (void)flags;
    if (RESULT() != cudaSuccess)
        return RESULT();
    *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    fake_cuda.n_pinned++;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p)
{
    free(p);
    fake_cuda.n_pinned--;
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags)
{
    (void)p;
    (void)bytes;
    (void)flags;
    return RESULT();
}

cudaError_t cudaHostUnregister(void *p)
{
    (void)p;
    return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void **out, void *p, unsigned flags)
{
    (void)flags;
    *out = p;
    return RESULT();
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s)
{
    (void)s;
    memset(p, value, bytes);
    return RESULT();
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t s)
{
    (void)kind;
    (void)s;
    memcpy(dst, src, bytes);
    return RESULT();
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind, cudaStream_t s)
{
    (void)kind;
    (void)s;
    for (size_t i = 0; i < height; i++)
        memcpy((char *)dst + i * dst_pitch, (const char *)src + i * src_pitch, width);
    return RESULT();
}

/* ---- order ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    (void)flags;
    if (RESULT() != cudaSuccess)
        return RESULT();
    *s = (cudaStream_t)(uintptr_t)16;
    fake_cuda.n_streams++;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    (void)s;
    fake_cuda.n_streams--;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    (void)s;
    return RESULT();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    (void)flags;
    if (RESULT() != cudaSuccess)
        return RESULT();
    *e = (cudaEvent_t)(uintptr_t)32;
    fake_cuda.n_events++;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    (void)e;
    fake_cuda.n_events--;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    (void)e;
    (void)s;
    return RESULT();
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    (void)e;
    return RESULT();
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode)
{
    (void)s;
    (void)mode;
    return RESULT();
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph)
{
    (void)s;
    *graph = (cudaGraph_t)(uintptr_t)48;
    return RESULT();
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    (void)graph;
    (void)flags;
    if (RESULT() != cudaSuccess)
        return RESULT();
    *exec = (cudaGraphExec_t)(uintptr_t)64;
    fake_cuda.n_graphs++;
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t s)
{
    (void)exec;
    (void)s;
    return RESULT();
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    (void)graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    (void)exec;
    fake_cuda.n_graphs--;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s)
{
    (void)exec;
    (void)s;
    return RESULT();
}
