/*
 * naive_sampler: what sampler.h says, done the slow way: everything in double, a full sort, noise
 * for every id, libm. A reference for tests.
 */
#ifndef BATON_TESTS_NAIVE_SAMPLER_H
#define BATON_TESTS_NAIVE_SAMPLER_H

#include "common/model/sampler.h"

struct naive {
    int32_t vocab;
    double *x;      /* adjusted logits; NaN has become -inf */
    double *p;      /* softmax(x / temperature) */
    double *log_p;  /* its logarithm, where p is 0, too */
    int32_t *order; /* ids in rank order */
};

/** Steps 1 and 2. tokens: the n_prompt of the prompt, then the n_output of the output. */
void naive_read(struct naive *n, const float *logits, int32_t vocab,
                const struct sampling_params *p, const int32_t *tokens, uint32_t n_prompt,
                uint32_t n_output);
void naive_deinit(struct naive *n);

/** How many of order[] the filters keep, with top_p moved by slack. */
int32_t naive_kept(const struct naive *n, const struct sampling_params *p, double slack);

/** Step 4 among the first n_kept of order[]; *margin: how far the second best score is. */
int32_t naive_draw(const struct naive *n, const struct sampling_params *p, int32_t n_kept,
                   uint64_t position, double *margin);

#endif
