/* Fuzzes the page tables: sequences that come, grow, leave snapshots, are quarantined and go, in
 * any order, over one slab and one prefix cache. A dictionary of whole prompts says what must be
 * found; the references of every page are counted from the outside. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/kv/geometry.h"
#include "common/kv/prefix_cache.h"
#include "common/kv/slab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { PAGES = 24, SNAPSHOTS = 3, SEQUENCES = 6, DEPTH = 8, STEPS_MAX = 400 };

/* A prompt is a salt and a word for each page. */
struct sequence {
    bool live;
    uint64_t salt;
    uint8_t words[DEPTH];
    uint32_t pages[DEPTH], n_pages;
    bool quarantined;
};

struct world {
    struct slab *pages, *snapshots;
    struct prefix_cache *cache;
    bool keeps_snapshots;
    struct sequence sequences[SEQUENCES];
    uint32_t in_tree; /* by events */
    uint64_t now_s;
    uint64_t last_event;
    /* What each page was given for when it went into the tree: found again, it must be for the
     * same. */
    struct {
        uint64_t salt;
        uint8_t words[DEPTH];
        uint32_t depth;
    } held[PAGES];
    const uint8_t *at, *end;
};

static void need(bool ok)
{
    if (!ok)
        abort();
}

static uint32_t next(struct world *w, uint32_t n)
{
    return w->at == w->end ? 0 : *w->at++ % n;
}

static void on_event(void *arg, const struct prefix_event *e)
{
    struct world *w = arg;

    need(e->sequence == ++w->last_event);
    if (e->kind == PREFIX_PAGE_IN)
        w->in_tree++;
    if (e->kind == PREFIX_PAGE_OUT)
        need(w->in_tree-- > 0);
}

static void spell(const struct sequence *s, int32_t *tokens)
{
    for (uint32_t i = 0; i < DEPTH * KV_PAGE_TOKENS;
         i++) /* words differ in their last token alone */
        tokens[i] = i % KV_PAGE_TOKENS == KV_PAGE_TOKENS - 1 ? s->words[i / KV_PAGE_TOKENS] : 7;
}

/* The pages that were found were put there for this very prefix. */
static void check_found(const struct world *w, const struct sequence *s, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t page = s->pages[i];

        need(w->held[page].salt == s->salt && w->held[page].depth == i &&
             memcmp(w->held[page].words, s->words, i + 1) == 0);
        for (uint32_t k = 0; k < i; k++)
            need(s->pages[k] != page);
    }
}

static void come(struct world *w, struct sequence *s)
{
    int32_t tokens[DEPTH * KV_PAGE_TOKENS];
    uint32_t n = 1 + next(w, DEPTH), room;
    struct prefix_hit hit, seen;
    struct status st;

    memset(s, 0, sizeof(*s));
    s->salt = next(w, 2);
    for (uint32_t i = 0; i < DEPTH; i++)
        s->words[i] = (uint8_t)next(w, 3);
    spell(s, tokens);
    prefix_cache_peek(w->cache, s->salt, tokens, n, n, &seen);
    prefix_cache_match(w->cache, s->salt, tokens, n, n, s->pages, &hit);
    need(seen.n_pages == hit.n_pages && seen.n_state_pages == hit.n_state_pages);
    need(hit.n_state_pages <= hit.n_pages && hit.n_pages <= n);
    check_found(w, s, hit.n_pages);
    room = slab_n_free(w->pages);
    if (room < n - hit.n_pages)
        need(prefix_cache_evict_pages(w->cache, n - hit.n_pages - room) <=
             n - hit.n_pages - room + slab_n_quarantined(w->pages));
    if (slab_take(w->pages, n - hit.n_pages, s->pages + hit.n_pages, &st) != ST_OK) {
        need(slab_n_free(w->pages) < n - hit.n_pages); /* all or none, and only when it must */
        slab_give(w->pages, s->pages, hit.n_pages);
        return;
    }
    s->n_pages = n;
    s->live = true;
}

static void insert(struct world *w, struct sequence *s)
{
    int32_t tokens[DEPTH * KV_PAGE_TOKENS];
    uint32_t again[DEPTH], before = w->in_tree, added;
    struct prefix_hit hit;

    spell(s, tokens);
    prefix_cache_peek(w->cache, s->salt, tokens, s->n_pages, s->n_pages, &hit);
    for (uint32_t i = hit.n_pages; i < s->n_pages; i++) {
        w->held[s->pages[i]].salt = s->salt;
        w->held[s->pages[i]].depth = i;
        memcpy(w->held[s->pages[i]].words, s->words, DEPTH);
    }
    added = prefix_cache_insert(w->cache, s->salt, tokens, s->pages, s->n_pages);
    need(added == s->n_pages - hit.n_pages && w->in_tree == before + added);
    prefix_cache_match(w->cache, s->salt, tokens, s->n_pages, s->n_pages, again, &hit);
    need(hit.n_pages == s->n_pages);
    slab_give(w->pages, again, hit.n_pages);
}

