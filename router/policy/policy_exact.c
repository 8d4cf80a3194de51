/*
 * policy_exact: the least cost in seconds, from what workers told of their pages:
 *
 *   COMPUTE_WEIGHT x uncached tokens x seconds a token + wait of the worker
 *
 * A worker's pages of one prompt are a prefix (it evicts from the end), so the deepest page that
 * anybody holds, and how deep one worker goes, are found by halving. Looked at are some who hold
 * the deepest page and the least loaded: the best is among them unless somebody with a shallower
 * hit and a middling load beats both, by less than either could be off.
 */
#include "common/kv/block_hash.h"
#include "router/policy/policy_internal.h"

enum {
    HOLDERS_SEEN = 16,  /* of the deepest page */
    LEAST_SEEN = 4,     /* least loaded workers */
    PREFETCHED = 64,    /* first pages */
    STATES_SEEN = 256,  /* pages looked back for one where computing can go on */
    STATES_SEEN_OF = 64 /* the same for one worker */
};

/* What is computed twice also delays those who come after: it counts more than waiting does. */
static const double COMPUTE_WEIGHT = 2;

static uint64_t state_of(uint64_t page)
{
    return ~page == 0 ? 1 : ~page;
}

static bool holds(const struct policy *p, uint32_t worker, uint64_t page)
{
    const struct policy_worker *w = &p->workers[worker];

    return (w->holder != KV_INDEX_NO_HOLDER && kv_index_holds(p->told, page, w->holder)) ||
           (w->expecting != KV_INDEX_NO_HOLDER && kv_index_holds(p->expected, page, w->expecting));
}

/* Pages that a hit on this worker spares, at most `limit`. */
static uint32_t depth_of(const struct policy *p, const struct policy_request *r, uint32_t worker,
                         uint32_t limit)
{
    const struct policy_worker *w = &p->workers[worker];
    uint32_t lo = 0, hi = limit;

    if (limit == 0 || !holds(p, worker, r->pages[0]))
        return 0;
    if (holds(p, worker, r->pages[limit - 1]))
        lo = limit;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo + 1) / 2;

        if (holds(p, worker, r->pages[mid - 1]))
            lo = mid;
        else
            hi = mid - 1;
    }
    if (!w->needs_state)
        return lo;
    for (uint32_t i = lo; i > 0 && lo - i < STATES_SEEN_OF; i--)
        if (kv_index_holds(p->told, state_of(r->pages[i - 1]), w->holder) ||
            kv_index_holds(p->expected, r->pages[i - 1], w->expecting))
            return i;
    return 0;
}

/* Whether anybody who fits holds this page. */
static bool held(struct policy *p, const struct policy_request *r, struct kv_index *ix,
                 const uint16_t *by, uint64_t page)
{
    const uint16_t *holders;
    size_t n = kv_index_find(ix, page, &holders);

    for (size_t i = 0; i < n; i++)
        if (kv_index_holder_lives(ix, holders[i]) && policy_fits(p, r, by[holders[i]]))
            return true;
    return false;
}

static bool held_at_all(struct policy *p, const struct policy_request *r, uint64_t page)
{
    return held(p, r, p->told, p->told_by, page) || held(p, r, p->expected, p->expected_by, page);
}

static uint32_t deepest(struct policy *p, const struct policy_request *r)
{
    uint32_t lo = 1, hi = (uint32_t)r->n_pages;

    if (r->n_pages == 0 || !held_at_all(p, r, r->pages[0]))
        return 0;
    if (held_at_all(p, r, r->pages[hi - 1]))
        return hi;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo + 1) / 2;

        if (held_at_all(p, r, r->pages[mid - 1]))
            lo = mid;
        else
            hi = mid - 1;
    }
    return lo;
}

struct best {
    double cost;
    uint64_t n_given;
    struct policy_choice choice;
};

static void weigh(struct policy *p, const struct policy_request *r, uint32_t worker, uint32_t limit,
                  struct best *best)
{
    uint32_t hit;
    size_t uncached;
    double cost;

    if (!policy_fits(p, r, worker))
        return;
    hit = depth_of(p, r, worker, limit) * PREFIX_BLOCK_TOKENS;
    /* The last token is computed in any case. */
    uncached = r->n_ids > hit ? r->n_ids - hit : 1;
    cost = COMPUTE_WEIGHT * (double)uncached * policy_token_s(p, worker) + policy_wait_s(p, worker);
    if (best->choice.worker == POLICY_NONE || cost < best->cost ||
        (cost == best->cost && p->workers[worker].n_given < best->n_given))
        *best = (struct best){cost, p->workers[worker].n_given, {worker, hit}};
}

/* Weighs holders of a page: all, or some from a random place on when there are many. */
static void weigh_holders(struct policy *p, const struct policy_request *r, struct kv_index *ix,
                          const uint16_t *by, uint64_t page, uint32_t limit, struct best *best)
{
    const uint16_t *holders;
    size_t n = kv_index_find(ix, page, &holders), start = n > HOLDERS_SEEN ? policy_draw(p) % n : 0;

    for (size_t i = 0; i < n && i < HOLDERS_SEEN; i++) {
        uint16_t h = holders[(start + i) % n];

        if (kv_index_holder_lives(ix, h))
            weigh(p, r, by[h], limit, best);
    }
}

/* The deepest page at which somebody can go on computing, for holders that need that. */
static uint32_t deepest_state(struct policy *p, const struct policy_request *r, uint32_t depth)
{
    for (uint32_t i = depth; i > 0 && depth - i < STATES_SEEN; i--)
        if (held(p, r, p->told, p->told_by, state_of(r->pages[i - 1])) ||
            held(p, r, p->expected, p->expected_by, r->pages[i - 1]))
            return i;
    return 0;
}

/* Entries lie anywhere in memory: asked for one by one, each would be waited for. */
static void prefetch(const struct policy *p, const struct policy_request *r)
{
    for (size_t i = 0; i < r->n_pages && i < PREFETCHED; i++) {
        kv_index_prefetch(p->told, r->pages[i]);
        kv_index_prefetch(p->expected, r->pages[i]);
    }
}

bool policy_exact(struct policy *p, const struct policy_request *r, struct policy_choice *out)
{
    struct best best = {.choice = {POLICY_NONE, 0}};
    uint32_t least[LOAD_HEAP_LEAST_MAX], n, depth, at;

    prefetch(p, r);
    depth = deepest(p, r);
    if (depth > 0) {
        weigh_holders(p, r, p->told, p->told_by, r->pages[depth - 1], depth, &best);
        weigh_holders(p, r, p->expected, p->expected_by, r->pages[depth - 1], depth, &best);
        at = p->needs_state ? deepest_state(p, r, depth) : 0;
        if (at > 0)
            weigh_holders(p, r, p->told, p->told_by, state_of(r->pages[at - 1]), depth, &best);
    }
    n = load_heap_least(&p->heap, LEAST_SEEN, least);
    for (uint32_t i = 0; i < n; i++)
        weigh(p, r, least[i], depth, &best);
    if (best.choice.worker == POLICY_NONE)
        best.choice.worker = policy_least_load(p, r); /* all of those failed it before */
    *out = best.choice;
    return out->worker != POLICY_NONE;
}
