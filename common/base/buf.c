#include "common/base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { SMALL_MAX = 4096 }; /* up to there a buffer doubles: copies cost more than room */

void buf_reserve(struct buf *b, size_t n)
{
    size_t cap = b->cap < 64 ? 64 : b->cap;

    if (b->cap - b->len >= n)
        return;
    while (cap - b->len < n)
        cap += cap < SMALL_MAX ? cap : cap / 2;
    b->data = realloc(b->data, cap);
    if (b->data == NULL)
        abort();
    b->cap = cap;
}

void buf_put_number(struct buf *b, uint64_t n)
{
    char digits[20];
    size_t at = sizeof(digits);

    do {
        digits[--at] = (char)('0' + n % 10);
        n /= 10;
    } while (n > 0);
    buf_append(b, digits + at, sizeof(digits) - at);
}

static void put_signed(struct buf *b, int64_t n)
{
    if (n < 0)
        buf_append(b, "-", 1);
    buf_put_number(b, n < 0 ? 0 - (uint64_t)n : (uint64_t)n);
}

/* From here on by libc. */
static void print_rest(struct buf *b, const char *fmt, va_list ap)
{
    va_list again;
    size_t n;

    va_copy(again, ap);
    buf_reserve(b, 64); /* most texts fit at once */
    n = (size_t)vsnprintf(b->data + b->len, b->cap - b->len, fmt, ap);
    if (n >= b->cap - b->len) {
        buf_reserve(b, n + 1);
        vsnprintf(b->data + b->len, n + 1, fmt, again);
    }
    va_end(again);
    b->len += n;
}

enum { SIGNED = 1, UNSIGNED, STRING, PERCENT };

/* What stands behind a '%'. @return 0: nothing that is done here; else *longs is how many l there
 * are, a z being one, and *end follows it */
static int conversion(const char *at, int *longs, const char **end)
{
    _Static_assert(sizeof(size_t) == sizeof(long), "%zu is read as %lu");
    *longs = *at == 'z';
    at += *at == 'z';
    for (; *at == 'l' && *longs < 2; at++)
        (*longs)++;
    *end = at + 1;
    switch (*at) {
    case 'd':
        return SIGNED;
    case 'u':
        return UNSIGNED;
    case 's':
        return *longs == 0 ? STRING : 0;
    case '%':
        return *longs == 0 ? PERCENT : 0;
    default:
        return 0;
    }
}

/* Texts, and numbers without a width: nearly all that is written, and three times as fast here. */
void buf_printf(struct buf *b, const char *fmt, ...)
{
    const char *at, *end, *text;
    int longs;
    va_list ap;

    va_start(ap, fmt);
    for (; *(at = strchrnul(fmt, '%')) != '\0'; fmt = end) {
        buf_append(b, fmt, (size_t)(at - fmt));
        switch (conversion(at + 1, &longs, &end)) {
        case SIGNED:
            put_signed(b, longs == 0   ? va_arg(ap, int)
                          : longs == 1 ? va_arg(ap, long)
                                       : va_arg(ap, long long));
            break;
        case UNSIGNED:
            buf_put_number(b, longs == 0   ? va_arg(ap, unsigned)
                              : longs == 1 ? va_arg(ap, unsigned long)
                                           : va_arg(ap, unsigned long long));
            break;
        case STRING:
            text = va_arg(ap, const char *);
            buf_puts(b, text != NULL ? text : "(null)");
            break;
        case PERCENT:
            buf_append(b, "%", 1);
            break;
        default:
            print_rest(b, at, ap);
            va_end(ap);
            return;
        }
    }
    buf_append(b, fmt, (size_t)(at - fmt));
    va_end(ap);
}

const char *buf_cstr(struct buf *b)
{
    buf_reserve(b, 1);
    b->data[b->len] = '\0';
    return b->data;
}

void buf_deinit(struct buf *b)
{
    free(b->data);
    *b = (struct buf){0};
}
