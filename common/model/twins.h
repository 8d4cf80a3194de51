/*
 * twins: memory that every rank of a model has in the same size, each on its own device, and that
 * the rest of the program knows by rank 0's address: the KV, and states of it.
 *
 * On hosts, and with one rank, there is one memory, and every rank has that.
 *
 * Threads   one caller, while no step runs.
 * Limits    TWINS_MAX blocks.
 */
#ifndef BATON_COMMON_MODEL_TWINS_H
#define BATON_COMMON_MODEL_TWINS_H

#include "common/model/rank.h"

enum { TWINS_MAX = 16 };

struct twins {
    struct rank *ranks; /* the model's */
    int n;              /* ranks with memories of their own; 1: there is one memory */
    int n_blocks;
    struct {
        uint64_t at[COMM_RANKS_MAX];
        size_t bytes;
    } blocks[TWINS_MAX];
};

/** Zeroed memory on every rank; null: one of them has none left, or there are too many blocks.
 * @return rank 0's address */
struct dev_ptr twins_alloc(struct twins *t, size_t bytes);
void twins_free(struct twins *t, struct dev_ptr p);

/** What rank 0 knows as p, at rank `rank`. p lies in a block, or is the same everywhere. */
struct dev_ptr twins_at(const struct twins *t, int rank, struct dev_ptr p);

#endif
