/*
 * router_metrics: what a router counts. One registry for all its threads: updates are atomic.
 *
 * Threads   router_metrics_init at start; the metrics by any thread.
 */
#ifndef BATON_ROUTER_ROUTER_METRICS_H
#define BATON_ROUTER_ROUTER_METRICS_H

#include "common/base/metrics.h"

struct router_metrics {
    struct metrics *registry;
    struct metric *replies_2xx, *replies_4xx, *replies_5xx; /* by HTTP status */
    struct metric *stream_errors; /* streams that ended with an error event */
    struct metric *client_gone;   /* clients that left before the end */
    struct metric *retries;       /* sent to another worker before their first token */
    struct metric *resumes;       /* continued on another worker after some tokens */
    struct metric *prompt_tokens, *cached_tokens, *completion_tokens;
    struct metric *kv_bytes;     /* handed over by workers for our requests */
    struct metric *queued;       /* gauge: requests that wait for room on the workers */
    struct metric *refused;      /* because the queue is full, or a key's limit is reached */
    struct metric *queue_s;      /* how long those that waited did */
    struct metric *running;      /* gauge: generations in progress */
    struct metric *connections;  /* gauge: open client connections */
    struct metric *bad_requests; /* refused by the HTTP parser */
    struct metric *kv_s;         /* how long a prompt's KV was on its way */
    struct metric *ttft_s, *itl_s, *tpot_s, *e2e_s;
};

/** Registers all. Out of memory aborts: this is start-up. */
void router_metrics_init(struct router_metrics *m);
void router_metrics_deinit(struct router_metrics *m);

/** Counts an answer by its HTTP status. */
void router_metrics_count_reply(struct router_metrics *m, int http_status);

#endif
