#include "common/kv/prefix_cache.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/kv/block_hash.h"
#include "common/kv/geometry.h"
#include "common/kv/pins.h"

/* Of the least recently used snapshots that many are weighed against each other. */
enum { SNAPSHOTS_WEIGHED = 64 };

/* Whoever has gone on from a snapshot has left a deeper one: for the next turn of a conversation
 * that is the better one, and only another conversation will want this one again. */
static const double GONE_ON = 0.9;

#define NONE UINT32_MAX

/* A page in the tree. Nodes are named by index; all lists run through them. */
struct node {
    uint64_t hash, salt;
    uint32_t parent; /* NONE: the first page */
    uint32_t bucket_next;
    uint32_t depth; /* pages up to and with this one */
    uint32_t n_children;
    uint32_t page;
    uint32_t snapshot;      /* NONE */
    uint32_t heap_at;       /* leaves without a pin: place in the heap; NONE: the others */
    bool snapshot_pinned;   /* it is not evicted while its page is pinned */
    uint32_t older, newer;  /* with a snapshot that may be evicted: neighbours by its last use */
    uint64_t used;          /* tick */
    uint64_t snapshot_used; /* tick: put, or gone on from */
    uint32_t snapshot_hits; /* how often it was gone on from */
    int32_t tokens[KV_PAGE_TOKENS];
};

struct prefix_cache {
    struct prefix_cache_options opt;
    struct node *nodes;
    uint32_t n_nodes;               /* as many as pages in the slab */
    uint32_t *free_nodes, n_free;   /* stack */
    uint32_t *buckets, bucket_mask; /* heads of chains of nodes */
    uint32_t *heap, n_heap;         /* leaves without a pin, least recently used on top */
    uint32_t *skipped;              /* scratch of an eviction: leaves in use */
    uint32_t oldest, newest;        /* of the nodes with snapshots that may be evicted */
    struct pins *pins;              /* of nodes: a parent is pinned as long as its children */
    uint64_t tick;
    struct prefix_cache_stats stats;
};

static void tell(struct prefix_cache *c, const struct node *n, enum prefix_event_kind kind)
{
    struct prefix_event e = {
        .sequence = ++c->stats.events,
        .kind = kind,
        .location = PREFIX_DEVICE,
        .block = n->hash,
        .parent = n->parent != NONE ? c->nodes[n->parent].hash : 0,
    };

    if (c->opt.event != NULL)
        c->opt.event(c->opt.event_arg, &e);
}

/* ---- heap of leaves by last use ---- */

static bool heap_before(const struct prefix_cache *c, uint32_t a, uint32_t b)
{
    return c->nodes[c->heap[a]].used < c->nodes[c->heap[b]].used;
}

static void heap_swap(struct prefix_cache *c, uint32_t a, uint32_t b)
{
    uint32_t node = c->heap[a];

    c->heap[a] = c->heap[b];
    c->heap[b] = node;
    c->nodes[c->heap[a]].heap_at = a;
    c->nodes[c->heap[b]].heap_at = b;
}

static void heap_settle(struct prefix_cache *c, uint32_t at)
{
    for (; at > 0 && heap_before(c, at, (at - 1) / 2); at = (at - 1) / 2)
        heap_swap(c, at, (at - 1) / 2);
    for (;;) {
        uint32_t least = at;

        for (uint32_t child = 2 * at + 1; child <= 2 * at + 2 && child < c->n_heap; child++)
            if (heap_before(c, child, least))
                least = child;
        if (least == at)
            return;
        heap_swap(c, at, least);
        at = least;
    }
}

static void heap_add(struct prefix_cache *c, uint32_t node)
{
    c->heap[c->n_heap] = node;
    c->nodes[node].heap_at = c->n_heap;
    heap_settle(c, c->n_heap++);
}

