/*
 * sampler_history: which tokens a sequence has, and how often its output has each: what penalties
 * need.
 *
 * A pure function of the tokens: counts that were kept up token by token equal counts made anew
 * from the whole sequence, so a request that was retracted or moved is penalised as before. Pushing
 * and dropping tokens allocates nothing.
 *
 * Threads   one at a time.
 * Limits    distinct tokens <= vocab; memory about 28 bytes for each token of the output (and of
 * the prompt, with a repetition penalty) up to the vocabulary's size, and 4 for each of the output.
 */
#ifndef BATON_COMMON_MODEL_SAMPLER_HISTORY_H
#define BATON_COMMON_MODEL_SAMPLER_HISTORY_H

#include "common/model/sampler.h"

/* What is known of one token. */
struct sampler_seen {
    int32_t id;
    uint32_t n_output; /* how often in the output; 0: in the prompt alone */
    bool in_prompt;    /* kept only with a repetition penalty */
};

/** Whether draws with these parameters ask for a history. */
bool sampler_history_needed(const struct sampling_params *p);

/**
 * @param tokens      [n_tokens] of the sequence so far, ids in 0 .. vocab - 1
 * @param n_output    how many of them, at the end, are output
 * @param max_output  most output tokens that it will ever have, pushed drafts included
 * @param out         NULL when not sampler_history_needed(p)
 * @return ST_OK; ST_INVALID: an id outside the vocabulary; ST_EXHAUSTED
 */
enum status_code sampler_history_new(int32_t vocab, const struct sampling_params *p,
                                     const int32_t *tokens, uint32_t n_tokens, uint32_t n_output,
                                     uint32_t max_output, struct sampler_history **out,
                                     struct status *st);
/** All take NULL, and then do nothing: callers need not ask. */
void sampler_history_free(struct sampler_history *h);

/** One more output token; an id outside the vocabulary takes its place and penalises nothing. */
void sampler_history_push(struct sampler_history *h, int32_t token);

/** Forgets output tokens, the last first, until n_output are left (of a rejected draft). */
void sampler_history_truncate(struct sampler_history *h, uint32_t n_output);

uint32_t sampler_history_n_output(const struct sampler_history *h);

/** Every token seen, in no order that matters. Stays the history's, until it is next changed. */
const struct sampler_seen *sampler_history_borrow(const struct sampler_history *h, uint32_t *n);

#endif
