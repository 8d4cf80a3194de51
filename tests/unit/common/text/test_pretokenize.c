/* args: unicode_ranges.json */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/buf.h"
#include "common/base/json.h"
#include "common/text/pretokenize.h"
#include "common/text/unicode.h"
#ifdef HAVE_PCRE2
#include "tests/lib/pcre2_split.h"
#endif

static const char *ranges_path;
static uint32_t seed = 1;

static uint32_t rnd(uint32_t n)
{
    seed = seed * 1664525 + 1013904223;
    return (seed >> 8) % n;
}

static void put(struct buf *b, uint32_t cp)
{
    uint8_t u[4];
    size_t n = cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;

    if (n == 1)
        u[0] = (uint8_t)cp;
    else
        u[0] = (uint8_t)((0xF00 >> n & 0xFF) | cp >> 6 * (n - 1));
    for (size_t i = 1; i < n; i++)
        u[i] = (uint8_t)(0x80 | (cp >> 6 * (n - 1 - i) & 0x3F));
    buf_append(b, u, n);
}

/* The pieces of text, with '|' between them. */
static void pieces(const char *text, size_t n, struct buf *out)
{
    out->len = 0;
    for (size_t pos = 0, end; pos < n; pos = end) {
        end = pretokenize_next((const uint8_t *)text, n, pos);
        assert_true(end > pos && end <= n);
        buf_append(out, text + pos, end - pos);
        if (end < n)
            buf_puts(out, "|");
    }
}

static void pieces_are_those_of_the_regexes(void **state)
{
    static const struct {
        const char *text, *pieces;
    } cases[] = {
        {"", ""},
        {"Hello world", "Hello| world"},
        {"a   \n\n  b", "a|   \n\n| | b"},
        {"foo_bar it'S /usr.abc", "foo|_bar| it|'S| /|usr|.abc"},
        {"1234567", "123|456|7"},
        {"x1y", "x|1|y"},
        {"  x", " | x"},
        {"   ", "   "},
        {"  1", "  |1"},
        {" \t.", " |\t|."},
        {"a.b c!\n\nd", "a|.b| c|!\n\n|d"},
        {"日本語テスト", "日本語テスト"},
        {"ア・イ", "ア|・|イ"},
        {"中 文", "中| |文"},
        {"中a", "中|a"},
        {"\xE3\x80\x80word", "\xE3\x80\x80word"},
        {"\x01\x02word\x01\x02 ", "\x01|\x02word|\x01\x02| "},
        {"é\xCC\x81 \xCC\x81", "é\xCC\x81| \xCC\x81"},
        {".é", ".|é"},
        {".aé", ".a|é"},
        {"\r\n\r\n", "\r\n\r\n"},
        {" \n a", " \n| a"},
    };
    struct buf out = {0};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        pieces(cases[i].text, strlen(cases[i].text), &out);
        assert_string_equal(buf_cstr(&out), cases[i].pieces);
        /* behind enough text the inline shortcut is taken: the same pieces */
        if (*cases[i].text != '\0') {
            struct buf longer = {0};
            buf_puts(&longer, cases[i].text);
            buf_puts(&longer, "!\n                                             ");
            pieces(longer.data, longer.len, &out);
            if (strchr("!\n\r .", cases[i].text[strlen(cases[i].text) - 1]) == NULL)
                assert_memory_equal(out.data, cases[i].pieces, strlen(cases[i].pieces));
            buf_deinit(&longer);
        }
    }
    buf_deinit(&out);
}

static void check_ranges(const struct json *root, const char *name, uint8_t bits)
{
    const struct json *ranges = json_get(root, name);
    uint32_t i = 0;

    assert_non_null(ranges);
    for (uint32_t cp = 0; cp < 0x110000; cp++) {
        int64_t first = 0, last = -1;
        while (i < ranges->len) {
            assert_true(json_int(&ranges->items[i].items[0], &first));
            assert_true(json_int(&ranges->items[i].items[1], &last));
            if (last >= (int64_t)cp)
                break;
            i++;
        }
        if (((unicode_class(cp) & bits) != 0) != (i < ranges->len && first <= (int64_t)cp))
            fail_msg("U+%04X: class %02x, but %s says otherwise", cp, unicode_class(cp), name);
    }
}

