/*
 * ring: consistent hashing. Each worker has POINTS places on a circle of 2^64; a key belongs to the
 * next place clockwise, so that a worker that comes or goes moves only its share of the keys.
 *
 * Threads   one at a time.
 * Source    Karger et al. 1997; the walk past loaded workers is Mirrokni et al. 2018.
 */
#ifndef BATON_ROUTER_POLICY_RING_H
#define BATON_ROUTER_POLICY_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RING_POINTS = 128 };

struct ring_point {
    uint64_t at;
    uint32_t worker;
};

struct ring {
    size_t n, cap;
    struct ring_point *points;
    bool sorted; /* ascending by place; put in order when first asked after a change */
};

/** Adds a worker (not one that is on it) by a name that stays the same over restarts. @return false
 * without memory */
bool ring_add(struct ring *r, uint32_t worker, const char *name);
void ring_remove(struct ring *r, uint32_t worker);
void ring_deinit(struct ring *r);

/**
 * The first worker from key on that fits.
 * @return its number, or UINT32_MAX when none fits
 */
uint32_t ring_find(struct ring *r, uint64_t key, bool (*fits)(void *arg, uint32_t worker),
                   void *arg);

/** The same on every machine and in every run. */
uint64_t ring_hash(const void *key, size_t len);

#endif
