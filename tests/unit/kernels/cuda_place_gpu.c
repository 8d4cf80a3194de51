/* On the first GPU, in managed memory, each launch waited for. */
#include "kernels/cuda/backend.h"
#include "kernels/ref/ref.h"
#include "tests/unit/kernels/cuda_place.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include <cuda_runtime_api.h>

static struct kernel_ops ops;
const int cuda_place_n_levels = 2;

bool cuda_place_ready(void)
{
    int n = 0;
    cudaError_t error;

    setenv("CUDA_LAUNCH_BLOCKING", "1", 1); /* read when CUDA starts */
    error = cudaGetDeviceCount(&n);
    if (error == cudaSuccess && n > 0)
        return true;
    printf("skipped: no GPU: %s\n", error != cudaSuccess ? cudaGetErrorString(error) : "none here");
    return false;
}

static void check(cudaError_t error, const char *what)
{
    if (error != cudaSuccess)
        fail_msg("%s: %s", what, cudaGetErrorString(error));
}

void *cuda_place_alloc(size_t bytes)
{
    void *p = NULL;

    check(cudaMallocManaged(&p, bytes + 1, cudaMemAttachGlobal), "cudaMallocManaged");
    return memset(p, 0, bytes + 1);
}

void cuda_place_free(void *p)
{
    check(cudaDeviceSynchronize(), "a kernel");
    check(cudaFree(p), "cudaFree");
}

static struct dev_ptr dev_alloc(struct kernels *k, size_t bytes)
{
    (void)k;
    return (struct dev_ptr){(uint64_t)(uintptr_t)cuda_place_alloc(bytes)};
}

static void dev_free(struct kernels *k, struct dev_ptr p)
{
    (void)k;
    cuda_place_free(ref_ptr(p));
}

static struct dev_ptr copy_of(const void *src, size_t bytes)
{
    void *p = cuda_place_alloc(bytes);

    memcpy(p, src, bytes);
    return (struct dev_ptr){(uint64_t)(uintptr_t)p};
}

/* As ref holds it, but in managed memory. */
static int weight_load(struct kernels *k, const struct weight_src *src, struct weight *out)
{
    static const size_t halves[] = {
        [WEIGHT_BF16] = 4, [WEIGHT_F32] = 8, [WEIGHT_FP8] = 2, [WEIGHT_FP4] = 1, [WEIGHT_I64] = 16};
    struct weight w;
    size_t n = (size_t)(src->rows * src->cols);
    size_t n_scales = src->type == WEIGHT_FP4
                          ? n / 32
                          : (size_t)((src->rows + 127) / 128) * (size_t)((src->cols + 127) / 128);

    if (ref_weight_load(k, src, &w) != 0)
        return -1;
    *out = (struct weight){.type = src->type, .rows = src->rows, .cols = src->cols};
    out->data = copy_of(ref_ptr(w.data), n * halves[src->type] / 2);
    if (!dev_is_null(w.scale))
        out->scale = copy_of(ref_ptr(w.scale), n_scales * sizeof(float));
    ref_weight_unload(k, &w);
    return 0;
}

static void weight_unload(struct kernels *k, struct weight *w)
{
    dev_free(k, w->data);
    dev_free(k, w->scale); /* cudaFree() takes NULL */
    *w = (struct weight){0};
}

void cuda_place_enter(struct kernels *k)
{
    ops = *k->ops;
    ops.dev_alloc = dev_alloc;
    ops.dev_free = dev_free;
    ops.weight_load = weight_load;
    ops.weight_unload = weight_unload;
    k->ops = &ops;
}

int cuda_place_open(struct kernels *k, int level, const struct kernel_dims *dims,
                    const struct kernel_env *env)
{
    struct gpu_options opt = {.memory_share = 0.2, .host_reaches = level != CUDA_PLACE_HIDDEN};
    struct gpu *g = gpu_cuda_open(&opt, k->error, sizeof(k->error));

    if (g == NULL)
        return -1;
    g->native_e4m3 = g->native_e4m3 && level != 1;
    return cuda_backend_open(k, g, dims, env);
}

void cuda_place_leave(struct kernels *k)
{
    k->ops = &kernels_ref_ops;
    check(cudaDeviceSynchronize(), "a kernel");
    check(cudaGetLastError(), "a launch");
}