static void heap_remove(struct prefix_cache *c, uint32_t node)
{
    uint32_t at = c->nodes[node].heap_at, last = --c->n_heap;

    c->nodes[node].heap_at = NONE;
    if (at == last)
        return;
    c->heap[at] = c->heap[last];
    c->nodes[c->heap[at]].heap_at = at;
    heap_settle(c, at);
}

/* ---- snapshots by last use ---- */

static void snapshot_link(struct prefix_cache *c, uint32_t i)
{
    struct node *n = &c->nodes[i];

    n->snapshot_used = c->tick;
    n->older = c->newest;
    n->newer = NONE;
    *(c->newest != NONE ? &c->nodes[c->newest].newer : &c->oldest) = i;
    c->newest = i;
}

static void snapshot_unlink(struct prefix_cache *c, uint32_t i)
{
    struct node *n = &c->nodes[i];

    *(n->older != NONE ? &c->nodes[n->older].newer : &c->oldest) = n->newer;
    *(n->newer != NONE ? &c->nodes[n->newer].older : &c->newest) = n->older;
}

/* Its snapshot may be evicted again. */
static void snapshot_unpin(struct prefix_cache *c, uint32_t i)
{
    if (!c->nodes[i].snapshot_pinned)
        return;
    c->nodes[i].snapshot_pinned = false;
    c->stats.snapshots_pinned--;
    snapshot_link(c, i);
}

static void snapshot_drop(struct prefix_cache *c, uint32_t i)
{
    struct node *n = &c->nodes[i];

    if (n->snapshot == NONE)
        return;
    snapshot_unpin(c, i);
    snapshot_unlink(c, i);
    slab_give(c->opt.snapshots, &n->snapshot, 1);
    n->snapshot = NONE;
    c->stats.n_snapshots--;
    tell(c, n, PREFIX_STATE_OUT);
}

/* Pages that would have to be computed again without the snapshot of node i: those since the next
 * shallower one. */
static uint32_t pages_saved(const struct prefix_cache *c, uint32_t i)
{
    uint32_t up = c->nodes[i].parent;

    while (up != NONE && c->nodes[up].snapshot == NONE)
        up = c->nodes[up].parent;
    return c->nodes[i].depth - (up != NONE ? c->nodes[up].depth : 0);
}

/* The least useful snapshot goes: what it saves, how often it may be asked for (once, when it is
 * new; else as often as it was, but for the first), by how long nobody has. */
static void snapshot_evict(struct prefix_cache *c)
{
    uint32_t worst = c->oldest;
    double least = 0;
    int looked = 0;

    for (uint32_t i = c->oldest; i != NONE && looked < SNAPSHOTS_WEIGHED;
         i = c->nodes[i].newer, looked++) {
        uint32_t hits = c->nodes[i].snapshot_hits;
        double use = (hits == 0 ? 1 : hits - GONE_ON) * pages_saved(c, i) /
                     (double)(c->tick - c->nodes[i].snapshot_used + 1);

        if (looked == 0 || use < least) {
            least = use;
            worst = i;
        }
    }
    snapshot_drop(c, worst);
    c->stats.snapshots_evicted++;
}

/* ---- nodes ---- */

/* The child of `parent` for a page of tokens whose hash is known. */
static uint32_t find(const struct prefix_cache *c, uint32_t parent, uint64_t hash, uint64_t salt,
                     const int32_t *tokens)
{
    uint32_t i = c->buckets[hash & c->bucket_mask];

    for (; i != NONE; i = c->nodes[i].bucket_next) {
        const struct node *n = &c->nodes[i];

        if (n->hash == hash && n->parent == parent && n->salt == salt &&
            memcmp(n->tokens, tokens, sizeof(n->tokens)) == 0)
            return i;
    }
    return NONE;
}

/* One step down from *node and *hash (NONE and 0 at the root). */
static bool descend(const struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                    uint32_t *node, uint64_t *hash)
{
    uint64_t h = prefix_block_hash(*hash, salt, tokens);
    uint32_t i = find(c, *node, h, salt, tokens);

    if (i == NONE)
        return false;
    *node = i;
    *hash = h;
    return true;
}

