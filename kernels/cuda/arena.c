#include "kernels/cuda/arena.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_CAP = 64 };

void arena_init(struct arena *a, size_t size)
{
    *a = (struct arena){.size = size / ARENA_UNIT * ARENA_UNIT};
}

void arena_deinit(struct arena *a)
{
    free(a->parts);
    *a = (struct arena){0};
}

static bool grow(struct arena *a)
{
    size_t cap = a->cap > 0 ? 2 * a->cap : FIRST_CAP;
    struct arena_part *parts = realloc(a->parts, cap * sizeof(*parts));

    if (parts == NULL)
        return false;
    a->parts = parts;
    a->cap = cap;
    return true;
}

static void insert(struct arena *a, size_t i, struct arena_part part)
{
    memmove(&a->parts[i + 1], &a->parts[i], (a->n - i) * sizeof(part));
    a->parts[i] = part;
    a->n++;
}

static void take_out(struct arena *a, size_t i)
{
    memmove(&a->parts[i], &a->parts[i + 1], (a->n - i - 1) * sizeof(*a->parts));
    a->n--;
}

/* The first hole that is large enough. */
static bool take_hole(struct arena *a, size_t bytes, size_t *at)
{
    for (size_t i = 0; a->n_free > 0 && i < a->n; i++) {
        struct arena_part *p = &a->parts[i];

        if (p->used || p->bytes < bytes)
            continue;
        p->used = true;
        a->n_free--;
        *at = p->at;
        if (p->bytes > bytes) {
            struct arena_part rest = {p->at + bytes, p->bytes - bytes, false};

            p->bytes = bytes;
            insert(a, i + 1, rest);
            a->n_free++;
        }
        return true;
    }
    return false;
}

bool arena_take(struct arena *a, size_t bytes, size_t *at)
{
    if (bytes > a->size || (a->n == a->cap && !grow(a)))
        return false;
    bytes = bytes == 0 ? ARENA_UNIT : (bytes + ARENA_UNIT - 1) / ARENA_UNIT * ARENA_UNIT;
    if (take_hole(a, bytes, at))
        return true;
    if (bytes > a->size - a->top)
        return false;
    *at = a->top;
    insert(a, a->n, (struct arena_part){a->top, bytes, true});
    a->top += bytes;
    return true;
}

size_t arena_used(const struct arena *a)
{
    size_t sum = 0;

    for (size_t i = 0; i < a->n; i++)
        sum += a->parts[i].used ? a->parts[i].bytes : 0;
    return sum;
}

/* Parts are in order: halves. */
static size_t find(const struct arena *a, size_t at)
{
    size_t low = 0, high = a->n;

    while (low < high) {
        size_t middle = (low + high) / 2;

        if (a->parts[middle].at < at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

bool arena_give(struct arena *a, size_t at)
{
    size_t i = find(a, at);

    if (i == a->n || a->parts[i].at != at || !a->parts[i].used)
        return false;
    a->parts[i].used = false;
    a->n_free++;
    if (i + 1 < a->n && !a->parts[i + 1].used) {
        a->parts[i].bytes += a->parts[i + 1].bytes;
        take_out(a, i + 1);
        a->n_free--;
    }
    if (i > 0 && !a->parts[i - 1].used) {
        a->parts[i - 1].bytes += a->parts[i].bytes;
        take_out(a, i);
        a->n_free--;
        i--;
    }
    if (i == a->n - 1) { /* the last part: as if it had never been */
        a->top = a->parts[i].at;
        take_out(a, i);
        a->n_free--;
    }
    return true;
}
