#include "common/text/trie.h"

#include <stdlib.h>
#include <string.h>

/* Slots are looked for 64 bases at a time in bit maps, so that a node of few children costs a few
 * words, and each class of nodes (by number of children) only moves forward. */
enum { N_CLASSES = 5, MAX_SLOTS = 1 << 23 };

struct range {
    uint32_t first, end; /* keys below this node */
    uint32_t slot, depth;
    uint32_t above; /* value of the deepest key that ends at or above this node */
};

/* A key in sorted order; the head saves most looks at its bytes. */
struct item {
    uint64_t head; /* its first eight bytes, zeros behind its end; the first byte on top */
    const uint8_t *bytes;
    uint32_t len, value;
};

struct builder {
    struct item *items;
    uint32_t *slots;
    uint32_t *values;
    uint64_t *used;  /* bit per slot */
    uint64_t *based; /* bit per slot: some node's base */
    size_t n_slots;  /* a multiple of 64; the maps have 5 words more, to be read past the end */
    size_t from[N_CLASSES]; /* words before these have no room for a class */
    size_t top;             /* slots below this are needed */
    struct range *stack;
    size_t n_stack, stack_cap;
};

static uint64_t first_eight(const struct trie_key *k)
{
    uint8_t head[8] = {0};

    if (k->len >= 8)
        memcpy(head, k->bytes, 8);
    else
        for (uint32_t i = 0; i < k->len; i++)
            head[i] = k->bytes[i];
    return (uint64_t)head[0] << 56 | (uint64_t)head[1] << 48 | (uint64_t)head[2] << 40 |
           (uint64_t)head[3] << 32 | (uint64_t)head[4] << 24 | (uint64_t)head[5] << 16 |
           (uint64_t)head[6] << 8 | head[7];
}

static int compare(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    int order = memcmp(x->bytes, y->bytes, x->len < y->len ? x->len : y->len);

    return order != 0 ? order : (x->len > y->len) - (x->len < y->len);
}

/* Radix sort by the heads: sorts *a, with *b to work in; the two may change places. */
static void sort_heads(struct item **a, struct item **b, size_t n)
{
    enum { BITS = 11, PASSES = 6, SIZE = 1 << BITS };
    uint32_t count[PASSES][SIZE];

    memset(count, 0, sizeof(count));
    for (size_t i = 0; i < n; i++)
        for (int pass = 0; pass < PASSES; pass++)
            count[pass][(*a)[i].head >> BITS * pass & (SIZE - 1)]++;
    for (int pass = 0; pass < PASSES; pass++) {
        struct item *from = *a, *to = *b;
        uint32_t at = 0;
        for (int c = 0; c < SIZE; c++) {
            uint32_t k = count[pass][c];
            count[pass][c] = at;
            at += k;
        }
        for (size_t i = 0; i < n; i++)
            to[count[pass][from[i].head >> BITS * pass & (SIZE - 1)]++] = from[i];
        *a = to;
        *b = from;
    }
}

/* The keys in the order of their bytes: by their heads, then each group of equals by comparing. */
static enum status_code sort_keys(const struct trie_key *keys, size_t n, struct item **out,
                                  struct status *st)
{
    struct item *a = malloc((n + 1) * sizeof(*a)), *b = malloc((n + 1) * sizeof(*b));

    if (a == NULL || b == NULL) {
        free(a);
        free(b);
        return status_set(st, ST_EXHAUSTED, "no memory to sort %zu strings", n);
    }
    for (size_t i = 0; i < n; i++)
        a[i] = (struct item){first_eight(&keys[i]), keys[i].bytes, keys[i].len, keys[i].value};
    sort_heads(&a, &b, n);
    free(b);
    status_ok(st);
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && a[end].head == a[i].head; end++)
            ;
        if (end - i > 1)
            qsort(a + i, end - i, sizeof(*a), compare);
        for (size_t k = i + 1; k < end; k++)
            if (compare(&a[k - 1], &a[k]) == 0)
                status_set(st, ST_INVALID, "values %u and %u have the same string", a[k - 1].value,
                           a[k].value);
    }
    if (st->code == ST_OK)
        *out = a;
    else
        free(a);
    return st->code;
}

static bool grow(struct builder *b, size_t n_slots)
{
    size_t words = n_slots / 64 + 5, had = b->n_slots ? b->n_slots / 64 + 5 : 0;
    uint64_t *used, *based;
    uint32_t *slots, *values;

    if (n_slots > MAX_SLOTS)
        return false;
    if ((slots = realloc(b->slots, n_slots * sizeof(*slots))) != NULL)
        b->slots = slots;
    if ((values = realloc(b->values, n_slots * sizeof(*values))) != NULL)
        b->values = values;
    if ((used = realloc(b->used, words * sizeof(*used))) != NULL)
        b->used = used;
    if ((based = realloc(b->based, words * sizeof(*based))) != NULL)
        b->based = based;
    if (slots == NULL || values == NULL || used == NULL || based == NULL)
        return false;
    for (size_t i = b->n_slots; i < n_slots; i++)
        slots[i] = (i + 1) & 255; /* asked for only from a base of 256 k + 255 */
    memset(values + b->n_slots, 0, (n_slots - b->n_slots) * sizeof(*values));
    memset(b->used + had, 0, (words - had) * sizeof(*used));
    memset(b->based + had, 0, (words - had) * sizeof(*based));
    b->n_slots = n_slots;
    return true;
}

