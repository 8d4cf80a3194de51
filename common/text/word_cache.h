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

/* The word, zeros, and in the last byte its length; all zeros: free. The number of ids stands in
 * the upper byte of the first. */
struct word_short {
    uint64_t key[2];
    uint32_t ids[WORD_SHORT_IDS];
};

struct word_long {
    uint8_t key[WORD_LONG_MAX];
    uint8_t len;
    uint32_t ids[WORD_LONG_IDS];
};

struct word_cache {
    struct word_short *shorts; /* [2 << short_bits] */
    struct word_long *longs;   /* [2 << long_bits] */
    unsigned short_bits, long_bits;
};

/* A word that will be looked up, and where. */
struct word {
    const uint8_t *s; /* borrowed */
    size_t n;
    uint64_t key[2]; /* short words */
    void *bucket;    /* two entries; NULL: too long for the cache */
};

/** @param cap_bytes  the most memory it may take; at least 64 KiB are taken */
enum status_code word_cache_init(struct word_cache *c, size_t cap_bytes, struct status *st);
void word_cache_deinit(struct word_cache *c);

/** Forgets everything. */
void word_cache_clear(struct word_cache *c);

/** Bytes of memory taken. */
size_t word_cache_bytes(const struct word_cache *c);

/* The key of a word of 1 to 15 bytes; room bytes may be read at s. Little-endian, as all of this.
 */
static inline void word_short_key(const uint8_t *s, size_t n, size_t room, uint64_t key[2])
{
    static const uint8_t ones[32] = {255, 255, 255, 255, 255, 255, 255, 255,
                                     255, 255, 255, 255, 255, 255, 255, 255};
    uint64_t mask[2];

    if (room >= 16) {
        memcpy(key, s, 16);
        memcpy(mask, ones + 16 - n, 16);
        key[0] &= mask[0];
        key[1] &= mask[1];
    } else {
        key[0] = key[1] = 0;
        memcpy(key, s, n);
    }
    key[1] |= (uint64_t)n << 56; /* not as a byte: that store would hold up the loads of key */
}

/* n is 16 to WORD_LONG_MAX */
static inline uint64_t word_long_hash(const uint8_t *s, size_t n)
{
    uint64_t h = n, w;

    for (size_t i = 0; i + 8 < n; i += 8) {
        memcpy(&w, s + i, 8);
        h = (h ^ w) * 0x9E3779B97F4A7C15u;
        h ^= h >> 32;
    }
    memcpy(&w, s + n - 8, 8);
    return (h ^ w) * 0xD6E8FEB86659FD93u;
}

/**
 * Fills in w for a word of n > 0 bytes and starts to fetch its bucket: prepare a few words before
 * the first is looked up, so that none waits for memory.
 * @param room  bytes that may be read at s; >= n
 */
static inline void word_cache_prepare(const struct word_cache *c, const uint8_t *s, size_t n,
                                      size_t room, struct word *w)
{
    w->s = s;
    w->n = n;
    if (n <= WORD_SHORT_MAX) {
        uint64_t h;
        word_short_key(s, n, room, w->key);
        h = w->key[0] * 0x9E3779B97F4A7C15u ^ w->key[1] * 0xD6E8FEB86659FD93u;
        h = (h ^ h >> 32) * 0x9E3779B97F4A7C15u;
        w->bucket = c->shorts + 2 * (h >> (64 - c->short_bits));
        __builtin_prefetch(w->bucket);
    } else if (n <= WORD_LONG_MAX) {
        struct word_long *bucket = c->longs + 2 * (word_long_hash(s, n) >> (64 - c->long_bits));
        w->bucket = bucket;
        __builtin_prefetch(&bucket[0]);
        __builtin_prefetch(&bucket[1]);
    } else {
        w->bucket = NULL;
    }
}

/* Both entries of the bucket are compared: which of them it is cannot be predicted. */
static inline size_t word_find_short(const struct word *w, uint32_t *ids)
{
    const struct word_short *e = w->bucket;
    unsigned first = ((e[0].key[0] ^ w->key[0]) | (e[0].key[1] ^ w->key[1])) == 0;
    unsigned second = ((e[1].key[0] ^ w->key[0]) | (e[1].key[1] ^ w->key[1])) == 0;
    size_t k;

    if (!(first | second))
        return 0;
    e += second;
    k = e->ids[0] >> 24;
    memcpy(ids, e->ids, sizeof(e->ids));
    ids[0] &= 0xFFFFFF;
    return k;
}

static inline size_t word_find_long(const struct word *w, uint32_t *ids)
{
    const struct word_long *e = w->bucket;
    size_t k;

    if ((e->len != w->n || memcmp(e->key, w->s, w->n) != 0) &&
        ((++e)->len != w->n || memcmp(e->key, w->s, w->n) != 0))
        return 0;
    k = e->ids[0] >> 24;
    memcpy(ids, e->ids, sizeof(e->ids));
    ids[0] &= 0xFFFFFF;
    return k;
}

/**
 * Looks a prepared word up.
 * @param ids  out, room for WORD_IDS_MAX whatever the word
 * @return how many ids; 0: not known
 */
static inline size_t word_cache_find(const struct word *w, uint32_t *ids)
{
    if (w->n <= WORD_SHORT_MAX)
        return word_find_short(w, ids);
    return w->bucket != NULL ? word_find_long(w, ids) : 0;
}

/** Remembers a prepared word, when it and its ids are short enough; ids below 2^24. */
void word_cache_put(const struct word *w, const uint32_t *ids, size_t n_ids);

#endif
