/*
 * bench_limits: what this machine can reach with loops that do one thing, on all threads of a pool:
 * bytes read a second (vector loads over huge pages) and FLOPs a second (register-only bf16 dot
 * products, or f32 FMAs where these are faster: some processors run VDPBF16PS at half rate).
 *
 * Owns      the memory that the read loop goes through.
 * Threads   one caller.
 */
#ifndef BATON_DEPLOY_BATON_BENCH_LIMITS_H
#define BATON_DEPLOY_BATON_BENCH_LIMITS_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/pool.h"
#include "kernels/kernels.h"

struct bench_limits {
    enum cpu_isa isa;
    uint8_t *memory; /* [bytes] */
    size_t bytes, at;
};

/** @param bytes  should be more than the last cache; @return 0, or -1: no memory */
int bench_limits_open(struct bench_limits *l, enum cpu_isa isa, size_t bytes);
void bench_limits_close(struct bench_limits *l);

/** Bytes a second, over a quarter of the memory: the one that was read longest ago. */
double bench_limit_read(struct bench_limits *l, struct pool *pool);

/** f32 FLOPs a second, of FMAs: the limit of what bf16 cannot hold. */
double bench_limit_fma(struct bench_limits *l, struct pool *pool);

/** FLOPs a second of tile products (AMX); 0 where the level has none. */
double bench_limit_tiles(struct bench_limits *l, struct pool *pool);

/** FLOPs a second, of vectors at every level, so that levels can be compared; about 2 x 20 ms. */
double bench_limit_flops(struct bench_limits *l, struct pool *pool);

#endif
