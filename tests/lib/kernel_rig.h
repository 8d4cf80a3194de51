/*
 * kernel_rig: what tests of kernels share: backends opened at a level, seeded random tensors, and
 * the comparison by tests/oracle/vectors/INDEX.json's limits ("kernels").
 *
 * Every failure prints seed, shape, first index and both values.
 */
#ifndef BATON_TESTS_LIB_KERNEL_RIG_H
#define BATON_TESTS_LIB_KERNEL_RIG_H

#include "common/base/pool.h"
#include "kernels/kernels.h"

struct rig {
    struct kernels k;
    struct pool *pool;
};

/* A small model whose sizes have tails: hidden 256, 4 heads of 192, ... */
struct kernel_dims rig_dims(void);

/* Levels are those of enum cpu_isa and, of AVX-512 and AMX, the way that is not taken on this
 * processor. */
enum { RIG_AVX512_OTHER_WAY = CPU_ISA_AMX + 1, RIG_AMX_OTHER_WAY };

/** Opens a backend (its threads, from three up, as if on two NUMA nodes); false when this processor
 * does not run the level (the test prints and skips).
 */
bool rig_open(struct rig *r, int level, const struct kernel_dims *dims, int n_threads);
/** The same, with weights used as mapped. */
bool rig_open_mapped(struct rig *r, int level, const struct kernel_dims *dims, int n_threads);
void rig_close(struct rig *r);

/* ---- random numbers: the same for a seed everywhere ---- */

struct rig_random {
    uint64_t state;
};

uint64_t rig_bits(struct rig_random *r);
float rig_normal(struct rig_random *r); /* about N(0, 1) */
void rig_bf16(struct rig_random *r, uint16_t *out, size_t n, float scale);
void rig_f32(struct rig_random *r, float *out, size_t n, float scale);
/* FP8 codes without NaN; FP4: any bytes; scales: E8M0 around 1 */
void rig_fp8(struct rig_random *r, uint8_t *out, size_t n);
void rig_bytes(struct rig_random *r, uint8_t *out, size_t n);
void rig_scales(struct rig_random *r, uint8_t *out, size_t n);

/* A random matrix (of one row: a vector) as in a checkpoint; the caller frees data and scale. */
struct weight_src rig_weight(struct rig_random *r, enum weight_type type, int64_t rows,
                             int64_t cols);
void rig_weight_free(struct weight_src *src);

/* Copies in and out of device memory of a rig. */
struct dev_ptr rig_put(struct rig *r, const void *src, size_t bytes);
void *rig_get(struct rig *r, struct dev_ptr p, size_t bytes); /* malloc'd */

/* Host address of device memory. */
void *rig_host(struct rig *r, struct dev_ptr p);

/* ---- comparison; each fails the running cmocka test ---- */

/* At most 1 % differ, by one bf16 step or 1e-5 of the RMS (sums that cancel). */
void rig_same_bf16(const char *what, const uint16_t *got, const uint16_t *want, size_t n);
/* Row by row, RMS of the difference over RMS of the row: every row <= 4 %, 0.5 % on average. For
 * what follows a rounding that may flip (a flipped FP8 code moves all sums it is in). */
void rig_rows_bf16(const char *what, const uint16_t *got, const uint16_t *want, size_t n_rows,
                   size_t cols);
/* 1e-5 of the RMS. */
void rig_same_f32(const char *what, const float *got, const float *want, size_t n);
/* Every bit. */
void rig_same_bytes(const char *what, const void *got, const void *want, size_t n);

#endif
