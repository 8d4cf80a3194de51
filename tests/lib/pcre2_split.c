#define PCRE2_CODE_UNIT_WIDTH 8
#include "tests/lib/pcre2_split.h"

#include "common/base/buf.h"
#include "common/text/pretokenize.h"
#include "common/text/unicode.h"

#include <pcre2.h>
#include <stdbool.h>
#include <stdlib.h>

struct pcre2_split {
    pcre2_code *codes[3];
};

/* A \p{..} of the pattern as explicit ranges of our table: PCRE2 has another Unicode version, and
 * the table has its own test. */
static void put_class(struct buf *b, uint8_t bits)
{
    for (uint32_t cp = 0; cp < 0x110000;) {
        uint32_t end = cp;
        while (end < 0x110000 && (unicode_class(end) & bits))
            end++;
        if (end > cp)
            buf_printf(b, "\\x{%x}-\\x{%x}", cp, end - 1);
        cp = end + 1;
    }
}

static void put_pattern(struct buf *b, const char *p)
{
    static const struct {
        const char *name;
        uint8_t bits;
    } classes[] = {
        {"\\p{L}", UNICODE_LETTER},
        {"\\p{M}", UNICODE_MARK},
        {"\\p{N}", UNICODE_NUMBER},
        {"\\p{P}\\p{S}", UNICODE_SYMBOL},
        {"\\s", UNICODE_BLANK | UNICODE_NEWLINE},
        {"\\S", UNICODE_BLANK | UNICODE_NEWLINE},
    };
    bool inside = false;

    while (*p != '\0') {
        size_t i = 0, n = sizeof(classes) / sizeof(*classes);
        while (i < n && strncmp(p, classes[i].name, strlen(classes[i].name)) != 0)
            i++;
        if (i < n) {
            if (!inside)
                buf_puts(b, classes[i].name[1] == 'S' ? "[^" : "[");
            put_class(b, classes[i].bits);
            if (!inside)
                buf_puts(b, "]");
            p += strlen(classes[i].name);
            continue;
        }
        if (*p == '\\') {
            buf_append(b, p, 2);
            p += 2;
            continue;
        }
        inside = *p == '[' ? true : *p == ']' ? false : inside;
        buf_append(b, p++, 1);
    }
}

static pcre2_code *compile(const char *pattern)
{
    struct buf b = {0};
    PCRE2_SIZE at;
    pcre2_code *code;
    int error;

    put_pattern(&b, pattern);
    code = pcre2_compile((PCRE2_SPTR)b.data, b.len, PCRE2_UTF, &error, &at, NULL);
    if (code == NULL)
        abort();
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* without it: slower */
    buf_deinit(&b);
    return code;
}

/* Splits text by regexes from `which` on; ends of pieces go to out. */
static void split(pcre2_code *const *codes, int which, const char *text, size_t from, size_t to,
                  size_t *out, size_t *n_out)
{
    pcre2_match_data *match;
    size_t done = from, pos = from;

    if (which == 3) {
        if (to > from)
            out[(*n_out)++] = to;
        return;
    }
    match = pcre2_match_data_create_from_pattern(codes[which], NULL);
    while (pos < to && pcre2_match(codes[which], (PCRE2_SPTR)(text + from), to - from, pos - from,
                                   0, match, NULL) > 0) {
        const PCRE2_SIZE *at = pcre2_get_ovector_pointer(match);
        split(codes, which + 1, text, done, from + at[0], out, n_out);
        split(codes, which + 1, text, from + at[0], from + at[1], out, n_out);
        done = pos = from + at[1];
    }
    split(codes, which + 1, text, done, to, out, n_out);
    pcre2_match_data_free(match);
}

struct pcre2_split *pcre2_split_new(void)
{
    struct pcre2_split *s = malloc(sizeof(*s));

    for (int i = 0; i < 3; i++)
        s->codes[i] = compile(pretokenize_patterns[i]);
    return s;
}

void pcre2_split_free(struct pcre2_split *s)
{
    for (int i = 0; i < 3; i++)
        pcre2_code_free(s->codes[i]);
    free(s);
}

size_t pcre2_split_ends(const struct pcre2_split *s, const char *text, size_t n, size_t *ends)
{
    size_t n_ends = 0;

    split(s->codes, 0, text, 0, n, ends, &n_ends);
    return n_ends;
}
