#include "common/text/pretokenize.h"

#include "common/text/unicode.h"

#include <string.h>

const char *const pretokenize_patterns[3] = {
    "\\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+"
    "|\\s+(?!\\S)"
    "|\\s+",
};

enum {
    WORD = UNICODE_LETTER | UNICODE_MARK,
    SPACE = UNICODE_BLANK | UNICODE_NEWLINE,
};

/* What the third split sees: one piece of the first two, numbers aside. */
struct stretch {
    const uint8_t *s;
    size_t n;
    uint8_t cjk; /* UNICODE_CJK when this is a run of the second split */
};

/* The class of the character at pos, or -1 where the stretch ends. */
static inline int peek(const struct stretch *t, size_t pos, unsigned *len)
{
    uint8_t class;

    if (pos == t->n)
        return -1;
    if (t->s[pos] < 0x80) {
        class = unicode_classes[0][t->s[pos]];
        *len = 1;
        return t->cjk || (class & UNICODE_NUMBER) ? -1 : class;
    }
    class = unicode_class(unicode_decode(t->s + pos, len));
    if ((class & UNICODE_CJK) != t->cjk || (class & UNICODE_NUMBER))
        return -1;
    return class;
}

/* Past [A-Za-z]*. */
static inline size_t skip_ascii_letters(const uint8_t *s, size_t n, size_t pos)
{
    while (n - pos >= 16) {
        unsigned k = ascii_letters(s + pos);
        pos += k;
        if (k < 16)
            return pos;
    }
    while (pos < n && (uint8_t)((s[pos] | 0x20) - 'a') < 26)
        pos++;
    return pos;
}

/* Past every character of the classes in mask. */
static size_t skip(const struct stretch *t, size_t pos, int mask)
{
    unsigned len;
    int class;

    while ((class = peek(t, pos, &len)) >= 0 && (class & mask))
        pos += len;
    return pos;
}

/* Past [\p{L}\p{M}]*. */
static size_t skip_word(const struct stretch *t, size_t pos)
{
    if (!t->cjk) {
        pos = skip_ascii_letters(t->s, t->n, pos);
        if (pos == t->n || t->s[pos] < 0x80)
            return pos;
    }
    return skip(t, pos, WORD);
}

/* Past [\p{P}\p{S}]*[\r\n]*. */
static size_t skip_symbols(const struct stretch *t, size_t pos)
{
    return skip(t, skip(t, pos, UNICODE_SYMBOL), UNICODE_NEWLINE);
}

/* pos is at a \s that no letter or symbol claims. */
static size_t blank_end(const struct stretch *t, size_t pos)
{
    size_t end = pos, last = pos, after_newline = pos;
    unsigned len;
    int class;

    while ((class = peek(t, end, &len)) >= 0 && (class & SPACE)) {
        last = end;
        end += len;
        if (class & UNICODE_NEWLINE)
            after_newline = end;
    }
    if (after_newline > pos)
        return after_newline; /* \s*[\r\n]+ */
    if (class < 0 || last == pos)
        return end; /* \s+(?!\S) at the end; or \s+, a single one */
    return last;    /* \s+(?!\S) leaves the last one */
}

/* Characters that no alternative takes; the last one goes with a word that follows. */
static size_t unmatched_end(const struct stretch *t, size_t pos)
{
    size_t last = pos, end = pos;
    unsigned len;
    int class;

    while ((class = peek(t, end, &len)) >= 0 && !(class & ~(UNICODE_CJK | UNICODE_ASCII_LETTER))) {
        last = end;
        end += len;
    }
    if (class >= 0 && (class & WORD) && last > pos)
        return last;
    return end;
}

static size_t piece_end(const struct stretch *t, size_t pos, int class, unsigned len)
{
    size_t next = pos + len;
    unsigned next_len;
    int next_class;

    if (class & WORD)
        return skip_word(t, next);
    if (class & UNICODE_SYMBOL) {
        if (t->s[pos] < 0x80 && next < t->n && (uint8_t)((t->s[next] | 0x20) - 'a') < 26)
            return skip_ascii_letters(t->s, t->n, next);
        return skip_symbols(t, next);
    }
    if (class & UNICODE_NEWLINE)
        return blank_end(t, pos);
    next_class = peek(t, next, &next_len);
    if (next_class >= 0 && (next_class & WORD))
        return skip_word(t, next + next_len);
    if (next_class >= 0 && (next_class & UNICODE_SYMBOL) && t->s[pos] == ' ')
        return skip_symbols(t, next + next_len);
    return (class & UNICODE_BLANK) ? blank_end(t, pos) : unmatched_end(t, pos);
}

/* \p{N}{1,3} */
static size_t number_end(const uint8_t *s, size_t n, size_t pos)
{
    unsigned len;

    for (int i = 0; i < 3 && pos < n; i++) {
        if (!(unicode_class(unicode_decode(s + pos, &len)) & UNICODE_NUMBER))
            break;
        pos += len;
    }
    return pos;
}

size_t pretokenize_any(const uint8_t *s, size_t n, size_t pos)
{
    struct stretch t = {.s = s, .n = n};
    unsigned len;
    uint8_t class = unicode_class(unicode_decode(s + pos, &len));

    if (class & UNICODE_NUMBER)
        return number_end(s, n, pos);
    t.cjk = class & UNICODE_CJK;
    return piece_end(&t, pos, class, len);
}
