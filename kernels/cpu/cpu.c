#include "kernels/cpu/cpu.h"
#include "kernels/ref/ref.h"

#include <assert.h>
#include <cpuid.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

enum cpu_isa kernels_cpu_best(void)
{
    __builtin_cpu_init();
    if (has_avx512())
        return CPU_ISA_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
        return CPU_ISA_AVX2;
    return CPU_ISA_REF;
}

/* ---- items of work ---- */

struct items {
    struct cpu *cpu;
    cpu_item_fn run;
    void *arg;
    int64_t n;
    _Atomic int64_t next;
};

static void run_part(void *arg, int part, int n_parts)
{
    struct items *items = arg;

    assert(n_parts <= items->cpu->n_parts);
    (void)n_parts;
    for (;;) {
        /* Relaxed: items do not depend on each other, and parallel() orders what they wrote. */
        int64_t i = atomic_fetch_add_explicit(&items->next, 1, memory_order_relaxed);

        if (i >= items->n)
            return;
        items->run(items->arg, i, items->cpu->parts[part]);
    }
}

void cpu_run(struct kernels *k, int64_t n_items, cpu_item_fn run, void *arg)
{
    struct items items = {.cpu = cpu_of(k), .run = run, .arg = arg, .n = n_items};

    if (n_items <= 1 || k->env.parallel == NULL)
        run_part(&items, 0, 1);
    else
        k->env.parallel(k->env.pool, run_part, &items);
}

/* ---- operations of kernels/ref that need its workspace ---- */

static void cpu_index_select(struct kernels *k, struct dev_ptr chosen, struct dev_ptr q,
                             struct dev_ptr weights, const struct kernel_batch *b,
                             const struct kernel_kv *kv_view)
{
    ref_index_select(&cpu_of(k)->ref, chosen, q, weights, b, kv_view);
}

static void cpu_attention(struct kernels *k, struct dev_ptr o, struct dev_ptr q,
                          struct dev_ptr rows, struct dev_ptr chosen, const struct weight *sink,
                          const struct kernel_batch *b, const struct kernel_kv *kv_view,
                          struct dev_ptr freq)
{
    ref_attention(&cpu_of(k)->ref, o, q, rows, chosen, sink, b, kv_view, freq);
}

/* ---- opening ---- */

static void cpu_free(struct cpu *c)
{
    if (c == NULL)
        return;
    for (int i = 0; c->parts != NULL && i < c->n_parts; i++) {
        if (c->parts[i] != NULL)
            free(c->parts[i]->acc);
        free(c->parts[i]);
    }
    free(c->parts);
    free(c->slot_token);
    free(c->slot_weight);
    free(c->expert_start);
    free(c->hidden);
    free(c->scores);
    cpu_arena_free(c->arena);
    kernels_ref_close(&c->ref);
    free(c);
}

static void *alloc64(size_t bytes)
{
    return aligned_alloc(64, (bytes + 127) / 64 * 64);
}

static bool alloc_parts(struct cpu *c, const struct kernel_dims *d)
{
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
        if (p->acc == NULL)
            return false;
    }
    return true;
}

static bool alloc_workspace(struct cpu *c, const struct kernel_dims *d)
{
    size_t slots = (size_t)d->max_rows * (size_t)(d->n_active + 1);

    c->slot_token = alloc64(slots * sizeof(*c->slot_token));
    c->slot_weight = alloc64(slots * sizeof(*c->slot_weight));
    c->expert_start = alloc64((size_t)(d->n_experts + 2) * sizeof(*c->expert_start));
    c->hidden = alloc64(slots * cpu_xq_bytes(d->moe_inter));
    c->scores = alloc64((size_t)d->max_rows * (size_t)d->n_experts * sizeof(float));
    c->arena = cpu_arena_new();
    return c->slot_token != NULL && c->slot_weight != NULL && c->expert_start != NULL &&
           c->hidden != NULL && c->scores != NULL && c->arena != NULL && alloc_parts(c, d);
}

static void fill(struct cpu *c, enum cpu_isa isa)
{
    c->ops = kernels_ref_ops;
    if (isa == CPU_ISA_AVX512) {
        c->ops.name = "cpu-avx512";
        c->panels = panel_kernels_avx512();
        c->rows = &cpu_rows_avx512;
    } else {
        c->ops.name = "cpu-avx2";
        c->panels = panel_kernels_avx2();
        c->rows = &cpu_rows_avx2;
    }
    c->ops.index_select = cpu_index_select;
    c->ops.attention = cpu_attention;
    cpu_weight_fill(&c->ops);
    cpu_linear_fill(&c->ops);
    cpu_moe_fill(&c->ops);
    cpu_gate_fill(&c->ops);
}

int kernels_open_cpu(struct kernels *k, enum cpu_isa isa, const struct kernel_dims *dims,
                     const struct kernel_env *env)
{
    static const char *const names[] = {"ref", "avx2", "avx512"};
    struct cpu *c;

    k->dims = *dims;
    k->env = *env;
    k->error[0] = '\0';
    if (isa > kernels_cpu_best()) {
        snprintf(k->error, sizeof(k->error), "this processor does not run %s: its best level is %s",
                 names[isa], names[kernels_cpu_best()]);
        return -1;
    }
    if (isa == CPU_ISA_REF)
        return kernels_ref_open(k);
    c = calloc(1, sizeof(*c));
    if (c != NULL) {
        c->n_parts = env->n_threads > 0 ? env->n_threads : 1;
        c->ref.dims = *dims;
        c->ref.env = *env;
    }
    if (c == NULL || kernels_ref_open(&c->ref) != 0 || !alloc_workspace(c, dims)) {
        cpu_free(c);
        snprintf(k->error, sizeof(k->error), "no memory for the workspace of %d threads",
                 env->n_threads);
        return -1;
    }
    fill(c, isa);
    k->ops = &c->ops;
    k->self = c;
    return 0;
}

void kernels_close(struct kernels *k)
{
    if (k->ops == &kernels_ref_ops)
        kernels_ref_close(k);
    else
        cpu_free(k->self);
    k->ops = NULL;
    k->self = NULL;
}
