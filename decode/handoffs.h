/*
 * handoffs: gets prompts prefilled elsewhere and their KV into our pages: asks a prefill worker,
 * verifies what it wrote as it comes (while later pages are computed), asks for a resend once,
 * falls back to the next one when it is lost.
 *
 * Promises  units of a request that was abandoned or lost are given back only when its prefill
 * worker has said that it stopped, or go into quarantine when it cannot say so any more. Threads
 * engine only.
 */
#ifndef BATON_DECODE_HANDOFFS_H
#define BATON_DECODE_HANDOFFS_H

#include "decode/messages.h"
#include "decode/prefill_workers.h"
#include "decode/request.h"

struct engine;
struct handoffs;
struct worker;

struct handoff_events {
    /* VERIFYING and all checksums hold: the request can run. */
    void (*arrived)(void *arg, struct request *r);
    /* No prefill worker could do it, or one refused it for good. */
    void (*failed)(void *arg, struct request *r, const struct status *error);
    /* DRAINING, and nobody writes its units any more. */
    void (*drained)(void *arg, struct request *r);
    void *arg;
};

/** @param engine  borrowed: sequences whose KV was lost go back to its queue */
enum status_code handoffs_new(struct worker *w, struct engine *engine,
                              const struct handoff_events *events, struct handoffs **out,
                              struct status *st);
void handoffs_free(struct handoffs *h);

/** Finds r (ASKING, with units) a prefill worker and submits as soon as its session is ready. */
void handoffs_start(struct handoffs *h, struct request *r);

/**
 * r is no longer wanted, in any state before DRAINING. Tells its prefill worker.
 * @return true when its units may be given back at once; false: r is DRAINING now, `drained`
 * follows
 */
bool handoffs_abandon(struct handoffs *h, struct request *r, const char *why);

/** DM_WRITER_ENDED. */
void handoffs_writer_ended(struct handoffs *h, const struct msg_writer_ended *m);

/** DM_PREFILL_REPLY, DM_PREFILL_CLOSED, DM_VERIFIED; requests is the loop's list. */
void handoffs_reply(struct handoffs *h, struct prefill_worker *p, const Baton__V1__PrefillReply *m,
                    struct request *requests);
void handoffs_closed(struct handoffs *h, struct session_link *link, const struct status *why,
                     struct request *requests);
void handoffs_verified(struct handoffs *h, const struct msg_verified *m, struct request *requests);

/** Tear-down: ends the sessions; their closed messages follow. */
void handoffs_close(struct handoffs *h);
/** They have, and no comparison is under way. */
bool handoffs_ended(const struct handoffs *h);

#endif
