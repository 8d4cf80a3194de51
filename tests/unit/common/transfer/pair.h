/*
 * pair: a sending and a receiving node, connected, with slabs of known bytes and of canaries.
 */
#ifndef TESTS_UNIT_COMMON_TRANSFER_PAIR_H
#define TESTS_UNIT_COMMON_TRANSFER_PAIR_H

#include "node.h"

/* Slab 0 has SLAB bytes, slab 1 an eighth; there are no others. */
enum { SLAB = 24 << 20, CANARY = 0xA5, DESC_MAX = 1 << 16 };

struct pair {
    struct node from; /* slab i is filled with node_byte(1000 + i, ...) */
    struct node to;   /* slabs are filled with CANARY */
};

struct pair pair_open(enum transfer_kind kind);

/** The receiver's slabs may be registered heap memory. */
struct pair pair_open_with(enum transfer_kind kind, bool to_heap);

/** The sender sends at most rate bytes per second. */
struct pair pair_open_limited(enum transfer_kind kind, uint64_t rate);

/** One side of a pair. */
struct node pair_sender(enum transfer_kind kind);
struct node pair_receiver(enum transfer_kind kind, bool heap);

/** Exchanges the descriptor; asserts that it works. */
void pair_connect(struct node *from, struct node *to);

/** Connects by a descriptor that is this writer's alone. @return its name */
uint64_t pair_connect_as_writer(struct node *from, struct node *to);

/** Asserts that 100 bytes of slab 1 go over, and nothing else. */
void pair_check_small_put(struct node *from, struct node *to, uint64_t id);

/** A put of far more bytes than a test has time for: the whole slab, again and again. */
void pair_endless_put(struct pair *p, uint64_t id);

void pair_end(struct pair *p);

#endif
