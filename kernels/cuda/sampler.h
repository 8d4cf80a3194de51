/*
 * sampler: draws tokens from rows of logits on a GPU: what common/model/sampler.h describes, and
 * the same tokens and log probabilities, bit for bit, as it gives for the same logits.
 *
 * Built without fused multiply-adds (--fmad=false), like the CPU's. Penalties, biases and masks
 * are applied to the logits in place, and stay there.
 *
 * Promises  a row's draw depends on nothing but the row and its parameters.
 * Limits    vocab <= SAMPLE_VOCAB_MAX; n_top <= SAMPLE_TOP_MAX. A list of biases may have an id
 *           more than once; the list of seen tokens may not.
 */
#ifndef BATON_KERNELS_CUDA_SAMPLER_H
#define BATON_KERNELS_CUDA_SAMPLER_H

#include <stddef.h>

#include "kernels/cuda/stream.h"

enum {
    SAMPLE_LANES = 16,  /* groups of a chunk: see common/model/sampler_rows.h */
    SAMPLE_CHUNK = 256, /* ids of one */
    SAMPLE_TOP_MAX = 128,
    SAMPLE_VOCAB_MAX = 1 << 20
};

/* A token that the sequence has. */
struct sample_seen {
    int32_t id;
    uint32_t n_output; /* how often in the output; 0: in the prompt alone */
};

struct sample_bias {
    int32_t id;
    float x;
};

/* How one row is drawn from. Lists are parts of the call's: first element, and how many. */
struct sample_row {
    uint64_t seed, position;
    float temperature, top_p, min_p;
    int32_t top_k;
    float presence_penalty, frequency_penalty, repetition_penalty;
    uint32_t seen, n_seen; /* none without penalties */
    uint32_t bias, n_bias;
    uint32_t masked, n_masked; /* eos and stop tokens, while there must be more; then none */
    int32_t n_top;             /* most probable tokens to tell; below 0: tell nothing */
    int32_t is_given;          /* score `given` instead: log_softmax of the plain logits */
    int32_t given;
};

struct sample_logprobs {
    float logprob;
    int32_t n_top;
    int32_t top_ids[SAMPLE_TOP_MAX];
    float top_logprobs[SAMPLE_TOP_MAX];
};

struct sample_args {
    int32_t *ids;                  /* [T]; -1: nothing can be drawn */
    struct sample_logprobs *told;  /* [T]; rows that tell nothing are left alone. May be null */
    float *logits;                 /* [T][vocab] */
    const struct sample_row *rows; /* [T] */
    const struct sample_seen *seen;
    const struct sample_bias *bias;
    const int32_t *masked;
    float *work; /* cuda_sample_bytes() */
    int vocab;
};

static inline size_t cuda_sample_bytes(int vocab, int T)
{
    size_t chunks = ((size_t)vocab + SAMPLE_CHUNK - 1) / SAMPLE_CHUNK;

    return (size_t)T * chunks * (3 * SAMPLE_LANES + 1) * sizeof(float);
}

CUDA_API void cuda_sample(cuda_stream s, struct sample_args args, int T);

#endif
