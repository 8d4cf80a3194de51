#include "common/base/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/utf8.h"

static struct json_doc *parse(const char *text, unsigned flags)
{
    struct json_doc *doc = NULL;
    struct status st;

    if (json_parse(text, strlen(text), flags, &doc, &st) != ST_OK)
        fail_msg("%s: %s", text, st.msg);
    return doc;
}

/* text must be refused, with a message that contains `why`. */
static void refuse_n(const char *text, size_t n, unsigned flags, const char *why)
{
    struct json_doc *doc = (void *)0x1;
    struct status st = {0};

    if (json_parse(text, n, flags, &doc, &st) != ST_INVALID)
        fail_msg("taken: %.*s", (int)n, text);
    assert_ptr_equal(doc, (void *)0x1);
    if (strstr(st.msg, why) == NULL)
        fail_msg("%.*s: message \"%s\" lacks \"%s\"", (int)n, text, st.msg, why);
}

static void refuse(const char *text, unsigned flags, const char *why)
{
    refuse_n(text, strlen(text), flags, why);
}

static void a_tree_keeps_order_kinds_and_spelling(void **state)
{
    struct json_doc *doc =
        parse(" {\"b\": [1.50, -0, 123456789012345678901234567890], \"a\": {\"x\": null, "
              "\"y\": true, \"z\": false}, \"e\": [], \"f\": {}, \"s\": \"\"}\n\t\r ",
              0);
    const struct json *v = json_root(doc), *b = json_get(v, "b"), *a = json_get(v, "a");

    (void)state;
    assert_int_equal(v->type, JSON_OBJECT);
    assert_int_equal(v->len, 5);
    assert_string_equal(v->members[0].key, "b");
    assert_string_equal(v->members[1].key, "a");
    assert_int_equal(b->len, 3);
    assert_string_equal(b->items[0].text, "1.50");
    assert_string_equal(b->items[1].text, "-0");
    assert_string_equal(b->items[2].text, "123456789012345678901234567890");
    assert_int_equal(json_get(a, "x")->type, JSON_NULL);
    assert_int_equal(json_get(a, "y")->type, JSON_TRUE);
    assert_int_equal(json_get(a, "z")->type, JSON_FALSE);
    assert_int_equal(json_get(v, "e")->type, JSON_ARRAY);
    assert_int_equal(json_get(v, "e")->len, 0);
    assert_int_equal(json_get(v, "f")->type, JSON_OBJECT);
    assert_int_equal(json_get(v, "s")->len, 0);
    assert_string_equal(json_get(v, "s")->text, "");
    assert_null(json_get(v, "none"));
    assert_null(json_get(b, "x"));
    assert_null(json_get(NULL, "x"));
    json_free(doc);
}

static void strings_are_decoded_at_every_alignment(void **state)
{
    (void)state;
    for (int pad = 0; pad < 20; pad++) {
        char text[128], want[128];
        int n = snprintf(text, sizeof(text),
                         "\"%.*s\\u0041\\n\\\"\\\\\\/\\ud83d\\ude00\xe4\xb8\xad\\u00e9tail\"", pad,
                         "abcdefghijklmnopqrst");
        int m = snprintf(want, sizeof(want), "%.*sA\n\"\\/\xf0\x9f\x98\x80\xe4\xb8\xad\xc3\xa9tail",
                         pad, "abcdefghijklmnopqrst");
        struct json_doc *doc = parse(text, 0);

        (void)n;
        assert_int_equal(json_root(doc)->len, m);
        assert_memory_equal(json_root(doc)->text, want, (size_t)m + 1);
        json_free(doc);
    }
}

static void a_nul_inside_a_string_is_kept(void **state)
{
    struct json_doc *doc = parse("\"a\\u0000b\"", 0);

    (void)state;
    assert_int_equal(json_root(doc)->len, 3);
    assert_memory_equal(json_root(doc)->text, "a\0b", 4);
    json_free(doc);
}

