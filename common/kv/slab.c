#include "common/kv/slab.h"

#include <assert.h>
#include <stdlib.h>

struct unit {
    uint32_t refs;        /* owners; 0: free or held back */
    uint32_t quarantines; /* reasons why a peer may still write it */
};

struct slab {
    const char *what;
    uint32_t n_units;
    uint32_t n_free; /* = length of the free stack */
    uint32_t n_used; /* with an owner */
    uint32_t n_held; /* no owner, but quarantined */
    uint32_t
        *free_ids; /* stack, [n_free] used: the unit given last is taken first, still in cache */
    struct unit *units;
};

/* What the header promises. */
static void check(const struct slab *s)
{
    assert(s->n_free + s->n_used + s->n_held == s->n_units);
    (void)s;
}

enum status_code slab_new(const char *what, uint32_t n_units, struct slab **out, struct status *st)
{
    struct slab *s = calloc(1, sizeof(*s));

    if (s != NULL) {
        s->free_ids = malloc((n_units + 1) * sizeof(*s->free_ids));
        s->units = calloc(n_units + 1, sizeof(*s->units));
    }
    if (s == NULL || s->free_ids == NULL || s->units == NULL) {
        slab_free(s);
        return status_set(st, ST_EXHAUSTED, "no memory to keep account of %u %ss", n_units, what);
    }
    s->what = what;
    s->n_units = n_units;
    s->n_free = n_units;
    for (uint32_t i = 0; i < n_units; i++)
        s->free_ids[i] = n_units - 1 - i;
    *out = s;
    return status_ok(st);
}

void slab_free(struct slab *s)
{
    if (s == NULL)
        return;
    free(s->free_ids);
    free(s->units);
    free(s);
}

enum status_code slab_take(struct slab *s, uint32_t n, uint32_t *ids, struct status *st)
{
    if (n > s->n_free)
        return status_set(st, ST_EXHAUSTED, "%u %ss needed, %u free (%u quarantined, %u in all)", n,
                          s->what, s->n_free, s->n_held, s->n_units);
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = s->free_ids[--s->n_free];
        assert(s->units[ids[i]].refs == 0 && s->units[ids[i]].quarantines == 0);
        s->units[ids[i]].refs = 1;
    }
    s->n_used += n;
    check(s);
    return status_ok(st);
}

void slab_ref(struct slab *s, const uint32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        assert(ids[i] < s->n_units && s->units[ids[i]].refs > 0);
        s->units[ids[i]].refs++;
    }
}

static void put_back(struct slab *s, uint32_t id)
{
    assert(s->n_free < s->n_units);
    s->free_ids[s->n_free++] = id;
}

void slab_give(struct slab *s, const uint32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct unit *u = &s->units[ids[i]];

        assert(ids[i] < s->n_units && u->refs > 0);
        if (--u->refs > 0)
            continue;
        s->n_used--;
        if (u->quarantines > 0)
            s->n_held++;
        else
            put_back(s, ids[i]);
    }
    check(s);
}

void slab_quarantine(struct slab *s, const uint32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        assert(ids[i] < s->n_units && s->units[ids[i]].refs > 0);
        s->units[ids[i]].quarantines++;
    }
}

void slab_release(struct slab *s, const uint32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct unit *u = &s->units[ids[i]];

        assert(ids[i] < s->n_units && u->quarantines > 0);
        if (--u->quarantines == 0 && u->refs == 0) {
            s->n_held--;
            put_back(s, ids[i]);
        }
    }
    check(s);
}

uint32_t slab_refs(const struct slab *s, uint32_t id)
{
    assert(id < s->n_units);
    return s->units[id].refs;
}

uint32_t slab_units(const struct slab *s)
{
    return s->n_units;
}

uint32_t slab_n_free(const struct slab *s)
{
    return s->n_free;
}

uint32_t slab_n_quarantined(const struct slab *s)
{
    return s->n_held;
}
