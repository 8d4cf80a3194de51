/*
 * sampler: from a row of logits to a token, and to log probabilities.
 *
 * What is drawn, in this order (names and defaults as SGLang's):
 *   1. Adjusted logits x. For a token the sequence has (prompt or output) and repetition_penalty r:
 *      x < 0 ? x * r : x / r; for one that the output has c > 0 times: minus presence_penalty,
 * minus c * frequency_penalty; plus logit_bias; and while the output has fewer than min_new tokens,
 *      eos and the stop tokens are -inf.
 *   2. Probabilities p = softmax(x / temperature) over the whole vocabulary. Tokens are ranked by
 * x, equal ones by lower id first.
 *   3. A token stays when each filter that is on keeps it, each by itself over that p ("joint"):
 *      top_k: fewer than k rank before it; top_p: those before it have less than top_p together;
 *      min_p: it has at least min_p times the probability of the first. The first always stays.
 *   4. One of them is drawn with probability p, renormalised over those that stay: Gumbel-max, the
 *      winner of x / temperature + noise(seed, position, id).
 * Temperature below 1e-5, or top_k 1: the first in rank.
 *
 * Log probabilities are of p in step 2: after penalties, bias and temperature, before the filters
 * (SGLang's default); of a greedy draw, with temperature 1.
 *
 * The same bits everywhere: the noise is a pure function of (seed, position, id), so a request that
 * is resumed, moved, retracted, or verified against a draft draws the same, given the same logits
 * and the same tokens before. Vector passes over the row use only IEEE add, multiply, compare and
 * conversions in one fixed order of 16 lanes at every level (no fused multiply-add, no libm); they
 * add up probabilities and leave out tokens that provably cannot win. Scores are then compared in
 * double, by code that is built once and brings its own logarithm.
 *
 * What is not a number is never drawn: NaN counts as -inf. An infinite logit wins, lowest id first.
 * When nothing is left (all NaN or -inf) the draw returns -1, and the request has to fail.
 *
 * Owns      scratch for one row; a draw allocates nothing.
 * Threads   one thread at a time for each sampler; samplers share nothing.
 */
#ifndef BATON_COMMON_MODEL_SAMPLER_H
#define BATON_COMMON_MODEL_SAMPLER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "kernels/kernels.h"

enum {
    SAMPLER_TOP_MAX = 128,   /* most probable tokens that can be told of one position */
    SAMPLER_BIAS_MAX = 1024, /* entries of a logit_bias */
    SAMPLER_STOP_MAX = 64    /* stop tokens of a request */
};

/* All zero but temperature and top_p: a plain draw. Arrays are the caller's. */
struct sampling_params {
    float temperature; /* 0: greedy */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off */
    int32_t top_k;     /* 0 or less: off */
    uint64_t seed;

    float presence_penalty;   /* 0: off */
    float frequency_penalty;  /* 0: off */
    float repetition_penalty; /* 1: off, and 0 too */
    uint32_t n_bias;          /* <= SAMPLER_BIAS_MAX */
    const int32_t *bias_ids;
    const float *bias;

    uint32_t min_new;    /* output tokens before eos or a stop token may be drawn */
    int32_t eos;         /* masked with them; below 0: none */
    uint32_t n_stop_ids; /* <= SAMPLER_STOP_MAX */
    const int32_t *stop_ids;

    void *lists; /* whoever made the arrays keeps here what it frees; the sampler does not look */

    bool logprobs;          /* of the drawn token, and of the n_top_logprobs most probable */
    int32_t n_top_logprobs; /* 0 .. SAMPLER_TOP_MAX */
    bool prompt_logprobs;   /* of the prompt's tokens, too, by sampler_score(): the engine's work */
};

struct sampler_logprobs {
    float logprob; /* of the token; -inf where nothing else is right */
    int32_t n_top; /* in rank order; fewer than asked where fewer can be drawn */
    int32_t top_ids[SAMPLER_TOP_MAX];
    float top_logprobs[SAMPLER_TOP_MAX];
};

struct sampler;
struct sampler_history; /* sampler_history.h: which tokens a sequence has */

/**
 * @param vocab    logits of a row, >= 1
 * @param isa_max  a cap for tests; the processor's best level is used below it. Changes no bit.
 * @return ST_OK; ST_EXHAUSTED
 */
enum status_code sampler_new(int32_t vocab, enum cpu_isa isa_max, struct sampler **out,
                             struct status *st);
void sampler_free(struct sampler *s);

/**
 * Draws the token that follows.
 * @param logits    f32 [vocab], any alignment. Adjusted in place during the call, and on return as
 *                  it was, so nobody else reads it meanwhile.
 * @param h         the tokens before; NULL unless sampler_history_needed(p)
 * @param position  of the token to be drawn: the number of tokens before it, prompt included
 * @param n_output  how many of those are output (of earlier workers too): for min_new
 * @param out       filled when p->logprobs; may be NULL
 * @return the token id; -1: nothing can be drawn (see above), out is untouched
 */
int32_t sampler_pick(struct sampler *s, float *logits, const struct sampling_params *p,
                     const struct sampler_history *h, uint64_t position, uint32_t n_output,
                     struct sampler_logprobs *out);

/**
 * How probable a token was that is already known: log_softmax of the plain logits, as it is told of
 * prompt tokens (no penalties, no temperature).
 * @param logits  f32 [vocab], of the position before the token's
 * @param n_top   most probable ones to tell besides, 0 .. SAMPLER_TOP_MAX
 * @return false: no logit is a number; out is untouched
 */
bool sampler_score(struct sampler *s, const float *logits, int32_t token, int32_t n_top,
                   struct sampler_logprobs *out);

#endif
