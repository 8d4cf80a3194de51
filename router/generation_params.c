#include "router/generation_params.h"

#include <stdlib.h>
#include <string.h>

struct prompt_ids *prompt_ids_new(const int32_t *ids, size_t n)
{
    struct prompt_ids *p = malloc(sizeof(*p) + n * sizeof(*ids));

    if (p == NULL)
        return NULL;
    p->refs = 1;
    p->n = n;
    memcpy(p->ids, ids, n * sizeof(*ids));
    return p;
}

void prompt_ids_unref(struct prompt_ids *p)
{
    if (p != NULL && --p->refs == 0)
        free(p);
}

struct token_bias *token_bias_new(size_t n)
{
    struct token_bias *b = calloc(1, sizeof(*b) + n * (sizeof(*b->ids) + sizeof(*b->values)));

    if (b == NULL)
        return NULL;
    b->refs = 1;
    b->n = n;
    b->ids = (int32_t *)(b + 1);
    b->values = (float *)(b->ids + n);
    return b;
}

void token_bias_unref(struct token_bias *b)
{
    if (b != NULL && --b->refs == 0)
        free(b);
}

/* Those that are off stay off the wire. */
static void fill_penalties(Baton__V1__Sampling *s, const struct generation_params *p)
{
    s->has_presence_penalty = p->presence_penalty != 0;
    s->has_frequency_penalty = p->frequency_penalty != 0;
    s->has_repetition_penalty = p->repetition_penalty != 1;
    s->presence_penalty = p->presence_penalty;
    s->frequency_penalty = p->frequency_penalty;
    s->repetition_penalty = p->repetition_penalty;
    if (p->bias != NULL) {
        s->n_logit_bias_ids = s->n_logit_bias = p->bias->n;
        s->logit_bias_ids = p->bias->ids;
        s->logit_bias = p->bias->values;
    }
}

void generation_params_sampling(struct generation_params *p, Baton__V1__Sampling *s)
{
    baton__v1__sampling__init(s);
    s->has_temperature = s->has_top_p = s->has_top_k = s->has_min_p = s->has_seed = 1;
    s->temperature = p->temperature;
    s->top_p = p->top_p;
    s->top_k = p->top_k;
    s->min_p = p->min_p;
    s->seed = p->seed;
    s->has_max_new_tokens = s->has_min_new_tokens = s->has_ignore_eos = 1;
    s->max_new_tokens = p->max_new_tokens;
    s->min_new_tokens = p->min_new_tokens;
    s->ignore_eos = p->ignore_eos;
    s->n_stop_token_ids = p->n_stop_ids;
    s->stop_token_ids = p->stop_ids;
    fill_penalties(s, p);
    s->has_logprobs = p->logprobs;
    s->has_prompt_logprobs = p->prompt_logprobs;
    s->has_top_logprobs = p->logprobs || p->prompt_logprobs;
    s->logprobs = p->logprobs;
    s->prompt_logprobs = p->prompt_logprobs;
    s->top_logprobs = p->n_top_logprobs;
}
