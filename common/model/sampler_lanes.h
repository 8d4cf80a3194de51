/*
 * sampler_lanes: 16 lanes of f32 (vf), of u32 (vu) and of double sums (vd), and the few functions
 * that sampler_rows.c needs, as wide as the ISA that this file is compiled for. Each lane does the
 * same IEEE operations at every level; none is fused.
 *
 * vf_max(a, b) is a > b ? a : b, lane by lane: b where either is NaN.
 */
#ifndef BATON_COMMON_MODEL_SAMPLER_LANES_H
#define BATON_COMMON_MODEL_SAMPLER_LANES_H

#include <stdint.h>
#include <string.h>

#define LANES static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#include "common/model/sampler_lanes_avx512.h"
#define LANES_NAME sampler_rows_avx512
#elif defined(__AVX2__)
#include "common/model/sampler_lanes_avx2.h"
#define LANES_NAME sampler_rows_avx2
#else
#include "common/model/sampler_lanes_plain.h"
#define LANES_NAME sampler_rows_plain
#endif

#endif
