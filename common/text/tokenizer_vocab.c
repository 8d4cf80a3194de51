#include "common/text/tokenizer_vocab.h"

#include "common/base/utf8.h"

#include <stdlib.h>

void vocab_deinit(struct vocab *v)
{
    free(v->bytes);
    free(v->tokens);
    free(v->index);
    free(v->merges);
    *v = (struct vocab){0};
}

enum status_code vocab_init(struct vocab *v, size_t file_bytes, struct status *st)
{
    *v = (struct vocab){.bytes = malloc(file_bytes + 8)};
    if (v->bytes == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for %zu bytes", file_bytes);
    return status_ok(st);
}

uint32_t vocab_put(struct vocab *v, const char *bytes, size_t len)
{
    uint32_t pos = (uint32_t)v->n_bytes;

    memcpy(v->bytes + pos, bytes, len);
    v->n_bytes += len;
    return pos;
}

/*
 * Byte-level characters: a vocabulary string spells each byte as one character, printable ones of
 * Latin-1 as themselves, the other 68 as U+0100, U+0101, ...
 */
enum { N_BYTE_CHARS = 0x144 };

struct byte_chars {
    int16_t of[N_BYTE_CHARS]; /* the byte, or -1 */
};

static void byte_chars_init(struct byte_chars *map)
{
    int next = 0x100;

    memset(map, 0xFF, sizeof(*map));
    for (int byte = 0; byte < 256; byte++) {
        bool printable =
            (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
        map->of[printable ? byte : next++] = (int16_t)byte;
    }
}

/* Appends what a byte-level string stands for; false, and nothing appended, when it is none. */
static bool append_bytes(const struct byte_chars *map, const char *text, size_t len,
                         struct vocab *v)
{
    const uint8_t *s = (const uint8_t *)text;
    uint8_t *out = v->bytes + v->n_bytes;

    for (size_t i = 0; i < len;) {
        uint32_t cp = s[i];
        size_t step = 1;
        if (cp >= 0x80) {
            if (cp < 0xC2 || cp > 0xC5 || i + 1 == len || (s[i + 1] & 0xC0) != 0x80)
                return false;
            cp = (cp & 0x1F) << 6 | (s[i + 1] & 0x3F);
            step = 2;
        }
        if (cp >= N_BYTE_CHARS || map->of[cp] < 0)
            return false;
        *out++ = (uint8_t)map->of[cp];
        i += step;
    }
    v->n_bytes = (size_t)(out - v->bytes);
    return true;
}

/* Eight bytes of vocab.bytes, those from n on as zeros; behind the end there are eight to spare. */
static uint64_t load8(const uint8_t *s, size_t n)
{
    uint64_t w;

    memcpy(&w, s, 8);
    return n >= 8 ? w : w & (((uint64_t)1 << 8 * n) - 1);
}

static uint64_t hash_bytes(const uint8_t *s, size_t n)
{
    uint64_t h = n * 0x9E3779B97F4A7C15u;

    for (; n > 8; s += 8, n -= 8) {
        h = (h ^ load8(s, 8)) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    h = (h ^ load8(s, n)) * 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
}

static bool same_bytes(const uint8_t *a, const uint8_t *b, size_t n)
{
    return load8(a, n) == load8(b, n) && (n <= 8 || memcmp(a + 8, b + 8, n - 8) == 0);
}

/* The slot of these bytes: the token's, or the free one where it would stand. */
static uint64_t *find(const struct vocab *v, const uint8_t *s, size_t n, uint64_t hash)
{
    for (uint64_t i = hash & v->index_mask;; i = (i + 1) & v->index_mask) {
        uint64_t entry = v->index[i];
        const struct vocab_token *t;
        if (entry == 0)
            return &v->index[i];
        t = &v->tokens[(uint32_t)entry - 1];
        if (entry >> 32 == hash >> 32 && t->len == n && same_bytes(v->bytes + t->pos, s, n))
            return &v->index[i];
    }
}

struct vocab_token *vocab_at(struct vocab *v, uint32_t id)
{
    if (id >= v->cap) {
        uint32_t cap = v->cap ? v->cap : 1 << 12;
        struct vocab_token *grown;
        while (cap <= id)
            cap *= 2;
        grown = realloc(v->tokens, cap * sizeof(*grown));
        if (grown == NULL)
            return NULL;
        v->tokens = grown;
        for (uint32_t i = v->cap; i < cap; i++)
            grown[i] = (struct vocab_token){.pos = VOCAB_NOWHERE};
        v->cap = cap;
    }
    if (id >= v->n)
        v->n = id + 1;
    return &v->tokens[id];
}

static bool no_memory(struct status *st)
{
    status_set(st, ST_EXHAUSTED, "no memory for the vocabulary");
    return false;
}

/* The index is made when the vocabulary is complete, so that it has its size at once. */
static bool index_vocab(struct vocab *v, struct status *st)
{
    uint64_t size = 512;

    while (size < 2 * (uint64_t)v->n)
        size *= 2;
    v->index = calloc(size, sizeof(*v->index));
    if (v->index == NULL)
        return no_memory(st);
    v->index_mask = size - 1;
    for (uint32_t id = 0; id < v->n; id++) {
        const struct vocab_token *t = &v->tokens[id];
        uint64_t hash, *slot;
        if (!t->byte_level)
            continue;
        hash = hash_bytes(v->bytes + t->pos, t->len);
        slot = find(v, v->bytes + t->pos, t->len, hash);
        if (*slot != 0) {
            status_set(st, ST_INVALID, "model.vocab: ids %u and %u are the same string",
                       (uint32_t)*slot - 1, id);
            return false;
        }
        *slot = hash >> 32 << 32 | (id + 1);
    }
    return true;
}

/* One string and its id. */
static bool read_entry(struct scan *s, const struct byte_chars *map, struct vocab *v)
{
    const char *text;
    size_t len, pos = v->n_bytes;
    struct vocab_token *t;
    uint32_t id;
    bool byte_level;

    if (!scan_string(s, &text, &len))
        return false;
    byte_level = append_bytes(map, text, len, v);
    if (!byte_level && utf8_valid_prefix(text, len) != len) {
        status_set(s->st, ST_INVALID, "model.vocab: invalid UTF-8 before byte %zu", s->pos);
        return false;
    }
    if (!byte_level)
        vocab_put(v, text, len);
    if (!scan_expect(s, ':') || !scan_number(s, BPE_MAX_TOKENS - 1, &id))
        return false;
    if (len == 0 || len > VOCAB_MAX_STRING) {
        status_set(s->st, ST_INVALID, "model.vocab: id %u is a string of %zu bytes", id, len);
        return false;
    }
    t = vocab_at(v, id);
    if (t == NULL)
        return no_memory(s->st);
    if (t->pos != VOCAB_NOWHERE) {
        status_set(s->st, ST_INVALID, "model.vocab: id %u is given twice", id);
        return false;
    }
    *t = (struct vocab_token){.pos = (uint32_t)pos,
                              .len = (uint32_t)(v->n_bytes - pos) & 0xFFFFFF,
                              .in_vocab = true,
                              .byte_level = byte_level};
    return true;
}

bool vocab_read(struct scan *s, struct vocab *v)
{
    struct byte_chars map;

    byte_chars_init(&map);
    if (!scan_expect(s, '{'))
        return false;
    do {
        if (!read_entry(s, &map, v))
            return false;
    } while (scan_accept(s, ','));
    return scan_expect(s, '}') && index_vocab(v, s->st);
}

/* The id of these bytes, which stand in v->bytes; or BPE_NONE. */
static uint32_t find_id(const struct vocab *v, const uint8_t *s, size_t n)
{
    return (uint32_t)*find(v, s, n, hash_bytes(s, n)) - 1;
}

uint32_t vocab_find_byte(const struct vocab *v, uint8_t byte)
{
    const uint8_t s[8] = {byte};

    return find_id(v, s, 1);
}

/* A merge as it was read: where the left part, the right part and their end stand in v->bytes, and
 * the hashes that the index is asked for. */
struct read_merge {
    uint32_t start, middle, end;
    uint64_t left_hash, right_hash;
};

bool vocab_has(struct vocab *v, const char *text, size_t len)
{
    size_t n_bytes = v->n_bytes;
    struct byte_chars map;
    bool found = false;

    byte_chars_init(&map);
    if (append_bytes(&map, text, len, v))
        found = find_id(v, v->bytes + n_bytes, v->n_bytes - n_bytes) != BPE_NONE;
    v->n_bytes = n_bytes;
    return found;
}

static bool refuse_merge(struct scan *s, uint32_t i, const char *why)
{
    status_set(s->st, ST_INVALID, "model.merges[%u]: %s", i, why);
    return false;
}

/* Appends one merge's bytes, "left right" or ["left", "right"]. */
static bool read_merge(struct scan *s, const struct byte_chars *map, struct vocab *v, uint32_t i,
                       struct read_merge *out)
{
    const char *text, *blank;
    size_t len, left_len;
    bool pair = scan_accept(s, '['), ok;

    out->start = (uint32_t)v->n_bytes;
    if (!scan_string(s, &text, &len))
        return false;
    if (pair) {
        ok = append_bytes(map, text, len, v);
        out->middle = (uint32_t)v->n_bytes;
        if (!scan_expect(s, ',') || !scan_string(s, &text, &len))
            return false;
        ok = ok && append_bytes(map, text, len, v);
        if (!scan_expect(s, ']'))
            return false;
    } else {
        blank = memchr(text, ' ', len);
        if (blank == NULL)
            return refuse_merge(s, i, "expected two strings with a blank between them");
        left_len = (size_t)(blank - text);
        ok = append_bytes(map, text, left_len, v);
        out->middle = (uint32_t)v->n_bytes;
        ok = ok && append_bytes(map, blank + 1, len - left_len - 1, v);
    }
    out->end = (uint32_t)v->n_bytes;
    if (!ok)
        return refuse_merge(s, i, "a part is not spelled in byte-level characters");
    out->left_hash = hash_bytes(v->bytes + out->start, out->middle - out->start);
    out->right_hash = hash_bytes(v->bytes + out->middle, out->end - out->middle);
    __builtin_prefetch(&v->index[out->left_hash & v->index_mask]);
    __builtin_prefetch(&v->index[out->right_hash & v->index_mask]);
    return true;
}

/* Trained files number their tokens in the order of the merges: look at the next id first. */
static uint32_t find_whole(const struct vocab *v, const uint8_t *s, size_t n)
{
    uint32_t next = v->n_merges > 0 ? v->merges[v->n_merges - 1].whole + 1 : 0;
    const struct vocab_token *t = &v->tokens[next < v->n ? next : 0];

    if (next < v->n && t->byte_level && t->len == n && same_bytes(v->bytes + t->pos, s, n))
        return next;
    return find_id(v, s, n);
}

static void prefetch_token(const struct vocab *v, uint64_t hash)
{
    uint64_t entry = v->index[hash & v->index_mask];

    if (entry != 0)
        __builtin_prefetch(&v->tokens[(uint32_t)entry - 1]);
}

/* Looks the parts of a few merges up: all together, so that they wait for memory together. */
static bool find_merges(struct scan *s, struct vocab *v, const struct read_merge *m, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        prefetch_token(v, m[i].left_hash);
        prefetch_token(v, m[i].right_hash);
    }
    for (unsigned i = 0; i < n; i++) {
        const uint8_t *start = v->bytes + m[i].start, *middle = v->bytes + m[i].middle;
        uint32_t left = (uint32_t)*find(v, start, (size_t)(middle - start), m[i].left_hash) - 1;
        uint32_t right = (uint32_t)*find(v, middle, m[i].end - m[i].middle, m[i].right_hash) - 1;
        uint32_t whole = find_whole(v, start, m[i].end - m[i].start);
        if (left == BPE_NONE || right == BPE_NONE || whole == BPE_NONE)
            return refuse_merge(s, v->n_merges, "a part or the whole is not in model.vocab");
        v->merges[v->n_merges++] = (struct bpe_merge){left, right, whole};
    }
    return true;
}

static bool reserve_merges(struct vocab *v, uint32_t n)
{
    uint32_t cap = v->merges_cap ? 2 * v->merges_cap : 1 << 12;
    void *grown;

    if (v->merges_cap - v->n_merges >= n)
        return true;
    grown = realloc(v->merges, cap * sizeof(*v->merges));
    if (grown == NULL)
        return false;
    v->merges = grown;
    v->merges_cap = cap;
    return true;
}

bool vocab_read_merges(struct scan *s, struct vocab *v)
{
    enum { TOGETHER = 16 };
    struct read_merge few[TOGETHER];
    struct byte_chars map;
    size_t n_bytes = v->n_bytes; /* the merges' bytes are only looked up, then dropped */
    bool more = true;

    byte_chars_init(&map);
    if (!scan_expect(s, '['))
        return false;
    if (scan_accept(s, ']'))
        return true;
    while (more) {
        unsigned n = 0;
        if (v->n_merges > BPE_MAX_MERGES - TOGETHER)
            return refuse_merge(s, v->n_merges, "more merges than are supported");
        for (; more && n < TOGETHER; n++, more = scan_accept(s, ','))
            if (!read_merge(s, &map, v, v->n_merges + n, &few[n]))
                return false;
        if (!reserve_merges(v, n))
            return no_memory(s->st);
        if (!find_merges(s, v, few, n))
            return false;
        v->n_bytes = n_bytes;
    }
    return scan_expect(s, ']');
}
