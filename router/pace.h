/*
 * pace: how fast the workers serve, as this router sees it, and how long a new request would wait.
 *
 * A request holds one of the workers' places for a while, so that with `places` of them one comes
 * free every lifetime / places (Little's law): what waits is the number ahead times that. The time
 * to first token that counts is that of requests that did not wait at a worker, so that a queue
 * does not raise the bound that is to keep it short; and a lifetime is that and what follows,
 * without the wait, for the same reason.
 *
 * Threads   one at a time.
 */
#ifndef BATON_ROUTER_PACE_H
#define BATON_ROUTER_PACE_H

#include <stddef.h>
#include <stdint.h>

/* Zero: nothing is known. */
struct pace {
    double ttft_us; /* from a request's dispatch to its first token */
    double rest_us; /* from there to its end */
};

/** @param found_place  it did not wait at its worker; of one that may have, only less counts */
void pace_first_token(struct pace *p, uint64_t since_us, int found_place);
/** @param since_us  since its first token */
void pace_end(struct pace *p, uint64_t since_us);

/** How long a request holds its place. */
double pace_lifetime_us(const struct pace *p);

/** @param ahead  requests that run or wait; places: that run at once, > 0
 *  @return how long one more would wait for a place; 0 as long as nothing is known */
double pace_wait_us(const struct pace *p, uint64_t ahead, uint64_t places);

/** The k-th least of n values, k in 1..n; their order changes. */
uint64_t pace_kth(uint64_t *values, size_t n, size_t k);

#endif
