/*
 * cpu: the fast host backend, behind kernels.h.
 *
 * Three kinds of file:
 *   drivers (cpu.c, weight.c, linear.c, moe.c, ...)  plain C, built once: cut work into items, hand
 *       items to threads, never touch a vector;
 *   panel_<isa>.c  matrix products, see panel.h;
 *   simd_*.c       everything else that is hot, written once over simd.h and built once per ISA.
 *
 * Owns      the workspace of the operations, sized at open from kernel_dims; the memory of packed
 *           weights. Operations allocate nothing.
 * Promises  which thread runs an item, and how many there are, changes no bit.
 */
#ifndef BATON_KERNELS_CPU_CPU_H
#define BATON_KERNELS_CPU_CPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/panel.h"
#include "kernels/kernels.h"

enum {
    CPU_ROWS_BLOCK = 96,   /* x rows of one item: their results stay in L2 */
    CPU_HEADS_BLOCK = 64,  /* query heads of one item of attention, at most */
    CPU_QUANT_BLOCK = 128, /* values that share one scale in act_quant */
    /* weight.layout; others are kernels/ref's */
    CPU_PANELS = 16, /* packed */
    CPU_MAPPED,      /* data and scale as the checkpoint has them: packed by cpu_panel() */
    CPU_MAPPED_F32   /* the same, scales in f32 */
};

/* Memory of one thread (part). Aligned to 64. */
struct cpu_part {
    struct panel_scratch panel;
    float out[4][CPU_ROWS_BLOCK * PANEL_ROWS]; /* results of one item, by up to four panels */
    const uint16_t *x[CPU_ROWS_BLOCK];         /* rows of an item */
    float *acc;                                /* [max_rows][PANEL_ROWS] */
    uint8_t *keys;   /* attention's and the indexer's, see simd_attention.c, simd_index.c; aligned
                      * to 64 */
    uint8_t *packed; /* one panel of a mapped weight, then its scales; aligned to 64 */
};

/* Row functions of an ISA (simd_rows.c). n: any number >= 0; no alignment needed. */
struct row_kernels {
    /* act_quant of one row: per 128 values, out = FP8 code times scale, bf16; out may be x */
    void (*quant)(uint16_t *out, const uint16_t *x, int n);
    /* out = bf16(x) */
    void (*round)(uint16_t *out, const float *x, int n);
    /* sum += bf16(x) */
    void (*add_rounded)(float *sum, const float *x, int n);
    /* out = bf16(silu(min(g, limit)) * clip(u, -limit, limit) * weight), g and u rounded to bf16
     * first; limit 0: none */
    void (*swiglu)(uint16_t *out, const float *g, const float *u, int n, float limit, float weight);
};

struct cpu_arena;
struct cpu_taken;

struct cpu {
    struct kernel_ops ops; /* what k->ops points to */
    const struct panel_kernels *panels;
    const struct row_kernels *rows;
    /* panel_pack(), faster */
    void (*pack)(uint8_t *dst, const struct weight_src *src, int64_t i, enum panel_order order);
    struct cpu_part **parts; /* [n_parts] */
    int n_parts;
    int *share_of;           /* [n_parts]: which share of an operation's items is whose */
    struct cpu_taken *taken; /* [n_parts], by share; the operation that runs */
    struct cpu_arena *arena; /* packed weights */
    bool as_mapped;          /* weights stay mapped */
    size_t packed_bytes;     /* of part->packed: the largest panel's */
    /* moe.c: a slot is a (token, expert) pair; slots are sorted by expert, then token. The shared
     * expert's T slots come first. */
    int32_t *slot_token;   /* [max_rows * (n_active + 1)] */
    float *slot_weight;    /* the same */
    int32_t *slot_part;    /* the same: row of moe_parts() */
    int32_t *expert_start; /* [n_experts + 2]: first slot of each; the shared expert is number 0 */
    uint8_t *hidden;       /* quantised rows of moe_inter, one per slot */
    float *mix;            /* simd_hyper.c: [max_rows][rows of fn + 1] */
    float *scores;         /* gate: [max_rows][n_experts]; index_select: u16 [tokens][stride] */
    size_t scores_bytes;
};

/* Keys that one token attends to, at most: its window, and the chosen or all compressed entries. */
static inline int cpu_max_keys(const struct kernel_dims *d)
{
    int all = d->max_context / 128 + 1;

    return d->window + (all > d->index_topk ? all : d->index_topk);
}

