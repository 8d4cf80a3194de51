/*
 * rope: the angle per position of each rotated pair.
 *
 * Source: tests/oracle/dsv4.py rope_frequencies (RoPE: Su et al. 2021; YaRN: Peng et al. 2023).
 */
#ifndef BATON_COMMON_MODEL_ROPE_H
#define BATON_COMMON_MODEL_ROPE_H

#include "common/model/config.h"

/**
 * @param compressed  layers with a compression ratio: their own theta, stretched by YaRN
 * @param freq        out, f32 [rope_dim / 2], radians per position
 */
void rope_frequencies(const struct model_config *c, bool compressed, float *freq);

#endif
