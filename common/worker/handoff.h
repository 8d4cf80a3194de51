/*
 * handoff: which bytes of one sequence travel from a prefill worker to a decode worker.
 *
 * Both sides build the same list from the same numbers, each with its own units as `local`: the
 * sender to write, the receiver to verify. Group i of a list is page first_page + i; the slot, when
 * it is included, is the last group.
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

/**
 * The live bytes of logical pages [first_page, end_page) of a sequence of n_tokens, and of its
 * state slot when with_slot.
 * @param out  on success the caller's: handoff_list_deinit()
 * @return ST_OK, ST_EXHAUSTED
 */
enum status_code handoff_list_init(struct handoff_list *out, const struct kv_geometry *g,
                                   const struct handoff_units *units, uint64_t n_tokens,
                                   uint32_t first_page, uint32_t end_page, bool with_slot,
                                   struct status *st);
void handoff_list_deinit(struct handoff_list *l);

#endif
