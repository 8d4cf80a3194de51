#include "common/text/stop.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Runs text through in pieces of `piece` bytes; returns the string that was found. */
static int run(const char *const *strings, bool trim, const char *text, size_t piece,
               struct buf *out)
{
    struct stop_string list[8];
    struct stop *s = NULL;
    struct status st;
    size_t n = 0, len = strlen(text), longest = 1;
    int found;

    for (; strings[n] != NULL; n++) {
        list[n] = (struct stop_string){.text = strings[n], .len = strlen(strings[n])};
        longest = list[n].len > longest ? list[n].len : longest;
    }
    assert_int_equal(stop_new(n, list, trim, &s, &st), ST_OK);
    out->len = 0;
    for (size_t at = 0; at < len; at += piece) {
        stop_push(s, text + at, len - at < piece ? len - at : piece, out);
        assert_true(stop_held(s) < longest);
        if (!trim)
            assert_int_equal(stop_held(s), 0);
    }
    stop_finish(s, out);
    found = stop_found(s);
    stop_free(s);
    return found;
}

static void check(const char *const *strings, const char *text, int found, const char *trimmed,
                  const char *untrimmed)
{
    struct buf out = {0};

    for (size_t piece = 1; piece < 12; piece++) {
        assert_int_equal(run(strings, true, text, piece, &out), found);
        assert_string_equal(buf_cstr(&out), trimmed);
        assert_int_equal(run(strings, false, text, piece, &out), found);
        assert_string_equal(buf_cstr(&out), untrimmed);
    }
    buf_deinit(&out);
}

#define STRINGS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void the_answer_ends_at_a_stop_string_wherever_it_is_cut(void **state)
{
    (void)state;
    check(STRINGS("END"), "one END two END", 0, "one ", "one END");
    check(STRINGS("END"), "END", 0, "", "END");
    check(STRINGS("END"), "no EN", -1, "no EN", "no EN");
    check(STRINGS("\n\n"), "a\nb\n\nc", 0, "a\nb", "a\nb\n\n");
    check(STRINGS("。"), "你好。再见", 0, "你好", "你好。");
    check(STRINGS("aab"), "aaaab", 0, "aa", "aaaab");
    check(STRINGS("abab"), "ababa", 0, "", "abab");
}

static void of_several_the_one_complete_first_wins_and_then_the_longer(void **state)
{
    (void)state;
    check(STRINGS("two", "one"), "one two", 1, "", "one");
    check(STRINGS("c", "bcd"), "abcd", 0, "ab", "abc");
    check(STRINGS("d", "bcd"), "abcd", 1, "a", "abcd");
    check(STRINGS("abcx", "bc"), "abcd", 1, "a", "abc");
    check(STRINGS("abcx", "zz"), "abcd", -1, "abcd", "abcd");
}

static void without_strings_everything_passes(void **state)
{
    struct buf out = {0};

    (void)state;
    assert_int_equal(run((const char *const[]){NULL}, true, "text", 3, &out), -1);
    assert_string_equal(buf_cstr(&out), "text");
    buf_deinit(&out);
}

static void bad_stop_strings_are_refused(void **state)
{
    struct stop_string list[STOP_STRINGS_MAX + 1];
    struct stop *s = NULL;
    struct status st;

    (void)state;
    for (int i = 0; i <= STOP_STRINGS_MAX; i++)
        list[i] = (struct stop_string){.text = "x", .len = 1};
    assert_int_equal(stop_new(STOP_STRINGS_MAX + 1, list, true, &s, &st), ST_INVALID);
    list[1].len = 0;
    assert_int_equal(stop_new(2, list, true, &s, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "stop string 1 has 0 bytes"));
    list[1].len = STOP_BYTES_MAX + 1;
    assert_int_equal(stop_new(2, list, true, &s, &st), ST_INVALID);
    assert_null(s);
}

/* Against the plain definition: the least end of any occurrence, then the greatest length. */
static void random_texts_agree_with_the_definition(void **state)
{
    uint32_t seed = 5;
    struct buf out = {0};

    (void)state;
    for (int round = 0; round < 20000; round++) {
        char text[25] = "", words[3][5];
        const char *list[4] = {words[0], words[1], words[2], NULL};
        size_t best_end = SIZE_MAX;
        int best = -1;

        for (int i = 0; i < 24; i++) {
            seed = seed * 1664525 + 1013904223;
            text[i] = (char)('a' + (seed >> 28) % 3);
        }
        for (int w = 0; w < 3; w++) {
            seed = seed * 1664525 + 1013904223;
            for (unsigned i = 0; i < 4; i++)
                words[w][i] = (char)('a' + (seed >> (8 + 2 * i)) % 3);
            words[w][1 + (seed >> 24) % 4] = '\0';
        }
        for (int w = 0; w < 3; w++) {
            const char *at = strstr(text, words[w]);
            size_t end = at == NULL ? SIZE_MAX : (size_t)(at - text) + strlen(words[w]);

            if (end < best_end ||
                (end == best_end && end != SIZE_MAX && strlen(words[w]) > strlen(words[best]))) {
                best_end = end;
                best = w;
            }
        }
        assert_int_equal(run(list, true, text, 1 + seed % 7, &out), best);
        assert_int_equal(out.len, best < 0 ? 24 : best_end - strlen(words[best]));
        assert_memory_equal(out.data == NULL ? "" : out.data, text, out.len);
    }
    buf_deinit(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_answer_ends_at_a_stop_string_wherever_it_is_cut),
        cmocka_unit_test(of_several_the_one_complete_first_wins_and_then_the_longer),
        cmocka_unit_test(without_strings_everything_passes),
        cmocka_unit_test(bad_stop_strings_are_refused),
        cmocka_unit_test(random_texts_agree_with_the_definition),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
