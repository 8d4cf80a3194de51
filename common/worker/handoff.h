/*
 * handoff: which bytes of one sequence travel from a prefill worker to a decode worker.
 *
 * Both sides build the same list from the same numbers, each with its own units as `local`: the
 * sender to write, the receiver to verify. The bytes of a sequence come in groups, each with a
 * checksum: one of every logical page, in their order, then those of its state slot, which is in
 * several, so that none takes long to compare.
 *
 * Threads   pure functions.
 */
#ifndef BATON_COMMON_WORKER_HANDOFF_H
#define BATON_COMMON_WORKER_HANDOFF_H

#include <stdbool.h>
#include <stdint.h>

#include "common/kv/geometry.h"
#include "common/transfer/transfer.h"

/* The slabs, by their index in transfer.h's calls. */
enum { HANDOFF_SLAB_PAGES = 0, HANDOFF_SLAB_SLOTS = 1 };

/* One sequence's units on both sides. */
struct handoff_units {
    const uint32_t *local_pages, *remote_pages; /* [n_pages], by logical page */
    uint32_t local_slot, remote_slot;
};

struct handoff_list {
    struct transfer_piece *pieces; /* malloc */
    size_t n_pieces;
    uint32_t n_groups;
    uint64_t bytes;
};

enum { HANDOFF_SLOT_GROUPS_MAX = 64 };

/** Groups of the state slot of a sequence of n_tokens, 1..HANDOFF_SLOT_GROUPS_MAX; they follow
 * those of its kv_pages_for(n_tokens) pages. */
uint32_t handoff_slot_groups(const struct kv_geometry *g, uint64_t n_tokens);

/**
 * The live bytes of groups [first, end) of a sequence of n_tokens; pieces count their groups from
 * first.
 * @param out  on success the caller's: handoff_list_deinit()
 * @return ST_OK, ST_EXHAUSTED
 */
enum status_code handoff_list_init(struct handoff_list *out, const struct kv_geometry *g,
                                   const struct handoff_units *units, uint64_t n_tokens,
                                   uint32_t first, uint32_t end, struct status *st);
void handoff_list_deinit(struct handoff_list *l);

#endif
