/*
 * orders: what a worker is told to do while it runs, apart from requests: drop cached prefixes
 * (/flush_cache, Admin), begin or end a step trace (SIGUSR1).
 *
 *   any thread ─▶ mailbox of the engine ─▶ orders_obey(), between two steps
 *
 * Threads   as said at each.
 */
#ifndef BATON_COMMON_WORKER_ORDERS_H
#define BATON_COMMON_WORKER_ORDERS_H

#include "common/worker/worker.h"

/** Begins the trace that --step-trace asks for. At start. @return ST_OK; ST_INVALID */
enum status_code orders_start(struct worker *w, struct status *st);

/** Drops what the prefix cache can. Any thread. */
void orders_flush_cache(struct worker *w);

/** Ends the step trace that is being written, or begins one. Any thread. */
void orders_toggle_trace(struct worker *w);

/** Carries out and frees an order. Engine thread. @return false: m is no order */
bool orders_obey(struct worker *w, struct engine *e, struct msg *m);

#endif