/* The node after n_pages pages, or NONE. */
static uint32_t walk(const struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                     uint32_t n_pages)
{
    uint32_t node = NONE;
    uint64_t hash = 0;

    for (uint32_t i = 0; i < n_pages; i++)
        if (!descend(c, salt, tokens + (size_t)i * KV_PAGE_TOKENS, &node, &hash))
            return NONE;
    return node;
}

static void touch(struct prefix_cache *c, uint32_t i)
{
    struct node *n = &c->nodes[i];

    n->used = c->tick;
    if (n->heap_at != NONE)
        heap_settle(c, n->heap_at);
}

static uint32_t add(struct prefix_cache *c, uint32_t parent, uint64_t hash, uint64_t salt,
                    const int32_t *tokens, uint32_t page)
{
    uint32_t i = c->free_nodes[--c->n_free]; /* a node less than pages: there is always one */
    struct node *n = &c->nodes[i];
    uint32_t *bucket = &c->buckets[hash & c->bucket_mask];

    n->hash = hash;
    n->salt = salt;
    n->parent = parent;
    n->depth = 1;
    n->n_children = 0;
    n->page = page;
    n->snapshot = NONE;
    n->snapshot_pinned = false;
    n->heap_at = NONE;
    n->used = c->tick;
    memcpy(n->tokens, tokens, sizeof(n->tokens));
    n->bucket_next = *bucket;
    *bucket = i;
    if (parent != NONE) {
        n->depth = c->nodes[parent].depth + 1;
        if (c->nodes[parent].n_children++ == 0 && c->nodes[parent].heap_at != NONE)
            heap_remove(c, parent);
    }
    heap_add(c, i);
    slab_ref(c->opt.pages, &page, 1);
    c->stats.n_pages++;
    c->stats.inserted++;
    tell(c, n, PREFIX_PAGE_IN);
    return i;
}

/* Takes a leaf, already out of the heap, out of the tree. */
static void cut(struct prefix_cache *c, uint32_t i)
{
    struct node *n = &c->nodes[i];
    uint32_t *link = &c->buckets[n->hash & c->bucket_mask];

    assert(n->n_children == 0 && !pins_has(c->pins, i));
    while (*link != i)
        link = &c->nodes[*link].bucket_next;
    *link = n->bucket_next;
    snapshot_drop(c, i);
    tell(c, n, PREFIX_PAGE_OUT);
    slab_give(c->opt.pages, &n->page, 1);
    if (n->parent != NONE && --c->nodes[n->parent].n_children == 0 && !pins_has(c->pins, n->parent))
        heap_add(c, n->parent);
    c->free_nodes[c->n_free++] = i;
    c->stats.n_pages--;
    c->stats.evicted++;
}

/* ---- the calls ---- */

void prefix_cache_match(struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                        uint32_t max_pages, uint32_t max_state, uint32_t *pages,
                        struct prefix_hit *hit)
{
    uint32_t node = NONE, with_state = NONE;
    uint64_t hash = 0;

    *hit = (struct prefix_hit){0};
    c->tick++;
    while (hit->n_pages < max_pages &&
           descend(c, salt, tokens + (size_t)hit->n_pages * KV_PAGE_TOKENS, &node, &hash)) {
        touch(c, node);
        pages[hit->n_pages++] = c->nodes[node].page;
        if (c->nodes[node].snapshot != NONE && hit->n_pages <= max_state)
            with_state = node;
    }
    slab_ref(c->opt.pages, pages, hit->n_pages);
    if (with_state == NONE)
        return;
    hit->n_state_pages = c->nodes[with_state].depth;
    hit->snapshot = c->nodes[with_state].snapshot;
    c->nodes[with_state].snapshot_hits++;
    if (c->nodes[with_state].snapshot_pinned)
        return;
    snapshot_unlink(c, with_state);
    snapshot_link(c, with_state);
}

