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

void word_cache_put(const struct word *w, const uint32_t *ids, size_t n_ids)
{
    if (n_ids == 0 || w->bucket == NULL)
        return;
    if (w->n <= WORD_SHORT_MAX && n_ids <= WORD_SHORT_IDS) {
        struct word_short *bucket = w->bucket;
        struct word_short new = {.key = {w->key[0], w->key[1]}};
        memcpy(new.ids, ids, n_ids * sizeof(*ids));
        new.ids[0] |= (uint32_t)n_ids << 24;
        bucket[1] = bucket[0];
        bucket[0] = new;
    } else if (w->n > WORD_SHORT_MAX && n_ids <= WORD_LONG_IDS) {
        struct word_long *bucket = w->bucket;
        bucket[1] = bucket[0];
        memcpy(bucket->key, w->s, w->n);
        bucket->len = (uint8_t)w->n;
        memcpy(bucket->ids, ids, n_ids * sizeof(*ids));
        bucket->ids[0] |= (uint32_t)n_ids << 24;
    }
}
