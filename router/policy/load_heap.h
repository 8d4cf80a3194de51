/*
 * load_heap: workers ordered by load, the least loaded first.
 *
 * A binary heap of worker numbers whose keys the caller holds; a place per worker makes every
 * change O(log n) and a look at the k least O(k log k).
 *
 * Threads   one at a time.
 */
#ifndef BATON_ROUTER_POLICY_LOAD_HEAP_H
#define BATON_ROUTER_POLICY_LOAD_HEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LOAD_HEAP_LEAST_MAX = 16 };

/* Less load first; among equals who was given less so far. */
struct load_key {
    double seconds;
    uint64_t n_given;
};

struct load_heap {
    uint32_t n, cap;
    uint32_t *workers;     /* [n], heap order */
    uint32_t *places;      /* [cap] by worker: place + 1; 0: not inside */
    struct load_key *keys; /* [cap] by worker */
};

/** Makes room for workers 0 .. cap - 1. @return false without memory (nothing changed) */
bool load_heap_reserve(struct load_heap *h, uint32_t cap);
void load_heap_deinit(struct load_heap *h);

/** Puts a worker in, or moves it to where its key belongs. worker < cap. */
void load_heap_set(struct load_heap *h, uint32_t worker, struct load_key key);
void load_heap_remove(struct load_heap *h, uint32_t worker);
bool load_heap_has(const struct load_heap *h, uint32_t worker);

/** The k least loaded, ascending; k <= LOAD_HEAP_LEAST_MAX. @return how many there are */
uint32_t load_heap_least(const struct load_heap *h, uint32_t k, uint32_t *out);

bool load_key_less(struct load_key a, struct load_key b);

#endif
