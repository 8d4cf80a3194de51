#include "common/base/json.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/hash.h"
#include "common/base/json_bytes.h"
#include "common/base/utf8.h"

/* Documents up to this size; so every count fits 32 bits. */
#define TEXT_MAX ((size_t)1 << 31)

enum {
    CHUNK_BYTES_MIN = 256,
    CHUNK_BYTES_MAX = 1 << 20,
    INLINE_SLOTS = 32, /* scratch that needs no allocation: most documents and all small ones */
    INLINE_FRAMES = 16,
    LINEAR_KEYS_MAX = 12, /* objects up to this size look for repeated keys by comparing all */
};

/* Nodes live in chunks; all text of the document (decoded strings, spelled numbers) in one block,
 * which the length of the input bounds: a string loses its quotes and gains a NUL, a number gains a
 * NUL and is followed by a delimiter, except at the end of the text. */
struct chunk {
    struct chunk *next;
    size_t used, cap; /* bytes of data */
    _Alignas(16) char data[];
};

struct json_doc {
    struct json root;
    struct chunk *chunks;
    bool lone_surrogates;
    char text[];
};

/* An array or object that is still open. */
struct frame {
    uint32_t first : 31; /* its children begin at this slot */
    uint32_t is_object : 1;
};

struct parser {
    const char *begin, *p, *end;
    unsigned flags;
    struct json_doc *doc;
    char *text;                /* where the next decoded string goes */
    struct json_member *slots; /* children of the open containers, innermost last */
    size_t n_slots, slots_cap;
    struct frame *frames;
    size_t n_frames, frames_cap;
    uint32_t *hash; /* scratch of find_repeated_keys: slot number + 1, 0 is free */
    size_t hash_cap, hash_mask;
    uint64_t seed; /* of that hash; 0 until drawn */
    struct status *st;
    struct json_member inline_slots[INLINE_SLOTS];
    struct frame inline_frames[INLINE_FRAMES];
};

static bool fail_at(struct parser *ps, const char *at, const char *what)
{
    if (at == ps->end)
        status_set(ps->st, ST_INVALID, "JSON at byte %zu: %s, found the end of the text",
                   (size_t)(at - ps->begin), what);
    else if (*at > 0x20 && *at < 0x7f)
        status_set(ps->st, ST_INVALID, "JSON at byte %zu: %s, found '%c'", (size_t)(at - ps->begin),
                   what, *at);
    else
        status_set(ps->st, ST_INVALID, "JSON at byte %zu: %s, found byte 0x%02x",
                   (size_t)(at - ps->begin), what, (unsigned char)*at);
    return false;
}

static bool fail_memory(struct parser *ps, size_t bytes)
{
    status_set(ps->st, ST_EXHAUSTED, "no memory for %zu bytes of JSON", bytes);
    return false;
}

/* n bytes for nodes, aligned for them; NULL when memory is out. @param hint  of the first chunk's
 * size */
static void *doc_alloc(struct json_doc *doc, size_t hint, size_t n)
{
    struct chunk *c = doc->chunks;
    void *at;

    n = (n + 15) & ~(size_t)15;
    if (c == NULL || c->cap - c->used < n) {
        size_t cap = c == NULL ? hint : 2 * c->cap;

        if (cap > CHUNK_BYTES_MAX)
            cap = CHUNK_BYTES_MAX;
        if (cap < CHUNK_BYTES_MIN)
            cap = CHUNK_BYTES_MIN;
        if (cap < n)
            cap = n;
        c = malloc(sizeof(*c) + cap);
        if (c == NULL)
            return NULL;
        c->next = doc->chunks;
        c->used = 0;
        c->cap = cap;
        doc->chunks = c;
    }
    at = c->data + c->used;
    c->used += n;
    return at;
}

static void *node_alloc(struct parser *ps, size_t n)
{
    void *at = doc_alloc(ps->doc, 2 * (size_t)(ps->end - ps->begin), n);

    if (at == NULL)
        fail_memory(ps, n);
    return at;
}

void *json_alloc(struct json_doc *doc, size_t n)
{
    return doc_alloc(doc, CHUNK_BYTES_MIN, n);
}

