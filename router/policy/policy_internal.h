/*
 * policy_internal: what policy.c (accounts), policy_load.c, policy_affinity.c and policy_exact.c
 * (choices) share.
 */
#ifndef BATON_ROUTER_POLICY_POLICY_INTERNAL_H
#define BATON_ROUTER_POLICY_POLICY_INTERNAL_H

#include "router/policy/kv_index.h"
#include "router/policy/load_heap.h"
#include "router/policy/policy.h"
#include "router/policy/ring.h"

struct policy_worker {
    bool joined, eligible, reported, needs_state;
    uint32_t own_running, other_running, waiting; /* requests */
    uint64_t own_queued, other_queued;            /* uncached tokens without a first token yet */
    uint32_t peak_running;                        /* of own_running, since the last report */
    uint64_t peak_queued;
    uint64_t free_tokens, total_tokens;
    uint64_t n_given;
    uint32_t serial;    /* tells apart workers of one number */
    double token_s;     /* measured; 0: not yet */
    uint32_t dense_at;  /* place in policy.dense, when eligible */
    uint32_t holder;    /* in the index of what workers told */
    uint32_t expecting; /* in the index of what they will hold soon; also cache_aware's */
};

struct policy {
    struct policy_config config;
    uint64_t random;
    uint32_t serial;    /* the last one given */
    uint32_t n_workers; /* numbers in use are below */
    struct policy_worker *workers;
    uint32_t n_dense;
    uint32_t *dense; /* eligible workers in no order */
    uint32_t turn;   /* round robin: the last number */
    struct load_heap heap;
    struct ring ring;
    double token_s;                  /* mean of the role; 0: not measured */
    bool needs_state;                /* some worker does, or did */
    struct kv_index *told;           /* kv_exact */
    uint16_t *told_by, *expected_by; /* worker by holder */
    struct kv_index *expected;       /* kv_exact: on their way; cache_aware: given so far */
};

bool policy_fits(const struct policy *p, const struct policy_request *r, uint32_t worker);
uint64_t policy_draw(struct policy *p); /* a random number */
double policy_token_s(const struct policy *p, uint32_t worker);
double policy_wait_s(const struct policy *p, uint32_t worker);
void policy_reorder(struct policy *p, uint32_t worker); /* its load has changed */

/* The choices; POLICY_NONE when nobody fits. */
uint32_t policy_round_robin(struct policy *p, const struct policy_request *r);
uint32_t policy_random(struct policy *p, const struct policy_request *r);
uint32_t policy_power_of_two(struct policy *p, const struct policy_request *r);
uint32_t policy_least_load(struct policy *p, const struct policy_request *r);
uint32_t policy_prefix_hash(struct policy *p, const struct policy_request *r);
uint32_t policy_consistent(struct policy *p, const struct policy_request *r);
bool policy_cache_aware(struct policy *p, const struct policy_request *r,
                        struct policy_choice *out);
bool policy_exact(struct policy *p, const struct policy_request *r, struct policy_choice *out);

#endif
