#include "common/text/tokenizer_json.h"

#include "common/base/json.h"
#include "common/text/bpe_build.h"
#include "common/text/tokenizer_parts.h"
#include "common/text/tokenizer_vocab.h"
#include "common/base/utf8.h"

#include <stdio.h>
#include <stdlib.h>

/* The file while it is read: where its parts stand, in whatever order they came. */
struct part {
    const char *text; /* NULL: absent */
    size_t len;
};

struct reader {
    struct scan scan;
    struct vocab vocab;
    struct part added_tokens, merges;
    bool has_model, has_pre_tokenizer, has_decoder;
    uint32_t n_added;
    struct status *st;
};

static bool is_absent(const struct json *v)
{
    return v == NULL || v->type == JSON_NULL;
}

static bool is_bool(const struct json *v, enum json_type which)
{
    return v != NULL && v->type == which;
}

static bool key_is(const char *key, size_t len, const char *name)
{
    return strlen(name) == len && memcmp(key, name, len) == 0;
}

static bool repeated(struct reader *r, const char *what)
{
    status_set(r->st, ST_INVALID, "%s is there twice", what);
    return false;
}

static bool read_model(struct reader *r)
{
    struct scan *s = &r->scan;

    if (r->has_model)
        return repeated(r, "model");
    r->has_model = true;
    if (!scan_expect(s, '{'))
        return false;
    do {
        const char *key;
        size_t len;
        bool ok;

        if (!scan_string(s, &key, &len) || !scan_expect(s, ':'))
            return false;
        if (key_is(key, len, "vocab"))
            ok = r->vocab.n > 0 ? repeated(r, "model.vocab") : vocab_read(s, &r->vocab);
        else if (key_is(key, len, "merges"))
            ok = r->merges.text != NULL ? repeated(r, "model.merges")
                 : r->vocab.n > 0       ? (r->merges.text = s->s, vocab_read_merges(s, &r->vocab))
                                        : scan_skip(s, &r->merges.text, &r->merges.len);
        else
            ok = tokenizer_part_check(TOKENIZER_MODEL_PARTS, key, len, s);
        if (!ok)
            return false;
    } while (scan_accept(s, ','));
    return scan_expect(s, '}');
}

static bool read_top(struct reader *r)
{
    struct scan *s = &r->scan;

    if (!scan_expect(s, '{'))
        return false;
    do {
        const char *key;
        size_t len;
        bool ok;

        if (!scan_string(s, &key, &len) || !scan_expect(s, ':'))
            return false;
        if (key_is(key, len, "model"))
            ok = read_model(r);
        else if (key_is(key, len, "added_tokens"))
            ok = r->added_tokens.text != NULL
                     ? repeated(r, "added_tokens")
                     : scan_skip(s, &r->added_tokens.text, &r->added_tokens.len);
        else {
            r->has_pre_tokenizer |= key_is(key, len, "pre_tokenizer");
            r->has_decoder |= key_is(key, len, "decoder");
            ok = tokenizer_part_check(TOKENIZER_TOP_PARTS, key, len, s);
        }
        if (!ok)
            return false;
    } while (scan_accept(s, ','));
    if (!scan_expect(s, '}'))
        return false;
    scan_peek(s);
    if (s->pos != s->n) {
        status_set(r->st, ST_INVALID, "byte %zu: text after the end of the object", s->pos);
        return false;
    }
    return true;
}

static bool check_parts(struct reader *r)
{
    const struct vocab *v = &r->vocab;

    if (!r->has_model || v->n == 0 || r->merges.text == NULL) {
        status_set(r->st, ST_INVALID, "%s is missing",
                   !r->has_model ? "model"
                   : v->n == 0   ? "model.vocab"
                                 : "model.merges");
        return false;
    }
    if (!r->has_pre_tokenizer || !r->has_decoder) {
        status_set(r->st, ST_INVALID, "%s is missing",
                   r->has_decoder ? "pre_tokenizer" : "decoder");
        return false;
    }
    return true;
}

/* Merges that stood before the vocabulary. */
static bool read_late_merges(struct reader *r)
{
    struct scan *s = &r->scan;

    if (r->merges.len == 0)
        return true;
    s->pos = (size_t)(r->merges.text - s->s);
    return vocab_read_merges(s, &r->vocab);
}

static bool refuse_added(struct reader *r, uint32_t i, const char *why)
{
    status_set(r->st, ST_INVALID, "added_tokens[%u]: %s", i, why);
    return false;
}