/* 64 bits of a map, from bit number at. */
static uint64_t window(const uint64_t *map, size_t at)
{
    uint64_t low = map[at / 64] >> at % 64;

    return at % 64 ? low | map[at / 64 + 1] << (64 - at % 64) : low;
}

static void mark(uint64_t *map, size_t at)
{
    map[at / 64] |= (uint64_t)1 << at % 64;
}

/* A base that no node has, with the slots of all children free; 0 when memory is out. */
static size_t find_base(struct builder *b, const uint8_t *labels, unsigned n)
{
    unsigned class = n <= 4 ? n - 1 : 4;

    for (size_t w = b->from[class];; w++) {
        uint64_t taken;

        if (64 * w + 64 + 256 >= b->n_slots && !grow(b, 2 * b->n_slots))
            return 0;
        taken = b->based[w] | (uint64_t)(w % 4 == 3) << 63;
        for (unsigned i = 0; i < n && taken != UINT64_MAX; i++)
            taken |= window(b->used, 64 * w + labels[i]);
        if (taken != UINT64_MAX) {
            b->from[class] = w;
            return 64 * w + (size_t)__builtin_ctzll(~taken);
        }
    }
}

static bool push(struct builder *b, struct range r)
{
    if (b->n_stack == b->stack_cap) {
        size_t cap = b->stack_cap ? 2 * b->stack_cap : 1024;
        struct range *grown = realloc(b->stack, cap * sizeof(*grown));
        if (grown == NULL)
            return false;
        b->stack = grown;
        b->stack_cap = cap;
    }
    b->stack[b->n_stack++] = r;
    return true;
}

static uint8_t label(const struct builder *b, uint32_t i, uint32_t depth)
{
    if (depth < 8)
        return (uint8_t)(b->items[i].head >> (56 - 8 * depth));
    return b->items[i].bytes[depth];
}

/* Gives the children of r their slots and puts them on the stack. r has at least one. */
static bool place(struct builder *b, const struct range *r)
{
    uint8_t labels[256];
    uint32_t starts[257];
    unsigned n = 0;
    size_t base;

    for (uint32_t i = r->first; i < r->end; i++) {
        uint8_t c = label(b, i, r->depth);
        if (n == 0 || labels[n - 1] != c) {
            starts[n] = i;
            labels[n++] = c;
        }
    }
    starts[n] = r->end;
    base = find_base(b, labels, n);
    if (base == 0)
        return false;
    mark(b->based, base);
    b->slots[r->slot] |= (uint32_t)base << 9;
    if (base + 256 > b->top)
        b->top = base + 256;
    for (unsigned i = 0; i < n; i++) {
        mark(b->used, base + labels[i]);
        b->slots[base + labels[i]] = labels[i];
        if (!push(b, (struct range){starts[i], starts[i + 1], (uint32_t)base + labels[i],
                                    r->depth + 1, r->above}))
            return false;
    }
    return true;
}

static enum status_code build(struct builder *b, size_t n, uint32_t *prefix, struct status *st)
{
    bool ok = grow(b, 4096) && push(b, (struct range){0, (uint32_t)n, 0, 0, TRIE_NONE});

    if (ok) {
        b->slots[0] = 1; /* any label but 0 */
        mark(b->used, 0);
        mark(b->based, 0); /* base 0 is for nodes without children */
        b->top = 256;
    }
    while (ok && b->n_stack > 0) {
        struct range r = b->stack[--b->n_stack];
        if (r.first < r.end && b->items[r.first].len == r.depth) {
            /* sorted: the key that ends here is the first */
            uint32_t value = b->items[r.first].value;
            b->slots[r.slot] |= 0x100;
            b->values[r.slot] = value;
            if (prefix != NULL)
                prefix[value] = r.above;
            r.above = value;
            r.first++;
        }
        if (r.first < r.end)
            ok = place(b, &r);
    }
    if (!ok)
        return status_set(st, ST_EXHAUSTED, "no memory for a trie of %zu strings, or too many", n);
    return status_ok(st);
}

enum status_code trie_build(const struct trie_key *keys, size_t n, uint32_t *prefix,
                            uint32_t **slots, size_t *n_slots, struct status *st)
{
    struct builder b = {.items = NULL};
    uint32_t *both;

    for (size_t i = 0; i < n; i++)
        if (keys[i].len == 0)
            return status_set(st, ST_INVALID, "the value %u has the empty string", keys[i].value);
    if (sort_keys(keys, n, &b.items, st) != ST_OK)
        return st->code;
    if (build(&b, n, prefix, st) == ST_OK) {
        both = malloc(2 * b.top * sizeof(*both));
        if (both != NULL) {
            memcpy(both, b.slots, b.top * sizeof(*both));
            memcpy(both + b.top, b.values, b.top * sizeof(*both));
            *slots = both;
            *n_slots = b.top;
        } else {
            status_set(st, ST_EXHAUSTED, "no memory for a trie of %zu slots", b.top);
        }
    }
    free(b.items);
    free(b.slots);
    free(b.values);
    free(b.used);
    free(b.based);
    free(b.stack);
    return st->code;
}

bool trie_is_sound(const struct trie *t, uint32_t n_values)
{
    if (t->n < 256)
        return false;
    for (size_t i = 0; i < t->n; i++)
        if ((t->slots[i] >> 9) + 256 > t->n ||
            ((t->slots[i] & 0x100) && t->slots[t->n + i] >= n_values))
            return false;
    return true;
}
