/*
 * kv_index: which workers hold which pages, by the pages' 64-bit names (common/kv/block_hash.h).
 *
 * 1024 small open-addressing tables of 16-byte entries, each growing by a quarter on its own and at
 * a time of its own, so that no insert rehashes more than a thousandth of the whole and few inserts
 * do:
 *
 *   entry  0  u64 name (0: empty)
 *          8  u16 holder[3], or u32 set index when n is SET
 *         14  u8  n holders, or SET
 *         15  u8  used since the clock's hand came by
 *
 * Three holders stand in the entry, more in a sorted array beside it. At the byte cap an insert
 * drops, within its table, an entry that was not asked for lately. A holder that goes away is
 * forgotten at once; its entries are swept out later, in slices.
 *
 * Promises  bytes in use never exceed the cap by more than one table's growth; a lookup touches one
 *           entry and its neighbours.
 * Threads   one at a time.
 */
#ifndef BATON_ROUTER_POLICY_KV_INDEX_H
#define BATON_ROUTER_POLICY_KV_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

struct kv_index;

enum { KV_INDEX_HOLDERS_MAX = 65535, KV_INDEX_BYTES_MIN = 1 << 20 };
#define KV_INDEX_NO_HOLDER UINT32_MAX

struct kv_index_stats {
    size_t bytes, n_pages;
    uint64_t dropped_total; /* entries given up because of the cap */
};

/**
 * @param bytes_max  cap, at least KV_INDEX_BYTES_MIN
 * @param seed       scatters names over the tables
 * @return ST_OK, ST_INVALID, ST_EXHAUSTED
 */
enum status_code kv_index_new(size_t bytes_max, uint64_t seed, struct kv_index **out,
                              struct status *st);
void kv_index_free(struct kv_index *ix);

/** A new holder, or KV_INDEX_NO_HOLDER when all ids are in use. */
uint32_t kv_index_holder_new(struct kv_index *ix);

/** Forgets a holder and all it holds; its id comes back after a sweep. */
void kv_index_holder_drop(struct kv_index *ix, uint32_t holder);
bool kv_index_holder_lives(const struct kv_index *ix, uint32_t holder);

/** Sweeps n_tables of what dropped holders left. @return whether there is more to do */
bool kv_index_sweep(struct kv_index *ix, unsigned n_tables);

/** Says that a page will be asked for soon: its entry is fetched meanwhile. */
void kv_index_prefetch(const struct kv_index *ix, uint64_t page);

/** Notes that a living holder holds a page. @return false when there was no room for it */
bool kv_index_insert(struct kv_index *ix, uint64_t page, uint32_t holder);
void kv_index_remove(struct kv_index *ix, uint64_t page, uint32_t holder);

/**
 * Who holds a page; counts as a use.
 * @param holders  out, ascending is not promised, dropped holders may be among them; borrowed until
 *                 the next change
 * @return how many
 */
size_t kv_index_find(struct kv_index *ix, uint64_t page, const uint16_t **holders);
bool kv_index_holds(const struct kv_index *ix, uint64_t page, uint32_t holder);

void kv_index_stats(const struct kv_index *ix, struct kv_index_stats *out);

#endif
