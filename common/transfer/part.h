/*
 * part: a list of pieces in parts of whole groups, so that the peer compares one while the next is
 * on its way.
 *
 * Threads   pure functions.
 */
#ifndef BATON_COMMON_TRANSFER_PART_H
#define BATON_COMMON_TRANSFER_PART_H

#include "common/transfer/transfer.h"

/* Of what somebody waits for, at least so many bytes are a part: a page of V4-Flash (970 KB) is
 * one, and what is left to compare after the last byte takes some 0.15 ms. A message for each part
 * costs less than that. */
enum { TRANSFER_PART_BYTES = 1 << 19 };

/* Where in a list a part begins. */
struct transfer_place {
    size_t piece;
    uint32_t group;
};

/**
 * Cuts off the groups of pieces [n_pieces] from *at on, up to one with which they have at_least
 * bytes. (A group without pieces is one all the same.) The pieces of the part count their groups
 * from its own first from now on.
 * @param n_groups  of the whole list
 * @return where the next part begins; group is n_groups when there is none
 */
struct transfer_place transfer_part(struct transfer_piece *pieces, size_t n_pieces,
                                    uint32_t n_groups, struct transfer_place at, uint64_t at_least);

#endif
