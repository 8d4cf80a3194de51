/*
 * policy: which worker gets a request. One policy for the prefill workers of a router thread, one
 * for its decode workers.
 *
 *   round_robin    the next one
 *   random         any one
 *   power_of_two   the less loaded of two random ones
 *   least_load     the least loaded: queued uncached tokens, running requests, KV pressure
 *   cache_aware    who got the longest known prefix of this prompt before (an approximate tree of
 *                  64-token blocks), unless that one is far busier than others
 *   prefix_hash    by the prompt's first tokens on a hash ring, walking past loaded ones
 *   consistent     by the client's routing key on a hash ring; without a key: least_load
 *   kv_exact       the least cost in seconds: uncached tokens times what a token is measured to
 *                  cost, plus the wait. Who holds what is told by the workers themselves
 *
 * Load is one figure in seconds, from what this router gave and what workers report.
 *
 *   pick ─▶ began ─▶ served (first token) ─▶ ended
 *
 * Promises  a decision's cost does not grow with the number of workers in the common case; only
 *           joined, eligible workers are picked, never one of the request's avoid list.
 * Threads   the router thread.
 */
#ifndef BATON_ROUTER_POLICY_POLICY_H
#define BATON_ROUTER_POLICY_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum policy_kind {
    POLICY_ROUND_ROBIN,
    POLICY_RANDOM,
    POLICY_POWER_OF_TWO,
    POLICY_LEAST_LOAD,
    POLICY_CACHE_AWARE,
    POLICY_PREFIX_HASH,
    POLICY_CONSISTENT,
    POLICY_KV_EXACT,
    POLICY_N_KINDS
};

/* For flag tables. */
#define POLICY_NAMES                                                                               \
    "round_robin|random|power_of_two|least_load|cache_aware|prefix_hash|consistent|kv_exact"

enum { POLICY_WORKERS_MAX = 16384, POLICY_AVOID_MAX = 20 };
#define POLICY_NONE UINT32_MAX

struct policy;

struct policy_config {
    enum policy_kind kind;
    bool prefill;           /* what a request costs: here its prompt, else a running place */
    size_t tree_bytes_max;  /* cache_aware: what it remembers */
    size_t index_bytes_max; /* kv_exact: what it knows of the workers' pages */
    uint64_t seed;          /* of random choices and tables */
};

struct policy_request {
    size_t n_ids;
    const int32_t *ids;
    size_t n_pages;        /* 0 unless policy_wants_pages() */
    const uint64_t *pages; /* names of the prompt's whole pages: common/kv/block_hash.h */
    size_t key_len;
    const char *key; /* the client's routing key */
    uint32_t n_avoid;
    const uint32_t *avoid; /* workers that failed it */
};

struct policy_choice {
    uint32_t worker;
    uint32_t hit_tokens; /* that it is believed to hold */
};

/* What a worker says of itself. Absent figures are zero. */
struct policy_load {
    uint32_t running, waiting;          /* requests */
    uint64_t queued_tokens;             /* prompt tokens still to compute */
    uint64_t free_tokens, total_tokens; /* room for KV; total 0: unknown */
};

/* A worker's share in one request, from began to ended. Zero: none. */
struct policy_ticket {
    bool open, queued;
    uint32_t worker, serial;
    uint32_t tokens; /* uncached, as believed */
    uint32_t n_pages;
    uint64_t *pages; /* that it will hold soon; owned */
};

enum policy_page_event {
    POLICY_PAGE_IN,   /* the worker holds this page now */
    POLICY_PAGE_OUT,  /* no longer */
    POLICY_STATE_IN,  /* it can also go on computing after this page */
    POLICY_STATE_OUT, /* no longer */
};

struct policy_stats {
    size_t index_bytes, index_pages, tree_bytes;
    uint64_t index_dropped_total; /* pages forgotten because of the cap */
};

enum status_code policy_new(const struct policy_config *config, struct policy **out,
                            struct status *st);
void policy_free(struct policy *p);

/** The kind of a name of POLICY_NAMES; POLICY_N_KINDS for others. */
enum policy_kind policy_kind_of(const char *name);
const char *policy_kind_name(enum policy_kind kind);
enum policy_kind policy_kind(const struct policy *p);

/** Whether requests should bring the names of their pages. */
bool policy_wants_pages(const struct policy *p);

/**
 * A worker is known from now on, not eligible yet.
 * @param worker   its number, below POLICY_WORKERS_MAX, free
 * @param address  names it on hash rings
 */
enum status_code policy_join(struct policy *p, uint32_t worker, const char *address,
                             struct status *st);
/** Its tickets may still be ended afterwards. */
void policy_leave(struct policy *p, uint32_t worker);
void policy_set_eligible(struct policy *p, uint32_t worker, bool eligible);

/** @return false when no eligible worker is left */
bool policy_pick(struct policy *p, const struct policy_request *r, struct policy_choice *out);

/**
 * Others for the same request, the least loaded first.
 * @param out  [k], k <= 8. @return how many
 */
uint32_t policy_spares(struct policy *p, const struct policy_request *r, uint32_t chosen,
                       uint32_t k, uint32_t *out);

/** The request was given to choice->worker. @param out  zeroed or ended */
void policy_began(struct policy *p, const struct policy_request *r,
                  const struct policy_choice *choice, struct policy_ticket *out);
/** Its first token is there: the prompt is computed. */
void policy_served(struct policy *p, struct policy_ticket *t);
/** The request is over, or goes elsewhere. Idempotent. */
void policy_ended(struct policy *p, struct policy_ticket *t);

void policy_report(struct policy *p, uint32_t worker, const struct policy_load *load);

/** It took a worker so long for so many uncached tokens (computing, or receiving them). */
void policy_measure(struct policy *p, uint32_t worker, uint64_t tokens, double seconds);

/** The worker's pages follow from the start (or it tells none any more): forget those known.
 * @param needs_state  a hit must end where the worker told POLICY_STATE_IN */
void policy_pages_reset(struct policy *p, uint32_t worker, bool needs_state);
void policy_page(struct policy *p, uint32_t worker, enum policy_page_event what, uint64_t page);

/** Housekeeping, every 10 to 100 ms: a bounded slice. */
void policy_tick(struct policy *p);

/** What a worker is believed to need for what it has, in seconds; for /workers and /v1/loads. */
double policy_load_seconds(const struct policy *p, uint32_t worker);
/** Requests that a worker has from other routers, as far as its reports tell. */
uint32_t policy_others(const struct policy *p, uint32_t worker);
void policy_stats(const struct policy *p, struct policy_stats *out);

#endif
