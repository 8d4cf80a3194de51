#include "common/text/tokenizer_scan.h"

#include "common/base/utf8.h"

static bool fail(struct scan *s, const char *expected)
{
    status_set(s->st, ST_INVALID, "byte %zu: expected %s%s", s->pos, expected,
               s->pos >= s->n ? ", found the end: the file is cut short" : "");
    return false;
}

void scan_deinit(struct scan *s)
{
    buf_deinit(&s->string);
}

char scan_peek(struct scan *s)
{
    while (s->pos < s->n && (s->s[s->pos] == ' ' || s->s[s->pos] == '\n' || s->s[s->pos] == '\r' ||
                             s->s[s->pos] == '\t'))
        s->pos++;
    return s->pos < s->n ? s->s[s->pos] : '\0';
}

bool scan_accept(struct scan *s, char c)
{
    if (scan_peek(s) != c || s->pos >= s->n)
        return false;
    s->pos++;
    return true;
}

bool scan_expect(struct scan *s, char c)
{
    char what[] = {'\'', c, '\'', '\0'};

    return scan_accept(s, c) || fail(s, what);
}

static int hex4(struct scan *s)
{
    int v = 0;

    if (s->n - s->pos < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        char c = s->s[s->pos + (size_t)i];
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0)
            return -1;
        v = v << 4 | d;
    }
    s->pos += 4;
    return v;
}

static void put_code_point(struct buf *b, uint32_t cp)
{
    char u[4];

    buf_append(b, u, utf8_put(u, cp));
}

/* pos is behind "\u". */
static bool unicode_escape(struct scan *s)
{
    int unit = hex4(s), low;

    if (unit < 0)
        return fail(s, "four hexadecimal digits");
    if (unit >= 0xD800 && unit <= 0xDFFF) {
        if (unit >= 0xDC00 || s->n - s->pos < 6 || s->s[s->pos] != '\\' || s->s[s->pos + 1] != 'u')
            return fail(s, "a surrogate pair");
        s->pos += 2;
        low = hex4(s);
        if (low < 0xDC00 || low > 0xDFFF)
            return fail(s, "the second half of a surrogate pair");
        put_code_point(&s->string,
                       0x10000 + (((uint32_t)unit - 0xD800) << 10) + ((uint32_t)low - 0xDC00));
        return true;
    }
    put_code_point(&s->string, (uint32_t)unit);
    return true;
}

/* pos is behind the backslash. */
static bool escape(struct scan *s)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = s->pos < s->n ? s->s[s->pos] : '\0';
    const char *at = c ? strchr(from, c) : NULL;

    if (c == 'u') {
        s->pos++;
        return unicode_escape(s);
    }
    if (at == NULL)
        return fail(s, "an escape that JSON has");
    s->pos++;
    buf_append(&s->string, &to[at - from], 1);
    return true;
}

bool scan_string(struct scan *s, const char **text, size_t *len)
{
    size_t start;

    if (scan_peek(s) != '"')
        return fail(s, "a string");
    start = ++s->pos;
    s->string.len = 0;
    for (;;) {
        unsigned char c = s->pos < s->n ? (unsigned char)s->s[s->pos] : '\0';
        if (c == '"')
            break;
        if (c < 0x20)
            return fail(s, "a character of a string");
        if (c != '\\') {
            s->pos++;
            continue;
        }
        buf_append(&s->string, s->s + start, s->pos - start);
        s->pos++;
        if (!escape(s))
            return false;
        start = s->pos;
    }
    if (s->string.len > 0) {
        buf_append(&s->string, s->s + start, s->pos - start);
        *text = s->string.data;
        *len = s->string.len;
    } else {
        *text = s->s + start;
        *len = s->pos - start;
    }
    s->pos++;
    return true;
}

bool scan_number(struct scan *s, uint32_t max, uint32_t *out)
{
    uint64_t v = 0;
    size_t start;

    scan_peek(s);
    for (start = s->pos; s->pos < s->n && s->s[s->pos] >= '0' && s->s[s->pos] <= '9'; s->pos++)
        if (v <= max)
            v = 10 * v + (uint64_t)(s->s[s->pos] - '0');
    if (s->pos == start || (s->s[start] == '0' && s->pos - start > 1) ||
        (s->pos < s->n && strchr(".eE", s->s[s->pos]) != NULL))
        return fail(s, "a whole number");
    if (v > max) {
        status_set(s->st, ST_INVALID, "byte %zu: the number is above %u, the most supported", start,
                   max);
        return false;
    }
    *out = (uint32_t)v;
    return true;
}

bool scan_skip(struct scan *s, const char **text, size_t *len)
{
    const char *ignored;
    size_t start, depth = 0, ignored_len;

    scan_peek(s);
    start = s->pos;
    do {
        char c = scan_peek(s);
        if (s->pos >= s->n)
            return fail(s, "a value");
        if (c == '"') {
            if (!scan_string(s, &ignored, &ignored_len))
                return false;
        } else if (c == '{' || c == '[') {
            depth++;
            s->pos++;
        } else if (c == '}' || c == ']') {
            if (depth == 0)
                return fail(s, "a value");
            depth--;
            s->pos++;
        } else if (c == ',' || c == ':') {
            if (depth == 0)
                return fail(s, "a value");
            s->pos++;
        } else {
            size_t from = s->pos;
            while (s->pos < s->n && strchr(" \t\r\n,:[]{}\"", s->s[s->pos]) == NULL)
                s->pos++;
            if (s->pos == from)
                return fail(s, "a value"); /* a NUL byte */
        }
    } while (depth > 0);
    *text = s->s + start;
    *len = s->pos - start;
    return true;
}
