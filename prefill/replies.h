/*
 * replies: what the prefill worker says to a decode worker. All are dropped when the session has
 * closed: the peer is gone and nobody waits.
 *
 * Threads   engine.
 */
#ifndef BATON_PREFILL_REPLIES_H
#define BATON_PREFILL_REPLIES_H

#include "prefill/handoff_state.h"

struct worker;

/** Answers hello with our identity. */
void reply_hello(struct prefill_peer *peer, const struct worker *w);

/** Nothing more is written for this request. @param error  NULL: it was cancelled */
void reply_stopped(struct prefill_peer *peer, uint64_t request_id, const struct status *error);

/** Groups [first, first + n) of the request's checksums are of bytes in the peer's memory. */
void reply_written(struct prefill_peer *peer, uint64_t request_id, uint32_t first, uint32_t n,
                   uint32_t *checksums);

/** All bytes are in the peer's memory: first token, checksums, figures. */
enum status_code reply_done(const struct handoff *h, const struct worker *w, struct status *st);

#endif
