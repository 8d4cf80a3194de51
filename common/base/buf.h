/*
 * buf: a growing byte buffer, for text and messages that are built piece by piece.
 *
 * Lifetime  zero-initialise (struct buf b = {0}), buf_deinit() at the end. A failed allocation
 *           aborts: sizes from outside are bounded before they come here.
 * Threads   one owner.
 */
#ifndef BATON_COMMON_BASE_BUF_H
#define BATON_COMMON_BASE_BUF_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct buf {
    char *data; /* NULL while empty; not NUL-terminated unless buf_cstr() was called */
    size_t len;
    size_t cap;
};

/** Makes room for n more bytes; data may move. */
void buf_reserve(struct buf *b, size_t n);

/** Appends printf-style text. */
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/** Appends a number in decimal. */
void buf_put_number(struct buf *b, uint64_t n);

/** The contents as a C string; borrowed until the next change. */
const char *buf_cstr(struct buf *b);

/** Frees the memory and zeroes the struct; the buffer may be used again. */
void buf_deinit(struct buf *b);

static inline void buf_append(struct buf *b, const void *data, size_t n)
{
    if (n == 0)
        return;
    if (b->cap - b->len < n)
        buf_reserve(b, n);
    memcpy(b->data + b->len, data, n);
    b->len += n;
}

static inline void buf_puts(struct buf *b, const char *s)
{
    buf_append(b, s, strlen(s));
}

#endif
