#include "common/kv/pins.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* More than the longest pin, so that all units of a list end in the same second. */
enum { WHEEL = 4096 };
_Static_assert((int)WHEEL > (int)PINS_SECONDS_MAX, "a pin stays within one turn of the wheel");

#define NONE UINT32_MAX

struct unit {
    uint64_t end_s; /* 0: not held */
    uint32_t next, prev;
};

struct pins {
    uint64_t now_s;
    uint32_t n_units, n_held;
    uint32_t heads[WHEEL]; /* by end_s % WHEEL */
    struct unit *units;
};

enum status_code pins_new(uint32_t n_units, struct pins **out, struct status *st)
{
    struct pins *p = calloc(1, sizeof(*p));

    if (p != NULL)
        p->units = calloc(n_units + 1, sizeof(*p->units));
    if (p == NULL || p->units == NULL) {
        pins_free(p);
        return status_set(st, ST_EXHAUSTED, "no memory for the pins of %u units", n_units);
    }
    p->n_units = n_units;
    memset(p->heads, 0xFF, sizeof(p->heads)); /* NONE */
    *out = p;
    return status_ok(st);
}

void pins_free(struct pins *p)
{
    if (p == NULL)
        return;
    free(p->units);
    free(p);
}

void pins_hold(struct pins *p, uint32_t unit, uint32_t seconds)
{
    struct unit *u = &p->units[unit];
    uint32_t *head;

    seconds = seconds < PINS_SECONDS_MAX ? seconds : PINS_SECONDS_MAX;
    if (seconds == 0 || u->end_s >= p->now_s + seconds)
        return;
    pins_drop(p, unit);
    u->end_s = p->now_s + seconds;
    head = &p->heads[u->end_s % WHEEL];
    u->prev = NONE;
    u->next = *head;
    if (*head != NONE)
        p->units[*head].prev = unit;
    *head = unit;
    p->n_held++;
}

void pins_drop(struct pins *p, uint32_t unit)
{
    struct unit *u = &p->units[unit];

    assert(unit < p->n_units);
    if (u->end_s == 0)
        return;
    *(u->prev != NONE ? &p->units[u->prev].next : &p->heads[u->end_s % WHEEL]) = u->next;
    if (u->next != NONE)
        p->units[u->next].prev = u->prev;
    u->end_s = 0;
    p->n_held--;
}

void pins_advance(struct pins *p, uint64_t now_s, void (*ended)(void *arg, uint32_t unit),
                  void *arg)
{
    uint64_t passed = now_s > p->now_s ? now_s - p->now_s : 0, first = p->now_s + 1;

    if (passed == 0)
        return;
    p->now_s = now_s;
    for (uint64_t i = 0; i < (passed < WHEEL ? passed : WHEEL) && p->n_held > 0; i++)
        for (uint32_t *head = &p->heads[(first + i) % WHEEL]; *head != NONE;) {
            uint32_t unit = *head;

            pins_drop(p, unit);
            ended(arg, unit);
        }
}

bool pins_has(const struct pins *p, uint32_t unit)
{
    return p->units[unit].end_s != 0;
}

uint64_t pins_end_s(const struct pins *p, uint32_t unit)
{
    return p->units[unit].end_s;
}

uint32_t pins_n(const struct pins *p)
{
    return p->n_held;
}
