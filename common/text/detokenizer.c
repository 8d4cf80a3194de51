#include "common/text/tokenizer_impl.h"

#include "common/base/utf8.h"

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

/*
 * The next part of s[n]. The first half of a UTF-8 encoded surrogate (ED A0..BF) at the very end is
 * held like a prefix, although nothing can make it valid: the reference's stream decoder waits for
 * its third byte before it writes the U+FFFDs, and the pieces must be the reference's.
 */
static enum utf8_part next_part(const uint8_t *s, size_t n, unsigned *len)
{
    enum utf8_part part = utf8_next((const char *)s, n, len);

    if (part == UTF8_BAD && n == 2 && s[0] == 0xED && (s[1] & 0xE0) == 0xA0) {
        *len = 2;
        return UTF8_PARTIAL;
    }
    return part;
}

/* Emits what is decided of s[n] and keeps what is not. */
static void decide(struct detokenizer *d, const uint8_t *s, size_t n, struct buf *out)
{
    d->n_held = 0;
    while (n > 0) {
        size_t good = utf8_valid_prefix((const char *)s, n);
        unsigned len;

        buf_append(out, s, good);
        s += good;
        n -= good;
        if (n == 0)
            break;
        if (next_part(s, n, &len) == UTF8_PARTIAL) {
            memcpy(d->held, s, n);
            d->n_held = (unsigned)n;
            break;
        }
        buf_append(out, replacement, 3);
        s += len;
        n -= len;
    }
}

/* Something is held: with the first bytes of s it becomes decided, or goes on being held. */
static void resume(struct detokenizer *d, const uint8_t *s, size_t n, struct buf *out)
{
    uint8_t joined[sizeof(d->held) + 4];
    unsigned n_held = d->n_held, n_joined = n_held + (n < 4 ? (unsigned)n : 4), at = 0, len;

    memcpy(joined, d->held, n_held);
    memcpy(joined + n_held, s, n_joined - n_held);
    while (at < n_held) {
        enum utf8_part part = next_part(joined + at, n_joined - at, &len);
        if (part == UTF8_PARTIAL) { /* then all of s is in it */
            memmove(d->held, joined + at, n_joined - at);
            d->n_held = n_joined - at;
            return;
        }
        if (part == UTF8_WHOLE)
            buf_append(out, joined + at, len);
        else
            buf_append(out, replacement, 3);
        at += len;
    }
    decide(d, s + (at - n_held), n - (at - n_held), out);
}

enum status_code detokenizer_push(struct detokenizer *d, const struct tokenizer *t, int32_t id,
                                  struct buf *out, struct status *st)
{
    const struct bpe *b = &t->bpe;
    const uint8_t *s;
    size_t n;

    if (id < 0 || (uint32_t)id >= b->n_tokens)
        return status_set(st, ST_INVALID, "token id %d is outside the vocabulary of %u", id,
                          b->n_tokens);
    s = b->bytes + b->offsets[id];
    n = b->offsets[id + 1] - b->offsets[id];
    if (d->n_held > 0 && (t->flags[id] & TOKEN_ADDED))
        detokenizer_finish(d, out);
    if (d->n_held > 0)
        resume(d, s, n, out);
    else if (t->flags[id] & TOKEN_CHARACTERS)
        buf_append(out, s, n);
    else
        decide(d, s, n, out);
    return status_ok(st);
}

void detokenizer_finish(struct detokenizer *d, struct buf *out)
{
    unsigned at = 0, len;

    while (at < d->n_held) {
        utf8_next((const char *)d->held + at, d->n_held - at, &len);
        buf_append(out, replacement, 3);
        at += len;
    }
    d->n_held = 0;
}
