#include "common/worker/sampling.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct sampling_params defaults = {
    .temperature = 1, .top_p = 1, .repetition_penalty = 1, .eos = -1};

/* ---- from the message ---- */

/* A number that may be absent, and what it may be. */
struct bounded {
    const char *name;
    int has;
    float value, min, max;
    bool above_min; /* min itself is not allowed */
    float *out;
};

static enum status_code read_number(const struct bounded *b, struct status *st)
{
    if (!b->has)
        return status_ok(st);
    if (!(b->value >= b->min && b->value <= b->max) || (b->above_min && b->value == b->min))
        return status_set(st, ST_INVALID, "%s is %g, it must be within %s%g, %g]", b->name,
                          (double)b->value, b->above_min ? "(" : "[", (double)b->min,
                          (double)b->max);
    *b->out = b->value;
    return status_ok(st);
}

static enum status_code read_numbers(const Baton__V1__Sampling *m, struct sampling_params *p,
                                     struct status *st)
{
    const struct bounded numbers[] = {
        {"temperature", m->has_temperature, m->temperature, 0, 1e6f, false, &p->temperature},
        {"top_p", m->has_top_p, m->top_p, 0, 1, true, &p->top_p},
        {"min_p", m->has_min_p, m->min_p, 0, 1, false, &p->min_p},
        {"presence_penalty", m->has_presence_penalty, m->presence_penalty, -2, 2, false,
         &p->presence_penalty},
        {"frequency_penalty", m->has_frequency_penalty, m->frequency_penalty, -2, 2, false,
         &p->frequency_penalty},
        {"repetition_penalty", m->has_repetition_penalty, m->repetition_penalty, 0, 2, true,
         &p->repetition_penalty},
    };

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (read_number(&numbers[i], st) != ST_OK)
            return st->code;
    p->top_k = m->has_top_k ? m->top_k : 0;
    p->seed = m->has_seed ? m->seed : 0;
    p->min_new = m->has_min_new_tokens ? m->min_new_tokens : 0;
    p->logprobs = m->has_logprobs && m->logprobs;
    p->prompt_logprobs = m->has_prompt_logprobs && m->prompt_logprobs;
    if (m->has_top_logprobs && m->top_logprobs > SAMPLER_TOP_MAX)
        return status_set(st, ST_INVALID, "top_logprobs is %u, it must be %d at most",
                          m->top_logprobs, SAMPLER_TOP_MAX);
    p->n_top_logprobs = m->has_top_logprobs ? (int32_t)m->top_logprobs : 0;
    if (m->has_max_new_tokens && m->min_new_tokens > m->max_new_tokens)
        return status_set(st, ST_INVALID, "min_new_tokens is %u, more than max_new_tokens, %u",
                          m->min_new_tokens, m->max_new_tokens);
    return status_ok(st);
}

static enum status_code check_lists(const Baton__V1__Sampling *m, int32_t vocab, struct status *st)
{
    if (m->n_logit_bias != m->n_logit_bias_ids)
        return status_set(st, ST_INVALID, "logit_bias: %zu values for %zu token ids",
                          m->n_logit_bias, m->n_logit_bias_ids);
    if (m->n_logit_bias > SAMPLER_BIAS_MAX)
        return status_set(st, ST_INVALID, "logit_bias has %zu entries, at most %d are possible",
                          m->n_logit_bias, SAMPLER_BIAS_MAX);
    if (m->n_stop_token_ids > SAMPLER_STOP_MAX)
        return status_set(st, ST_INVALID, "%zu stop token ids, at most %d are possible",
                          m->n_stop_token_ids, SAMPLER_STOP_MAX);
    for (size_t i = 0; i < m->n_logit_bias; i++) {
        if (m->logit_bias_ids[i] < 0 || m->logit_bias_ids[i] >= vocab)
            return status_set(st, ST_INVALID,
                              "logit_bias: token %d is outside the vocabulary of %d",
                              m->logit_bias_ids[i], vocab);
        if (!isfinite(m->logit_bias[i]))
            return status_set(st, ST_INVALID, "logit_bias of token %d is no finite number",
                              m->logit_bias_ids[i]);
    }
    return status_ok(st);
}