/* Makes an array of scratch half as large again; it begins inline. */
static bool grow(struct parser *ps, void **array, const void *inlined, size_t *cap, size_t item)
{
    size_t new_cap = *cap + *cap / 2;
    void *p = realloc(*array == inlined ? NULL : *array, new_cap * item);

    if (p == NULL)
        return fail_memory(ps, new_cap * item);
    if (*array == inlined)
        memcpy(p, inlined, *cap * item);
    *array = p;
    *cap = new_cap;
    return true;
}

static bool slot_push(struct parser *ps, const struct json_member *m)
{
    if (ps->n_slots == ps->slots_cap &&
        !grow(ps, (void **)&ps->slots, ps->inline_slots, &ps->slots_cap, sizeof(*ps->slots)))
        return false;
    ps->slots[ps->n_slots++] = *m;
    return true;
}

static bool frame_push(struct parser *ps, bool is_object)
{
    if (ps->n_frames == ps->frames_cap &&
        !grow(ps, (void **)&ps->frames, ps->inline_frames, &ps->frames_cap, sizeof(*ps->frames)))
        return false;
    ps->frames[ps->n_frames++] =
        (struct frame){.first = (uint32_t)ps->n_slots, .is_object = is_object};
    return true;
}

static inline void skip_blanks(struct parser *ps)
{
    while (ps->p < ps->end && (*ps->p == ' ' || *ps->p == '\n' || *ps->p == '\r' || *ps->p == '\t'))
        ps->p++;
}

/* ---- strings and numbers: from the text to the document's text block ---- */

/* Four hex digits at s, or -1. */
static int32_t hex4(const char *s)
{
    int32_t v = 0;

    for (int i = 0; i < 4; i++) {
        char c = s[i];

        v <<= 4;
        if (c >= '0' && c <= '9')
            v |= c - '0';
        else if (c >= 'a' && c <= 'f')
            v |= c - 'a' + 10;
        else if (c >= 'A' && c <= 'F')
            v |= c - 'A' + 10;
        else
            return -1;
    }
    return v;
}

/* At 'u' of \uXXXX: writes the character (a pair of surrogate escapes is one). */
static bool parse_unicode_escape(struct parser *ps, char **out)
{
    const char *p = ps->p;
    int32_t c = ps->end - p >= 5 ? hex4(p + 1) : -1, low;

    if (c < 0)
        return fail_at(ps, p - 1, "expected four hex digits after \\u");
    ps->p += 5;
    if (c >= 0xd800 && c <= 0xdfff) {
        low = c <= 0xdbff && ps->end - ps->p >= 6 && ps->p[0] == '\\' && ps->p[1] == 'u'
                  ? hex4(ps->p + 2)
                  : -1;
        if (low >= 0xdc00 && low <= 0xdfff) {
            c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
            ps->p += 6;
        } else if (ps->flags & JSON_LONE_SURROGATES) {
            ps->doc->lone_surrogates = true;
        } else {
            return fail_at(ps, p - 1, "a surrogate escape without its other half is no character");
        }
    }
    *out += utf8_put(*out, (uint32_t)c);
    return true;
}

static bool parse_escape(struct parser *ps, char **out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *hit;

    ps->p++; /* the backslash */
    if (ps->p == ps->end)
        return fail_at(ps, ps->p, "expected the rest of an escape");
    if (*ps->p == 'u')
        return parse_unicode_escape(ps, out);
    hit = *ps->p == '\0' ? NULL : strchr(from, *ps->p);
    if (hit == NULL)
        return fail_at(ps, ps->p, "expected one of \"\\/bfnrtu after a backslash");
    *(*out)++ = to[hit - from];
    ps->p++;
    return true;
}