static void syntax_errors_name_the_byte_and_what_was_expected(void **state)
{
    (void)state;
    refuse("", 0, "byte 0: expected a value, found the end");
    refuse("  ", 0, "byte 2");
    refuse("[1,]", 0, "byte 3: expected a value, found ']'");
    refuse("[1 2]", 0, "byte 3: expected ',' or ']', found '2'");
    refuse("[1", 0, "byte 2");
    refuse("]", 0, "byte 0");
    refuse("{\"a\" 1}", 0, "byte 5: expected ':'");
    refuse("{\"a\":1,}", 0, "byte 7: expected a key");
    refuse("{a:1}", 0, "byte 1: expected a key");
    refuse("{\"a\":1]", 0, "byte 6: expected ',' or '}'");
    refuse("{\"a\":}", 0, "byte 5");
    refuse("{", 0, "byte 1");
    refuse("{\"a\"", 0, "byte 4");
    refuse("1 2", 0, "byte 2: expected nothing after");
    refuse("tru", 0, "byte 0");
    refuse("True", 0, "byte 0");
    refuse("nul", 0, "byte 0");
    refuse("'a'", 0, "byte 0");
    refuse("\"a", 0, "byte 2: expected the closing quote");
    refuse("\"a\\", 0, "byte 3");
    refuse("\"a\\x\"", 0, "byte 3: expected one of");
    refuse_n("\"\\\0\"", 4, 0, "byte 2");
    refuse("\"\\u12\"", 0, "byte 1");
    refuse("\"\\u12g4\"", 0, "byte 1");
    refuse("\"a\nb\"", 0, "byte 2: a control character");
    refuse_n("\"a\0b\"", 5, 0, "byte 2: a control character");
    refuse("/* c */ 1", 0, "byte 0");
    refuse("\xef\xbb\xbf{}", 0, "byte order mark");
    refuse("\xc2\xa0"
           "1",
           0, "byte 0");
}

static void numbers_follow_the_grammar(void **state)
{
    static const char *const bad[] = {"-",   "+1",  "01",  "-01", ".5",    "1.",    "1.e1", "1e",
                                      "1e+", "0x1", "1_0", "--1", "1.2.3", "1e1.5", "-a",   "1f"};
    static const char *const good[] = {"0",
                                       "-0",
                                       "10",
                                       "0.5",
                                       "-0.0",
                                       "1e1",
                                       "1E+1",
                                       "1e-001",
                                       "0e0",
                                       "0.10",
                                       "1.5e5",
                                       "9",
                                       "100000000000000000000"};

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        refuse(bad[i], 0, "JSON at byte");
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
        struct json_doc *doc = parse(good[i], 0);

        assert_int_equal(json_root(doc)->type, JSON_NUMBER);
        assert_string_equal(json_root(doc)->text, good[i]);
        json_free(doc);
    }
}

static void nan_and_infinity_need_their_flag(void **state)
{
    struct json_doc *doc = parse("[NaN, Infinity, -Infinity]", JSON_ALLOW_NAN);
    double d;
    int64_t i;

    (void)state;
    assert_string_equal(json_root(doc)->items[2].text, "-Infinity");
    assert_true(json_double(&json_root(doc)->items[2], &d));
    assert_true(d < 0 && d * 0 != 0);
    assert_false(json_int(&json_root(doc)->items[0], &i));
    assert_false(json_int(&json_root(doc)->items[2], &i));
    json_free(doc);
    refuse("NaN", 0, "byte 0");
    refuse("[-Infinity]", 0, "byte 2");
    refuse("-NaN", JSON_ALLOW_NAN, "byte 1");
    refuse("nan", JSON_ALLOW_NAN, "byte 0");
}

static void surrogate_escapes_need_both_halves(void **state)
{
    struct json_doc *doc;

    (void)state;
    refuse("\"\\ud800\"", 0, "byte 1: a surrogate escape");
    refuse("\"\\udc00\"", 0, "byte 1");
    refuse("\"\\ud800\\u0041\"", 0, "byte 1");
    refuse("\"\\ud800x\"", 0, "byte 1");
    refuse("\"\\ude00\\ud83d\"", 0, "byte 1");
    doc = parse("\"\\ud83d\\ude00\"", JSON_LONE_SURROGATES);
    assert_false(json_lone_surrogates(doc));
    json_free(doc);
    doc = parse("\"\\ud800\\ud83d\\ude00\"", JSON_LONE_SURROGATES);
    assert_true(json_lone_surrogates(doc));
    assert_memory_equal(json_root(doc)->text, "\xed\xa0\x80\xf0\x9f\x98\x80", 8);
    json_free(doc);
}