static void snapshot(struct world *w, struct sequence *s)
{
    int32_t tokens[DEPTH * KV_PAGE_TOKENS];
    uint32_t n = 1 + next(w, s->n_pages), unit;
    struct prefix_cache_stats stats;
    struct prefix_hit hit;

    spell(s, tokens);
    if (next(w, 4) == 0) {
        prefix_cache_drop_snapshot(w->cache, s->salt, tokens, n);
        prefix_cache_peek(w->cache, s->salt, tokens, n, n, &hit);
        prefix_cache_get_stats(w->cache, &stats);
        need(hit.n_state_pages < n || stats.snapshots_pinned > 0); /* a pinned one stays */
    } else if (prefix_cache_lacks_snapshot(w->cache, s->salt, tokens, n)) {
        prefix_cache_peek(w->cache, s->salt, tokens, n, n, &hit);
        bool put = prefix_cache_put_snapshot(w->cache, s->salt, tokens, n, &unit);

        need(put == (w->keeps_snapshots && hit.n_pages == n));
        if (!put)
            return;
        need(unit < SNAPSHOTS);
        prefix_cache_peek(w->cache, s->salt, tokens, n, n, &hit);
        need(hit.n_state_pages == n && hit.snapshot == unit);
    }
}

/* While its pin lasts a prompt is found whole, whatever is evicted. */
static void pin(struct world *w, struct sequence *s)
{
    int32_t tokens[DEPTH * KV_PAGE_TOKENS];
    uint32_t n = 1 + next(w, s->n_pages);
    struct prefix_hit hit, seen;

    spell(s, tokens);
    prefix_cache_peek(w->cache, s->salt, tokens, n, n, &hit);
    if (!prefix_cache_pin(w->cache, s->salt, tokens, n, 1 + next(w, 60)))
        return;
    need(hit.n_pages == n);
    prefix_cache_evict_pages(w->cache, UINT32_MAX);
    prefix_cache_peek(w->cache, s->salt, tokens, n, n, &seen);
    need(seen.n_pages == n && seen.n_state_pages == hit.n_state_pages);
}

static void go(struct world *w, struct sequence *s)
{
    slab_give(w->pages, s->pages, s->n_pages);
    if (s->quarantined)
        slab_release(w->pages, s->pages, s->n_pages);
    s->live = s->quarantined = false;
}

/* Every page's owners: the sequences that name it and the tree. */
static void count(const struct world *w)
{
    struct prefix_cache_stats stats;
    uint32_t owners[PAGES] = {0}, owned = 0, of_tree = 0;

    prefix_cache_check(w->cache);
    prefix_cache_get_stats(w->cache, &stats);
    need(stats.n_pages == w->in_tree && stats.n_snapshots <= SNAPSHOTS);
    need(stats.pages_pinned <= PAGES / 4 && stats.snapshots_pinned <= 1);
    need(slab_n_free(w->snapshots) == SNAPSHOTS - stats.n_snapshots);
    for (int i = 0; i < SEQUENCES; i++)
        for (uint32_t p = 0; w->sequences[i].live && p < w->sequences[i].n_pages; p++)
            owners[w->sequences[i].pages[p]]++;
    for (uint32_t p = 0; p < PAGES; p++) {
        uint32_t refs = slab_refs(w->pages, p);

        need(refs == owners[p] || refs == owners[p] + 1);
        of_tree += refs - owners[p];
        owned += refs > 0;
    }
    need(of_tree == w->in_tree);
    need(slab_n_free(w->pages) + slab_n_quarantined(w->pages) + owned == PAGES);
}

static void step(struct world *w)
{
    struct sequence *s = &w->sequences[next(w, SEQUENCES)];

    switch (next(w, 9)) {
    case 0:
    case 1:
        if (!s->live)
            come(w, s);
        else
            insert(w, s);
        break;
    case 2:
        if (s->live)
            snapshot(w, s);
        break;
    case 3:
        if (s->live)
            go(w, s);
        break;
    case 4: /* a peer may still write what this one alone owns */
        if (s->live && !s->quarantined) {
            bool alone = true;

            for (uint32_t i = 0; i < s->n_pages; i++)
                alone &= slab_refs(w->pages, s->pages[i]) == 1;
            if (alone)
                slab_quarantine(w->pages, s->pages, s->n_pages);
            s->quarantined = alone;
        }
        break;
    case 5:
        prefix_cache_evict_pages(w->cache, 1 + next(w, PAGES));
        break;
    case 7:
        if (s->live)
            pin(w, s);
        break;
    case 8:
        w->now_s += next(w, 30);
        prefix_cache_advance(w->cache, w->now_s);
        break;
    default:
        if (next(w, 4) == 0)
            prefix_cache_flush(w->cache);
        break;
    }
    count(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct world w = {.at = data, .end = data + size};
    struct prefix_cache_options o = {.pinned_pages_max = PAGES / 4,
                                     .pinned_snapshots_max = 1,
                                     .event = on_event,
                                     .event_arg = &w};
    struct status st;

    need(slab_new("page", PAGES, &w.pages, &st) == ST_OK);
    need(slab_new("snapshot", SNAPSHOTS, &w.snapshots, &st) == ST_OK);
    o.pages = w.pages;
    w.keeps_snapshots = next(&w, 4) > 0;
    o.snapshots = w.keeps_snapshots ? w.snapshots : NULL;
    need(prefix_cache_new(&o, &w.cache, &st) == ST_OK);
    for (int i = 0; i < STEPS_MAX && w.at < w.end; i++)
        step(&w);
    for (int i = 0; i < SEQUENCES; i++)
        if (w.sequences[i].live)
            go(&w, &w.sequences[i]);
    prefix_cache_flush(w.cache);
    count(&w);
    prefix_cache_free(w.cache);
    need(slab_n_free(w.pages) == PAGES && slab_n_free(w.snapshots) == SNAPSHOTS);
    slab_free(w.pages);
    slab_free(w.snapshots);
    return 0;
}