/* At the opening quote: the decoded string into *text, *len. */
static bool parse_string(struct parser *ps, const char **text, uint32_t *len)
{
    char *out = ps->text;
    const char *p = ++ps->p;

    for (;;) {
        uint64_t w;
        unsigned n;

        while (ps->end - p >= 8) {
            memcpy(&w, p, 8);
            if (json_special_bytes(w, true))
                break;
            memcpy(out, &w, 8);
            p += 8;
            out += 8;
        }
        while (p < ps->end && *p != '"' && *p != '\\' && (signed char)*p >= 0x20) /* ASCII */
            *out++ = *p++;
        if (p == ps->end)
            return fail_at(ps, p, "expected the closing quote of a string");
        if (*p == '"')
            break;
        if (*p == '\\') {
            ps->p = p;
            if (!parse_escape(ps, &out))
                return false;
            p = ps->p;
            continue;
        }
        if ((unsigned char)*p < 0x20)
            return fail_at(ps, p, "a control character in a string must be escaped");
        do {
            n = utf8_char_len(p, (size_t)(ps->end - p));
            if (n == 0)
                return fail_at(ps, p, "expected UTF-8");
            for (unsigned i = 0; i < n; i++)
                *out++ = *p++;
        } while (p < ps->end && (unsigned char)*p >= 0x80);
    }
    ps->p = p + 1;
    *text = ps->text;
    *len = (uint32_t)(out - ps->text);
    *out = '\0';
    ps->text = out + 1;
    return true;
}

static inline bool is_digit(const struct parser *ps, const char *p)
{
    return p < ps->end && *p >= '0' && *p <= '9';
}

static void keep_number(struct parser *ps, const char *end, struct json *v)
{
    size_t n = (size_t)(end - ps->p);

    memcpy(ps->text, ps->p, n);
    ps->text[n] = '\0';
    *v = (struct json){.type = JSON_NUMBER, .len = (uint32_t)n, .text = ps->text};
    ps->text += n + 1;
    ps->p = end;
}

static bool parse_number(struct parser *ps, struct json *v)
{
    const char *p = ps->p;

    if (*p == '-')
        p++;
    if (!is_digit(ps, p))
        return fail_at(ps, p, "expected a digit");
    if (*p == '0')
        p++;
    else
        while (is_digit(ps, p))
            p++;
    if (p < ps->end && *p == '.') {
        if (!is_digit(ps, ++p))
            return fail_at(ps, p, "expected a digit after the decimal point");
        while (is_digit(ps, p))
            p++;
    }
    if (p < ps->end && (*p == 'e' || *p == 'E')) {
        p++;
        if (p < ps->end && (*p == '+' || *p == '-'))
            p++;
        if (!is_digit(ps, p))
            return fail_at(ps, p, "expected a digit in the exponent");
        while (is_digit(ps, p))
            p++;
    }
    keep_number(ps, p, v);
    return true;
}

static bool starts_with(const struct parser *ps, const char *word)
{
    size_t n = strlen(word);

    return (size_t)(ps->end - ps->p) >= n && memcmp(ps->p, word, n) == 0;
}

/* Everything that is not a container. */
static bool parse_scalar(struct parser *ps, struct json *v)
{
    static const struct {
        const char *word;
        enum json_type type;
    } words[] = {{"null", JSON_NULL}, {"true", JSON_TRUE}, {"false", JSON_FALSE}};
    static const char *const nans[] = {"NaN", "Infinity", "-Infinity"};

    if (ps->p == ps->end)
        return fail_at(ps, ps->p, "expected a value");
    if (*ps->p == '"') {
        v->type = JSON_STRING;
        return parse_string(ps, &v->text, &v->len);
    }
    for (int i = 0; i < 3; i++)
        if (starts_with(ps, words[i].word)) {
            *v = (struct json){.type = words[i].type};
            ps->p += strlen(words[i].word);
            return true;
        }
    if (ps->flags & JSON_ALLOW_NAN)
        for (int i = 0; i < 3; i++)
            if (starts_with(ps, nans[i])) {
                keep_number(ps, ps->p + strlen(nans[i]), v);
                return true;
            }
    if (*ps->p == '-' || is_digit(ps, ps->p))
        return parse_number(ps, v);
    return fail_at(ps, ps->p, "expected a value");
}

/* ---- repeated keys ---- */

static bool keys_equal(const struct json_member *a, const struct json_member *b)
{
    return a->key_len == b->key_len && memcmp(a->key, b->key, a->key_len) == 0;
}

