/*
 * utf8: what a well-formed UTF-8 sequence is (Unicode 16, table 3-7): no overlong forms, no
 * surrogates, nothing above U+10FFFF.
 *
 * Threads   any; no state.
 */
#ifndef BATON_COMMON_BASE_UTF8_H
#define BATON_COMMON_BASE_UTF8_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"

/**
 * The length in bytes (1-4) of the character that begins at s, or 0 when the bytes there are not a
 * whole well-formed character.
 * @param n  bytes that may be read; >= 1
 */
static inline unsigned utf8_char_len(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;

    if (p[0] < 0x80)
        return 1;
    if (p[0] < 0xc2)
        return 0;
    if (p[0] < 0xe0)
        return n >= 2 && (p[1] & 0xc0) == 0x80 ? 2 : 0;
    if (p[0] < 0xf0) {
        if (n < 3 || (p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80)
            return 0;
        if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f))
            return 0;
        return 3;
    }
    if (p[0] > 0xf4 || n < 4 || (p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80 ||
        (p[3] & 0xc0) != 0x80)
        return 0;
    if ((p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return 4;
}

/** How the bytes at some place go on. */
enum utf8_part {
    UTF8_WHOLE,   /* a character */
    UTF8_PARTIAL, /* a proper prefix of one, cut by the end of the bytes */
    UTF8_BAD      /* a maximal invalid part (Unicode, "substitution of maximal subparts") */
};

/**
 * Looks at the beginning of n > 0 bytes.
 * @param len  out, the bytes of that part: 1 to 4
 */
enum utf8_part utf8_next(const char *s, size_t n, unsigned *len);

/** Appends s with each invalid part replaced by U+FFFD: for text that must be shown whatever it is.
 */
void utf8_append_lossy(struct buf *out, const char *s, size_t n);

/** How many leading bytes of s are well-formed UTF-8; n when all are. */
size_t utf8_valid_prefix(const char *s, size_t n);

/**
 * Writes code point c (<= 0x10FFFF; surrogates are written like any other 16-bit value, which is
 * not UTF-8: the caller decides) to out.
 * @return bytes written, 1-4
 */
static inline unsigned utf8_put(char *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

#endif
