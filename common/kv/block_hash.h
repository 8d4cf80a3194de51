/*
 * block_hash: names a prefix of token pages in 64 bits.
 *
 * The hash of a page covers its 256 tokens and, through the parent's hash, all before it: equal
 * hashes mean an equal prefix. Workers name their cached pages so, and a router that hashes a
 * prompt the same way knows who holds it. Nothing is decided by the hash alone where a wrong answer
 * would be seen: a worker's cache compares the tokens themselves.
 *
 *   h(0) = prefix_block_hash(0, salt, ids), h(i) = prefix_block_hash(h(i - 1), salt, ids + 256 * i)
 *
 * Part of the protocol between router and workers: a change is a new protocol version.
 * Threads   any.
 */
#ifndef BATON_COMMON_KV_BLOCK_HASH_H
#define BATON_COMMON_KV_BLOCK_HASH_H

#include <stdint.h>
#include <string.h>

enum { PREFIX_BLOCK_TOKENS = 256 };

static inline uint64_t prefix_block_fold(uint64_t a, uint64_t b)
{
    unsigned __int128 m = (unsigned __int128)a * b;

    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

/**
 * @param parent  of the page before; 0 for the first
 * @param salt    what must not be shared between prefixes of the same tokens (0: nothing)
 * @param ids     [PREFIX_BLOCK_TOKENS], little-endian on the wire and in memory
 * @return never 0
 */
static inline uint64_t prefix_block_hash(uint64_t parent, uint64_t salt, const int32_t *ids)
{
    /* Odd constants with equally many ones and zeros; four lanes keep the multiplier busy. */
    static const uint64_t k[5] = {UINT64_C(0x2d358dccaa6c78a5), UINT64_C(0x8bb84b93962eacc9),
                                  UINT64_C(0x4b33a62ed433d4a3), UINT64_C(0x4d5a2da51de1aa47),
                                  UINT64_C(0xa0761d6478bd642f)};
    uint64_t lane[4] = {parent ^ k[1], parent ^ k[2], salt ^ k[3], salt ^ k[0]}, w[8], h;

    for (int i = 0; i < PREFIX_BLOCK_TOKENS; i += 16) {
        memcpy(w, ids + i, sizeof(w));
        for (int l = 0; l < 4; l++)
            lane[l] = prefix_block_fold(w[2 * l] ^ k[l], w[2 * l + 1] ^ lane[l]) + lane[l];
    }
    h = prefix_block_fold(lane[0] ^ k[4], lane[1] ^ parent);
    h ^= prefix_block_fold(lane[2] ^ k[1], lane[3] ^ salt);
    h = prefix_block_fold(h ^ k[2], k[0]);
    return h == 0 ? 1 : h;
}

#endif