void prefix_cache_peek(const struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                       uint32_t max_pages, uint32_t max_state, struct prefix_hit *hit)
{
    uint32_t node = NONE;
    uint64_t hash = 0;

    *hit = (struct prefix_hit){0};
    while (hit->n_pages < max_pages &&
           descend(c, salt, tokens + (size_t)hit->n_pages * KV_PAGE_TOKENS, &node, &hash)) {
        hit->n_pages++;
        if (c->nodes[node].snapshot == NONE || hit->n_pages > max_state)
            continue;
        hit->n_state_pages = hit->n_pages;
        hit->snapshot = c->nodes[node].snapshot;
    }
}

uint32_t prefix_cache_insert(struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                             const uint32_t *pages, uint32_t n_pages)
{
    uint32_t node = NONE, n_new = 0;
    uint64_t hash = 0;

    c->tick++;
    for (uint32_t i = 0; i < n_pages; i++, tokens += KV_PAGE_TOKENS) {
        uint32_t child;

        hash = prefix_block_hash(hash, salt, tokens);
        child = find(c, node, hash, salt, tokens);
        if (child == NONE) {
            child = add(c, node, hash, salt, tokens, pages[i]);
            n_new++;
        }
        touch(c, child);
        node = child;
    }
    return n_new;
}

bool prefix_cache_lacks_snapshot(const struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                                 uint32_t n_pages)
{
    uint32_t node = walk(c, salt, tokens, n_pages);

    return node == NONE || c->nodes[node].snapshot == NONE;
}

bool prefix_cache_put_snapshot(struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                               uint32_t n_pages, uint32_t *unit)
{
    uint32_t node = walk(c, salt, tokens, n_pages);
    struct status st;

    if (node == NONE || c->opt.snapshots == NULL)
        return false;
    if (c->nodes[node].snapshot != NONE) {
        *unit = c->nodes[node].snapshot;
        return true;
    }
    if (slab_n_free(c->opt.snapshots) == 0 && c->oldest != NONE)
        snapshot_evict(c);
    if (slab_take(c->opt.snapshots, 1, unit, &st) != ST_OK)
        return false;
    c->nodes[node].snapshot = *unit;
    c->nodes[node].snapshot_hits = 0;
    snapshot_link(c, node);
    tell(c, &c->nodes[node], PREFIX_STATE_IN);
    c->stats.n_snapshots++;
    c->stats.snapshots_put++;
    return true;
}

void prefix_cache_drop_snapshot(struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                                uint32_t n_pages)
{
    uint32_t node = walk(c, salt, tokens, n_pages);

    if (node != NONE && !c->nodes[node].snapshot_pinned)
        snapshot_drop(c, node);
}

/* The deepest node at or above i that has a snapshot, or NONE. */
static uint32_t with_snapshot(const struct prefix_cache *c, uint32_t i)
{
    while (i != NONE && c->nodes[i].snapshot == NONE)
        i = c->nodes[i].parent;
    return i;
}

bool prefix_cache_pin(struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                      uint32_t n_pages, uint32_t seconds)
{
    uint32_t node = walk(c, salt, tokens, n_pages), state = with_snapshot(c, node), n_new = 0;
    bool new_state = state != NONE && !c->nodes[state].snapshot_pinned;

    for (uint32_t i = node; i != NONE && !pins_has(c->pins, i); i = c->nodes[i].parent)
        n_new++;
    if (node == NONE || seconds == 0 || pins_n(c->pins) + n_new > c->opt.pinned_pages_max ||
        c->stats.snapshots_pinned + new_state > c->opt.pinned_snapshots_max) {
        c->stats.pins_refused++;
        return false;
    }
    for (uint32_t i = node; i != NONE; i = c->nodes[i].parent) {
        pins_hold(c->pins, i, seconds);
        if (c->nodes[i].heap_at != NONE)
            heap_remove(c, i);
    }
    if (new_state) {
        snapshot_unlink(c, state);
        c->nodes[state].snapshot_pinned = true;
        c->stats.snapshots_pinned++;
    }
    c->stats.pins++;
    return true;
}