static void text_that_is_no_utf8_is_refused_at_its_byte(void **state)
{
    static const char *const bad[] = {"\x80",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xe0\x80\x80",
                                      "\xed\xa0\x80",
                                      "\xf0\x80\x80\x80",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xff",
                                      "\xe4\xb8",
                                      "\xc3"};

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        char text[64], why[64];
        int n = snprintf(text, sizeof(text), "[\"0123456789%s\"]", bad[i]);

        snprintf(why, sizeof(why), "byte 12: expected UTF-8");
        refuse_n(text, (size_t)n, 0, why);
        n = snprintf(text, sizeof(text), "{\"%s\":1}", bad[i]);
        refuse_n(text, (size_t)n, 0, "byte 2: expected UTF-8");
    }
    assert_int_equal(utf8_valid_prefix("0123456789\xe4\xb8\xad\xff", 14), 13);
}

static void a_repeated_key_is_refused_or_the_last_value_takes_the_first_place(void **state)
{
    struct json_doc *doc = parse("{\"a\":1,\"b\":2,\"a\":{\"c\":3}}", JSON_LAST_KEY_WINS);

    (void)state;
    assert_int_equal(json_root(doc)->len, 2);
    assert_string_equal(json_root(doc)->members[0].key, "a");
    assert_int_equal(json_root(doc)->members[0].value.type, JSON_OBJECT);
    assert_string_equal(json_root(doc)->members[1].key, "b");
    json_free(doc);
    refuse("{\"a\":1,\"a\":2}", 0, "key \"a\" stands twice");
    refuse("[{\"x\":{\"\\u0061\":1,\"a\":2}}]", 0, "key \"a\" stands twice");
}

static void repeated_keys_are_found_in_objects_of_any_size(void **state)
{
    enum { N_SIZES = 5 };
    static const int sizes[N_SIZES] = {2, 12, 13, 100, 20000};

    (void)state;
    for (int s = 0; s < N_SIZES; s++) {
        struct buf b = {0};
        struct json_doc *doc;

        buf_puts(&b, "[{\"big\":0},{");
        for (int i = 0; i < sizes[s]; i++)
            buf_printf(&b, "\"some key %d\":%d,", i, i);
        buf_puts(&b, "\"some key 1\":\"last\"}]");
        refuse_n(b.data, b.len, 0, "stands twice");
        doc = parse(buf_cstr(&b), JSON_LAST_KEY_WINS);
        assert_int_equal(json_root(doc)->items[1].len, sizes[s]);
        assert_true(json_is(json_get(&json_root(doc)->items[1], "some key 1"), "last"));
        assert_true(json_is(&json_root(doc)->items[1].members[1].value, "last"));
        json_free(doc);
        buf_deinit(&b);
    }
}

static void depth_is_bounded_by_memory_only(void **state)
{
    enum { DEPTH = 300000 };
    char *text = malloc(2 * DEPTH + 1);
    struct json_doc *doc;
    const struct json *v;
    size_t depth = 0;

    (void)state;
    memset(text, '[', DEPTH);
    memset(text + DEPTH, ']', DEPTH);
    text[2 * DEPTH] = '\0';
    doc = parse(text, 0);
    for (v = json_root(doc); v->len > 0; v = v->items)
        depth++;
    assert_int_equal(depth, DEPTH - 1);
    json_free(doc);
    refuse_n(text, 2 * DEPTH - 1, 0, "expected ',' or ']', found the end");
    free(text);
}

static void whole_numbers_are_exact(void **state)
{
    static const struct {
        const char *text;
        bool ok;
        int64_t want;
    } cases[] = {
        {"0", true, 0},
        {"-0", true, 0},
        {"-0.0e7", true, 0},
        {"42", true, 42},
        {"1e3", true, 1000},
        {"1.0", true, 1},
        {"1.50e1", true, 15},
        {"1200e-2", true, 12},
        {"1.5", false, 0},
        {"1e-1", false, 0},
        {"0e99999999999999999999", true, 0},
        {"1e99999999999999999999", false, 0},
        {"1e-99999999999999999999", false, 0},
        {"9223372036854775807", true, INT64_MAX},
        {"9223372036854775808", false, 0},
        {"-9223372036854775808", true, INT64_MIN},
        {"-9223372036854775809", false, 0},
        {"92233720368547758.07e2", true, INT64_MAX},
        {"18446744073709551616", false, 0},
        {"1.00000000000000000000000000000000000000000", true, 1},
        {"10000000000000000000000000000000000000e-36", true, 10},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct json_doc *doc = parse(cases[i].text, 0);
        int64_t got = 7;

        if (json_int(json_root(doc), &got) != cases[i].ok ||
            got != (cases[i].ok ? cases[i].want : 7))
            fail_msg("%s: got %lld", cases[i].text, (long long)got);
        json_free(doc);
    }
    assert_false(json_int(NULL, &(int64_t){0}));
    assert_false(json_double(NULL, &(double){0}));
}

