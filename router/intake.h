/*
 * intake: from a complete HTTP request to a running job. Text work of ordinary requests is done at
 * once; that of large ones by the text pool, so that it does not stall other streams.
 *
 * Threads   the router thread; the text work itself on either.
 */
#ifndef BATON_ROUTER_INTAKE_H
#define BATON_ROUTER_INTAKE_H

#include "router/job.h"

enum { INTAKE_INLINE_BYTES_MAX = 32 << 10 }; /* about 0.5 ms of text work */

/** chat_task_run() or completion_task_run(). */
typedef bool (*intake_fn)(struct text_task *task, const struct router *router, const char *body,
                          size_t len, uint64_t context_length, struct text_scratch *scratch,
                          struct chat_error *err);

/**
 * Answers the request by a job, or refuses it.
 * @param body  taken over
 */
void intake_request(struct router_thread *t, struct http_exchange *x, struct buf *body,
                    intake_fn run, const struct job_format *format);

/** RM_TEXT_DONE: goes on with a request that was with the pool; frees m. */
void intake_done(struct router_thread *t, struct msg *m);

/** Frees a message that nobody handles any more. */
void intake_drop(struct msg *m);

#endif
