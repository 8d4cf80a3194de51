#include "common/text/trie.h"

#include <stdlib.h>
#include <string.h>

/* Slots are looked for 64 bases at a time in bit maps, so that a node of few children costs a few
 * words, and each class of nodes (by number of children) only moves forward. */
enum { N_CLASSES = 5, MAX_SLOTS = 1 << 28 };

struct range {
    uint32_t first, end; /* keys below this node */
    uint32_t slot, depth;
    uint32_t above; /* value of the deepest key that ends at or above this node */
};

struct builder {
    const struct trie_key *keys;
    uint64_t *slots;
    uint64_t *used;  /* bit per slot */
    uint64_t *based; /* bit per slot: some node's base */
    size_t n_slots;  /* a multiple of 64; the maps have 5 words more, to be read past the end */
    size_t from[N_CLASSES]; /* words before these have no room for a class */
    size_t top;             /* slots below this are needed */
    struct range *stack;
    size_t n_stack, stack_cap;
};

static int compare_tails(const void *a, const void *b)
{
    const struct trie_key *x = a, *y = b;
    uint32_t n = x->len < y->len ? x->len : y->len;
    int order = memcmp(x->bytes, y->bytes, n);

    if (order != 0)
        return order;
    return (x->len > y->len) - (x->len < y->len);
}

static uint64_t first_eight(const struct trie_key *k)
{
    uint64_t w = 0;

    for (uint32_t i = 0; i < 8 && i < k->len; i++)
        w |= (uint64_t)k->bytes[i] << (56 - 8 * i);
    return w;
}

struct sort_item {
    uint64_t head;
    uint32_t idx;
};

/* Radix sort by the first eight bytes, then each group of equals by comparing. */
static bool sort_keys(struct trie_key *keys, size_t n)
{
    struct sort_item *a = malloc((n + 1) * sizeof(*a)), *b = malloc((n + 1) * sizeof(*b)), *swap;
    struct trie_key *sorted = malloc((n + 1) * sizeof(*sorted));
    uint32_t count[8][256] = {{0}};
    bool ok = a != NULL && b != NULL && sorted != NULL;

    for (size_t i = 0; ok && i < n; i++) {
        a[i] = (struct sort_item){first_eight(&keys[i]), (uint32_t)i};
        for (int d = 0; d < 8; d++)
            count[d][a[i].head >> 8 * d & 255]++;
    }
    for (int d = 0; ok && d < 8; d++) {
        uint32_t at = 0;
        for (int c = 0; c < 256; c++) {
            uint32_t k = count[d][c];
            count[d][c] = at;
            at += k;
        }
        for (size_t i = 0; i < n; i++)
            b[count[d][a[i].head >> 8 * d & 255]++] = a[i];
        swap = a;
        a = b;
        b = swap;
    }
    for (size_t i = 0; ok && i < n; i++)
        sorted[i] = keys[a[i].idx];
    for (size_t i = 0, end; ok && i < n; i = end) {
        for (end = i + 1; end < n && a[end].head == a[i].head; end++)
            ;
        if (end - i > 1)
            qsort(sorted + i, end - i, sizeof(*sorted), compare_tails);
    }
    if (ok)
        memcpy(keys, sorted, n * sizeof(*keys));
    free(a);
    free(b);
    free(sorted);
    return ok;
}

static bool grow(struct builder *b, size_t n_slots)
{
    size_t words = n_slots / 64 + 5, had = b->n_slots ? b->n_slots / 64 + 5 : 0;
    uint64_t *slots, *used, *based;

    if (n_slots > MAX_SLOTS)
        return false;
    if ((slots = realloc(b->slots, n_slots * sizeof(*slots))) != NULL)
        b->slots = slots;
    if ((used = realloc(b->used, words * sizeof(*used))) != NULL)
        b->used = used;
    if ((based = realloc(b->based, words * sizeof(*based))) != NULL)
        b->based = based;
    if (slots == NULL || used == NULL || based == NULL)
        return false;
    for (size_t i = b->n_slots; i < n_slots; i++)
        slots[i] = TRIE_FREE;
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
        taken = b->based[w];
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

/* Gives the children of r their slots and puts them on the stack. r has at least one. */
static bool place(struct builder *b, struct range r)
{
    uint8_t labels[256];
    uint32_t starts[257];
    unsigned n = 0;
    size_t base;

    for (uint32_t i = r.first; i < r.end; i++) {
        uint8_t c = b->keys[i].bytes[r.depth];
        if (n == 0 || labels[n - 1] != c) {
            starts[n] = i;
            labels[n++] = c;
        }
    }
    starts[n] = r.end;
    base = find_base(b, labels, n);
    if (base == 0)
        return false;
    mark(b->based, base);
    b->slots[r.slot] |= (uint64_t)base << 9;
    if (base + 256 > b->top)
        b->top = base + 256;
    for (unsigned i = 0; i < n; i++) {
        mark(b->used, base + labels[i]);
        b->slots[base + labels[i]] = labels[i];
        if (!push(b, (struct range){starts[i], starts[i + 1], (uint32_t)base + labels[i],
                                    r.depth + 1, r.above}))
            return false;
    }
    return true;
}

static enum status_code build(struct builder *b, size_t n, uint32_t *prefix, struct status *st)
{
    bool ok = grow(b, 4096) && push(b, (struct range){0, (uint32_t)n, 0, 0, TRIE_NONE});

    if (ok) {
        mark(b->used, 0);
        mark(b->based, 0); /* base 0 is for nodes without children */
        b->top = 256;
    }
    while (ok && b->n_stack > 0) {
        struct range r = b->stack[--b->n_stack];
        const struct trie_key *k = &b->keys[r.first];
        if (r.first < r.end && k->len == r.depth) { /* sorted: the key that ends here is first */
            b->slots[r.slot] |= (uint64_t)(k->value + 1) << 37;
            if (prefix != NULL)
                prefix[k->value] = r.above;
            r.above = k->value;
            r.first++;
        }
        if (r.first < r.end)
            ok = place(b, r);
    }
    if (!ok)
        return status_set(st, ST_EXHAUSTED, "no memory for a trie of %zu strings", n);
    return status_ok(st);
}

enum status_code trie_build(struct trie_key *keys, size_t n, uint64_t **slots, size_t *n_slots,
                            uint32_t *prefix, struct status *st)
{
    struct builder b = {.keys = keys};

    for (size_t i = 0; i < n; i++)
        if (keys[i].len == 0 || keys[i].value >= (1u << 27) - 1)
            return status_set(st, ST_INVALID,
                              "string %zu of a trie is empty or its value %u is "
                              "too large",
                              i, keys[i].value);
    if (!sort_keys(keys, n))
        return status_set(st, ST_EXHAUSTED, "no memory to sort %zu strings", n);
    for (size_t i = 1; i < n; i++)
        if (compare_tails(&keys[i - 1], &keys[i]) == 0)
            return status_set(st, ST_INVALID, "values %u and %u have the same string",
                              keys[i - 1].value, keys[i].value);
    if (build(&b, n, prefix, st) == ST_OK) {
        *slots = b.slots;
        *n_slots = b.top;
        b.slots = NULL;
    }
    free(b.slots);
    free(b.used);
    free(b.based);
    free(b.stack);
    return st->code;
}

bool trie_is_sound(const uint64_t *slots, size_t n_slots, uint32_t n_values)
{
    if (n_slots < 256)
        return false;
    for (size_t i = 0; i < n_slots; i++)
        if ((slots[i] >> 9 & 0xFFFFFFF) + 256 > n_slots || slots[i] >> 37 > n_values)
            return false;
    return true;
}
