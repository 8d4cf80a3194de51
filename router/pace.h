/*
 * pace: how fast the workers serve, as this router sees it, and how long a new request would wait.
 *
 * A request holds one of the workers' places for a while, so that with `places` of them one comes
 * free every lifetime / places (Little's law): what waits is the number ahead times that. The time
 * to first token that counts is that of requests that did not wait at a worker, so that a queue
 * does not raise the bound that is to keep it short.
 *
 * Threads   one at a time.
 */
#ifndef BATON_ROUTER_PACE_H
#define BATON_ROUTER_PACE_H

#include <stdint.h>

/* Zero: nothing is known. */
struct pace {
    double lifetime_us; /* from a request's dispatch to its end */
    double ttft_us;     /* from its dispatch to the first token */
};

/** @param found_place  it did not wait at its worker; of one that may have, only less counts */
void pace_first_token(struct pace *p, uint64_t since_us, int found_place);
void pace_end(struct pace *p, uint64_t since_us);

/** @param ahead  requests that run or wait; places: that run at once, > 0
 *  @return how long one more would wait for a place; 0 as long as nothing is known */
double pace_wait_us(const struct pace *p, uint64_t ahead, uint64_t places);

#endif
