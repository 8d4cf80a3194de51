/*
 * generation_params: what a generation is asked for: its prompt and how tokens are drawn.
 *
 * Threads   made on any thread (text work), then the router thread's.
 */
#ifndef BATON_ROUTER_GENERATION_PARAMS_H
#define BATON_ROUTER_GENERATION_PARAMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "baton/v1/decode.pb-c.h"

/* Shared by the n choices of a request. */
struct prompt_ids {
    unsigned refs;
    size_t n;
    int32_t ids[];
};
/** A copy of ids with one reference; NULL: no memory. */
struct prompt_ids *prompt_ids_new(const int32_t *ids, size_t n);
void prompt_ids_unref(struct prompt_ids *p);

/* A logit_bias; shared like a prompt. */
struct token_bias {
    unsigned refs;
    size_t n;
    int32_t *ids;  /* [n], behind the struct */
    float *values; /* [n], behind those */
};
/** Zeroed, with one reference; NULL: no memory. */
struct token_bias *token_bias_new(size_t n);
/** NULL is fine. */
void token_bias_unref(struct token_bias *b);

/* What workers take at most, as common/model/sampler.h has it. */
enum {
    GENERATION_STOP_IDS_MAX = 64,
    GENERATION_BIAS_MAX = 1024,
    GENERATION_TOP_LOGPROBS_MAX = 128
};

struct generation_params {
    char rid[64];         /* for logs, here and there */
    char routing_key[64]; /* keeps requests together, where a policy looks at it; "": none */
    char traceparent[56]; /* W3C trace context, for the worker; "": none */
    int32_t priority;     /* greater goes first */
    uint32_t share;       /* whose: requests of one share take turns with those of others */
    float weight;         /* of the share; 0: 1 */
    float temperature, top_p, min_p;
    float presence_penalty, frequency_penalty, repetition_penalty;
    struct token_bias *bias; /* NULL: none */
    bool logprobs, prompt_logprobs;
    uint32_t n_top_logprobs;
    int32_t top_k;       /* 0: off */
    uint64_t cache_salt; /* prefixes are shared among equal ones only */
    uint64_t seed;
    uint32_t max_new_tokens, min_new_tokens;
    bool ignore_eos;
    uint32_t n_stop_ids;
    int32_t stop_ids[GENERATION_STOP_IDS_MAX];
};

/** As a worker is told: s borrows from p. */
void generation_params_sampling(struct generation_params *p, Baton__V1__Sampling *s);

#endif
