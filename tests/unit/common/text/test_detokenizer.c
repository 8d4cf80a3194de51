/* args: tokenizer.json */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/text/tokenizer.h"
#include "common/base/utf8.h"

static const char *real_path;
static struct tokenizer *t;
static int32_t byte_id[256];

static int open_tokenizer(void **state)
{
    struct status st;
    size_t len;

    (void)state;
    if (tokenizer_open(real_path, &t, &st) != ST_OK)
        return -1;
    for (int32_t id = 0; id < tokenizer_vocab(t); id++) {
        const char *s = tokenizer_bytes(t, id, &len, NULL);
        if (len == 1)
            byte_id[(uint8_t)*s] = id;
    }
    return 0;
}

static int close_tokenizer(void **state)
{
    (void)state;
    tokenizer_free(t);
    return 0;
}

/* Pushes single bytes; the pieces come with '|' between them and before the tail. */
static const char *stream(const char *bytes, struct buf *out)
{
    struct detokenizer d = {.n_held = 0};
    struct status st;

    out->len = 0;
    for (; *bytes; bytes++) {
        assert_int_equal(detokenizer_push(&d, t, byte_id[(uint8_t)*bytes], out, &st), ST_OK);
        buf_puts(out, "|");
    }
    detokenizer_finish(&d, out);
    return buf_cstr(out);
}

#define BAD "\xEF\xBF\xBD"

static void bytes_come_out_when_they_are_decided(void **state)
{
    struct buf out = {0};

    (void)state;
    assert_string_equal(stream("ab", &out), "a|b|");
    assert_string_equal(stream("\xC3\xA9", &out), "|é|");
    assert_string_equal(stream("\xE4\xB8\xAD!", &out), "||中|!|");
    assert_string_equal(stream("\xF0\x9F\x98\x80", &out), "|||😀|");
    assert_string_equal(stream("\x80", &out), BAD "|");
    assert_string_equal(stream("\xFF\xC0", &out), BAD "|" BAD "|");
    assert_string_equal(stream("\xE4\xB8", &out), "||" BAD);
    assert_string_equal(stream("\xE4\xB8"
                               "a",
                               &out),
                        "||" BAD "a|");
    assert_string_equal(stream("\xE4\xE4\xB8\xAD", &out), "|" BAD "||中|");
    assert_string_equal(stream("\xF0\x9F\x98\xC3\xA9", &out), "|||" BAD "|é|");
    assert_string_equal(stream("\xF4\x90\x80", &out), "|" BAD BAD "|" BAD "|");
    assert_string_equal(stream("\xE0\x80", &out), "|" BAD BAD "|");
    /* half a surrogate waits for its third byte, as the reference's decoder does */
    assert_string_equal(stream("\xED\xA0\x80", &out), "||" BAD BAD BAD "|");
    assert_string_equal(stream("\xED\xA0"
                               "a",
                               &out),
                        "||" BAD BAD "a|");
    assert_string_equal(stream("\xED\xA0\xE4\xB8\xAD", &out), "||" BAD BAD "||中|");
    assert_string_equal(stream("\xED\xA0", &out), "||" BAD BAD);
    assert_string_equal(stream("\xED\x9F\xBF", &out), "||\xED\x9F\xBF|");
    buf_deinit(&out);
}

static void an_added_token_ends_what_was_unfinished(void **state)
{
    struct detokenizer d = {.n_held = 0};
    struct buf out = {0};
    struct status st;

    (void)state;
    detokenizer_push(&d, t, byte_id[0xE4], &out, &st);
    detokenizer_push(&d, t, tokenizer_added_id(t, "<think>", 7), &out, &st);
    assert_string_equal(buf_cstr(&out), BAD "<think>");
    detokenizer_push(&d, t, byte_id[0xB8], &out, &st);
    assert_string_equal(buf_cstr(&out), BAD "<think>" BAD);
    buf_deinit(&out);
}

static void ids_outside_the_vocabulary_are_refused(void **state)
{
    static const int32_t ids[] = {-1, 129280, INT32_MIN, INT32_MAX};
    struct detokenizer d = {.n_held = 0};
    struct buf out = {0};
    struct status st;

    (void)state;
    for (int i = 0; i < 4; i++)
        assert_int_equal(detokenizer_push(&d, t, ids[i], &out, &st), ST_INVALID);
    assert_int_equal(out.len, 0);
}

static void all_pieces_are_the_whole_decoded(void **state)
{
    uint32_t seed = 1;

    (void)state;
    for (int run = 0; run < 20000; run++) {
        struct detokenizer d = {.n_held = 0};
        struct buf bytes = {0}, whole = {0}, out = {0};
        struct status st;
        int n = run % 30;
        for (int i = 0; i < n; i++) {
            size_t len, before = out.len;
            const char *s;
            int32_t id;
            seed = seed * 1664525 + 1013904223;
            id =
                (seed >> 30) ? byte_id[0x80 + (seed >> 8 & 0x7F)] : (int32_t)((seed >> 8) % 128000);
            if (id < 3)
                continue; /* added tokens cut characters: another test's matter */
            s = tokenizer_bytes(t, id, &len, NULL);
            buf_append(&bytes, s, len);
            assert_int_equal(detokenizer_push(&d, t, id, &out, &st), ST_OK);
            assert_true(d.n_held <= 3);
            assert_int_equal(utf8_valid_prefix(out.data + before, out.len - before),
                             out.len - before);
        }
        detokenizer_finish(&d, &out);
        utf8_append_lossy(&whole, bytes.data, bytes.len);
        assert_int_equal(out.len, whole.len);
        if (out.len > 0)
            assert_memory_equal(out.data, whole.data, out.len);
        buf_deinit(&bytes);
        buf_deinit(&whole);
        buf_deinit(&out);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_come_out_when_they_are_decided),
        cmocka_unit_test(an_added_token_ends_what_was_unfinished),
        cmocka_unit_test(ids_outside_the_vocabulary_are_refused),
        cmocka_unit_test(all_pieces_are_the_whole_decoded),
    };
    if (argc < 2)
        return 2;
    real_path = argv[1];
    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
