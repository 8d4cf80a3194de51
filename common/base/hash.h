/*
 * hash: a fast seeded hash of bytes for hash tables whose keys come from outside. With a seed that
 * nobody outside knows, keys cannot be chosen to fall into one bucket.
 */
#ifndef BATON_COMMON_BASE_HASH_H
#define BATON_COMMON_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/** A seed from the system's random source; never 0. Draw it once per table or process. */
uint64_t hash_seed(void);

/** Multiplies and folds eight bytes at a time. */
static inline uint64_t hash_bytes(uint64_t seed, const char *s, size_t n)
{
    uint64_t h = seed ^ (n * UINT64_C(0x9e3779b97f4a7c15)), w;
    unsigned __int128 m;

    for (;; s += 8, n -= 8) {
        w = 0;
        memcpy(&w, s, n < 8 ? n : 8);
        m = (unsigned __int128)(h ^ w ^ UINT64_C(0x2d358dccaa6c78a5)) *
            (seed | UINT64_C(0x8bb84b93962eacc9));
        h = (uint64_t)m ^ (uint64_t)(m >> 64);
        if (n <= 8)
            return h;
    }
}

#endif
