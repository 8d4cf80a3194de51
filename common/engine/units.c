#include <assert.h>
#include <stdlib.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/engine/engine_internal.h"

enum { RUNS_MAX = 6 * KV_LAYERS_MAX };

/* ---- states at page boundaries ---- */

enum copy_way { SLOT_TO_SNAPSHOT, SNAPSHOT_TO_SLOT };

/* The live rows of a slot at `length` tokens (a page boundary), packed in the order of the runs. */
static void copy_state(struct engine *e, uint32_t slot, uint32_t unit, uint32_t length,
                       enum copy_way way)
{
    size_t n = kv_slot_runs(e->geometry, length, e->runs, RUNS_MAX);
    struct dev_ptr packed = dev_at(e->snapshot_memory, unit * e->snapshot_bytes);
    struct dev_ptr state = dev_at(e->kv.slots, slot * e->geometry->slot_bytes);
    size_t at = 0;

    for (size_t i = 0; i < n; at += e->runs[i++].bytes) {
        struct dev_ptr a = dev_at(state, e->runs[i].offset), b = dev_at(packed, at);

        if (way == SLOT_TO_SNAPSHOT)
            model_memory_copy(e->model, b, a, e->runs[i].bytes);
        else
            model_memory_copy(e->model, a, b, e->runs[i].bytes);
    }
    assert(at <= e->snapshot_bytes);
}

static bool snapshot_wanted(const struct engine *e, const struct sequence *s, uint32_t boundary)
{
    return (boundary == s->branch || prefix_snapshot_wanted(boundary, s->n_prompt)) &&
           prefix_cache_lacks_snapshot(e->cache, s->salt, s->tokens, boundary / KV_PAGE_TOKENS);
}

uint32_t units_next_cut(const struct engine *e, const struct sequence *s)
{
    uint32_t at = (s->n_computed / KV_PAGE_TOKENS + 1) * KV_PAGE_TOKENS;
    uint32_t end = s->n_computed + (uint32_t)e->opt.chunk_tokens;

    if (e->snapshots == NULL || !e->opt.snapshot_prompts)
        return UINT32_MAX;
    for (; at <= s->n_prompt && at < end; at += KV_PAGE_TOKENS)
        if (snapshot_wanted(e, s, at))
            return at;
    return UINT32_MAX;
}

static void insert(struct engine *e, struct sequence *s)
{
    prefix_cache_insert(e->cache, s->salt, s->tokens, s->pages, s->n_computed / KV_PAGE_TOKENS);
}

/* Keeps the state at `boundary`, whose rows the slot still has. */
static void keep_state(struct engine *e, struct sequence *s, uint32_t boundary)
{
    uint32_t unit;

    insert(e, s);
    if (prefix_cache_put_snapshot(e->cache, s->salt, s->tokens, boundary / KV_PAGE_TOKENS, &unit))
        copy_state(e, s->slot, unit, boundary, SLOT_TO_SNAPSHOT);
}

/* ---- pins ---- */

void units_advance(struct engine *e)
{
    if (e->cache != NULL)
        prefix_cache_advance(e->cache, e->probe.now_s != NULL ? e->probe.now_s(e->probe.arg)
                                                              : clock_now_us() / 1000000);
}

/* The KV of s's prompt is there: it stays for a while, if s asks for that. */
static void pin_prompt(struct engine *e, struct sequence *s)
{
    uint32_t n_pages = s->n_prompt / KV_PAGE_TOKENS;

    if (s->pin_s == 0 || n_pages == 0 || e->cache == NULL)
        return;
    insert(e, s);
    if (!prefix_cache_pin(e->cache, s->salt, s->tokens, n_pages, s->pin_s))
        log_debug("%s: its prompt of %u pages is not pinned: others have the pins", s->rid,
                  n_pages);
}

/* What can be had for nothing but pins: a request that nobody's end would let in goes before them.
 */
static bool break_pins(struct engine *e, const struct sequence *s)
{
    uint32_t n = e->active.n == 0 && e->cache != NULL ? prefix_cache_unpin_all(e->cache) : 0;

    if (n > 0)
        log_warn("%s: pins of %u KV pages end: it needs the room, and nothing else runs", s->rid,
                 n);
    return n > 0;
}

/* ---- what becomes of what was computed ---- */

static void keep_states(struct engine *e, struct sequence *s, uint32_t before)
{
    uint32_t boundary = s->n_computed / KV_PAGE_TOKENS * KV_PAGE_TOKENS;

    if (e->snapshots == NULL || boundary <= before)
        return;
    if (e->opt.snapshot_prompts && boundary == s->n_computed && snapshot_wanted(e, s, boundary)) {
        keep_state(e, s, boundary);
    } else if (e->opt.snapshot_turns && boundary > s->n_prompt &&
               s->n_computed - boundary < KV_DRAFT_SLACK) {
        /* Only the last one of a turn is worth its bytes. */
        if (s->turn_snapshot > 0)
            prefix_cache_drop_snapshot(e->cache, s->salt, s->tokens,
                                       s->turn_snapshot / KV_PAGE_TOKENS);
        keep_state(e, s, boundary);
        s->turn_snapshot = boundary;
    }
}

void units_computed(struct engine *e, struct sequence *s, uint32_t before)
{
    keep_states(e, s, before);
    if (before < s->n_prompt && s->n_computed >= s->n_prompt)
        pin_prompt(e, s);
}

