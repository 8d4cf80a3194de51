#include "router/policy/load_heap.h"

#include <stdlib.h>
#include <string.h>

bool load_key_less(struct load_key a, struct load_key b)
{
    return a.seconds != b.seconds ? a.seconds < b.seconds : a.n_given < b.n_given;
}

static bool less(const struct load_heap *h, uint32_t a, uint32_t b)
{
    return load_key_less(h->keys[h->workers[a]], h->keys[h->workers[b]]);
}

static void place(struct load_heap *h, uint32_t at, uint32_t worker)
{
    h->workers[at] = worker;
    h->places[worker] = at + 1;
}

static void swap(struct load_heap *h, uint32_t a, uint32_t b)
{
    uint32_t worker = h->workers[a];

    place(h, a, h->workers[b]);
    place(h, b, worker);
}

static void up(struct load_heap *h, uint32_t at)
{
    for (; at > 0 && less(h, at, (at - 1) / 2); at = (at - 1) / 2)
        swap(h, at, (at - 1) / 2);
}

static void down(struct load_heap *h, uint32_t at)
{
    for (;;) {
        uint32_t least = at;

        for (uint32_t child = 2 * at + 1; child <= 2 * at + 2 && child < h->n; child++)
            if (less(h, child, least))
                least = child;
        if (least == at)
            return;
        swap(h, at, least);
        at = least;
    }
}

bool load_heap_reserve(struct load_heap *h, uint32_t cap)
{
    uint32_t *workers, *places;
    struct load_key *keys;

    if (cap <= h->cap)
        return true;
    workers = realloc(h->workers, cap * sizeof(*workers));
    h->workers = workers == NULL ? h->workers : workers;
    places = realloc(h->places, cap * sizeof(*places));
    h->places = places == NULL ? h->places : places;
    keys = realloc(h->keys, cap * sizeof(*keys));
    h->keys = keys == NULL ? h->keys : keys;
    if (workers == NULL || places == NULL || keys == NULL)
        return false;
    memset(places + h->cap, 0, (cap - h->cap) * sizeof(*places));
    h->cap = cap;
    return true;
}

void load_heap_deinit(struct load_heap *h)
{
    free(h->workers);
    free(h->places);
    free(h->keys);
    *h = (struct load_heap){0};
}

bool load_heap_has(const struct load_heap *h, uint32_t worker)
{
    return worker < h->cap && h->places[worker] > 0;
}

void load_heap_set(struct load_heap *h, uint32_t worker, struct load_key key)
{
    h->keys[worker] = key;
    if (h->places[worker] == 0)
        place(h, h->n++, worker);
    up(h, h->places[worker] - 1);
    down(h, h->places[worker] - 1);
}

void load_heap_remove(struct load_heap *h, uint32_t worker)
{
    uint32_t at, last;

    if (!load_heap_has(h, worker))
        return;
    at = h->places[worker] - 1;
    last = h->workers[--h->n];
    h->places[worker] = 0;
    if (at == h->n)
        return;
    place(h, at, last);
    up(h, at);
    down(h, h->places[last] - 1);
}

uint32_t load_heap_least(const struct load_heap *h, uint32_t k, uint32_t *out)
{
    uint32_t open[LOAD_HEAP_LEAST_MAX + 2], n_open = 0, n = 0;

    if (h->n > 0)
        open[n_open++] = 0;
    while (n < k && n_open > 0) {
        uint32_t best = 0, at;

        for (uint32_t i = 1; i < n_open; i++)
            if (less(h, open[i], open[best]))
                best = i;
        at = open[best];
        open[best] = open[--n_open];
        out[n++] = h->workers[at];
        for (uint32_t child = 2 * at + 1; child <= 2 * at + 2 && child < h->n; child++)
            open[n_open++] = child;
    }
    return n;
}