static bool read_added_token(struct reader *r, uint32_t i, const struct json *v)
{
    static const char *const conditions[] = {"single_word", "lstrip", "rstrip"};
    const struct json *content = json_get(v, "content"), *special = json_get(v, "special"),
                      *normalized = json_get(v, "normalized");
    struct vocab *vocab = &r->vocab;
    struct vocab_token *t;
    int64_t id;

    if (!json_int(json_get(v, "id"), &id) || id < 0 || id >= BPE_MAX_TOKENS)
        return refuse_added(r, i, "id is missing or not a number from 0 to 1048575");
    if (content == NULL || content->type != JSON_STRING || content->len == 0 ||
        content->len > VOCAB_MAX_STRING)
        return refuse_added(r, i, "content is missing, empty or longer than a megabyte");
    for (int c = 0; c < 3; c++)
        if (!is_absent(json_get(v, conditions[c])) &&
            !is_bool(json_get(v, conditions[c]), JSON_FALSE)) {
            status_set(r->st, ST_INVALID,
                       "added_tokens[%u] \"%s\": %s is not supported (supported: "
                       "false)",
                       i, content->text, conditions[c]);
            return false;
        }
    if (normalized == NULL || (normalized->type != JSON_TRUE && normalized->type != JSON_FALSE))
        return refuse_added(r, i, "normalized is missing or neither true nor false");
    t = vocab_at(vocab, (uint32_t)id);
    if (t == NULL) {
        status_set(r->st, ST_EXHAUSTED, "no memory for added tokens");
        return false;
    }
    if (t->flags & TOKEN_ADDED)
        return refuse_added(r, i, "another added token has the same id");
    if (t->in_vocab) {
        if (t->len != content->len || memcmp(vocab->bytes + t->pos, content->text, t->len) != 0)
            return refuse_added(r, i, "model.vocab gives its id to another string");
    } else if (vocab_has(vocab, content->text, content->len)) {
        return refuse_added(r, i, "model.vocab gives its string another id");
    } else {
        t->pos = vocab_put(vocab, content->text, content->len);
        t->len = content->len & 0xFFFFFF;
    }
    t->flags = is_bool(special, JSON_TRUE) ? TOKEN_ADDED | TOKEN_SPECIAL : TOKEN_ADDED;
    t->normalized = normalized->type == JSON_TRUE;
    r->n_added++;
    return true;
}

static bool read_added_tokens(struct reader *r)
{
    const struct json *list;
    struct json_doc *doc;
    bool ok = true;

    if (r->added_tokens.text == NULL)
        return true;
    if (json_parse(r->added_tokens.text, r->added_tokens.len, 0, &doc, r->st) != ST_OK) {
        status_wrap(r->st, "added_tokens");
        return false;
    }
    list = json_root(doc);
    if (list->type != JSON_ARRAY) {
        status_set(r->st, ST_INVALID, "added_tokens is no array");
        ok = false;
    }
    for (uint32_t i = 0; ok && i < list->len; i++)
        ok = read_added_token(r, i, &list->items[i]);
    json_free(doc);
    return ok;
}

/* The id space has no holes. */
static bool check_ids(struct reader *r)
{
    const struct vocab *v = &r->vocab;

    for (uint32_t id = 0; id < v->n; id++)
        if (v->tokens[id].pos == VOCAB_NOWHERE) {
            status_set(r->st, ST_INVALID,
                       "no token has the id %u: ids with holes are not supported", id);
            return false;
        }
    return true;
}

static void *section(struct image *image, enum image_section which, size_t bytes)
{
    image->sections[which].data = malloc(bytes ? bytes : 1);
    image->sections[which].bytes = bytes;
    return image->sections[which].data;
}

/* Lays the tokens' bytes out by id. */
static bool write_tokens(struct reader *r, struct image *image, struct bpe *b)
{
    const struct vocab *v = &r->vocab;
    uint32_t *offsets, *byte_ids;
    uint8_t *bytes, *flags;
    size_t total = 0;

    for (uint32_t id = 0; id < v->n; id++)
        total += v->tokens[id].len;
    offsets = section(image, IMAGE_OFFSETS, ((size_t)v->n + 1) * sizeof(*offsets));
    bytes = section(image, IMAGE_BYTES, total);
    flags = section(image, IMAGE_FLAGS, v->n);
    byte_ids = section(image, IMAGE_BYTE_IDS, 256 * sizeof(*byte_ids));
    if (offsets == NULL || bytes == NULL || flags == NULL || byte_ids == NULL) {
        status_set(r->st, ST_EXHAUSTED, "no memory for %u tokens", v->n);
        return false;
    }
    total = 0;
    for (uint32_t id = 0; id < v->n; id++) {
        const struct vocab_token *t = &v->tokens[id];
        offsets[id] = (uint32_t)total;
        memcpy(bytes + total, v->bytes + t->pos, t->len);
        flags[id] = t->flags;
        if (utf8_valid_prefix((const char *)bytes + total, t->len) == t->len)
            flags[id] |= TOKEN_CHARACTERS;
        total += t->len;
    }
    offsets[v->n] = (uint32_t)total;
    for (uint32_t c = 0; c < 256; c++) {
        byte_ids[c] = vocab_find_byte(v, (uint8_t)c);
        if (byte_ids[c] == BPE_NONE) {
            status_set(r->st, ST_INVALID, "model.vocab: no token for the byte 0x%02X", c);
            return false;
        }
    }
    *b = (struct bpe){.n_tokens = v->n, .offsets = offsets, .bytes = bytes, .byte_ids = byte_ids};
    return true;
}

