#include "kernels/cuda/backend_internal.h"

#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/self_test.h"

enum { EXTRA_WORK_BYTES = 64 << 20 /* see cuda_ops_work_bytes() */ };

int backend_fail(struct kernels *k, const char *why)
{
    snprintf(k->error, sizeof(k->error), "%s", why);
    return -1;
}

/* ---- recordings ---- */

static void record(struct kernels *k)
{
    struct backend *b = backend_of(k);

    cuda_ops_of(k);
    b->gpu->ops->record(b->gpu);
}

static void *recorded(struct kernels *k)
{
    struct backend *b = backend_of(k);
    void *recording = b->gpu->ops->recorded(b->gpu);

    if (recording == NULL)
        backend_fail(k, b->gpu->error);
    return recording;
}

static void replay(struct kernels *k, void *recording)
{
    struct backend *b = backend_of(k);

    cuda_ops_of(k);
    b->gpu->ops->replay(b->gpu, recording);
}

static void forget(struct kernels *k, void *recording)
{
    struct backend *b = backend_of(k);

    b->gpu->ops->forget(b->gpu, recording);
}

/* ---- a device among others ---- */

static void device_room(struct kernels *k, struct kernel_room *out)
{
    struct gpu *g = backend_of(k)->gpu;

    out->total = g->total_bytes;
    g->ops->room(g, &out->used, &out->outside);
    out->left = g->memory_bytes - out->used;
}

static void *device_stream(struct kernels *k)
{
    struct gpu *g = backend_of(k)->gpu;

    g->ops->enter(g);
    return g->stream;
}

static void device_columns(struct kernels *k, struct dev_ptr out, struct dev_ptr in, int n,
                           size_t n_rows, size_t row_bytes)
{
    struct gpu *g = backend_of(k)->gpu;

    for (size_t r = 0; r < (size_t)n; r++)
        g->ops->rows(g, out.addr + r * row_bytes, (size_t)n * row_bytes,
                     in.addr + r * n_rows * row_bytes, row_bytes, row_bytes, n_rows);
}

static void device_mark(struct kernels *k, uint64_t n)
{
    struct gpu *g = backend_of(k)->gpu;

    g->ops->set_number(g, n);
}

static uint64_t device_marked(struct kernels *k)
{
    return *backend_of(k)->gpu->number;
}

/* ---- opening ---- */

static void backend_close(struct kernels *k)
{
    struct backend *b = backend_of(k);
    struct gpu *g = b->gpu;

    g->ops->wait(g);
    backend_memory_close(b);
    backend_draws_close(b);
    g->ops->close(g); /* with all memory */
    free(b);
}

static void fill(struct backend *b, const struct kernel_dims *dims)
{
    b->table = (struct kernel_ops){
        .name = b->name,
        .record = record,
        .recorded = recorded,
        .replay = replay,
        .forget = forget,
        .close = backend_close,
        .room = device_room,
        .stream = device_stream,
        .dev_columns = device_columns,
        .mark = device_mark,
        .marked = device_marked,
    };
    backend_memory_fill(&b->table);
    backend_weights_fill(&b->table);
    backend_draws_fill(&b->table, dims);
    cuda_ops_fill(&b->table);
}

/* @return what there is no room for; NULL: all is there */
static const char *take_all(struct backend *b, const struct kernel_dims *dims)
{
    const char *why = backend_memory_open(b);
    struct gpu *g = b->gpu;

    if (why == NULL)
        why = backend_draws_open(b);
    if (why != NULL)
        return why;
    b->ops.work_bytes = cuda_ops_work_bytes(dims) + EXTRA_WORK_BYTES;
    b->ops.work = (void *)(uintptr_t)g->ops->take(g, b->ops.work_bytes);
    return b->ops.work == NULL ? "the operations' workspace" : NULL;
}

int cuda_backend_open(struct kernels *k, struct gpu *gpu, const struct kernel_dims *dims,
                      const struct kernel_env *env)
{
    struct backend *b = calloc(1, sizeof(*b));
    const char *why = cuda_ops_refuse(dims);
    int sm = 0;

    k->dims = *dims;
    k->env = *env;
    k->error[0] = '\0';
    if (b == NULL || why != NULL) {
        gpu->ops->close(gpu);
        free(b);
        snprintf(k->error, sizeof(k->error), "the CUDA kernels do not take this model: %s",
                 why != NULL ? why : "no memory");
        return -1;
    }
    b->gpu = gpu;
    b->ops.stream = gpu->stream;
    b->ops.n_sms = gpu->n_sms;
    why = take_all(b, dims);
    k->self = b;
    if (why != NULL) {
        snprintf(k->error, sizeof(k->error), "%.64s: no room for %s: %.2f GB were free", gpu->name,
                 why, (double)gpu->memory_bytes / 1e9);
        backend_close(k);
        k->self = NULL;
        return -1;
    }
    /* Trusted where it agrees with the products that every chip makes; the name says which it is,
     * because the bits are not the same. */
    b->ops.native_e4m3 = gpu->native_e4m3 && cuda_self_test(gpu);
    if (sscanf(gpu->name, "%*[^,], sm_%d", &sm) != 1)
        sm = 0;
    snprintf(b->name, sizeof(b->name), "cuda-sm%d%s", sm, b->ops.native_e4m3 ? "-e4m3" : "");
    fill(b, dims);
    k->ops = &b->table;
    return 0;
}
