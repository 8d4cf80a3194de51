/*
 * word_cache: the ids of words met before, in a fixed piece of memory.
 *
 * Words of up to 15 bytes and 4 ids live in entries of 32 bytes, longer ones of up to 63 bytes and
 * 16 ids in entries of 128. Two entries of a kind share a bucket: a new word pushes the older one
 * out. Forgetting is harmless, the word is encoded again. Nothing is allocated after
 * word_cache_init().
 *
 * Threads   one owner.
 */
#ifndef BATON_COMMON_TEXT_WORD_CACHE_H
#define BATON_COMMON_TEXT_WORD_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/base/status.h"

enum {
    WORD_SHORT_MAX = 15,
    WORD_SHORT_IDS = 4,
    WORD_LONG_MAX = 63,
    WORD_LONG_IDS = 16,
    WORD_IDS_MAX = WORD_LONG_IDS, /* room that word_cache_find() needs */
};

/* Keys are the word, zeros, and in the last byte its length; all zeros: free. The number of ids
 * stands in the upper byte of the first. */
struct word_short {
    uint64_t key[2];
    uint32_t ids[WORD_SHORT_IDS];
};

struct word_long {
    uint64_t key[8];
    uint32_t ids[WORD_LONG_IDS];
};

struct word_cache {
    struct word_short *shorts; /* [2 << short_bits] */
    struct word_long *longs;   /* [2 << long_bits] */
    unsigned short_bits, long_bits;
};

/** @param cap_bytes  the most memory it may take; at least 64 KiB are taken */
enum status_code word_cache_init(struct word_cache *c, size_t cap_bytes, struct status *st);
void word_cache_deinit(struct word_cache *c);

/** Forgets everything. */
void word_cache_clear(struct word_cache *c);

/** Bytes of memory taken. */
size_t word_cache_bytes(const struct word_cache *c);

static inline uint64_t word_mix(uint64_t h, uint64_t w)
{
    h = (h ^ w) * 0x9E3779B97F4A7C15u;
    return h ^ h >> 32;
}

/* The key of a word of 1 to 15 bytes; room says how many bytes may be read at s. */
static inline void word_short_key(const uint8_t *s, size_t n, size_t room, uint64_t key[2])
{
    key[0] = key[1] = 0;
    if (room >= 16) {
        memcpy(key, s, 16);
        key[0] &= n >= 8 ? UINT64_MAX : ((uint64_t)1 << 8 * n) - 1;
        key[1] &= n > 8 ? ((uint64_t)1 << 8 * (n - 8)) - 1 : 0;
    } else {
        memcpy(key, s, n);
    }
    ((uint8_t *)key)[15] = (uint8_t)n;
}

static inline struct word_short *word_short_bucket(const struct word_cache *c, const uint64_t k[2])
{
    uint64_t h = k[0] * 0x9E3779B97F4A7C15u ^ k[1] * 0xD6E8FEB86659FD93u;

    h = (h ^ h >> 32) * 0x9E3779B97F4A7C15u;
    return c->shorts + 2 * (h >> (64 - c->short_bits));
}

/**
 * Looks a word up.
 * @param room  bytes that may be read at s; >= n
 * @param ids   out, room for WORD_IDS_MAX whatever the word
 * @return how many ids; 0: not known
 */
static inline size_t word_cache_find_short(const struct word_cache *c, const uint8_t *s, size_t n,
                                           size_t room, uint32_t *ids)
{
    uint64_t key[2];
    const struct word_short *w;
    uint32_t k;

    word_short_key(s, n, room, key);
    w = word_short_bucket(c, key);
    if (w->key[0] != key[0] || w->key[1] != key[1]) {
        w++;
        if (w->key[0] != key[0] || w->key[1] != key[1])
            return 0;
    }
    k = w->ids[0] >> 24;
    memcpy(ids, w->ids, sizeof(w->ids));
    ids[0] &= 0xFFFFFF;
    return k;
}

/** The same for words of 16 to WORD_LONG_MAX bytes. */
size_t word_cache_find_long(const struct word_cache *c, const uint8_t *s, size_t n, uint32_t *ids);

/** Remembers a word, when it and its ids are short enough; ids below 2^24. */
void word_cache_put(struct word_cache *c, const uint8_t *s, size_t n, const uint32_t *ids,
                    size_t n_ids);

#endif
