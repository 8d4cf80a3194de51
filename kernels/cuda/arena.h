/*
 * arena: who has which part of one large range of addresses. Knows no memory.
 *
 * Owns      a table of the parts.
 * Promises  parts are whole ARENA_UNITs and do not overlap; what is given back joins its free
 *           neighbours, and can be taken again.
 * Threads   one caller.
 */
#ifndef BATON_KERNELS_CUDA_ARENA_H
#define BATON_KERNELS_CUDA_ARENA_H

#include <stdbool.h>
#include <stddef.h>

enum { ARENA_UNIT = 4096 };

struct arena_part {
    size_t at, bytes;
    bool used;
};

struct arena {
    struct arena_part *parts; /* [n], in order, without gaps up to top */
    size_t n, cap, n_free;
    size_t size, top; /* bytes; nothing beyond top has ever been taken, or it has been given back */
};

void arena_init(struct arena *a, size_t size);
void arena_deinit(struct arena *a);
/** @param at  out: where the part begins. @return false: no room, or no memory for the table */
bool arena_take(struct arena *a, size_t bytes, size_t *at);
/** @return bytes that are taken */
size_t arena_used(const struct arena *a);
/** @return false: no part that is taken begins there */
bool arena_give(struct arena *a, size_t at);

#endif
