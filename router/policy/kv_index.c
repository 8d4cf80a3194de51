#include "router/policy/kv_index.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    TABLES = 1024,
    TABLE_BITS = 10,
    SLOTS_MIN = 16,
    STAGGER_SLOTS = 512,
    INLINE_MAX = 3,
    SET = 255,              /* of n */
    MMAP_BYTES_MIN = 32768, /* larger tables go back to the system when they have grown */
    PAGE_BYTES = 4096,
    SET_MIN = 8,
    SETS_STEP_MIN = 64,
    SETS_STEP_MAX = 1 << 16 /* made at once: their numbers are written one by one */
};

struct entry {
    uint64_t page;
    uint16_t holder[INLINE_MAX];
    uint8_t n;
    uint8_t used;
};
_Static_assert(sizeof(struct entry) == 16, "two per 32 bytes");

struct table {
    struct entry *slots;
    uint32_t n_slots, n;
    uint32_t hand; /* of the clock */
};

/* Holders beyond INLINE_MAX, ascending. */
struct set {
    uint32_t n, cap;
    uint16_t holder[];
};

struct kv_index {
    size_t bytes_max, bytes, n_pages;
    uint64_t seed, dropped_total;
    struct table tables[TABLES];
    struct set **sets; /* [n_sets]; NULL: free, then next_set holds the next free one + 1 */
    uint32_t *next_set;
    uint32_t n_sets, free_set; /* free_set: index + 1; 0: none */
    uint64_t alive[(KV_INDEX_HOLDERS_MAX + 64) / 64];
    uint16_t *ids; /* stack of free ids */
    uint32_t n_ids, next_id;
    uint16_t *dead, *swept; /* dropped; those of the sweep in progress */
    uint32_t n_dead, n_swept;
    uint32_t sweep_at; /* next table; TABLES: no sweep */
};

