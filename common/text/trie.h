/*
 * trie: finds the longest of many byte strings at a place in a text; a double array.
 *
 * A slot is 32 bits: base (23) | a key ends here (1) | label (8). The child of a node by byte c is
 * slot base + c when that slot's label is c: no two nodes have the same base, so the label alone
 * proves whose child it is. Slot 0 is the root. Nodes without children share base 0: slots 0 to 255
 * never hold their own number as label. No node has a base of 256 k + 255: free slots hold the
 * label that only such a base would ask for. The values stand in a second array, read once a
 * lookup.
 *
 * Lifetime  built into malloc'ed memory, then constant; it may be written to a file as it is (words
 *           in machine order).
 * Limits    slots < 2^23 (a vocabulary of a million tokens or so), strings not empty.
 */
#ifndef BATON_COMMON_TEXT_TRIE_H
#define BATON_COMMON_TEXT_TRIE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

#define TRIE_NONE UINT32_MAX

struct trie_key {
    const uint8_t *bytes;
    uint32_t len;
    uint32_t value;
};

struct trie {
    const uint32_t *slots; /* [2 n]: n slots, then for each the value of the key that ends there */
    size_t n;
};

/**
 * Builds the trie of n different keys.
 * @param prefix  out, may be NULL, indexed by value: the value of the longest key that is a proper
 *                prefix of this one, or TRIE_NONE; only the given values' entries are written
 * @param slots   out, malloc'ed [2 n_slots], for a struct trie
 * @return ST_OK; ST_INVALID for an empty or repeated key; ST_EXHAUSTED
 */
enum status_code trie_build(const struct trie_key *keys, size_t n, uint32_t *prefix,
                            uint32_t **slots, size_t *n_slots, struct status *st);

/** True when no lookup in these slots can leave them (for slots that come from a file). */
bool trie_is_sound(const struct trie *t, uint32_t n_values);

/** The slot that a byte leads to from the root, or 0. */
static inline uint32_t trie_first(const struct trie *t, uint8_t byte)
{
    uint32_t slot = (t->slots[0] >> 9) + byte;

    return (uint8_t)t->slots[slot] == byte ? slot : 0;
}

/**
 * The value of the longest key at the beginning of s[n], or TRIE_NONE.
 * @param len  out, that key's bytes; 0 when there is none
 */
static inline uint32_t trie_longest(const struct trie *t, const uint8_t *s, size_t n, size_t *len)
{
    const uint32_t *slots = t->slots;
    uint32_t node = slots[0], best = 0;

    *len = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t slot = (node >> 9) + s[i];
        node = slots[slot];
        if ((uint8_t)node != s[i])
            break;
        if (node & 0x100) {
            best = slot;
            *len = i + 1;
        }
    }
    return *len > 0 ? slots[t->n + best] : TRIE_NONE;
}

#endif
