/*
 * json: a strict reader into a tree, and a writer of exact strings.
 *
 * The tree keeps what V4's text format needs and common libraries lose: member order, the spelling
 * of numbers (integers of any length), and, on request, NaN and Infinity. See RFC 8259.
 *
 * Lifetime  one arena per document: json_free() frees every node and decoded string. Nothing points
 *           into the input text.
 * Threads   a document is read-only after json_parse(); share it freely.
 * Limits    documents < 2^31 bytes; depth is bounded by memory, not by the C stack. A tree takes at
 *           most 40 times its text (a list of single digits), ordinary requests 2 to 3 times.
 */
#ifndef BATON_COMMON_BASE_JSON_H
#define BATON_COMMON_BASE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/status.h"

enum json_type {
    JSON_NULL,
    JSON_FALSE,
    JSON_TRUE,
    JSON_NUMBER,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT
};

struct json_member;

struct json {
    enum json_type type;
    uint32_t len; /* string, number: bytes of text; array, object: children */
    union {
        const char *text; /* string: decoded UTF-8, NUL-terminated (U+0000 may stand inside: use
                             len); number: as spelled, NUL-terminated */
        struct json *items;
        struct json_member *members; /* in the order of the text */
    };
};

struct json_member {
    const char *key; /* decoded, NUL-terminated */
    uint32_t key_len;
    struct json value;
};

enum {
    JSON_ALLOW_NAN = 1,       /* NaN, Infinity, -Infinity are numbers */
    JSON_LAST_KEY_WINS = 2,   /* a repeated key replaces the value at its first place; without this
                                 flag a repeated key is ST_INVALID */
    JSON_LONE_SURROGATES = 4, /* "\ud800" alone is read, as RFC 8259's grammar has it, and stands
                                 in the tree as three bytes that are no UTF-8 */
};

struct json_doc;

/**
 * Parses exactly one value with blanks around it.
 * @param flags  JSON_* above
 * @param out    on success the document; json_free() it
 * @return ST_OK; ST_INVALID with byte offset and what was expected: bad syntax, invalid UTF-8, a
 *         lone surrogate escape, control characters in strings, text after the value, a leading BOM
 */
enum status_code json_parse(const char *text, size_t len, unsigned flags, struct json_doc **out,
                            struct status *st);
void json_free(struct json_doc *doc);

/** True when JSON_LONE_SURROGATES let one in: then some string of the tree is not UTF-8. */
bool json_lone_surrogates(const struct json_doc *doc);

/** The top value; lives as long as the document. */
const struct json *json_root(const struct json_doc *doc);

/** The member's value, or NULL when v is no object or has no such key. */
const struct json *json_get(const struct json *v, const char *key);

/** True and the value when v is a number that is a whole value within int64 (1e3 counts, 1.5 does
 * not). */
bool json_int(const struct json *v, int64_t *out);

/** True and the value when v is a number; correctly rounded. */
bool json_double(const struct json *v, double *out);

/** True when v is a string equal to s. */
bool json_is(const struct json *v, const char *s);

/**
 * Memory that lives as long as the document, for a value made from it: one that borrows its parts.
 * Only while no other thread reads the document.
 * @return n bytes, not zeroed; NULL: no memory
 */
void *json_alloc(struct json_doc *doc, size_t n);

struct json_style {
    const char *comma, *colon;
    void (*number)(struct buf *out, const struct json *v); /* NULL: as it was spelled */
};

/** Appends v; any depth, without recursion. @param style  NULL: without blanks */
void json_write(struct buf *out, const struct json *v, const struct json_style *style);

/** Appends s as a JSON string with quotes: escapes only '"', '\' and U+0000-U+001F (\n \r \t \b \f,
 * else \u00xx). s must be UTF-8. */
void json_write_string(struct buf *out, const char *s, size_t len);

/** The same without the quotes: a piece of a string that is written bit by bit. Pieces end between
 * characters, never inside one. */
void json_write_escaped(struct buf *out, const char *s, size_t len);

#endif