/* The earlier slot in [first, at) with the key of slot `at`, or `at` when there is none. */
static size_t earlier_key(struct parser *ps, size_t first, size_t at, bool hashed)
{
    if (!hashed) {
        for (size_t i = first; i < at; i++)
            if (keys_equal(&ps->slots[i], &ps->slots[at]))
                return i;
        return at;
    }
    size_t b = hash_bytes(ps->seed, ps->slots[at].key, ps->slots[at].key_len) & ps->hash_mask;

    for (; ps->hash[b] != 0; b = (b + 1) & ps->hash_mask)
        if (keys_equal(&ps->slots[ps->hash[b] - 1], &ps->slots[at]))
            return ps->hash[b] - 1;
    ps->hash[b] = (uint32_t)at + 1;
    return at;
}

/* An empty table for n keys, at most half full. */
static bool hash_prepare(struct parser *ps, size_t n)
{
    size_t cap = 64;

    while (cap < 2 * n)
        cap *= 2;
    if (cap > ps->hash_cap) {
        free(ps->hash);
        ps->hash_cap = 0;
        ps->hash = malloc(cap * sizeof(*ps->hash));
        if (ps->hash == NULL)
            return fail_memory(ps, cap * sizeof(*ps->hash));
        ps->hash_cap = cap;
    }
    memset(ps->hash, 0, cap * sizeof(*ps->hash));
    ps->hash_mask = cap - 1;
    if (ps->seed == 0)
        ps->seed = hash_seed();
    return true;
}

/* Finds repeated keys among the slots of the object that closes; with JSON_LAST_KEY_WINS moves the
 * last value to the first place and closes the gaps, else fails. */
static bool settle_repeated_keys(struct parser *ps, size_t first)
{
    size_t n = ps->n_slots - first, out = first;
    bool hashed = n > LINEAR_KEYS_MAX;

    if (hashed && !hash_prepare(ps, n))
        return false;
    for (size_t i = first; i < ps->n_slots; i++) {
        size_t at;

        ps->slots[out] = ps->slots[i];
        at = earlier_key(ps, first, out, hashed);
        if (at == out) {
            out++;
            continue;
        }
        if (!(ps->flags & JSON_LAST_KEY_WINS)) {
            size_t shown = ps->slots[i].key_len < 64 ? ps->slots[i].key_len : 64;

            shown = utf8_valid_prefix(ps->slots[i].key, shown);
            status_set(ps->st, ST_INVALID,
                       "JSON: key \"%.*s\" stands twice in the object that ends at byte %zu",
                       (int)shown, ps->slots[i].key, (size_t)(ps->p - ps->begin));
            return false;
        }
        ps->slots[at].value = ps->slots[i].value;
    }
    ps->n_slots = out;
    return true;
}

/* ---- containers ---- */

/* After the closing bracket of the innermost container: moves its children into the tree. */
static bool close_container(struct parser *ps, struct json *v)
{
    struct frame f = ps->frames[ps->n_frames - 1];
    size_t n;

    if (f.is_object && ps->n_slots - f.first > 1 && !settle_repeated_keys(ps, f.first))
        return false;
    n = ps->n_slots - f.first;
    *v = (struct json){.type = f.is_object ? JSON_OBJECT : JSON_ARRAY, .len = (uint32_t)n};
    if (n > 0 && f.is_object) {
        v->members = node_alloc(ps, n * sizeof(*v->members));
        if (v->members == NULL)
            return false;
        memcpy(v->members, ps->slots + f.first, n * sizeof(*v->members));
    } else if (n > 0) {
        v->items = node_alloc(ps, n * sizeof(*v->items));
        if (v->items == NULL)
            return false;
        for (size_t i = 0; i < n; i++)
            v->items[i] = ps->slots[f.first + i].value;
    }
    ps->n_slots = f.first;
    ps->n_frames--;
    return true;
}

/* At a key: pushes a slot that waits for its value, and passes the colon. */
static bool parse_key(struct parser *ps)
{
    struct json_member m = {0};

    skip_blanks(ps);
    if (ps->p == ps->end || *ps->p != '"')
        return fail_at(ps, ps->p, "expected a key in quotes");
    if (!parse_string(ps, &m.key, &m.key_len))
        return false;
    skip_blanks(ps);
    if (ps->p == ps->end || *ps->p != ':')
        return fail_at(ps, ps->p, "expected ':' after a key");
    ps->p++;
    return slot_push(ps, &m);
}