static void pin_ended(void *arg, uint32_t i)
{
    struct prefix_cache *c = arg;

    snapshot_unpin(c, i);
    if (c->nodes[i].n_children == 0)
        heap_add(c, i);
}

void prefix_cache_advance(struct prefix_cache *c, uint64_t now_s)
{
    pins_advance(c->pins, now_s, pin_ended, c);
}

uint32_t prefix_cache_unpin_all(struct prefix_cache *c)
{
    uint32_t n = pins_n(c->pins);

    for (uint32_t i = 0; i < c->n_nodes && pins_n(c->pins) > 0; i++)
        if (pins_has(c->pins, i)) {
            pins_drop(c->pins, i);
            pin_ended(c, i);
        }
    return n;
}

uint32_t prefix_cache_evict_pages(struct prefix_cache *c, uint32_t n)
{
    uint32_t freed = 0, n_skipped = 0;

    while (freed < n && c->n_heap > 0) {
        uint32_t leaf = c->heap[0];

        heap_remove(c, leaf);
        if (slab_refs(c->opt.pages, c->nodes[leaf].page) > 1) {
            c->skipped[n_skipped++] = leaf;
            continue;
        }
        cut(c, leaf);
        freed++;
    }
    while (n_skipped > 0)
        heap_add(c, c->skipped[--n_skipped]);
    return freed;
}

uint32_t prefix_cache_flush(struct prefix_cache *c)
{
    prefix_cache_unpin_all(c);
    return prefix_cache_evict_pages(c, UINT32_MAX);
}

bool prefix_snapshot_wanted(uint32_t boundary, uint32_t n_prompt)
{
    return boundary <= n_prompt &&
           (boundary + KV_PAGE_TOKENS > n_prompt || boundary % PREFIX_SPARSE_TOKENS == 0);
}

void prefix_cache_get_stats(const struct prefix_cache *c, struct prefix_cache_stats *out)
{
    *out = c->stats;
    out->pages_pinned = pins_n(c->pins);
}

/* Every parent has a smaller depth than its children: by depth, level after level. */
void prefix_cache_each(const struct prefix_cache *c,
                       void (*fn)(void *arg, uint64_t block, uint64_t parent), void *arg)
{
    uint32_t left = c->stats.n_pages;

    for (uint32_t depth = 1; left > 0; depth++)
        for (uint32_t b = 0; b <= c->bucket_mask && left > 0; b++)
            for (uint32_t i = c->buckets[b]; i != NONE; i = c->nodes[i].bucket_next) {
                const struct node *n = &c->nodes[i];

                if (n->depth != depth)
                    continue;
                fn(arg, n->hash, n->parent != NONE ? c->nodes[n->parent].hash : 0);
                left--;
            }
}

/* ---- invariants ---- */

static uint32_t check_node(const struct prefix_cache *c, uint32_t i, uint32_t *children)
{
    const struct node *n = &c->nodes[i];

    assert(slab_refs(c->opt.pages, n->page) > 0);
    assert(n->depth == (n->parent != NONE ? c->nodes[n->parent].depth + 1 : 1));
    assert(n->parent == NONE || c->nodes[n->parent].used >= n->used);
    assert((n->n_children == 0 && !pins_has(c->pins, i)) == (n->heap_at != NONE));
    assert(n->parent == NONE || pins_end_s(c->pins, n->parent) >= pins_end_s(c->pins, i));
    assert(!n->snapshot_pinned || (n->snapshot != NONE && pins_has(c->pins, i)));
    assert(n->heap_at == NONE || c->heap[n->heap_at] == i);
    assert(n->hash ==
           prefix_block_hash(n->parent != NONE ? c->nodes[n->parent].hash : 0, n->salt, n->tokens));
    if (n->parent != NONE)
        children[n->parent]++;
    return n->snapshot != NONE;
}

