/*
 * unicode: which characters the pre-tokenizer tells apart, and UTF-8 validity.
 *
 * The classes are those of Unicode 16.0 as the reference regex engine has them, in two tables
 * (128 code points a block) that unicode_gen.py writes; never the C library's.
 *
 * Threads   any; the tables are constant.
 */
#ifndef BATON_COMMON_TEXT_UNICODE_H
#define BATON_COMMON_TEXT_UNICODE_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"

/* Bits of a character's class. LETTER, MARK, NUMBER, SYMBOL, BLANK and NEWLINE exclude each other;
 * none of them: controls, format characters, private use, unassigned. */
enum unicode_class {
    UNICODE_LETTER = 1,        /* \p{L} */
    UNICODE_MARK = 2,          /* \p{M} */
    UNICODE_NUMBER = 4,        /* \p{N} */
    UNICODE_SYMBOL = 8,        /* \p{P} or \p{S} */
    UNICODE_BLANK = 16,        /* \s without the next two */
    UNICODE_NEWLINE = 32,      /* U+000A and U+000D */
    UNICODE_ASCII_LETTER = 64, /* A-Z, a-z */
    UNICODE_CJK = 128          /* U+4E00-9FA5, U+3040-30FF, assigned or not */
};

extern const uint8_t unicode_block[0x110000 / 128];
extern const uint8_t unicode_classes[][128];

/** Class bits of a code point below 0x110000. Block 0 holds ASCII. */
static inline uint8_t unicode_class(uint32_t cp)
{
    return unicode_classes[unicode_block[cp >> 7]][cp & 127];
}

/**
 * Decodes the character at s, which must be valid UTF-8 to its end.
 * @param len  out, its bytes: 1 to 4
 */
static inline uint32_t unicode_decode(const uint8_t *s, unsigned *len)
{
    if (s[0] < 0x80) {
        *len = 1;
        return s[0];
    }
    if (s[0] < 0xE0) {
        *len = 2;
        return (uint32_t)(s[0] & 0x1F) << 6 | (s[1] & 0x3F);
    }
    if (s[0] < 0xF0) {
        *len = 3;
        return (uint32_t)(s[0] & 0x0F) << 12 | (uint32_t)(s[1] & 0x3F) << 6 | (s[2] & 0x3F);
    }
    *len = 4;
    return (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3F) << 12 |
           (uint32_t)(s[2] & 0x3F) << 6 | (s[3] & 0x3F);
}

/** How UTF-8 at some place goes on. */
enum utf8_part {
    UTF8_WHOLE,   /* a character */
    UTF8_PARTIAL, /* a proper prefix of one, cut by the end of the bytes */
    UTF8_BAD      /* a maximal invalid part (Unicode, "substitution of maximal subparts") */
};

/**
 * Looks at the beginning of n > 0 bytes.
 * @param len  out, the bytes of that part: 1 to 4
 */
enum utf8_part utf8_next(const uint8_t *s, size_t n, unsigned *len);

/** How many bytes at the beginning are whole characters: n when all of s is valid UTF-8. */
size_t utf8_valid_len(const uint8_t *s, size_t n);

/** Appends s with each invalid part replaced by U+FFFD: for text that must be shown whatever it is.
 */
void utf8_append_lossy(struct buf *out, const uint8_t *s, size_t n);

#endif