static void hand_over(struct image *image, enum image_section which, void *data, size_t bytes)
{
    image->sections[which].data = data;
    image->sections[which].bytes = bytes;
}

static bool write_bpe(struct reader *r, struct image *image, const struct bpe *b)
{
    const struct vocab *v = &r->vocab;
    struct image_meta *meta = section(image, IMAGE_META, sizeof(*meta));
    struct bpe_tables t;

    if (meta == NULL) {
        status_set(r->st, ST_EXHAUSTED, "no memory for a tokenizer");
        return false;
    }
    if (bpe_build(b, v->merges, v->n_merges, &t, r->st) != ST_OK) {
        status_wrap(r->st, "model.merges");
        return false;
    }
    *meta = (struct image_meta){
        .n_tokens = v->n, .n_merges = v->n_merges, .n_added = r->n_added, .linear = t.linear};
    hand_over(image, IMAGE_TOKENS, t.tokens, v->n * sizeof(*t.tokens));
    hand_over(image, IMAGE_PREFIXES, t.prefixes, v->n * sizeof(*t.prefixes));
    hand_over(image, IMAGE_MERGED, t.merged, v->n_merges * sizeof(*t.merged));
    hand_over(image, IMAGE_PAIRS, t.pairs, t.n_pairs * sizeof(*t.pairs));
    hand_over(image, IMAGE_FILTER, t.filter, t.n_filter * sizeof(*t.filter));
    hand_over(image, IMAGE_TRIE, t.trie, 2 * t.n_trie * sizeof(*t.trie));
    return true;
}

/* The added tokens of one pass. */
static bool write_added(struct reader *r, struct image *image, enum image_section which,
                        bool normalized)
{
    const struct vocab *v = &r->vocab;
    struct trie_key *keys = malloc((r->n_added + 1) * sizeof(*keys));
    uint32_t *slots;
    size_t n = 0, n_slots;
    bool ok;

    if (keys == NULL) {
        status_set(r->st, ST_EXHAUSTED, "no memory for added tokens");
        return false;
    }
    for (uint32_t id = 0; id < v->n; id++) {
        const struct vocab_token *t = &v->tokens[id];
        if ((t->flags & TOKEN_ADDED) && t->normalized == normalized)
            keys[n++] = (struct trie_key){v->bytes + t->pos, t->len, id};
    }
    ok = trie_build(keys, n, NULL, &slots, &n_slots, r->st) == ST_OK;
    if (ok)
        hand_over(image, which, slots, 2 * n_slots * sizeof(*slots));
    else
        status_wrap(r->st, "added_tokens");
    free(keys);
    return ok;
}

enum status_code tokenizer_json_read(const char *text, size_t len, struct image *out,
                                     struct status *st)
{
    struct reader r = {.scan = {.s = text, .n = len, .st = st}, .st = st};
    struct image image = {0};
    struct bpe b;

    if (len >= UINT32_MAX / 2)
        return status_set(st, ST_INVALID, "%zu bytes are too many for a tokenizer.json", len);
    if (vocab_init(&r.vocab, len, st) != ST_OK)
        return st->code;
    status_ok(st);
    if (read_top(&r) && check_parts(&r) && read_late_merges(&r) && read_added_tokens(&r) &&
        check_ids(&r) && write_tokens(&r, &image, &b) && write_bpe(&r, &image, &b) &&
        write_added(&r, &image, IMAGE_ADDED_FIRST, false) &&
        write_added(&r, &image, IMAGE_ADDED_SECOND, true)) {
        *out = image;
        image = (struct image){0};
        status_ok(st);
    }
    image_deinit(&image);
    vocab_deinit(&r.vocab);
    scan_deinit(&r.scan);
    return st->code;
}
