#include "kernels/cpu/cpu.h"
#include "kernels/cpu/limits.h"
#include "kernels/ref/ref.h"

#include <assert.h>
#include <cpuid.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- what this processor has ---- */

/* clang 14 knows no __builtin_cpu_supports("f16c"). */
static bool has_f16c(void)
{
    unsigned a, b, c, d;

    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("fma");
}

/* The processor has tiles, and the kernel saves them for this process, which has to ask once. */
static bool has_amx(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };
    unsigned a, b, c, d;

    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & AMX_BF16) != 0 &&
           (d & AMX_TILE) != 0 &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

enum cpu_isa kernels_cpu_best(void)
{
    __builtin_cpu_init();
    if (has_avx512())
        return has_amx() ? CPU_ISA_AMX : CPU_ISA_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
        return CPU_ISA_AVX2;
    return CPU_ISA_REF;
}

/* ---- items of work ---- */

/* How many items of a part's share are taken; alone on its cache line. */
struct cpu_taken {
    _Alignas(64) _Atomic int64_t n;
};

struct items {
    struct cpu *cpu;
    cpu_item_fn run;
    void *arg;
    int64_t n, n_panels;
};

/* Takes what is left of a share, which is those items whose panels are in a run of neighbours: read
 * one after the other, as the processor's prefetchers like it. */
static void run_share(struct items *items, int share, struct cpu_part *part)
{
    struct cpu *c = items->cpu;
    _Atomic int64_t *taken = &c->taken[share].n;
    int64_t first = items->n_panels * share / c->n_parts;
    int64_t n = items->n_panels * (share + 1) / c->n_parts - first;
    int64_t end = items->n / items->n_panels * n;

    /* Relaxed: items do not depend on each other, and parallel() orders what they wrote. A load
     * first: of most shares nothing is left, and a load leaves their lines to all. */
    while (atomic_load_explicit(taken, memory_order_relaxed) < end) {
        int64_t i = atomic_fetch_add_explicit(taken, 1, memory_order_relaxed);

        if (i < end)
            items->run(items->arg, i / n * items->n_panels + first + i % n, part);
    }
}

/* The own share, then what is left of others': of the nearest first, which are on the same NUMA
 * node, and of few, so that 128 threads end soon. */
static void run_part(void *arg, int part, int n_parts)
{
    struct items *items = arg;
    struct cpu *c = items->cpu;
    int own = c->share_of[part];

    assert(n_parts == c->n_parts);
    run_share(items, own, c->parts[part]);
    for (int away = 1; away < n_parts; away *= 2)
        run_share(items, (own + away) % n_parts, c->parts[part]);
}

/* All of it here: too little for two, or there is nobody else. */
static void run_alone(struct items *items)
{
    for (int64_t i = 0; i < items->n; i++)
        items->run(items->arg, i, items->cpu->parts[0]);
}

void cpu_run_panels(struct kernels *k, int64_t n_items, int64_t n_panels, cpu_item_fn run,
                    void *arg)
{
    struct items items = {
        .cpu = cpu_of(k), .run = run, .arg = arg, .n = n_items, .n_panels = n_panels};

    if (n_items == 0)
        return;
    assert(n_items % n_panels == 0);
    if (n_items == 1 || items.cpu->n_parts == 1 || k->env.parallel == NULL) {
        run_alone(&items);
        return;
    }
    for (int i = 0; i < items.cpu->n_parts; i++)
        atomic_store_explicit(&items.cpu->taken[i].n, 0, memory_order_relaxed);
    k->env.parallel(k->env.pool, run_part, &items);
}

void cpu_run(struct kernels *k, int64_t n_items, cpu_item_fn run, void *arg)
{
    cpu_run_panels(k, n_items, n_items, run, arg);
}

/* ---- what an ISA brings ---- */

struct cpu_pairs {
    void (*fill[2])(struct kernel_ops *ops);
    size_t (*bytes[2])(const struct kernel_dims *d); /* of part->keys */
};

struct cpu_level {
    const char *name;
    const struct panel_kernels *(*panels)(bool other);
    const struct row_kernels *rows;
    void (*fill[3])(struct kernel_ops *ops);
    struct cpu_pairs pairs, pairs_fma; /* the latter where panels->by_fma */
    void (*pack)(uint8_t *dst, const struct weight_src *src, int64_t i, enum panel_order order);
    uint64_t (*read)(const void *p, size_t bytes);
    double (*fma)(int64_t n);
    double (*dot)(int64_t n);
};