static enum status_code copy_lists(const Baton__V1__Sampling *m, struct sampling_params *p,
                                   struct status *st)
{
    size_t n_bias = m->n_logit_bias, n_stop = m->n_stop_token_ids;
    int32_t *ids;
    float *bias;

    if (n_bias + n_stop == 0)
        return status_ok(st);
    p->lists = malloc((2 * n_bias + n_stop) * 4);
    if (p->lists == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the lists of a request");
    ids = p->lists;
    bias = (float *)(ids + n_bias + n_stop);
    if (n_bias > 0) {
        memcpy(ids, m->logit_bias_ids, n_bias * sizeof(*ids));
        memcpy(bias, m->logit_bias, n_bias * sizeof(*bias));
    }
    if (n_stop > 0)
        memcpy(ids + n_bias, m->stop_token_ids, n_stop * sizeof(*ids));
    p->n_bias = (uint32_t)n_bias;
    p->bias_ids = ids;
    p->bias = bias;
    p->n_stop_ids = (uint32_t)n_stop;
    p->stop_ids = ids + n_bias;
    return status_ok(st);
}

enum status_code sampling_params_read(const Baton__V1__Sampling *m, int32_t vocab, int32_t eos,
                                      struct sampling_params *out, struct status *st)
{
    *out = defaults;
    out->eos = eos;
    if (m == NULL)
        return status_ok(st);
    if (read_numbers(m, out, st) != ST_OK || check_lists(m, vocab, st) != ST_OK)
        return st->code;
    return copy_lists(m, out, st);
}

void sampling_params_deinit(struct sampling_params *p)
{
    free(p->lists);
    p->lists = NULL;
    p->n_bias = p->n_stop_ids = 0;
}

/* ---- to the message ---- */

void sampling_params_write(const struct sampling_params *p, uint32_t max_new,
                           Baton__V1__Sampling *out)
{
    baton__v1__sampling__init(out);
    out->has_temperature = out->has_top_p = out->has_min_p = out->has_top_k = out->has_seed = 1;
    out->temperature = p->temperature;
    out->top_p = p->top_p;
    out->min_p = p->min_p;
    out->top_k = p->top_k;
    out->seed = p->seed;
    out->has_presence_penalty = p->presence_penalty != 0;
    out->presence_penalty = p->presence_penalty;
    out->has_frequency_penalty = p->frequency_penalty != 0;
    out->frequency_penalty = p->frequency_penalty;
    out->has_repetition_penalty = p->repetition_penalty != 0;
    out->repetition_penalty = p->repetition_penalty;
    out->n_logit_bias = out->n_logit_bias_ids = p->n_bias;
    out->logit_bias_ids = (int32_t *)p->bias_ids;
    out->logit_bias = (float *)p->bias;
    out->has_max_new_tokens = out->has_min_new_tokens = 1;
    out->max_new_tokens = max_new;
    out->min_new_tokens = p->min_new;
    out->n_stop_token_ids = p->n_stop_ids;
    out->stop_token_ids = (int32_t *)p->stop_ids;
    out->has_logprobs = out->has_prompt_logprobs = out->has_top_logprobs = 1;
    out->logprobs = p->logprobs;
    out->prompt_logprobs = p->prompt_logprobs;
    out->top_logprobs = (uint32_t)p->n_top_logprobs;
}

/* ---- log probabilities ---- */

static bool grow(void *array, size_t cap, size_t size)
{
    void **at = array, *more = realloc(*at, cap * size);

    if (more == NULL)
        return false;
    *at = more;
    return true;
}

enum status_code logprobs_reserve(struct logprobs *l, size_t n_tokens, size_t n_top,
                                  struct status *st)
{
    size_t cap = l->n + n_tokens, cap_top_all = l->n_top_all + n_tokens * n_top;

