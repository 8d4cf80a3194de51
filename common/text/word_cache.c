#include "common/text/word_cache.h"

#include <stdlib.h>

enum {
    MIN_BYTES = 64 << 10,
    SHORT_BUCKET = 2 * sizeof(struct word_short),
    LONG_BUCKET = 2 * sizeof(struct word_long)
};

enum status_code word_cache_init(struct word_cache *c, size_t cap_bytes, struct status *st)
{
    size_t cap = cap_bytes < MIN_BYTES ? MIN_BYTES : cap_bytes;

    *c = (struct word_cache){0};
    /* two thirds at most for short words, the rest for long ones, in powers of two */
    while (((size_t)SHORT_BUCKET << (c->short_bits + 1)) <= cap / 3 * 2)
        c->short_bits++;
    while (((size_t)LONG_BUCKET << (c->long_bits + 1)) <= cap / 3)
        c->long_bits++;
    c->shorts = aligned_alloc(64, (size_t)SHORT_BUCKET << c->short_bits);
    c->longs = aligned_alloc(64, (size_t)LONG_BUCKET << c->long_bits);
    if (c->shorts == NULL || c->longs == NULL) {
        word_cache_deinit(c);
        return status_set(st, ST_EXHAUSTED, "no memory for a word cache of %zu bytes", cap);
    }
    word_cache_clear(c);
    return status_ok(st);
}

void word_cache_deinit(struct word_cache *c)
{
    free(c->shorts);
    free(c->longs);
    *c = (struct word_cache){0};
}

void word_cache_clear(struct word_cache *c)
{
    memset(c->shorts, 0, (size_t)SHORT_BUCKET << c->short_bits);
    memset(c->longs, 0, (size_t)LONG_BUCKET << c->long_bits);
}

size_t word_cache_bytes(const struct word_cache *c)
{
    return ((size_t)SHORT_BUCKET << c->short_bits) + ((size_t)LONG_BUCKET << c->long_bits);
}

static void long_key(const uint8_t *s, size_t n, uint64_t key[8])
{
    memset(key, 0, 64);
    memcpy(key, s, n);
    ((uint8_t *)key)[63] = (uint8_t)n;
}

static struct word_long *long_bucket(const struct word_cache *c, const uint64_t key[8])
{
    uint64_t h = key[7];

    for (int i = 0; i < 7; i++)
        h = word_mix(h, key[i]);
    return c->longs + 2 * ((h * 0xD6E8FEB86659FD93u) >> (64 - c->long_bits));
}

size_t word_cache_find_long(const struct word_cache *c, const uint8_t *s, size_t n, uint32_t *ids)
{
    const struct word_long *w;
    uint64_t key[8];
    size_t k;

    long_key(s, n, key);
    w = long_bucket(c, key);
    if (memcmp(w->key, key, sizeof(key)) != 0 && memcmp((++w)->key, key, sizeof(key)) != 0)
        return 0;
    k = w->ids[0] >> 24;
    memcpy(ids, w->ids, k * sizeof(*ids));
    ids[0] &= 0xFFFFFF;
    return k;
}

void word_cache_put(struct word_cache *c, const uint8_t *s, size_t n, const uint32_t *ids,
                    size_t n_ids)
{
    if (n_ids == 0)
        return;
    if (n <= WORD_SHORT_MAX && n_ids <= WORD_SHORT_IDS) {
        struct word_short new = {.ids = {0}}, *bucket;
        word_short_key(s, n, n, new.key);
        memcpy(new.ids, ids, n_ids * sizeof(*ids));
        new.ids[0] |= (uint32_t)n_ids << 24;
        bucket = word_short_bucket(c, new.key);
        bucket[1] = bucket[0];
        bucket[0] = new;
    } else if (n > WORD_SHORT_MAX && n <= WORD_LONG_MAX && n_ids <= WORD_LONG_IDS) {
        struct word_long new = {.ids = {0}}, *bucket;
        long_key(s, n, new.key);
        memcpy(new.ids, ids, n_ids * sizeof(*ids));
        new.ids[0] |= (uint32_t)n_ids << 24;
        bucket = long_bucket(c, new.key);
        bucket[1] = bucket[0];
        bucket[0] = new;
    }
}