#define PAIRS(isa)                                                                                 \
    {                                                                                              \
        {cpu_attention_fill_##isa, cpu_index_fill_##isa},                                          \
        {                                                                                          \
            cpu_attention_bytes_##isa, cpu_index_bytes_##isa                                       \
        }                                                                                          \
    }

#define LEVEL(name, isa, dot, fma)                                                                 \
    {                                                                                              \
        "cpu-" #name, panel_kernels_##name, &cpu_rows_##isa,                                       \
            {cpu_norm_fill_##isa, cpu_hyper_fill_##isa, cpu_compress_fill_##isa}, PAIRS(dot),      \
            PAIRS(fma), cpu_pack_##isa, cpu_read_##isa, cpu_fma_##isa, cpu_dot_##isa               \
    }

static const struct cpu_level levels[] = {
    [CPU_ISA_AVX2] = LEVEL(avx2, avx2, avx2, avx2),
    [CPU_ISA_AVX512] = LEVEL(avx512, avx512, avx512, avx512_fma),
    [CPU_ISA_AMX] = LEVEL(amx, avx512, amx, amx), /* other products; all else is the same */
};

const char *const kernels_cpu_names[] = {"ref", "avx2", "avx512", "amx"};

bool kernels_cpu_named(const char *name, enum cpu_isa *out)
{
    for (int i = CPU_ISA_REF; i <= CPU_ISA_AMX; i++)
        if (strcmp(name, kernels_cpu_names[i]) == 0) {
            *out = (enum cpu_isa)i;
            return true;
        }
    return false;
}

static const struct cpu_pairs *pairs_of(const struct cpu *c, const struct cpu_level *level)
{
    return c->panels->by_fma ? &level->pairs_fma : &level->pairs;
}

/* ---- limits.h ---- */

uint64_t cpu_limit_read(enum cpu_isa isa, const void *p, size_t bytes)
{
    return levels[isa].read(p, bytes);
}

double cpu_limit_f32(enum cpu_isa isa, int64_t n)
{
    return levels[isa].fma(n);
}

double cpu_limit_bf16(enum cpu_isa isa, int64_t n)
{
    return levels[isa].dot(n);
}

double cpu_limit_tiles(enum cpu_isa isa, int64_t n)
{
    return isa >= CPU_ISA_AMX ? cpu_tiles_amx(n) : 0;
}

/* ---- opening ---- */

static void cpu_free(struct cpu *c)
{
    if (c == NULL)
        return;
    for (int i = 0; c->parts != NULL && i < c->n_parts; i++) {
        if (c->parts[i] != NULL) {
            free(c->parts[i]->acc);
            free(c->parts[i]->keys);
            free(c->parts[i]->packed);
        }
        free(c->parts[i]);
    }
    free(c->parts);
    free(c->share_of);
    free(c->taken);
    free(c->slot_token);
    free(c->slot_weight);
    free(c->slot_part);
    free(c->expert_start);
    free(c->hidden);
    free(c->scores);
    free(c->mix);
    cpu_arena_free(c->arena);
    free(c);
}

static void cpu_close(struct kernels *k)
{
    cpu_free(k->self);
}

static void *alloc64(size_t bytes)
{
    return aligned_alloc(64, (bytes + 127) / 64 * 64);
}

static size_t most(size_t a, size_t b)
{
    return a > b ? a : b;
}

static bool alloc_parts(struct cpu *c, const struct kernel_dims *d, const struct cpu_level *level)
{
    const struct cpu_pairs *pairs = pairs_of(c, level);
    size_t keys_bytes = most(pairs->bytes[0](d), pairs->bytes[1](d));

    c->parts = calloc((size_t)c->n_parts, sizeof(*c->parts));
    if (c->parts == NULL)
        return false;
    for (int i = 0; i < c->n_parts; i++) {
        struct cpu_part *p = alloc64(sizeof(*p));

        c->parts[i] = p;
        if (p == NULL)
            return false;
        memset(p, 0, sizeof(*p));
        p->acc = alloc64((size_t)d->max_rows * PANEL_ROWS * sizeof(float));
        p->keys = alloc64(keys_bytes);
        if (p->acc == NULL || p->keys == NULL)
            return false;
    }
    return true;
}

/* Shares are numbered by NUMA node: those of a node are neighbours. */
static bool place_parts(struct cpu *c, const struct kernel_env *env)
{
    int n_nodes = env->node_of != NULL && env->n_nodes > 1 ? env->n_nodes : 1, share = 0;

    c->share_of = calloc((size_t)c->n_parts, sizeof(*c->share_of));
    c->taken = alloc64((size_t)c->n_parts * sizeof(*c->taken));
    if (c->share_of == NULL || c->taken == NULL)
        return false;
    for (int node = 0; node < n_nodes; node++)
        for (int i = 0; i < c->n_parts; i++)
            if (n_nodes == 1 || env->node_of(env->pool, i) == node)
                c->share_of[i] = share++;
    assert(share == c->n_parts);
    return true;
}

/* Index scores for some tokens at a time: enough for every thread, and for 16 MB. */
static size_t scores_bytes(const struct cpu *c, const struct kernel_dims *d)
{
    size_t token = (size_t)cpu_index_stride(d) * sizeof(uint16_t);
    size_t tokens = most((16u << 20) / token, (size_t)c->n_parts);
    size_t gate = (size_t)d->max_rows * (size_t)d->n_experts * sizeof(float);

    if (tokens > (size_t)d->max_rows)
        tokens = (size_t)d->max_rows;
    return most(tokens * token, gate);
}

static bool alloc_workspace(struct cpu *c, const struct kernel_dims *d,
                            const struct cpu_level *level)
{
    size_t slots = (size_t)d->max_rows * (size_t)(d->n_active + 1);
    size_t n_fn = (size_t)(2 + d->hc) * (size_t)d->hc;

    c->slot_token = alloc64(slots * sizeof(*c->slot_token));
    c->slot_weight = alloc64(slots * sizeof(*c->slot_weight));
    c->slot_part = alloc64(slots * sizeof(*c->slot_part));
    c->expert_start = alloc64((size_t)(d->n_experts + 2) * sizeof(*c->expert_start));
    c->hidden = alloc64(slots * cpu_xq_bytes(d->moe_inter));
    c->mix = alloc64((size_t)d->max_rows * (n_fn + 1) * sizeof(float));
    c->scores_bytes = scores_bytes(c, d);
    c->scores = alloc64(c->scores_bytes);
    c->arena = cpu_arena_new();
    return c->slot_token != NULL && c->slot_weight != NULL && c->slot_part != NULL &&
           c->expert_start != NULL && c->hidden != NULL && c->mix != NULL && c->scores != NULL &&
           c->arena != NULL && alloc_parts(c, d, level);
}

static void fill(struct cpu *c, const struct cpu_level *level)
{
    c->ops = kernels_ref_ops; /* memory, embed, window_commit */
    c->ops.name = level->name;
    c->ops.close = cpu_close;
    c->rows = level->rows;
    c->pack = level->pack;
    cpu_weight_fill(&c->ops);
    cpu_linear_fill(&c->ops);
    cpu_moe_fill(&c->ops);
    cpu_gate_fill(&c->ops);
    for (size_t i = 0; i < sizeof(level->fill) / sizeof(level->fill[0]); i++)
        level->fill[i](&c->ops);
    for (int i = 0; i < 2; i++)
        pairs_of(c, level)->fill[i](&c->ops);
}

int kernels_open_cpu(struct kernels *k, enum cpu_isa isa, const struct kernel_dims *dims,
                     const struct kernel_env *env)
{
    struct cpu *c;

    k->dims = *dims;
    k->env = *env;
    k->error[0] = '\0';
    if (isa > kernels_cpu_best()) {
        snprintf(k->error, sizeof(k->error), "this processor does not run %s: its best level is %s",
                 kernels_cpu_names[isa], kernels_cpu_names[kernels_cpu_best()]);
        return -1;
    }
    if (isa == CPU_ISA_REF)
        return kernels_ref_open(k);
    c = calloc(1, sizeof(*c));
    if (c != NULL) {
        c->n_parts = env->n_threads > 0 ? env->n_threads : 1;
        c->panels = levels[isa].panels(env->other_way);
    }
    if (c == NULL || !place_parts(c, env) || !alloc_workspace(c, dims, &levels[isa])) {
        cpu_free(c);
        snprintf(k->error, sizeof(k->error), "no memory for the workspace of %d threads",
                 env->n_threads);
        return -1;
    }
    c->as_mapped = env->as_mapped;
    fill(c, &levels[isa]);
    k->ops = &c->ops;
    k->self = c;
    return 0;
}

void kernels_close(struct kernels *k)
{
    k->ops->close(k);
    k->ops = NULL;
    k->self = NULL;
}
