/*
 * unicode: which characters the pre-tokenizer tells apart.
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

#endif
