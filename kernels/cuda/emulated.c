/* Every .cu is C here (device.h), and one translation unit: their names differ. */
#include "kernels/cuda/attention.cu"    /* NOLINT */
#include "kernels/cuda/compress.cu"     /* NOLINT */
#include "kernels/cuda/gate.cu"         /* NOLINT */
#include "kernels/cuda/index.cu"        /* NOLINT */
#include "kernels/cuda/latent.cu"       /* NOLINT */
#include "kernels/cuda/linear.cu"       /* NOLINT */
#include "kernels/cuda/moe.cu"          /* NOLINT */
#include "kernels/cuda/norm.cu"         /* NOLINT */
#include "kernels/cuda/ops.cu"          /* NOLINT */
#include "kernels/cuda/ops_products.cu" /* NOLINT */
#include "kernels/cuda/panel.cu"        /* NOLINT */
#include "kernels/cuda/pieces.cu"       /* NOLINT */
#include "kernels/cuda/sampler.cu"      /* NOLINT */
#include "kernels/cuda/streams.cu"      /* NOLINT */

#include "kernels/cuda/emulated.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cuda/arena.h"

/* A few SMs, so that attention of up to eight rows is split. */
enum { EMULATED_SMS = 9 };
/* What a driver would keep for itself. */
enum { EMULATED_OUTSIDE = 64 << 20 };

struct emulated_gpu {
    struct gpu g; /* first */
    _Atomic uint64_t number;
    struct arena arena;
    uint8_t *memory;
};

static struct emulated_gpu *emulated_of(struct gpu *g)
{
    return (struct emulated_gpu *)(void *)g;
}

static void emulated_enter(struct gpu *g)
{
    (void)g;
}

static uint64_t emulated_take(struct gpu *g, size_t bytes)
{
    struct emulated_gpu *e = emulated_of(g);
    size_t at;

    if (!arena_take(&e->arena, bytes, &at))
        return 0;
    memset(e->memory + at, 0, bytes);
    return (uint64_t)(uintptr_t)(e->memory + at);
}

static void emulated_give(struct gpu *g, uint64_t address)
{
    struct emulated_gpu *e = emulated_of(g);

    if (!arena_give(&e->arena, (size_t)(address - (uint64_t)(uintptr_t)e->memory))) {
        fprintf(stderr, "emulated: %#llx was not taken\n", (unsigned long long)address);
        abort();
    }
}

static void emulated_room(struct gpu *g, size_t *used, size_t *outside)
{
    *used = arena_used(&emulated_of(g)->arena);
    *outside = EMULATED_OUTSIDE - emulate_recorded_bytes();
}

static void *emulated_take_pinned(struct gpu *g, size_t bytes)
{
    (void)g;
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

static void emulated_give_pinned(struct gpu *g, void *p)
{
    (void)g;
    free(p);
}

static int emulated_share(struct gpu *g, void *host, size_t bytes)
{
    (void)g;
    (void)host;
    (void)bytes;
    return 0;
}

static void emulated_unshare(struct gpu *g, void *host)
{
    (void)g;
    (void)host;
}

static void emulated_to_device(struct gpu *g, uint64_t dst, const void *pinned, size_t bytes)
{
    (void)g;
    memcpy((void *)(uintptr_t)dst, pinned, bytes);
}

static void emulated_to_host(struct gpu *g, void *pinned, uint64_t src, size_t bytes)
{
    (void)g;
    memcpy(pinned, (const void *)(uintptr_t)src, bytes);
}

static void emulated_within(struct gpu *g, uint64_t dst, uint64_t src, size_t bytes)
{
    (void)g;
    memcpy((void *)(uintptr_t)dst, (const void *)(uintptr_t)src, bytes);
}

static void emulated_rows(struct gpu *g, uint64_t dst, size_t dst_pitch, uint64_t src,
                          size_t src_pitch, size_t bytes, size_t n_rows)
{
    for (size_t i = 0; i < n_rows; i++)
        emulated_within(g, dst + i * dst_pitch, src + i * src_pitch, bytes);
}

static void emulated_set_number(struct gpu *g, uint64_t n)
{
    *g->number = n;
}

static void emulated_mark(struct gpu *g, int which)
{
    (void)g;
    (void)which;
}

static int emulated_wait(struct gpu *g)
{
    return g->error[0] == '\0' ? 0 : -1;
}

static void emulated_record(struct gpu *g)
{
    (void)g;
    emulate_record();
}

static void *emulated_recorded(struct gpu *g)
{
    (void)g;
    return emulate_recorded();
}

static void emulated_replay(struct gpu *g, void *recording)
{
    (void)g;
    emulate_replay(recording);
}

static void emulated_forget(struct gpu *g, void *recording)
{
    (void)g;
    emulate_forget(recording);
}

static void emulated_close(struct gpu *g)
{
    struct emulated_gpu *e = emulated_of(g);

    munmap(e->memory, g->memory_bytes);
    arena_deinit(&e->arena);
    free(e);
}

static const struct gpu_ops emulated_gpu_ops = {
    .enter = emulated_enter,
    .take = emulated_take,
    .give = emulated_give,
    .room = emulated_room,
    .take_pinned = emulated_take_pinned,
    .give_pinned = emulated_give_pinned,
    .share = emulated_share,
    .unshare = emulated_unshare,
    .to_device = emulated_to_device,
    .to_host = emulated_to_host,
    .within = emulated_within,
    .rows = emulated_rows,
    .set_number = emulated_set_number,
    .mark = emulated_mark,
    .wait_mark = emulated_mark,
    .wait = emulated_wait,
    .record = emulated_record,
    .recorded = emulated_recorded,
    .replay = emulated_replay,
    .forget = emulated_forget,
    .close = emulated_close,
};

struct gpu *gpu_emulated_open(const struct emulated_options *opt)
{
    struct emulated_gpu *e = calloc(1, sizeof(*e));
    size_t bytes = opt->memory_bytes > 0 ? opt->memory_bytes : (size_t)1 << 30;

    if (e == NULL)
        return NULL;
    e->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (e->memory == MAP_FAILED) {
        free(e);
        return NULL;
    }
    arena_init(&e->arena, bytes);
    e->g.ops = &emulated_gpu_ops;
    e->g.n_sms = EMULATED_SMS;
    e->g.native_e4m3 = !opt->no_e4m3;
    e->g.host_reaches = !opt->hidden;
    e->g.memory_bytes = e->g.total_bytes = bytes;
    e->g.number = &e->number;
    snprintf(e->g.name, sizeof(e->g.name), "emulated, sm_%d", opt->no_e4m3 ? 80 : 89);
    return &e->g;
}
