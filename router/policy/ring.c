#include "router/policy/ring.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/hash.h"

uint64_t ring_hash(const void *key, size_t len)
{
    uint64_t h = hash_bytes(UINT64_C(0x6a09e667f3bcc909), key, len);

    return hash_bytes(UINT64_C(0xbb67ae8584caa73b), (const char *)&h, sizeof(h));
}

static int by_place(const void *a, const void *b)
{
    const struct ring_point *p = a, *q = b;

    if (p->at != q->at)
        return p->at < q->at ? -1 : 1;
    return p->worker < q->worker ? -1 : p->worker > q->worker;
}

bool ring_add(struct ring *r, uint32_t worker, const char *name)
{
    uint64_t seed = ring_hash(name, strlen(name));

    if (r->cap - r->n < RING_POINTS) {
        size_t cap = r->cap * 2 + RING_POINTS;
        struct ring_point *more = realloc(r->points, cap * sizeof(*more));

        if (more == NULL)
            return false;
        r->points = more;
        r->cap = cap;
    }
    for (uint64_t i = 0; i < RING_POINTS; i++) {
        uint64_t key[2] = {seed, i};

        r->points[r->n++] = (struct ring_point){ring_hash(key, sizeof(key)), worker};
    }
    r->sorted = false;
    return true;
}

void ring_remove(struct ring *r, uint32_t worker)
{
    size_t n = 0;

    for (size_t i = 0; i < r->n; i++)
        if (r->points[i].worker != worker)
            r->points[n++] = r->points[i];
    r->n = n;
}

void ring_deinit(struct ring *r)
{
    free(r->points);
    *r = (struct ring){0};
}

uint32_t ring_find(struct ring *r, uint64_t key, bool (*fits)(void *arg, uint32_t worker),
                   void *arg)
{
    size_t lo = 0, hi = r->n;

    if (!r->sorted && r->n > 0)
        qsort(r->points, r->n, sizeof(*r->points), by_place);
    r->sorted = true;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;

        if (r->points[mid].at < key)
            lo = mid + 1;
        else
            hi = mid;
    }
    for (size_t i = 0; i < r->n; i++) {
        uint32_t worker = r->points[(lo + i) % r->n].worker;

        if (fits(arg, worker))
            return worker;
    }
    return UINT32_MAX;
}
