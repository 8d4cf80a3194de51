/*
 * sampler: from a row of logits to a token.
 *
 * Random numbers are a pure function of (seed, position, token id): a request that is resumed,
 * moved to another worker or verified against a draft draws the same. Sampling is Gumbel-max over
 * the tokens that top_k, top_p and min_p keep; temperature 0 is greedy, ties to the lowest id.
 *
 * Threads   any; no state.
 */
#ifndef BATON_COMMON_MODEL_SAMPLER_H
#define BATON_COMMON_MODEL_SAMPLER_H

#include <stdint.h>

struct sampling_params {
    float temperature; /* 0: greedy */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off */
    int32_t top_k;     /* 0: off */
    uint64_t seed;
};

/**
 * @param logits    f32 [vocab]
 * @param position  of the token to be drawn (the prompt's length for the first one)
 * @return the token id
 */
int32_t sampler_draw(const float *logits, int32_t vocab, const struct sampling_params *params,
                     uint64_t position);

#endif