    if (cap > l->cap) {
        cap = cap > 2 * l->cap ? cap : 2 * l->cap;
        if (!grow(&l->logprobs, cap, sizeof(*l->logprobs)) ||
            !grow(&l->n_top, cap, sizeof(*l->n_top)))
            goto no_memory;
        l->cap = cap;
    }
    if (cap_top_all > l->cap_top_all) {
        cap_top_all = cap_top_all > 2 * l->cap_top_all ? cap_top_all : 2 * l->cap_top_all;
        if (!grow(&l->top_ids, cap_top_all, sizeof(*l->top_ids)) ||
            !grow(&l->top_logprobs, cap_top_all, sizeof(*l->top_logprobs)))
            goto no_memory;
        l->cap_top_all = cap_top_all;
    }
    return status_ok(st);
no_memory:
    return status_set(st, ST_EXHAUSTED, "no memory for the log probabilities of %zu tokens",
                      l->n + n_tokens);
}

static void append(struct logprobs *l, float logprob, uint32_t n_top, const int32_t *ids,
                   const float *logprobs)
{
    l->logprobs[l->n] = logprob;
    l->n_top[l->n++] = n_top;
    if (n_top > 0) {
        memcpy(l->top_ids + l->n_top_all, ids, n_top * sizeof(*ids));
        memcpy(l->top_logprobs + l->n_top_all, logprobs, n_top * sizeof(*logprobs));
    }
    l->n_top_all += n_top;
}

enum status_code logprobs_add(struct logprobs *l, const struct sampler_logprobs *one,
                              struct status *st)
{
    if (logprobs_reserve(l, 1, (size_t)one->n_top, st) == ST_OK)
        append(l, one->logprob, (uint32_t)one->n_top, one->top_ids, one->top_logprobs);
    return st->code;
}

enum status_code logprobs_add_message(struct logprobs *l, const Baton__V1__Logprobs *m,
                                      size_t n_tokens, struct status *st)
{
    uint64_t n_top = 0, at = 0;

    for (size_t i = 0; i < m->n_n_top; i++)
        n_top += m->n_top[i];
    if (m->n_logprobs != n_tokens || m->n_n_top != n_tokens || m->n_top_ids != n_top ||
        m->n_top_logprobs != n_top)
        return status_set(st, ST_CORRUPT,
                          "log probabilities of %zu tokens came with %zu numbers, %zu counts, %zu "
                          "and %zu entries for %llu",
                          n_tokens, m->n_logprobs, m->n_n_top, m->n_top_ids, m->n_top_logprobs,
                          (unsigned long long)n_top);
    for (size_t i = 0; i < n_tokens; i++) {
        if (logprobs_reserve(l, 1, m->n_top[i], st) != ST_OK)
            return st->code;
        append(l, m->logprobs[i], m->n_top[i], m->top_ids + at, m->top_logprobs + at);
        at += m->n_top[i];
    }
    return status_ok(st);
}

void logprobs_write(const struct logprobs *l, Baton__V1__Logprobs *out)
{
    baton__v1__logprobs__init(out);
    out->n_logprobs = out->n_n_top = l->n;
    out->logprobs = l->logprobs;
    out->n_top = l->n_top;
    out->n_top_ids = out->n_top_logprobs = l->n_top_all;
    out->top_ids = l->top_ids;
    out->top_logprobs = l->top_logprobs;
}

void logprobs_clear(struct logprobs *l)
{
    l->n = l->n_top_all = 0;
}

void logprobs_deinit(struct logprobs *l)
{
    free(l->logprobs);
    free(l->n_top);
    free(l->top_ids);
    free(l->top_logprobs);
    *l = (struct logprobs){0};
}