/* Index scores of one token: numbers from one to the next. */
static inline int64_t cpu_index_stride(const struct kernel_dims *d)
{
    return ((int64_t)d->max_context / 4 + 64) / 64 * 64;
}

static inline struct cpu *cpu_of(struct kernels *k)
{
    return k->self;
}

static inline void *cpu_ptr(struct dev_ptr p)
{
    return (void *)(uintptr_t)p.addr;
}

/* A row of the quantised form: n bf16 values, each FP8 code times its scale (exact), then 64 bytes
 * or more that nobody reads: rows of 2^k values would otherwise all fall into the same sets of the
 * cache. */
static inline size_t cpu_xq_bytes(int n)
{
    return ((size_t)n * 2 + 63) / 64 * 64 + 64;
}

/* ---- cpu.c ---- */

typedef void (*cpu_item_fn)(void *arg, int64_t item, struct cpu_part *part);

/** Runs items 0 .. n_items - 1, each once, on all threads; returns when all are done. */
void cpu_run(struct kernels *k, int64_t n_items, cpu_item_fn run, void *arg);
/** The same when item i works on panel i % n_panels of its weights: a thread takes a run of panels,
 * those that threads of its NUMA node packed, and others' when these are done. n_items: a multiple
 * of n_panels. */
void cpu_run_panels(struct kernels *k, int64_t n_items, int64_t n_panels, cpu_item_fn run,
                    void *arg);

/* ---- arena.c ---- */

struct cpu_arena *cpu_arena_new(void);
void cpu_arena_free(struct cpu_arena *a);
/** Uninitialised memory aligned to 64, in huge pages where the kernel has them; NULL: none left. */
void *cpu_arena_take(struct cpu_arena *a, size_t bytes);
void cpu_arena_give(struct cpu_arena *a, void *p);

/* ---- operations, by file ---- */

void cpu_weight_fill(struct kernel_ops *ops);
/** Panel i of a matrix; of a mapped one a copy in part->packed, until the part's next call. */
struct panel cpu_panel(const struct cpu *c, const struct weight *w, int64_t i,
                       struct cpu_part *part);
/** Whether w is a matrix that cpu_panel() knows. */
bool cpu_is_matrix(const struct weight *w);
void cpu_linear_fill(struct kernel_ops *ops);
void cpu_moe_fill(struct kernel_ops *ops);
void cpu_gate_fill(struct kernel_ops *ops);

/* What simd_*.c leave for each ISA: operations, and bytes that cpu_part.keys must have. */
#define CPU_SIMD_DECLARE(isa)                                                                      \
    extern const struct row_kernels cpu_rows_##isa;                                                \
    void cpu_norm_fill_##isa(struct kernel_ops *ops);                                              \
    void cpu_hyper_fill_##isa(struct kernel_ops *ops);                                             \
    void cpu_compress_fill_##isa(struct kernel_ops *ops);                                          \
    void cpu_pack_##isa(uint8_t *dst, const struct weight_src *src, int64_t i,                     \
                        enum panel_order order);                                                   \
    uint64_t cpu_read_##isa(const void *p, size_t bytes);                                          \
    double cpu_fma_##isa(int64_t n);                                                               \
    double cpu_dot_##isa(int64_t n);

/* Of those that multiply pairs: AVX-512 has them twice, see simd_pairs_f32.h. */
#define CPU_PAIRS_DECLARE(isa)                                                                     \
    void cpu_attention_fill_##isa(struct kernel_ops *ops);                                         \
    size_t cpu_attention_bytes_##isa(const struct kernel_dims *d);                                 \
    void cpu_index_fill_##isa(struct kernel_ops *ops);                                             \
    size_t cpu_index_bytes_##isa(const struct kernel_dims *d);

double cpu_tiles_amx(int64_t n); /* panel_amx.c: products of tiles on registers; FLOPs */
CPU_SIMD_DECLARE(avx512)
CPU_SIMD_DECLARE(avx2)
CPU_PAIRS_DECLARE(avx512)
CPU_PAIRS_DECLARE(avx512_fma)
CPU_PAIRS_DECLARE(amx)
CPU_PAIRS_DECLARE(avx2)

#endif
