/*
 * admission: requests that wait in the router because the workers are full: who goes next, and who
 * is refused.
 *
 * Higher priority goes first. Within a priority the keys share: next is the key that has had least
 * so far, by tokens over its weight, and its oldest request. A key that was away starts level with
 * the others, not ahead of them.
 *
 * Promises  never more waiting requests and tokens than the limits; every call costs O(keys that
 *           wait), never O(requests).
 * Threads   one at a time. Time is the caller's.
 */
#ifndef BATON_ROUTER_ADMISSION_H
#define BATON_ROUTER_ADMISSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum {
    ADMISSION_PRIORITY_MIN = -8, /* others are taken as the nearest */
    ADMISSION_PRIORITY_MAX = 7,
    ADMISSION_SHARES_MAX = 65536
};

struct admission;
struct admission_share;

/* In the caller's request, zero at first. */
struct admission_item {
    struct admission_item *prev, *next;
    struct admission_share *share; /* NULL: does not wait */
    uint32_t tokens;
    int8_t class;
    uint64_t since_us;
};

struct admission_config {
    size_t requests_max;  /* that wait */
    uint64_t tokens_max;  /* of their prompts; 0: no limit */
    uint64_t wait_us_max; /* refuse who would wait longer, as far as can be told; 0: never */
};

struct admission_want {
    uint32_t share; /* whose: a small number */
    double weight;  /* of that key; > 0 */
    int priority;
    uint32_t tokens;
};

enum status_code admission_new(const struct admission_config *config, struct admission **out,
                               struct status *st);
/** Nothing waits any more. */
void admission_free(struct admission *a);

/** Waits from now on. @return ST_OK; ST_EXHAUSTED with the limit that is reached */
enum status_code admission_wait(struct admission *a, struct admission_item *item,
                                const struct admission_want *want, uint64_t now_us,
                                struct status *st);

/** Who goes next, without taking it; NULL: nobody waits. */
struct admission_item *admission_next(struct admission *a);

/** It goes. */
void admission_take(struct admission *a, struct admission_item *item, uint64_t now_us);

/** It waits no longer and does not go. Nothing when it did not wait. */
void admission_leave(struct admission *a, struct admission_item *item);

/** Counts what went without waiting, so that shares are fair when waiting begins. */
void admission_passed(struct admission *a, const struct admission_want *want);

size_t admission_n(const struct admission *a);
uint64_t admission_tokens(const struct admission *a);

/** How long a new one would wait, as far as can be told; for Retry-After. */
uint64_t admission_estimate_us(const struct admission *a);

#endif
