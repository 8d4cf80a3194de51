#include "common/base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void buf_reserve(struct buf *b, size_t n)
{
    size_t cap = b->cap < 64 ? 64 : b->cap;

    if (b->cap - b->len >= n)
        return;
    while (cap - b->len < n)
        cap += cap / 2;
    b->data = realloc(b->data, cap);
    if (b->data == NULL)
        abort();
    b->cap = cap;
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap;
    size_t n;

    buf_reserve(b, 64); /* most texts fit at once */
    va_start(ap, fmt);
    n = (size_t)vsnprintf(b->data + b->len, b->cap - b->len, fmt, ap);
    va_end(ap);
    if (n >= b->cap - b->len) {
        buf_reserve(b, n + 1);
        va_start(ap, fmt);
        vsnprintf(b->data + b->len, n + 1, fmt, ap);
        va_end(ap);
    }
    b->len += n;
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
