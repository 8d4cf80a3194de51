#include "common/text/tokenizer_vocab.h"

#include "common/text/unicode.h"

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
    *v = (struct vocab){.bytes = malloc(file_bytes + 1)};
    if (v->bytes == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for %zu bytes", file_bytes);
    return status_ok(st);
}

size_t vocab_put(struct vocab *v, const char *bytes, size_t len)
{
    size_t pos = v->n_bytes;

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

static uint64_t hash_bytes(const uint8_t *s, size_t n)
{
    uint64_t h = n * 0x9E3779B97F4A7C15u, w;

    for (; n > 8; s += 8, n -= 8) {
        memcpy(&w, s, 8);
        h = (h ^ w) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    w = 0;
    memcpy(&w, s, n);
    h = (h ^ w) * 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
}

/* The slot of these bytes: the token's, or the free one where it would stand. */
static uint32_t *find(const struct vocab *v, const uint8_t *s, size_t n)
{
    for (uint64_t i = hash_bytes(s, n) & v->index_mask;; i = (i + 1) & v->index_mask) {
        uint32_t id = v->index[i];
        if (id == 0 ||
            (v->tokens[id - 1].len == n && memcmp(v->bytes + v->tokens[id - 1].pos, s, n) == 0))
            return &v->index[i];
    }
}

struct vocab_token *vocab_at(struct vocab *v, uint32_t id)
{
    if (id >= v->cap) {
        uint32_t cap = v->cap ? v->cap : 1 << 17;
        struct vocab_token *grown;
        while (cap <= id)
            cap *= 2;
        grown = realloc(v->tokens, cap * sizeof(*grown));
        if (grown == NULL)
            return NULL;
        v->tokens = grown;
        for (uint32_t i = v->cap; i < cap; i++)
            grown[i] = (struct vocab_token){.pos = SIZE_MAX};
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

    while (size < 3 * (uint64_t)v->n)
        size *= 2;
    v->index = calloc(size, sizeof(*v->index));
    if (v->index == NULL)
        return no_memory(st);
    v->index_mask = size - 1;
    for (uint32_t id = 0; id < v->n; id++) {
        const struct vocab_token *p = &v->tokens[id];
        uint32_t *slot;
        if (!p->byte_level)
            continue;
        slot = find(v, v->bytes + p->pos, p->len);
        if (*slot != 0) {
            status_set(st, ST_INVALID, "model.vocab: ids %u and %u are the same string", *slot - 1,
                       id);
            return false;
        }
        *slot = id + 1;
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
    if (!byte_level && utf8_valid_len((const uint8_t *)text, len) != len) {
        status_set(s->st, ST_INVALID, "model.vocab: invalid UTF-8 before byte %zu", s->pos);
        return false;
    }
    if (!byte_level)
        vocab_put(v, text, len);
    if (!scan_expect(s, ':') || !scan_number(s, BPE_MAX_TOKENS - 1, &id))
        return false;
    if (len == 0) {
        status_set(s->st, ST_INVALID, "model.vocab: id %u is the empty string", id);
        return false;
    }
    t = vocab_at(v, id);
    if (t == NULL)
        return no_memory(s->st);
    if (t->pos != SIZE_MAX) {
        status_set(s->st, ST_INVALID, "model.vocab: id %u is given twice", id);
        return false;
    }
    *t = (struct vocab_token){.pos = pos,
                              .len = (uint32_t)(v->n_bytes - pos),
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

uint32_t vocab_find(const struct vocab *v, const uint8_t *bytes, size_t len)
{
    return *find(v, bytes, len) - 1;
}

static bool refuse_merge(struct scan *s, const struct vocab *v, const char *why)
{
    status_set(s->st, ST_INVALID, "model.merges[%u] (before byte %zu): %s", v->n_merges, s->pos,
               why);
    return false;
}

/* Trained files number their tokens in the order of the merges: look at the next id first. */
static uint32_t find_whole(const struct vocab *v, const uint8_t *s, size_t n)
{
    uint32_t next = v->n_merges > 0 ? v->merges[v->n_merges - 1].whole + 1 : 0;
    const struct vocab_token *t = &v->tokens[next];

    if (next < v->n && t->byte_level && t->len == n && memcmp(v->bytes + t->pos, s, n) == 0)
        return next;
    return vocab_find(v, s, n);
}

/* One merge: "left right" or ["left", "right"]. The decoded bytes are only looked up; the room
 * behind the vocabulary's bytes is lent for that. */
static bool read_merge(struct scan *s, const struct byte_chars *map, struct vocab *v)
{
    const char *text, *blank;
    size_t len, start = v->n_bytes, middle, end;
    uint32_t left, right, whole;
    bool pair = scan_accept(s, '['), ok;

    if (!scan_string(s, &text, &len))
        return false;
    if (pair) {
        ok = append_bytes(map, text, len, v);
        middle = v->n_bytes;
        if (!scan_expect(s, ',') || !scan_string(s, &text, &len))
            return false;
        ok = ok && append_bytes(map, text, len, v);
        if (!scan_expect(s, ']'))
            return false;
    } else {
        blank = memchr(text, ' ', len);
        if (blank == NULL)
            return refuse_merge(s, v, "expected two strings with a blank between them");
        ok = append_bytes(map, text, (size_t)(blank - text), v);
        middle = v->n_bytes;
        ok = ok && append_bytes(map, blank + 1, len - (size_t)(blank - text) - 1, v);
    }
    end = v->n_bytes;
    v->n_bytes = start;
    if (!ok)
        return refuse_merge(s, v, "a part is not spelled in byte-level characters");
    left = vocab_find(v, v->bytes + start, middle - start);
    right = vocab_find(v, v->bytes + middle, end - middle);
    whole = find_whole(v, v->bytes + start, end - start);
    if (left == BPE_NONE || right == BPE_NONE || whole == BPE_NONE)
        return refuse_merge(s, v, "a part or the whole is not in model.vocab");
    v->merges[v->n_merges++] = (struct bpe_merge){left, right, whole};
    return true;
}

bool vocab_read_merges(struct scan *s, struct vocab *v)
{
    struct byte_chars map;

    byte_chars_init(&map);
    if (!scan_expect(s, '['))
        return false;
    if (scan_accept(s, ']'))
        return true;
    do {
        if (v->n_merges == v->merges_cap) {
            uint32_t cap = v->merges_cap ? 2 * v->merges_cap : 1 << 17;
            void *grown =
                cap > 2 * BPE_MAX_MERGES ? NULL : realloc(v->merges, cap * sizeof(*v->merges));
            if (grown == NULL)
                return no_memory(s->st);
            v->merges = grown;
            v->merges_cap = cap;
        }
        if (v->n_merges == BPE_MAX_MERGES)
            return refuse_merge(s, v, "more merges than are supported");
        if (!read_merge(s, &map, v))
            return false;
    } while (scan_accept(s, ','));
    return scan_expect(s, ']');
}
