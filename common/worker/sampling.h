/*
 * sampling: a request's sampling parameters from their message and back, and log probabilities into
 * theirs.
 *
 * Threads   any; no state.
 */
#ifndef BATON_COMMON_WORKER_SAMPLING_H
#define BATON_COMMON_WORKER_SAMPLING_H

#include "baton/v1/common.pb-c.h"
#include "common/model/sampler.h"

/**
 * Reads and checks; absent fields (or m NULL) mean the model's defaults: temperature 1, top_p 1,
 * the rest off, seed 0.
 * @param vocab  token ids are below
 * @param eos    the model's; below 0: none
 * @param out    holds copies of the lists; end with sampling_params_deinit(), also after an error
 * @return ST_OK; ST_INVALID naming the field, what it is and what it may be; ST_EXHAUSTED
 */
enum status_code sampling_params_read(const Baton__V1__Sampling *m, int32_t vocab, int32_t eos,
                                      struct sampling_params *out, struct status *st);
void sampling_params_deinit(struct sampling_params *p);

/**
 * The message for another worker. Its lists are p's: valid as long as those.
 * @param max_new  written as max_new_tokens
 */
void sampling_params_write(const struct sampling_params *p, uint32_t max_new,
                           Baton__V1__Sampling *out);

/* Log probabilities of several tokens, growing; zero-initialise, logprobs_deinit() at the end. */
struct logprobs {
    size_t n, n_top_all;     /* tokens; entries of top_* */
    size_t cap, cap_top_all; /* allocated */
    float *logprobs;         /* [n] */
    uint32_t *n_top;         /* [n] */
    int32_t *top_ids;        /* [n_top_all] */
    float *top_logprobs;     /* [n_top_all] */
};

/** Makes room for n_tokens more with n_top each: adding them then allocates nothing. */
enum status_code logprobs_reserve(struct logprobs *l, size_t n_tokens, size_t n_top,
                                  struct status *st);
/** @return ST_OK; ST_EXHAUSTED, then nothing is added */
enum status_code logprobs_add(struct logprobs *l, const struct sampler_logprobs *one,
                              struct status *st);
/** Adds what another worker told. ST_CORRUPT when it is not of n_tokens or contradicts itself. */
enum status_code logprobs_add_message(struct logprobs *l, const Baton__V1__Logprobs *m,
                                      size_t n_tokens, struct status *st);
/** The message for all of l; its arrays are l's. */
void logprobs_write(const struct logprobs *l, Baton__V1__Logprobs *out);
void logprobs_clear(struct logprobs *l);
void logprobs_deinit(struct logprobs *l);

#endif