void prefix_cache_check(const struct prefix_cache *c)
{
    uint32_t *children = calloc(c->n_nodes + 1, sizeof(*children));
    uint32_t n = 0, n_snapshots = 0, linked = 0, pinned = 0;

    if (children == NULL)
        abort();
    for (uint32_t b = 0; b <= c->bucket_mask; b++)
        for (uint32_t i = c->buckets[b]; i != NONE; i = c->nodes[i].bucket_next, n++)
            n_snapshots += check_node(c, i, children);
    for (uint32_t b = 0; b <= c->bucket_mask; b++)
        for (uint32_t i = c->buckets[b]; i != NONE; i = c->nodes[i].bucket_next) {
            assert(children[i] == c->nodes[i].n_children);
            pinned += c->nodes[i].snapshot_pinned;
        }
    for (uint32_t i = c->oldest; i != NONE; i = c->nodes[i].newer, linked++)
        assert(c->nodes[i].snapshot != NONE && !c->nodes[i].snapshot_pinned);
    for (uint32_t i = 1; i < c->n_heap; i++)
        assert(!heap_before(c, i, (i - 1) / 2));
    assert(n == c->stats.n_pages && n + c->n_free == c->n_nodes);
    assert(linked + pinned == n_snapshots && n_snapshots == c->stats.n_snapshots);
    assert(pinned == c->stats.snapshots_pinned && pinned <= c->opt.pinned_snapshots_max);
    assert(pins_n(c->pins) <= c->opt.pinned_pages_max);
    assert(c->stats.inserted - c->stats.evicted == n);
    free(children);
}

/* ---- start and end ---- */

static enum status_code allocate(struct prefix_cache *c, struct status *st)
{
    uint32_t n_buckets = 16;

    while (n_buckets < 2 * c->n_nodes)
        n_buckets *= 2;
    c->bucket_mask = n_buckets - 1;
    c->nodes = malloc((c->n_nodes + 1) * sizeof(*c->nodes));
    c->free_nodes = malloc((c->n_nodes + 1) * sizeof(*c->free_nodes));
    c->heap = malloc((c->n_nodes + 1) * sizeof(*c->heap));
    c->skipped = malloc((c->n_nodes + 1) * sizeof(*c->skipped));
    c->buckets = malloc(n_buckets * sizeof(*c->buckets));
    if (c->nodes == NULL || c->free_nodes == NULL || c->heap == NULL || c->skipped == NULL ||
        c->buckets == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a prefix cache of %u pages", c->n_nodes);
    memset(c->buckets, 0xFF, n_buckets * sizeof(*c->buckets)); /* NONE */
    for (uint32_t i = 0; i < c->n_nodes; i++)
        c->free_nodes[c->n_free++] = c->n_nodes - 1 - i;
    return status_ok(st);
}

enum status_code prefix_cache_new(const struct prefix_cache_options *o, struct prefix_cache **out,
                                  struct status *st)
{
    struct prefix_cache *c = calloc(1, sizeof(*c));

    if (c == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a prefix cache");
    c->opt = *o;
    c->n_nodes = slab_units(o->pages);
    c->oldest = c->newest = NONE;
    if (allocate(c, st) != ST_OK || pins_new(c->n_nodes, &c->pins, st) != ST_OK)
        prefix_cache_free(c);
    else
        *out = c;
    return st->code;
}

void prefix_cache_free(struct prefix_cache *c)
{
    if (c == NULL)
        return;
    c->opt.event = NULL; /* whoever listens has gone first */
    if (c->pins != NULL)
        prefix_cache_unpin_all(c);
    for (uint32_t i = 0; c->heap != NULL && c->n_heap > 0; i++) {
        uint32_t leaf = c->heap[0];

        heap_remove(c, leaf);
        cut(c, leaf);
    }
    free(c->nodes);
    free(c->free_nodes);
    free(c->buckets);
    free(c->heap);
    free(c->skipped);
    pins_free(c->pins);
    free(c);
}