void units_arrived(struct engine *e, struct sequence *s)
{
    if (e->cache == NULL)
        return;
    insert(e, s);
    if (s->n_computed >= s->n_prompt)
        pin_prompt(e, s);
}

/* ---- pages and slots ---- */

static bool make_room(struct engine *e, uint32_t n)
{
    uint32_t n_free = slab_n_free(e->pages);

    if (n_free < n && e->cache != NULL)
        prefix_cache_evict_pages(e->cache, n - n_free);
    return slab_n_free(e->pages) >= n;
}

/* What the cache has for s: pages with a reference each; the state, when the rest is to be computed
 * here. */
static struct prefix_hit match(struct engine *e, struct sequence *s)
{
    struct prefix_hit hit = {0};

    s->local = e->opt.local_tokens >= s->n_tokens;
    if (e->cache == NULL)
        return hit;
    if (batch_scores(s)) /* all of it has to be computed */
        return hit;
    /* The last token is computed in any case: its logits are wanted. */
    prefix_cache_match(e->cache, s->salt, s->tokens, s->n_tokens / KV_PAGE_TOKENS,
                       (s->n_tokens - 1) / KV_PAGE_TOKENS, s->pages, &hit);
    s->local = s->n_tokens - hit.n_state_pages * KV_PAGE_TOKENS <= e->opt.local_tokens;
    s->branch = hit.n_pages > hit.n_state_pages ? hit.n_pages * KV_PAGE_TOKENS : 0;
    if (s->local) { /* pages beyond the state would be written again: they are others' too */
        slab_give(e->pages, s->pages + hit.n_state_pages, hit.n_pages - hit.n_state_pages);
        hit.n_pages = hit.n_state_pages;
    }
    return hit;
}

bool units_take(struct engine *e, struct sequence *s, uint32_t margin)
{
    uint32_t n_pages = kv_pages_for(s->n_tokens);
    struct prefix_hit hit;
    struct status st;

    if (slab_take(e->slots, 1, &s->slot, &st) != ST_OK)
        return false;
    hit = match(e, s);
    if (!(make_room(e, n_pages - hit.n_pages + margin) ||
          (break_pins(e, s) && make_room(e, n_pages - hit.n_pages + margin))) ||
        slab_take(e->pages, n_pages - hit.n_pages, s->pages + hit.n_pages, &st) != ST_OK) {
        slab_give(e->pages, s->pages, hit.n_pages);
        slab_give(e->slots, &s->slot, 1);
        return false;
    }
    s->n_pages = n_pages;
    s->n_hit_pages = hit.n_pages;
    s->n_cached = s->local ? hit.n_state_pages * KV_PAGE_TOKENS : 0;
    s->n_computed = 0;
    s->has_units = true;
    if (s->n_cached > 0)
        copy_state(e, s->slot, hit.snapshot, s->n_cached, SNAPSHOT_TO_SLOT);
    return true;
}

bool units_grow(struct engine *e, struct sequence *s)
{
    struct status st;

    assert(s->n_pages < s->cap_pages);
    if (!make_room(e, 1) || slab_take(e->pages, 1, &s->pages[s->n_pages], &st) != ST_OK)
        return false;
    s->n_pages++;
    return true;
}

void units_give(struct engine *e, struct sequence *s)
{
    if (!s->has_units)
        return;
    if (e->cache != NULL && s->n_computed >= KV_PAGE_TOKENS)
        insert(e, s);
    slab_give(e->pages, s->pages, s->n_pages);
    slab_give(e->slots, &s->slot, 1);
    s->has_units = false;
    s->n_pages = s->n_hit_pages = 0;
    s->n_computed = s->n_cached = 0;
    s->turn_snapshot = 0;
}

/* ---- start and end ---- */

static enum status_code open_snapshots(struct engine *e, struct status *st)
{
    e->snapshot_bytes = kv_snapshot_bytes(e->geometry);
    e->snapshot_memory = model_memory_alloc(e->model, e->opt.n_snapshots * e->snapshot_bytes);
    if (dev_is_null(e->snapshot_memory))
        return status_set(st, ST_EXHAUSTED, "no memory for %u snapshots of %llu bytes",
                          e->opt.n_snapshots, (unsigned long long)e->snapshot_bytes);
    return slab_new("snapshot", e->opt.n_snapshots, &e->snapshots, st);
}

enum status_code units_init(struct engine *e, struct status *st)
{
    struct prefix_cache_options o = {.pages = e->pages};

    e->runs = malloc(RUNS_MAX * sizeof(*e->runs));
    if (e->runs == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for an engine");
    if (!e->opt.prefix_cache)
        return status_ok(st);
    if (e->opt.n_snapshots > 0 && open_snapshots(e, st) != ST_OK)
        return st->code;
    o.snapshots = e->snapshots;
    o.pinned_pages_max = (uint32_t)((uint64_t)slab_units(e->pages) * e->opt.pin_percent / 100);
    o.pinned_snapshots_max = (uint32_t)((uint64_t)e->opt.n_snapshots * e->opt.pin_percent / 100);
    o.event = e->opt.cache_event;
    o.event_arg = e->opt.cache_event_arg;
    return prefix_cache_new(&o, &e->cache, st);
}

void units_deinit(struct engine *e)
{
    prefix_cache_free(e->cache);
    slab_free(e->snapshots);
    if (!dev_is_null(e->snapshot_memory))
        model_memory_free(e->model, e->snapshot_memory);
    free(e->runs);
}
