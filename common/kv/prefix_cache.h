/*
 * prefix_cache: which KV pages hold which prefixes, so that no prompt is computed twice.
 *
 * One radix tree over full pages of 256 tokens; the edge to a page is its 256 token ids (compared,
 * not only hashed), roots differ by salt. A page is shared only when it is full, and full pages
 * never change, so copy-on-write never happens.
 *
 * A page holds compressed KV only. To go on from a page boundary a sequence also needs the state
 * there (window latents, the c4 overlap): a SNAPSHOT, big next to a page, so kept for few
 * boundaries: where prompts end, where turns end, where prompts part, and sparsely along long ones.
 * Snapshots are evicted on their own. A hit for computing lands on the deepest boundary with one; a
 * hit for receiving KV from elsewhere needs none.
 *
 *   match ─▶ (compute) ─▶ insert ─▶ put_snapshot ─▶ pin      evict_pages when the slab runs dry
 *
 * Owns      one slab reference of every page in the tree, the units of its snapshots.
 * Promises  a page that a sequence still references, or that is pinned, is never evicted; a
 *           snapshot's page is in the tree; every call costs O(pages named) or O(log pages),
 *           unless it says more; nothing is allocated after prefix_cache_new().
 * Threads   engine only.
 */
#ifndef BATON_COMMON_KV_PREFIX_CACHE_H
#define BATON_COMMON_KV_PREFIX_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/kv/slab.h"

struct prefix_cache;

/* Where a page's bytes lie. Today the device; host and storage tiers will move pages between. */
enum prefix_location { PREFIX_DEVICE };

/* What routers hear of: equal hashes are equal prefixes (see block_hash.h). */
enum prefix_event_kind {
    PREFIX_PAGE_IN,
    PREFIX_PAGE_OUT,
    PREFIX_STATE_IN, /* a snapshot: computing can go on after this page */
    PREFIX_STATE_OUT
};

struct prefix_event {
    uint64_t sequence; /* 1, 2, ...: a gap means that events were missed */
    enum prefix_event_kind kind;
    enum prefix_location location;
    uint64_t block, parent; /* hashes; parent 0: the first page */
};

struct prefix_cache_options {
    struct slab *pages;
    struct slab *snapshots;                          /* NULL: none are kept */
    uint32_t pinned_pages_max, pinned_snapshots_max; /* of all pins together; 0: none is granted */
    void (*event)(void *arg, const struct prefix_event *e); /* NULL: nobody listens */
    void *event_arg;
};

enum status_code prefix_cache_new(const struct prefix_cache_options *o, struct prefix_cache **out,
                                  struct status *st);
/** Gives all pages and snapshots back. NULL is fine. */
void prefix_cache_free(struct prefix_cache *c);

struct prefix_hit {
    uint32_t n_pages;       /* longest chain of cached pages */
    uint32_t n_state_pages; /* deepest boundary of them with a snapshot, 0: none */
    uint32_t snapshot;      /* its unit; valid until the next call that may evict */
};

/**
 * Looks a prompt up and marks what it finds as used now.
 * @param tokens     [256 * max_pages]
 * @param max_state  n_state_pages is at most that
 * @param pages      out, [max_pages]: the chain's pages, one reference each for the caller
 */
void prefix_cache_match(struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                        uint32_t max_pages, uint32_t max_state, uint32_t *pages,
                        struct prefix_hit *hit);

/** The same without references or marks. */
void prefix_cache_peek(const struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                       uint32_t max_pages, uint32_t max_state, struct prefix_hit *hit);

/**
 * Adds a chain of full pages. Where the tree has a page of the same tokens it keeps that one; the
 * caller's stays the caller's alone.
 * @return pages that are new in the tree
 */
uint32_t prefix_cache_insert(struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                             const uint32_t *pages, uint32_t n_pages);

/** Whether the boundary after n_pages has no snapshot yet, be it in the tree or not. */
bool prefix_cache_lacks_snapshot(const struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                                 uint32_t n_pages);

/**
 * A snapshot unit for the boundary after n_pages, which the caller fills now. Takes the unit of the
 * least useful snapshot when none is free.
 * @param unit  out
 * @return false when the boundary is not in the tree or there are no snapshots at all
 */
bool prefix_cache_put_snapshot(struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                               uint32_t n_pages, uint32_t *unit);

/** Drops the snapshot of a boundary, if there is one: a deeper one has taken its place. */
void prefix_cache_drop_snapshot(struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                                uint32_t n_pages);

/**
 * Keeps a chain of n_pages pages, and the deepest snapshot on it, from being evicted for so many
 * seconds (at most PINS_SECONDS_MAX); a longer pin that is there stays. All or none.
 * @return false when the chain is not in the tree whole, or the pins would be more than the options
 * allow
 */
bool prefix_cache_pin(struct prefix_cache *c, uint64_t salt, const int32_t *tokens,
                      uint32_t n_pages, uint32_t seconds);

/** It is now_s, by a clock that does not go back: pins whose time is over end. */
void prefix_cache_advance(struct prefix_cache *c, uint64_t now_s);

/** Ends all pins. O(pages). @return pages that were pinned */
uint32_t prefix_cache_unpin_all(struct prefix_cache *c);

/** Frees up to n pages, least recently used first, leaves before their parents, none that a
 * sequence uses or that is pinned. @return pages freed */
uint32_t prefix_cache_evict_pages(struct prefix_cache *c, uint32_t n);

/** Drops all that no sequence uses, what is pinned too. @return pages freed */
uint32_t prefix_cache_flush(struct prefix_cache *c);

/**
 * Whether a prompt of n_prompt tokens leaves a snapshot at a boundary (tokens, a multiple of 256):
 * its last one, and every PREFIX_SPARSE_TOKENS.
 */
enum { PREFIX_SPARSE_TOKENS = 4096 };
bool prefix_snapshot_wanted(uint32_t boundary, uint32_t n_prompt);

struct prefix_cache_stats {
    uint32_t n_pages, n_snapshots;
    uint64_t inserted, evicted; /* pages */
    uint64_t snapshots_put, snapshots_evicted;
    uint32_t pages_pinned, snapshots_pinned; /* now */
    uint64_t pins, pins_refused;
    uint64_t events;
};
void prefix_cache_get_stats(const struct prefix_cache *c, struct prefix_cache_stats *out);

/** Calls the event callback's shape for every page in the tree, parents first: what a router that
 * comes late, or has missed events, starts from. */
void prefix_cache_each(const struct prefix_cache *c,
                       void (*fn)(void *arg, uint64_t block, uint64_t parent), void *arg);

/** Asserts every invariant; for tests and debug builds. O(pages). */
void prefix_cache_check(const struct prefix_cache *c);

#endif