/* At '[' or '{': opens it. *closed when it was empty and v is it. */
static bool open_container(struct parser *ps, bool *closed, struct json *v)
{
    bool is_object = *ps->p == '{';

    ps->p++;
    if (!frame_push(ps, is_object))
        return false;
    skip_blanks(ps);
    *closed = ps->p < ps->end && *ps->p == (is_object ? '}' : ']');
    if (*closed) {
        ps->p++;
        return close_container(ps, v);
    }
    return !is_object || parse_key(ps);
}

/* v is complete: puts it into the innermost container and reads on to where the next value begins;
 * containers that end there complete in turn. *done when v is the top value. */
static bool after_value(struct parser *ps, struct json *v, bool *done)
{
    while (ps->n_frames > 0) {
        bool is_object = ps->frames[ps->n_frames - 1].is_object;

        if (is_object)
            ps->slots[ps->n_slots - 1].value = *v;
        else if (!slot_push(ps, &(struct json_member){.value = *v}))
            return false;
        skip_blanks(ps);
        if (ps->p < ps->end && *ps->p == ',') {
            ps->p++;
            return !is_object || parse_key(ps);
        }
        if (ps->p == ps->end || *ps->p != (is_object ? '}' : ']'))
            return fail_at(ps, ps->p, is_object ? "expected ',' or '}'" : "expected ',' or ']'");
        ps->p++;
        if (!close_container(ps, v))
            return false;
    }
    *done = true;
    return true;
}

static bool parse_document(struct parser *ps, struct json *v)
{
    bool done = false, complete;

    if (starts_with(ps, "\xef\xbb\xbf"))
        return fail_at(ps, ps->p, "expected a value without a byte order mark in front");
    while (!done) {
        skip_blanks(ps);
        complete = true;
        if (ps->p < ps->end && (*ps->p == '[' || *ps->p == '{')) {
            if (!open_container(ps, &complete, v))
                return false;
        } else if (!parse_scalar(ps, v)) {
            return false;
        }
        if (complete && !after_value(ps, v, &done))
            return false;
    }
    skip_blanks(ps);
    if (ps->p != ps->end)
        return fail_at(ps, ps->p, "expected nothing after the value");
    return true;
}

enum status_code json_parse(const char *text, size_t len, unsigned flags, struct json_doc **out,
                            struct status *st)
{
    struct parser ps; /* the inline scratch needs no zeroes */

    if (len >= TEXT_MAX)
        return status_set(st, ST_INVALID, "JSON of %zu bytes: at most %zu are read", len,
                          TEXT_MAX - 1);
    memset(&ps, 0, offsetof(struct parser, inline_slots));
    ps.begin = ps.p = len > 0 ? text : ""; /* of nothing, text may be NULL */
    ps.end = ps.begin + len;
    ps.flags = flags;
    ps.st = st;
    ps.slots = ps.inline_slots;
    ps.slots_cap = INLINE_SLOTS;
    ps.frames = ps.inline_frames;
    ps.frames_cap = INLINE_FRAMES;
    ps.doc = malloc(sizeof(*ps.doc) + len + 8); /* the last eight-byte store may overhang */
    if (ps.doc == NULL) {
        fail_memory(&ps, len);
        return st->code;
    }
    *ps.doc = (struct json_doc){0};
    ps.text = ps.doc->text;
    if (parse_document(&ps, &ps.doc->root)) {
        *out = ps.doc;
        ps.doc = NULL;
        status_ok(st);
    }
    if (ps.slots != ps.inline_slots)
        free(ps.slots);
    if (ps.frames != ps.inline_frames)
        free(ps.frames);
    free(ps.hash);
    json_free(ps.doc);
    return st->code;
}

void json_free(struct json_doc *doc)
{
    if (doc == NULL)
        return;
    for (struct chunk *c = doc->chunks, *next; c != NULL; c = next) {
        next = c->next;
        free(c);
    }
    free(doc);
}

bool json_lone_surrogates(const struct json_doc *doc)
{
    return doc->lone_surrogates;
}

const struct json *json_root(const struct json_doc *doc)
{
    return &doc->root;
}
