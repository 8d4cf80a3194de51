/*
 * generations: requests on their way through decode workers, and what happens when one fails.
 *
 *   WAITING: the workers are full (admission.h)
 *      ▼
 *   QUEUED ─▶ RUNNING ─▶ (ended: tokens with a finish, a failure, or cancelled)
 *     ▲          │
 *     └──────────┘ its worker is lost or gave it up: tried elsewhere, or waits a little for a
 * worker
 *
 * A generation that had already given tokens goes on elsewhere from prompt + tokens: sampling
 * depends on seed and position alone, so its user sees the same text and a pause.
 *
 * Promises  after on_tokens with a finish, on_failed, or generation_cancel() nothing is called for
 * it any more and it is freed. Callbacks never run inside generations_submit(). Threads   the
 * router thread.
 */
#ifndef BATON_ROUTER_GENERATIONS_H
#define BATON_ROUTER_GENERATIONS_H

#include <event2/event.h>
#include <stdbool.h>
#include <stdint.h>

#include "baton/v1/decode.pb-c.h"
#include "common/base/status.h"
#include "router/admission.h"
#include "router/generation_params.h"
#include "router/router_metrics.h"
#include "router/workers.h"

struct generations;
struct generation;

/* What came with tokens; each may be NULL, and is borrowed until on_tokens() returns. */
struct generation_extras {
    const Baton__V1__HandoffStats *stats; /* with the first tokens after a handoff */
    const Baton__V1__Logprobs *logprobs;  /* of the tokens; as a worker sent it: not checked */
    const Baton__V1__Logprobs *prompt_logprobs; /* once, with the first tokens of all */
};

struct generation_callbacks {
    /* New tokens; finish FINISH_NONE while it goes on. The generation may be cancelled from here.
     */
    void (*on_tokens)(void *arg, const int32_t *ids, size_t n, Baton__V1__FinishReason finish,
                      const struct generation_extras *extras);
    void (*on_failed)(void *arg, const struct status *why);
    void *arg;
};

struct generations_config {
    int retries_max;                   /* other attempts of one generation after the first */
    int worker_wait_ms;                /* how long one that had a worker waits for another */
    int request_timeout_ms;            /* 0: none */
    size_t running_max;                /* of this thread; beyond: refused */
    unsigned queue_ttft_percent;       /* refuse who would wait longer than so much of the workers'
                                          time to first token; 0: never */
    struct admission_config admission; /* of those that wait because the workers are full */
};

enum status_code generations_new(struct event_base *base, const struct generations_config *config,
                                 struct router_metrics *metrics, struct generations **out,
                                 struct status *st);

/** Cancels what is left, without callbacks. */
void generations_free(struct generations *g);

/** The callbacks for workers_new(); arg is the struct generations. */
struct workers_callbacks generations_worker_callbacks(struct generations *g);

/** Must be called before the first submit; the workers outlive their use here. */
void generations_set_workers(struct generations *g, struct workers *workers);

/**
 * Sends a request to a decode worker.
 * @param prompt  takes a reference of its own, also of params->bias
 * @return ST_OK; ST_UNAVAILABLE when no decode worker is ready or no prefill worker is known;
 *         ST_EXHAUSTED when running_max is reached
 */
enum status_code generations_submit(struct generations *g, struct prompt_ids *prompt,
                                    const struct generation_params *params,
                                    const struct generation_callbacks *callbacks,
                                    struct generation **out, struct status *st);

/** Ends it; the worker is told at once. No callback follows. NULL is fine. */
void generation_cancel(struct generation *gen);

/** How many are alive. */
size_t generations_running(const struct generations *g);

#endif