static struct json_doc *read_ranges(void)
{
    struct json_doc *doc;
    struct buf text = {0};
    struct status st;
    FILE *f = fopen(ranges_path, "rb");
    char block[4096];
    size_t n;

    assert_non_null(f);
    while ((n = fread(block, 1, sizeof(block), f)) > 0)
        buf_append(&text, block, n);
    fclose(f);
    assert_int_equal(json_parse(text.data, text.len, 0, &doc, &st), ST_OK);
    buf_deinit(&text);
    return doc;
}

static void classes_are_the_reference_engines(void **state)
{
    struct json_doc *doc = read_ranges();

    (void)state;
    check_ranges(json_root(doc), "L", UNICODE_LETTER);
    check_ranges(json_root(doc), "M", UNICODE_MARK);
    check_ranges(json_root(doc), "N", UNICODE_NUMBER);
    check_ranges(json_root(doc), "space", UNICODE_BLANK | UNICODE_NEWLINE);
    json_free(doc);
    for (uint32_t cp = 0; cp < 0x110000; cp++) {
        uint8_t c = unicode_class(cp);
        bool cjk = (cp >= 0x4E00 && cp <= 0x9FA5) || (cp >= 0x3040 && cp <= 0x30FF);
        bool ascii = (cp >= 'A' && cp <= 'Z') || (cp >= 'a' && cp <= 'z');
        assert_int_equal((c & UNICODE_CJK) != 0, cjk);
        assert_int_equal((c & UNICODE_ASCII_LETTER) != 0, ascii);
        assert_int_equal((c & UNICODE_NEWLINE) != 0, cp == '\n' || cp == '\r');
    }
}

#ifdef HAVE_PCRE2
static uint32_t random_char(void)
{
    static const char ascii[] = "aZ0 \t\n\r.,'_-<|x  \n";
    static const uint16_t odd[] = {0x85,   0xA0,   0xAD,   0x301,  0x3040, 0x3097, 0x3099, 0x309B,
                                   0x30FB, 0x30FC, 0x4E00, 0x9FA5, 0x9FA6, 0x3000, 0x2028, 0x200B,
                                   0x200D, 0xFF5C, 0xE000, 0xFFFF, 0x660,  0xB2,   0x2160, 0x3007};
    uint32_t cp;

    switch (rnd(6)) {
    case 0:
    case 1:
        return (uint8_t)ascii[rnd(sizeof(ascii) - 1)];
    case 2:
        return odd[rnd(sizeof(odd) / sizeof(*odd))];
    case 3:
        return 0x3040 + rnd(0x100);
    case 4:
        return rnd(0x500);
    default:
        cp = rnd(0x110000);
        return cp >= 0xD800 && cp <= 0xDFFF ? 'q' : cp;
    }
}

static void pcre2_gives_the_same_pieces(void **state)
{
    struct pcre2_split *splitter = pcre2_split_new();
    struct buf text = {0};
    size_t ends[200];

    (void)state;
    seed = 7;
    for (int run = 0; run < 20000; run++) {
        size_t n_ends, pos = 0;
        uint32_t n = 1 + rnd(run % 4 == 0 ? 60 : 12);
        text.len = 0;
        for (uint32_t i = 0; i < n; i++)
            put(&text, random_char());
        n_ends = pcre2_split_ends(splitter, text.data, text.len, ends);
        for (size_t i = 0; i < n_ends; i++) {
            size_t end = pretokenize_next((const uint8_t *)text.data, text.len, pos);
            if (end != ends[i])
                fail_msg("run %d, piece %zu of '%s': ends at %zu, PCRE2 says %zu", run, i,
                         buf_cstr(&text), end, ends[i]);
            pos = end;
        }
        assert_int_equal(pos, text.len);
    }
    buf_deinit(&text);
    pcre2_split_free(splitter);
}
#endif

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_are_those_of_the_regexes),
        cmocka_unit_test(classes_are_the_reference_engines),
#ifdef HAVE_PCRE2
        cmocka_unit_test(pcre2_gives_the_same_pieces),
#endif
    };
    if (argc < 2)
        return 2;
    ranges_path = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
