#include "common/base/utf8.h"

#include <string.h>

enum utf8_part utf8_next(const char *text, size_t n, unsigned *len)
{
    const uint8_t *s = (const uint8_t *)text;
    uint8_t lo = 0x80, hi = 0xBF; /* what the second byte may be */
    unsigned need;

    *len = 1;
    if (s[0] < 0x80)
        return UTF8_WHOLE;
    if (s[0] < 0xC2 || s[0] > 0xF4)
        return UTF8_BAD;
    need = s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    if (s[0] == 0xE0)
        lo = 0xA0; /* no overlong forms */
    else if (s[0] == 0xED)
        hi = 0x9F; /* no surrogates */
    else if (s[0] == 0xF0)
        lo = 0x90;
    else if (s[0] == 0xF4)
        hi = 0x8F; /* nothing above U+10FFFF */
    for (unsigned i = 1; i < need; i++) {
        *len = i;
        if (i == n)
            return UTF8_PARTIAL;
        if (s[i] < lo || s[i] > hi)
            return UTF8_BAD;
        lo = 0x80;
        hi = 0xBF;
    }
    *len = need;
    return UTF8_WHOLE;
}

size_t utf8_valid_prefix(const char *s, size_t n)
{
    size_t i = 0;

    while (i < n) {
        uint64_t w;
        unsigned len;

        /* Eight ASCII bytes at a time. */
        if (n - i >= 8) {
            memcpy(&w, s + i, 8);
            if ((w & 0x8080808080808080u) == 0) {
                i += 8;
                continue;
            }
        }
        /* Most of the rest is three bytes of the plain kind. */
        while (n - i >= 3 && (unsigned char)s[i] > 0xe0 && (unsigned char)s[i] < 0xed &&
               (s[i + 1] & 0xc0) == 0x80 && (s[i + 2] & 0xc0) == 0x80)
            i += 3;
        if (i == n)
            break;
        len = utf8_char_len(s + i, n - i);
        if (len == 0)
            return i;
        i += len;
    }
    return n;
}

void utf8_append_lossy(struct buf *out, const char *s, size_t n)
{
    while (n > 0) {
        size_t good = utf8_valid_prefix(s, n);
        unsigned len = 0;

        buf_append(out, s, good);
        if (good < n) {
            utf8_next(s + good, n - good, &len);
            buf_puts(out, "\xEF\xBF\xBD");
        }
        s += good + len;
        n -= good + len;
    }
}
