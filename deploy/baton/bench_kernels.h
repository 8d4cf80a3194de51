/*
 * bench_kernels: what `baton bench-kernels` measures: operations of one backend at the sizes of the
 * released models, over memory larger than the caches.
 */
#ifndef BATON_DEPLOY_BATON_BENCH_KERNELS_H
#define BATON_DEPLOY_BATON_BENCH_KERNELS_H

#include "common/base/pool.h"
#include "kernels/kernels.h"

/* What a case is held against. */
enum bench_limit { LIMIT_READ, LIMIT_DOT, LIMIT_FMA };

struct kernel_bench {
    struct kernels k;
    struct pool *pool;
    enum cpu_isa isa;
    size_t footprint; /* bytes that weights rotate through */
    const char *only; /* NULL, or part of the names of the cases to run */
    uint64_t seed;
    void *ctx; /* the caller's */

    /* Measures one case: calls run(arg, i) with i = 0, 1, ... and reports amount per second, amount
     * in bytes (LIMIT_READ) or FLOPs of one call (LIMIT_DOT: of
     * numbers that bf16 holds; LIMIT_FMA: of f32). */
    void (*measure)(struct kernel_bench *b, const char *name, const char *shape,
                    enum bench_limit limit, double amount, void (*run)(void *arg, int64_t i),
                    void *arg);
};

/** Sizes of V4-Flash, with room for 512 rows and a context of 2^20. */
struct kernel_dims bench_kernel_dims(void);

/** Runs all cases. @return 0, or -1 after printing what memory is missing */
int bench_kernels_run(struct kernel_bench *b);

#endif