static uint64_t mix(const struct kv_index *ix, uint64_t page)
{
    unsigned __int128 m = (unsigned __int128)(page ^ ix->seed) * UINT64_C(0x9e3779b97f4a7c15);

    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

static struct table *table_of(struct kv_index *ix, uint64_t h)
{
    return &ix->tables[h >> (64 - TABLE_BITS)];
}

static uint32_t home(const struct table *t, uint64_t h)
{
    return (uint32_t)(((h & UINT32_MAX) * t->n_slots) >> 32);
}

static uint32_t after(const struct table *t, uint32_t at)
{
    return at + 1 == t->n_slots ? 0 : at + 1;
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* What a table takes of the system. */
static size_t slots_bytes(uint32_t n)
{
    size_t bytes = n * sizeof(struct entry);

    return bytes < MMAP_BYTES_MIN ? bytes : (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

static struct entry *slots_new(uint32_t n)
{
    size_t bytes = slots_bytes(n);
    void *p;

    if (bytes < MMAP_BYTES_MIN)
        return calloc(n, sizeof(struct entry));
    p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void slots_free(struct entry *slots, uint32_t n)
{
    if (slots == NULL)
        return;
    if (slots_bytes(n) < MMAP_BYTES_MIN)
        free(slots);
    else
        munmap(slots, slots_bytes(n));
}

/* ---- sets ------------------------------------------------------------------------------------ */

static uint32_t set_idx(const struct entry *e)
{
    return (uint32_t)e->holder[1] << 16 | e->holder[0];
}

static size_t set_bytes(uint32_t cap)
{
    return sizeof(struct set) + cap * sizeof(uint16_t);
}

static bool more_sets(struct kv_index *ix)
{
    uint32_t step = ix->n_sets < SETS_STEP_MIN   ? SETS_STEP_MIN
                    : ix->n_sets < SETS_STEP_MAX ? ix->n_sets
                                                 : SETS_STEP_MAX;
    uint32_t n = ix->n_sets + step;
    struct set **sets = realloc(ix->sets, n * sizeof(*sets));
    uint32_t *next;

    if (sets == NULL)
        return false;
    ix->sets = sets;
    next = realloc(ix->next_set, n * sizeof(*next));
    if (next == NULL)
        return false;
    ix->next_set = next;
    for (uint32_t i = n; i-- > ix->n_sets;) {
        sets[i] = NULL;
        next[i] = ix->free_set;
        ix->free_set = i + 1;
    }
    ix->bytes += (n - ix->n_sets) * (sizeof(*sets) + sizeof(*next));
    ix->n_sets = n;
    return true;
}

static void set_free(struct kv_index *ix, uint32_t idx)
{
    ix->bytes -= set_bytes(ix->sets[idx]->cap);
    free(ix->sets[idx]);
    ix->sets[idx] = NULL;
    ix->next_set[idx] = ix->free_set;
    ix->free_set = idx + 1;
}

/* The place of holder in s, or where it belongs. */
static uint32_t set_place(const struct set *s, uint32_t holder)
{
    uint32_t lo = 0, hi = s->n;

    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;

        if (s->holder[mid] < holder)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static bool set_add(struct kv_index *ix, struct entry *e, uint32_t holder)
{
    uint32_t idx = set_idx(e), at;
    struct set *s = ix->sets[idx];

    at = set_place(s, holder);
    if (at < s->n && s->holder[at] == holder)
        return true;
    if (s->n == s->cap) {
        uint32_t old = s->cap, cap = old + old / 2;
        struct set *bigger = realloc(s, set_bytes(cap));

        if (bigger == NULL)
            return false;
        ix->bytes += set_bytes(cap) - set_bytes(old);
        s = ix->sets[idx] = bigger;
        s->cap = cap;
    }
    memmove(s->holder + at + 1, s->holder + at, (s->n - at) * sizeof(s->holder[0]));
    s->holder[at] = (uint16_t)holder;
    s->n++;
    return true;
}

/* The entry's holders move into a set. */
static bool spill(struct kv_index *ix, struct entry *e)
{
    struct set *s;
    uint32_t idx;

    if (ix->free_set == 0 && !more_sets(ix))
        return false;
    s = malloc(set_bytes(SET_MIN));
    if (s == NULL)
        return false;
    idx = ix->free_set - 1;
    ix->free_set = ix->next_set[idx];
    ix->sets[idx] = s;
    ix->bytes += set_bytes(SET_MIN);
    s->n = 0;
    s->cap = SET_MIN;
    for (int i = 0; i < INLINE_MAX; i++) {
        uint32_t at = set_place(s, e->holder[i]);

        memmove(s->holder + at + 1, s->holder + at, (s->n - at) * sizeof(s->holder[0]));
        s->holder[at] = e->holder[i];
        s->n++;
    }
    e->n = SET;
    e->holder[0] = (uint16_t)idx;
    e->holder[1] = (uint16_t)(idx >> 16);
    return true;
}

/* Back into the entry, with room to grow before the next spill. */
static void unspill(struct kv_index *ix, struct entry *e)
{
    uint32_t idx = set_idx(e);
    struct set *s = ix->sets[idx];

    if (s->n >= INLINE_MAX)
        return;
    e->n = (uint8_t)s->n;
    memcpy(e->holder, s->holder, s->n * sizeof(s->holder[0]));
    set_free(ix, idx);
}

/* ---- tables ---------------------------------------------------------------------------------- */

static struct entry *find(const struct kv_index *ix, uint64_t page)
{
    uint64_t h = mix(ix, page);
    const struct table *t = &ix->tables[h >> (64 - TABLE_BITS)];

    if (t->n_slots == 0 || page == 0)
        return NULL;
    for (uint32_t at = home(t, h);; at = after(t, at)) {
        if (t->slots[at].page == page)
            return &t->slots[at];
        if (t->slots[at].page == 0)
            return NULL;
    }
}

static struct entry *put(struct kv_index *ix, struct table *t, const struct entry *e)
{
    uint32_t at = home(t, mix(ix, e->page));

    while (t->slots[at].page != 0)
        at = after(t, at);
    t->slots[at] = *e;
    return &t->slots[at];
}

/* Takes an entry out and moves those after it back to where a search will find them. */
static void erase(struct kv_index *ix, struct table *t, uint32_t at)
{
    uint32_t hole = at, i = at;

    if (t->slots[at].n == SET)
        set_free(ix, set_idx(&t->slots[at]));
    for (;;) {
        uint32_t h;

        i = after(t, i);
        if (t->slots[i].page == 0)
            break;
        h = home(t, mix(ix, t->slots[i].page));
        /* Stays when its home lies cyclically in (hole, i]. */
        if (hole <= i ? (hole < h && h <= i) : (hole < h || h <= i))
            continue;
        t->slots[hole] = t->slots[i];
        hole = i;
    }
    t->slots[hole] = (struct entry){0};
    t->n--;
    ix->n_pages--;
}

static bool full(const struct table *t)
{
    return t->n + 1 > t->n_slots - t->n_slots / 5; /* at most 0.8 */
}

/* By a quarter. Once by more, by another share for each table: names fall evenly, and tables of one
 * size would all grow within the same few inserts. */
static uint32_t next_size(const struct kv_index *ix, const struct table *t)
{
    uint32_t n = t->n_slots == 0 ? SLOTS_MIN : t->n_slots + t->n_slots / 4;

    if (t->n_slots < STAGGER_SLOTS && n >= STAGGER_SLOTS)
        n += (uint32_t)((uint64_t)(n / 4) * (uint64_t)(t - ix->tables) / TABLES);
    return n;
}

/* Grows when the cap allows. */
static bool grow(struct kv_index *ix, struct table *t)
{
    uint32_t n = next_size(ix, t);
    size_t more = slots_bytes(n) - slots_bytes(t->n_slots);
    struct table old = *t;

    if (ix->bytes + more > ix->bytes_max)
        return false;
    t->slots = slots_new(n);
    if (t->slots == NULL) {
        t->slots = old.slots;
        return false;
    }
    t->n_slots = n;
    t->hand = 0;
    for (uint32_t i = 0; i < old.n_slots; i++)
        if (old.slots[i].page != 0)
            put(ix, t, &old.slots[i]);
    slots_free(old.slots, old.n_slots);
    ix->bytes += more;
    return true;
}

/* Drops the first entry from the hand on that was not used since the hand came by. */
static bool drop_one(struct kv_index *ix, struct table *t)
{
    if (t->n == 0)
        return false;
    for (uint32_t i = 0; i <= 2 * t->n_slots; i++) {
        struct entry *e = &t->slots[t->hand];

        if (e->page != 0 && !e->used) {
            erase(ix, t, t->hand); /* another may have moved here: the hand stays */
            ix->dropped_total++;
            return true;
        }
        e->used = 0;
        t->hand = after(t, t->hand);
    }
    return false;
}

static struct entry *add_entry(struct kv_index *ix, uint64_t page)
{
    uint64_t h = mix(ix, page);
    struct table *t = table_of(ix, h);
    struct entry e = {.page = page};

    if (full(t) && !grow(ix, t) && !drop_one(ix, t))
        return NULL;
    while (ix->bytes > ix->bytes_max) /* sets have outgrown the cap */
        if (!drop_one(ix, t))
            return NULL;
    t->n++;
    ix->n_pages++;
    return put(ix, t, &e);
}

/* ---- public ---------------------------------------------------------------------------------- */

enum status_code kv_index_new(size_t bytes_max, uint64_t seed, struct kv_index **out,
                              struct status *st)
{
    struct kv_index *ix;

    if (bytes_max < KV_INDEX_BYTES_MIN)
        return status_set(st, ST_INVALID, "an index of %zu bytes: at least %d", bytes_max,
                          KV_INDEX_BYTES_MIN);
    ix = calloc(1, sizeof(*ix));
    if (ix != NULL) {
        ix->ids = malloc(3 * KV_INDEX_HOLDERS_MAX * sizeof(*ix->ids));
        ix->dead = ix->ids == NULL ? NULL : ix->ids + KV_INDEX_HOLDERS_MAX;
        ix->swept = ix->ids == NULL ? NULL : ix->dead + KV_INDEX_HOLDERS_MAX;
    }
    if (ix == NULL || ix->ids == NULL) {
        kv_index_free(ix);
        return status_set(st, ST_EXHAUSTED, "no memory for an index of pages");
    }
    ix->bytes_max = bytes_max;
    ix->bytes = sizeof(*ix);
    ix->seed = seed;
    ix->sweep_at = TABLES;
    *out = ix;
    return status_ok(st);
}

void kv_index_free(struct kv_index *ix)
{
    if (ix == NULL)
        return;
    for (unsigned i = 0; i < TABLES; i++)
        slots_free(ix->tables[i].slots, ix->tables[i].n_slots);
    for (uint32_t i = 0; i < ix->n_sets; i++)
        free(ix->sets[i]);
    free(ix->sets);
    free(ix->next_set);
    free(ix->ids);
    free(ix);
}

uint32_t kv_index_holder_new(struct kv_index *ix)
{
    uint32_t id;

    if (ix->n_ids > 0)
        id = ix->ids[--ix->n_ids];
    else if (ix->next_id < KV_INDEX_HOLDERS_MAX)
        id = ix->next_id++;
    else
        return KV_INDEX_NO_HOLDER;
    ix->alive[id / 64] |= 1ull << id % 64;
    return id;
}

bool kv_index_holder_lives(const struct kv_index *ix, uint32_t holder)
{
    return ix->alive[holder / 64] >> holder % 64 & 1;
}

void kv_index_holder_drop(struct kv_index *ix, uint32_t holder)
{
    assert(kv_index_holder_lives(ix, holder));
    ix->alive[holder / 64] &= ~(1ull << holder % 64);
    ix->dead[ix->n_dead++] = (uint16_t)holder;
}

/* Strips dropped holders. @return whether anybody is left */
static bool strip(struct kv_index *ix, struct entry *e)
{
    uint32_t n = 0;

    if (e->n == SET) {
        struct set *s = ix->sets[set_idx(e)];

        for (uint32_t i = 0; i < s->n; i++)
            if (kv_index_holder_lives(ix, s->holder[i]))
                s->holder[n++] = s->holder[i];
        s->n = n;
        unspill(ix, e);
        return n > 0;
    }
    for (uint32_t i = 0; i < e->n; i++)
        if (kv_index_holder_lives(ix, e->holder[i]))
            e->holder[n++] = e->holder[i];
    e->n = (uint8_t)n;
    return n > 0;
}

bool kv_index_sweep(struct kv_index *ix, unsigned n_tables)
{
    if (ix->sweep_at == TABLES) {
        if (ix->n_dead == 0)
            return false;
        memcpy(ix->swept, ix->dead, ix->n_dead * sizeof(*ix->dead));
        ix->n_swept = ix->n_dead;
        ix->n_dead = 0;
        ix->sweep_at = 0;
    }
    for (; n_tables > 0 && ix->sweep_at < TABLES; n_tables--, ix->sweep_at++) {
        struct table *t = &ix->tables[ix->sweep_at];

        for (uint32_t i = 0; i < t->n_slots;)
            if (t->slots[i].page != 0 && !strip(ix, &t->slots[i]))
                erase(ix, t, i); /* another may have moved here: look again */
            else
                i++;
    }
    if (ix->sweep_at == TABLES) {
        for (uint32_t i = 0; i < ix->n_swept; i++)
            ix->ids[ix->n_ids++] = ix->swept[i];
        ix->n_swept = 0;
    }
    return ix->sweep_at < TABLES || ix->n_dead > 0;
}

void kv_index_prefetch(const struct kv_index *ix, uint64_t page)
{
    uint64_t h = mix(ix, page);
    const struct table *t = &ix->tables[h >> (64 - TABLE_BITS)];

    if (t->n_slots > 0)
        __builtin_prefetch(&t->slots[home(t, h)]);
}

bool kv_index_insert(struct kv_index *ix, uint64_t page, uint32_t holder)
{
    struct entry *e;

    assert(kv_index_holder_lives(ix, holder));
    if (page == 0)
        return false;
    e = find(ix, page);
    if (e == NULL)
        e = add_entry(ix, page);
    if (e == NULL)
        return false;
    if (e->n == SET)
        return set_add(ix, e, holder);
    for (int i = 0; i < e->n; i++)
        if (e->holder[i] == holder)
            return true;
    if (e->n < INLINE_MAX) {
        e->holder[e->n++] = (uint16_t)holder;
        return true;
    }
    return spill(ix, e) && set_add(ix, e, holder);
}

void kv_index_remove(struct kv_index *ix, uint64_t page, uint32_t holder)
{
    struct entry *e = find(ix, page);

    if (e == NULL)
        return;
    if (e->n == SET) {
        struct set *s = ix->sets[set_idx(e)];
        uint32_t at = set_place(s, holder);

        if (at == s->n || s->holder[at] != holder)
            return;
        memmove(s->holder + at, s->holder + at + 1, (s->n - at - 1) * sizeof(s->holder[0]));
        s->n--;
        unspill(ix, e);
    } else {
        for (int i = 0; i < e->n; i++)
            if (e->holder[i] == holder) {
                e->holder[i] = e->holder[--e->n];
                break;
            }
        if (e->n == 0) {
            struct table *t = table_of(ix, mix(ix, page));

            erase(ix, t, (uint32_t)(e - t->slots));
        }
    }
}

size_t kv_index_find(struct kv_index *ix, uint64_t page, const uint16_t **holders)
{
    struct entry *e = find(ix, page);
    struct set *s;

    if (e == NULL)
        return 0;
    if (e->used == 0)
        e->used = 1;
    if (e->n != SET) {
        *holders = e->holder;
        return e->n;
    }
    s = ix->sets[set_idx(e)];
    *holders = s->holder;
    return s->n;
}

bool kv_index_holds(const struct kv_index *ix, uint64_t page, uint32_t holder)
{
    const struct entry *e = find(ix, page);
    const struct set *s;
    uint32_t at;

    if (e == NULL)
        return false;
    if (e->n != SET) {
        for (int i = 0; i < e->n; i++)
            if (e->holder[i] == holder)
                return true;
        return false;
    }
    s = ix->sets[set_idx(e)];
    at = set_place(s, holder);
    return at < s->n && s->holder[at] == holder;
}

void kv_index_stats(const struct kv_index *ix, struct kv_index_stats *out)
{
    *out = (struct kv_index_stats){ix->bytes, ix->n_pages, ix->dropped_total};
}
