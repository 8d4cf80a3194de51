/*
 * breaker: keeps requests away from a worker that fails them, and finds out when it is well again.
 *
 *   CLOSED ─▶ OPEN ─▶ PROBING ─▶ CLOSED      fails in a row / a while later / one request went well
 *               ▲        │
 *               └────────┘ it failed too: a longer while
 *
 * Fed by transport failures and failures of the worker's own making alone: never by what a request
 * asked for (4xx), by overload (429) or by clients that left. The while stays under a second, so
 * that a worker is used again at most that long after it is well.
 *
 * Threads   the router thread. Time is the caller's, so that tests need none.
 */
#ifndef BATON_ROUTER_BREAKER_H
#define BATON_ROUTER_BREAKER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"

enum breaker_state { BREAKER_CLOSED, BREAKER_OPEN, BREAKER_PROBING };

enum { BREAKER_FAILS = 5, BREAKER_MIN_MS = 250, BREAKER_MAX_MS = 1000 };

/* Zero: closed. */
struct breaker {
    enum breaker_state state;
    unsigned fails;   /* in a row */
    unsigned wait_ms; /* of OPEN */
    uint64_t until_us;
    bool probe_out; /* PROBING: a request is finding out */
    uint64_t opened_total;
};

/** Whether this failure is the worker's. */
bool breaker_counts(enum status_code code);

/** Whether a request may go there now. */
bool breaker_allows(const struct breaker *b);

/** OPEN -> PROBING when it is time. @return whether the state changed */
bool breaker_tick(struct breaker *b, uint64_t now_us);

/** A request goes there: while PROBING it is the probe. @return whether it is */
bool breaker_began(struct breaker *b);

/** How it went. was_probe: of breaker_began(). A request that tells nothing (a client left, 4xx) is
 * breaker_unsaid(). */
void breaker_good(struct breaker *b);
void breaker_bad(struct breaker *b, uint64_t now_us);
void breaker_unsaid(struct breaker *b, bool was_probe);

const char *breaker_state_name(enum breaker_state state);

#endif