static void strings_are_written_with_the_fewest_escapes(void **state)
{
    static const char in[] =
        "abcdefgh\"\\/\b\f\n\r\t\x01\x1f\x7f\xe2\x80\xa8\xf0\x9f\x98\x80 end of it\0z";
    struct buf b = {0};

    (void)state;
    json_write_string(&b, in, sizeof(in) - 1);
    assert_string_equal(
        buf_cstr(&b),
        "\"abcdefgh\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\xe2\x80\xa8\xf0\x9f\x98\x80"
        " end of it\\u0000z\"");
    b.len = 0;
    json_write_string(&b, NULL, 0);
    assert_string_equal(buf_cstr(&b), "\"\"");
    buf_deinit(&b);
}

static void what_is_written_reads_back(void **state)
{
    char raw[300];
    uint32_t seed = 7;

    (void)state;
    for (int round = 0; round < 2000; round++) {
        size_t n = (seed >> 8) % sizeof(raw);
        struct buf b = {0};
        struct json_doc *doc;

        for (size_t i = 0; i < n; i++) {
            seed = seed * 1664525 + 1013904223;
            raw[i] = (char)((seed >> 24) % 3 == 0 ? (seed >> 16) % 0x30 : 'a' + (seed >> 16) % 26);
        }
        seed = seed * 1664525 + 1013904223;
        json_write_string(&b, raw, n);
        doc = parse(buf_cstr(&b), 0);
        assert_int_equal(json_root(doc)->len, n);
        assert_memory_equal(json_root(doc)->text, raw, n);
        json_free(doc);
        buf_deinit(&b);
    }
}

static void a_tree_is_written_as_it_was_spelled(void **state)
{
    static const char *const texts[] = {
        "null", "[]", "{}",
        "[1.50,-0,1e999,\"a\\nb\",true,false,{\"k\":[[],{\"\":{}}],\"l\":null}]",
        "123456789012345678901234567890"};
    static const struct json_style spaced = {", ", ": ", NULL};
    struct buf b = {0};
    struct json_doc *doc;

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        doc = parse(texts[i], 0);
        b.len = 0;
        json_write(&b, json_root(doc), NULL);
        assert_string_equal(buf_cstr(&b), texts[i]);
        json_free(doc);
    }
    doc = parse("{\"a\":[1,2]}", 0);
    b.len = 0;
    json_write(&b, json_root(doc), &spaced);
    assert_string_equal(buf_cstr(&b), "{\"a\": [1, 2]}");
    /* Memory of the document's, for what is made from it. */
    for (size_t n = 1; n < 1 << 20; n *= 7)
        memset(json_alloc(doc, n), 0x5a, n);
    b.len = 0;
    json_write(&b, json_root(doc), NULL);
    assert_string_equal(buf_cstr(&b), "{\"a\":[1,2]}");
    json_free(doc);
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tree_keeps_order_kinds_and_spelling),
        cmocka_unit_test(strings_are_decoded_at_every_alignment),
        cmocka_unit_test(a_nul_inside_a_string_is_kept),
        cmocka_unit_test(a_tree_is_written_as_it_was_spelled),
        cmocka_unit_test(syntax_errors_name_the_byte_and_what_was_expected),
        cmocka_unit_test(numbers_follow_the_grammar),
        cmocka_unit_test(nan_and_infinity_need_their_flag),
        cmocka_unit_test(surrogate_escapes_need_both_halves),
        cmocka_unit_test(text_that_is_no_utf8_is_refused_at_its_byte),
        cmocka_unit_test(a_repeated_key_is_refused_or_the_last_value_takes_the_first_place),
        cmocka_unit_test(repeated_keys_are_found_in_objects_of_any_size),
        cmocka_unit_test(depth_is_bounded_by_memory_only),
        cmocka_unit_test(whole_numbers_are_exact),
        cmocka_unit_test(strings_are_written_with_the_fewest_escapes),
        cmocka_unit_test(what_is_written_reads_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
