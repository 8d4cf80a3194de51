/*
 * limits: loops that do one thing, to measure what a machine can reach: benchmarks divide by them.
 *
 * Threads   any; each call runs on its caller.
 */
#ifndef BATON_KERNELS_CPU_LIMITS_H
#define BATON_KERNELS_CPU_LIMITS_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

/** Reads every byte of p once with vector loads. @param bytes  a multiple of 1024 @return their
 * XOR, so that nothing can leave it out */
uint64_t cpu_limit_read(enum cpu_isa isa, const void *p, size_t bytes);

/** Independent f32 FMAs on registers. @return how many FLOPs n rounds were */
double cpu_limit_f32(enum cpu_isa isa, int64_t n);

/** Independent bf16 dot products on registers (VDPBF16PS). @return FLOPs; 0: the level has none */
double cpu_limit_bf16(enum cpu_isa isa, int64_t n);

/** Independent bf16 tile products on registers (TDPBF16PS). @return FLOPs; 0: the level has none */
double cpu_limit_tiles(enum cpu_isa isa, int64_t n);

#endif
