#include "common/base/utf8.h"

#include <string.h>

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
        len = utf8_char_len(s + i, n - i);
        if (len == 0)
            return i;
        i += len;
    }
    return n;
}
