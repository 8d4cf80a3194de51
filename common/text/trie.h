/*
 * trie: finds the longest of many byte strings at a place in a text; a double array.
 *
 * A slot is 64 bits: value + 1 (27 bits, 0: no string ends here) | base (28) | label (9). The child
 * of a node by byte c is slot base + c when that slot's label is c: no two nodes have the same
 * base, so the label alone proves whose child it is. Slot 0 is the root; base 0 belongs to all
 * nodes without children, since no slot c has the label c. Free slots have the label 256.
 *
 * Lifetime  built into malloc'ed slots, then constant; it may be written to a file as it is (bytes
 *           in machine order).
 * Limits    values < 2^27 - 1, slots < 2^28, strings not empty.
 */
#ifndef BATON_COMMON_TEXT_TRIE_H
#define BATON_COMMON_TEXT_TRIE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

#define TRIE_NONE UINT32_MAX
#define TRIE_FREE 256u

struct trie_key {
    const uint8_t *bytes;
    uint32_t len;
    uint32_t value;
};

/**
 * Builds the trie of n different keys.
 * @param slots    out, malloc'ed [n_slots]
 * @param prefix   out, may be NULL, indexed by value: the value of the longest key that is a proper
 *                 prefix of this one, or TRIE_NONE; only the entries of the given values are
 * written
 * @return ST_OK; ST_INVALID for an empty or repeated key, ST_EXHAUSTED
 */
enum status_code trie_build(const struct trie_key *keys, size_t n, uint64_t **slots,
                            size_t *n_slots, uint32_t *prefix, struct status *st);

/** True when no lookup in these slots can leave them (for slots that come from a file). */
bool trie_is_sound(const uint64_t *slots, size_t n_slots, uint32_t n_values);

/**
 * The value of the longest key at the beginning of s[n], or TRIE_NONE.
 * @param len  out, that key's bytes; 0 when there is none
 */
static inline uint32_t trie_longest(const uint64_t *slots, const uint8_t *s, size_t n, size_t *len)
{
    uint64_t node = slots[0];
    uint32_t best = 0;

    *len = 0;
    for (size_t i = 0; i < n; i++) {
        node = slots[(node >> 9 & 0xFFFFFFF) + s[i]];
        if ((node & 0x1FF) != s[i])
            break;
        if (node >> 37) {
            best = (uint32_t)(node >> 37);
            *len = i + 1;
        }
    }
    return best - 1;
}

#endif
