/* args: tokenizer.json */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/base/json.h"
#include "common/text/tokenizer.h"
#include "common/text/text_budget.h"
#include "tests/lib/toy_tokenizer.h"

static const char *real_path;
static char dir[64], toy_path[96], cache_path[112]; /* a folder of this test's own */

static int make_dir(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/baton-test-XXXXXX");
    if (mkdtemp(dir) == NULL)
        return -1;
    snprintf(toy_path, sizeof(toy_path), "%s/tokenizer.json", dir);
    snprintf(cache_path, sizeof(cache_path), "%s.baton", toy_path);
    return 0;
}

static int drop_dir(void **state)
{
    (void)state;
    chmod(dir, 0755);
    unlink(toy_path);
    unlink(cache_path);
    return rmdir(dir); /* fails when something else was left in it */
}

static void write_file(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");

    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void read_file(const char *path, struct buf *out)
{
    FILE *f = fopen(path, "rb");
    char block[65536];
    size_t n;

    assert_non_null(f);
    out->len = 0;
    while ((n = fread(block, 1, sizeof(block), f)) > 0)
        buf_append(out, block, n);
    fclose(f);
}

static enum status_code open_toy(const struct toy_tokenizer *t, struct tokenizer **out,
                                 struct status *st)
{
    struct buf b = {0};

    toy_tokenizer_json(&b, t);
    write_file(toy_path, b.data, b.len);
    buf_deinit(&b);
    return tokenizer_open(toy_path, out, st);
}

static void check_ids(const struct tokenizer *t, struct tokenizer_cache *c, const char *text,
                      unsigned flags, const char *expected)
{
    struct token_list ids = {0};
    struct buf found = {0};
    struct status st;

    if (tokenizer_encode(t, c, text, strlen(text), flags, &ids, &st) != ST_OK)
        fail_msg("'%s': %s", text, st.msg);
    for (size_t i = 0; i < ids.n; i++)
        buf_printf(&found, i ? " %d" : "%d", ids.ids[i]);
    assert_string_equal(buf_cstr(&found), expected);
    buf_deinit(&found);
    token_list_deinit(&ids);
}

static void check_toy_ids(const struct tokenizer *t)
{
    struct tokenizer_cache *c;
    struct status st;

    assert_int_equal(tokenizer_cache_new(1, &c, &st), ST_OK);
    for (int round = 0; round < 2; round++) {
        check_ids(t, c, "", TOKENIZE_ADDED, "");
        check_ids(t, c, "abcab the\"\"", TOKENIZE_ADDED, "257 256 259 101 260");
        check_ids(t, c, "a<s>b", TOKENIZE_ADDED, "97 261 98");
        check_ids(t, c, "a<s>b", 0, "97 60 115 62 98");
        check_ids(t, c, "<s><s><s>", TOKENIZE_ADDED, "265 261");
        check_ids(t, c, "<ab<abc><abd", TOKENIZE_ADDED, "262 263 262 100");
        /* the first pass takes <s> before the second could see b<s */
        check_ids(t, c, "ab<s>", TOKENIZE_ADDED, "256 261");
        check_ids(t, c, "ab<s", TOKENIZE_ADDED, "97 264");
    }
    tokenizer_cache_free(c);
}

static void a_small_file_is_read_and_added_tokens_go_in_two_passes(void **state)
{
    struct tokenizer *t;
    struct status st;
    size_t len;
    bool added;

    (void)state;
    if (open_toy(&(struct toy_tokenizer){.version = NULL}, &t, &st) != ST_OK)
        fail_msg("%s", st.msg);
    assert_int_equal(tokenizer_vocab(t), 266);
    check_toy_ids(t);
    assert_int_equal(tokenizer_added_id(t, "<abc>", 5), 263);
    assert_int_equal(tokenizer_added_id(t, "<abc", 4), -1);
    assert_int_equal(tokenizer_added_id(t, "abc", 3), -1);
    assert_memory_equal(tokenizer_bytes(t, 259, &len, &added), " th", 3);
    assert_int_equal(len, 3);
    assert_false(added);
    assert_memory_equal(tokenizer_bytes(t, 261, &len, &added), "<s>", 3);
    assert_true(added);
    assert_null(tokenizer_bytes(t, 266, &len, &added));
    assert_null(tokenizer_bytes(t, -1, &len, &added));
    tokenizer_free(t);
}

static void merges_may_stand_before_the_vocabulary(void **state)
{
    struct tokenizer *t;
    struct status st;

    (void)state;
    assert_int_equal(open_toy(&(struct toy_tokenizer){.merges_first = true}, &t, &st), ST_OK);
    check_toy_ids(t);
    tokenizer_free(t);
}

static void what_is_not_supported_is_refused_by_name(void **state)
{
#define V "\"ab\": 256, \"abc\": 257, \"\\u0120t\": 258, \"\xC4\xA0th\": 259, \"\\\"\\\"\": 260"
    static const struct {
        struct toy_tokenizer toy;
        const char *words[2]; /* both stand in the message */
    } cases[] = {
        {{.version = "\"2.0\""}, {"version", "1.0"}},
        {{.truncation = "{\"max_length\": 5}"}, {"truncation", "null"}},
        {{.padding = "{\"strategy\": \"BatchLongest\"}"}, {"padding", "null"}},
        {{.normalizer = "{\"type\": \"NFC\"}"}, {"normalizer \"NFC\"", "supported"}},
        {{.normalizer = "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Lowercase\"}]}"},
         {"Lowercase", "normalizer"}},
        {{.pre_tokenizer = "{\"type\": \"Whitespace\"}"}, {"pre_tokenizer", "Whitespace"}},
        {{.pre_tokenizer = "null"}, {"pre_tokenizer", "supported"}},
        {{.pre_tokenizer = "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\"}]}"},
         {"pre_tokenizer", "Digits"}},
        {{.pre_tokenizer = "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", "
                           "\"pattern\": {\"Regex\": \"x+\"}, \"behavior\": \"Isolated\"}]}"},
         {"pre_tokenizer", "x+"}},
        {{.split = "\"behavior\": \"Removed\", \"invert\": false"}, {"behavior", "Isolated"}},
        {{.split = "\"behavior\": \"Isolated\", \"invert\": true"}, {"invert", "false"}},
        {{.post_processor = "{\"type\": \"TemplateProcessing\"}"},
         {"post_processor", "TemplateProcessing"}},
        {{.decoder = "{\"type\": \"Metaspace\"}"}, {"decoder", "Metaspace"}},
        {{.decoder = "null"}, {"decoder", "supported"}},
        {{.more = "\"sampler\": 1, "}, {"sampler", "known"}},
        {{.model = "\"type\": \"Unigram\""}, {"Unigram", "BPE"}},
        {{.model = "\"dropout\": 0.1"}, {"model.dropout", "null"}},
        {{.model = "\"unk_token\": \"a\""}, {"model.unk_token", "null"}},
        {{.model = "\"continuing_subword_prefix\": \"##\""}, {"continuing_subword_prefix", "null"}},
        {{.model = "\"end_of_word_suffix\": \"</w>\""}, {"end_of_word_suffix", "null"}},
        {{.model = "\"byte_fallback\": true"}, {"model.byte_fallback", "false"}},
        {{.model = "\"ignore_merges\": true"}, {"model.ignore_merges", "false"}},
        {{.model = "\"cache_capacity\": 5"}, {"cache_capacity", "known"}},
        {{.vocab_tail = V ", \"x\": 261"}, {"same string", "261"}},
        {{.vocab_tail = V ", \"xy\": 260"}, {"260", "twice"}},
        {{.vocab_tail = V ", \"\": 261"}, {"261", "0 bytes"}},
        {{.vocab_tail = V ", \"xy\": 270"}, {"266", "holes"}},
        {{.vocab_tail = V ", \"xy\": 99999999"}, {"most supported", "1048575"}},
        {{.vocab_tail = V ", \"xy\": -1"}, {"whole number", "byte"}},
        {{.vocab_tail = V ", \"xy\": 1.5"}, {"whole number", "byte"}},
        {{.vocab_tail = V ", \"\xFF\": 261"}, {"UTF-8", "model.vocab"}},
        {{.vocab_tail = V ", \"\\ud800\": 261"}, {"surrogate", "byte"}},
        {{.vocab_tail = V ", \"\\x\": 261"}, {"escape", "byte"}},
        {{.merges = "[\"a b\", \"a q\"]"}, {"merges[1]", "not in model.vocab"}},
        {{.merges = "[\"ab\"]"}, {"merges[0]", "blank"}},
        {{.merges = "[\"a  b\"]"}, {"merges[0]", "byte-level"}},
        {{.merges = "[\" b\"]"}, {"merges[0]", "not in model.vocab"}},
        {{.merges = "[\"a b\", \"a b\"]"}, {"merge 1 repeats merge 0", "model.merges"}},
        {{.merges = "[\"a b\", 5]"}, {"string", "byte"}},
        {{.merges = "{}"}, {"'['", "byte"}},
        {{.added = "{}"}, {"added_tokens", "array"}},
        {{.added = "[{}]"}, {"added_tokens[0]", "id"}},
        {{.added = "[{\"id\": 261}]"}, {"added_tokens[0]", "content"}},
        {{.added = "[{\"id\": 261, \"content\": \"<s>\"}]"}, {"added_tokens[0]", "normalized"}},
        {{.added =
              "[{\"id\": 261, \"content\": \"<s>\", \"normalized\": false, \"lstrip\": true}]"},
         {"added_tokens[0]", "lstrip"}},
        {{.added =
              "[{\"id\": 261, \"content\": \"<s>\", \"normalized\": false, \"rstrip\": true}]"},
         {"added_tokens[0]", "rstrip"}},
        {{.added = "[{\"id\": 261, \"content\": \"<s>\", \"normalized\": false, \"single_word\": "
                   "true}]"},
         {"added_tokens[0]", "single_word"}},
        {{.added = "[" TOY_ADDED(261, "other", false, false) "]"},
         {"added_tokens[0]", "another string"}},
        {{.added =
              "[" TOY_ADDED(261, "<s>", false, false) ", " TOY_ADDED(261, "<s>", false, false) "]"},
         {"added_tokens[1]", "same id"}},
        {{.added =
              "[" TOY_ADDED(262, "xx", false, false) ", " TOY_ADDED(263, "xx", false, false) "]"},
         {"added_tokens", "same string"}},
        {{.added = "[" TOY_ADDED(262, "ab", false, false) "]"}, {"added_tokens[0]", "another id"}},
        {{.added = "[" TOY_ADDED(300, "xx", false, false) "]"}, {"262", "holes"}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct tokenizer *t;
        struct status st;
        assert_int_equal(open_toy(&cases[i].toy, &t, &st), ST_INVALID);
        for (int w = 0; w < 2; w++)
            if (strstr(st.msg, cases[i].words[w]) == NULL)
                fail_msg("case %zu: no '%s' in: %s", i, cases[i].words[w], st.msg);
        assert_non_null(strstr(st.msg, toy_path));
        assert_int_equal(access(cache_path, F_OK), -1);
    }
}

static void a_vocabulary_without_every_byte_is_refused(void **state)
{
    struct buf b = {0};
    struct tokenizer *t;
    struct status st;
    char *at;

    (void)state;
    toy_tokenizer_json(&b, &(struct toy_tokenizer){.version = NULL});
    at = strstr(buf_cstr(&b), "\"A\": 65");
    memcpy(at, "\"<>\":65", 7);
    write_file(toy_path, b.data, b.len);
    assert_int_equal(tokenizer_open(toy_path, &t, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "byte 0x41"));
    buf_deinit(&b);
}

static void a_file_cut_anywhere_is_refused(void **state)
{
    struct buf b = {0};
    struct tokenizer *t;
    struct status st;

    (void)state;
    toy_tokenizer_json(&b, &(struct toy_tokenizer){.version = NULL});
    for (size_t n = 1; n < b.len; n += 1 + n % 5) {
        write_file(toy_path, b.data, n);
        if (tokenizer_open(toy_path, &t, &st) == ST_OK)
            fail_msg("the first %zu of %zu bytes were accepted", n, b.len);
    }
    buf_puts(&b, " x");
    write_file(toy_path, b.data, b.len);
    assert_int_equal(tokenizer_open(toy_path, &t, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "after the end"));
    buf_deinit(&b);
}

static void a_damaged_file_never_does_harm(void **state)
{
    struct buf b = {0};
    uint32_t seed = 3;

    (void)state;
    toy_tokenizer_json(&b, &(struct toy_tokenizer){.version = NULL});
    for (int i = 0; i < 1500; i++) {
        struct tokenizer *t;
        struct status st;
        size_t at;
        char was;
        seed = seed * 1664525 + 1013904223;
        at = (seed >> 8) % b.len;
        was = b.data[at];
        b.data[at] = (char)(seed >> 4);
        write_file(toy_path, b.data, b.len);
        if (tokenizer_open(toy_path, &t, &st) == ST_OK) {
            struct token_list ids = {0};
            tokenizer_encode(t, NULL, "abcab the <s> \"\"", 16, TOKENIZE_ADDED, &ids, &st);
            token_list_deinit(&ids);
            tokenizer_free(t);
            unlink(cache_path);
        }
        b.data[at] = was;
    }
    buf_deinit(&b);
}

static void the_cache_file_gives_the_same_tokenizer(void **state)
{
    struct tokenizer *t;
    struct status st;

    (void)state;
    assert_int_equal(open_toy(&(struct toy_tokenizer){.version = NULL}, &t, &st), ST_OK);
    tokenizer_free(t);
    assert_int_equal(access(cache_path, R_OK), 0);
    assert_int_equal(tokenizer_open(dir, &t, &st), ST_OK);
    assert_int_equal(tokenizer_vocab(t), 266);
    check_toy_ids(t);
    tokenizer_free(t);
}

static void a_cache_file_of_another_tokenizer_json_is_not_used(void **state)
{
    struct tokenizer *t;
    struct status st;

    (void)state;
    assert_int_equal(open_toy(&(struct toy_tokenizer){.version = NULL}, &t, &st), ST_OK);
    tokenizer_free(t);
    /* the same length, another order of the merges */
    assert_int_equal(
        open_toy(&(struct toy_tokenizer){.merges = "[\"b c\", [\"ab\", \"c\"], \"\xC4\xA0 t\", "
                                                   "\"\xC4\xA0t h\", \"\\\" \\\"\"]",
                                         .vocab_tail = V ", \"<s>\": 261, \"bc\": 266"},
                 &t, &st),
        ST_OK);
    check_ids(t, NULL, "abc", 0, "97 266");
    tokenizer_free(t);
}

static void a_damaged_cache_file_is_made_anew(void **state)
{
    struct buf good = {0}, b = {0};
    struct tokenizer *t;
    struct status st;

    (void)state;
    assert_int_equal(open_toy(&(struct toy_tokenizer){.version = NULL}, &t, &st), ST_OK);
    tokenizer_free(t);
    read_file(cache_path, &good);
    for (size_t at = 0; at < good.len; at += at < 400 ? 1 : 997) {
        struct stat before, after;
        b.len = 0;
        buf_append(&b, good.data, good.len);
        b.data[at] ^= 0x10;
        write_file(cache_path, b.data, b.len);
        assert_int_equal(stat(cache_path, &before), 0);
        assert_int_equal(tokenizer_open(toy_path, &t, &st), ST_OK);
        if (at % 16 == 0)
            check_toy_ids(t);
        tokenizer_free(t);
        assert_int_equal(stat(cache_path, &after), 0);
        assert_true(after.st_ino != before.st_ino); /* renamed into its place */
    }
    for (size_t n = 0; n < good.len; n += n < 200 ? 1 : 4999) {
        write_file(cache_path, good.data, n);
        assert_int_equal(tokenizer_open(toy_path, &t, &st), ST_OK);
        tokenizer_free(t);
        read_file(cache_path, &b);
        assert_int_equal(b.len, good.len);
        assert_memory_equal(b.data, good.data, good.len);
    }
    buf_deinit(&good);
    buf_deinit(&b);
}

static void nothing_is_written_into_a_read_only_folder(void **state)
{
    struct tokenizer *t;
    struct status st;

    (void)state;
    assert_int_equal(open_toy(&(struct toy_tokenizer){.version = NULL}, &t, &st), ST_OK);
    tokenizer_free(t);
    unlink(cache_path);
    chmod(dir, 0555);
    assert_int_equal(tokenizer_open(toy_path, &t, &st), ST_OK);
    check_toy_ids(t);
    tokenizer_free(t);
    assert_int_equal(access(cache_path, F_OK), -1);
    chmod(dir, 0755);
}

static void many_processes_may_open_at_once(void **state)
{
    enum { PROCESSES = 8, ROUNDS = 20 };
    struct tokenizer *t;
    struct status st;

    (void)state;
    assert_int_equal(open_toy(&(struct toy_tokenizer){.version = NULL}, &t, &st), ST_OK);
    tokenizer_free(t);
    for (int round = 0; round < ROUNDS; round++) {
        unlink(cache_path);
        for (int i = 0; i < PROCESSES; i++)
            if (fork() == 0) {
                bool ok = tokenizer_open(toy_path, &t, &st) == ST_OK && tokenizer_vocab(t) == 266;
                tokenizer_free(ok ? t : NULL);
                _exit(ok ? 0 : 1);
            }
        for (int i = 0; i < PROCESSES; i++) {
            int how;
            assert_true(wait(&how) > 0);
            assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
        }
    }
    assert_int_equal(tokenizer_open(toy_path, &t, &st), ST_OK);
    check_toy_ids(t);
    tokenizer_free(t);
}

static void the_word_cache_changes_no_ids(void **state)
{
    static const size_t sizes[] = {1, 100000, 0};
    const char *const words[] = {"the",     " quick",  "\n",
                                 "naïve",   " 日本語", "12",
                                 "<think>", "x\0y",    " internationalization",
                                 "。",      "～",      "ééééééééééééé",
                                 "  ",      "_a"};
    struct tokenizer *t;
    struct tokenizer_cache *c;
    struct token_list with = {0}, without = {0};
    struct buf text = {0};
    struct status st;
    uint32_t seed = 1;

    (void)state;
    assert_int_equal(tokenizer_open(real_path, &t, &st), ST_OK);
    for (int i = 0; i < 60000; i++) {
        seed = seed * 1664525 + 1013904223;
        buf_puts(&text, words[(seed >> 8) % (sizeof(words) / sizeof(*words))]);
        if (seed >> 28 == 0)
            buf_printf(&text, " w%u", seed >> 20);
    }
    assert_int_equal(tokenizer_encode(t, NULL, text.data, text.len, 1, &without, &st), ST_OK);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(tokenizer_cache_new(sizes[i], &c, &st), ST_OK);
        for (int round = 0; round < 2; round++) {
            with.n = 0;
            assert_int_equal(tokenizer_encode(t, c, text.data, text.len, 1, &with, &st), ST_OK);
            assert_int_equal(with.n, without.n);
            assert_memory_equal(with.ids, without.ids, with.n * sizeof(*with.ids));
        }
        if (sizes[i] > 65536)
            assert_true(tokenizer_cache_memory(c) <= sizes[i]);
        tokenizer_cache_free(c);
    }
    assert_true(tokenizer_memory(t) < 20000000);
    token_list_deinit(&with);
    token_list_deinit(&without);
    buf_deinit(&text);
    tokenizer_free(t);
}

static void a_cache_serves_one_tokenizer_after_another(void **state)
{
    struct tokenizer *real, *toy;
    struct tokenizer_cache *c;
    struct status st;

    (void)state;
    assert_int_equal(tokenizer_open(real_path, &real, &st), ST_OK);
    assert_int_equal(open_toy(&(struct toy_tokenizer){.version = NULL}, &toy, &st), ST_OK);
    assert_int_equal(tokenizer_cache_new(0, &c, &st), ST_OK);
    check_ids(real, c, "Hello the", 0, "19923 270");
    check_ids(toy, c, "Hello the", 0, "72 101 108 108 111 259 101");
    check_ids(real, c, "Hello the", 0, "19923 270");
    tokenizer_cache_free(c);
    tokenizer_free(toy);
    tokenizer_free(real);
}

static void tables_and_caches_stay_within_their_budget_for_any_number_of_threads(void **state)
{
    struct tokenizer *t;
    struct status st;
    size_t tables;

    (void)state;
    assert_int_equal(tokenizer_open(real_path, &t, &st), ST_OK);
    tables = tokenizer_memory(t);
    assert_true(tables > 1 << 20);
    for (size_t n = 1; n <= 320; n++) {
        struct tokenizer_cache *c;

        assert_int_equal(tokenizer_cache_new(text_budget_words(n), &c, &st), ST_OK);
        assert_true(tables + TEXT_BUDGET_PREFIXES + n * tokenizer_cache_memory(c) <=
                    TEXT_BUDGET_BYTES);
        tokenizer_cache_free(c);
    }
    tokenizer_free(t);
}

static void long_pieces_are_encoded_in_bounded_time(void **state)
{
    enum { N = 1000000 };
    char *text = malloc(N);
    struct token_list ids = {0};
    struct tokenizer *t;
    struct status st;
    uint32_t seed = 9;

    (void)state;
    assert_int_equal(tokenizer_open(real_path, &t, &st), ST_OK);
    for (int kind = 0; kind < 3; kind++) {
        struct detokenizer d = {.n_held = 0};
        struct buf back = {0};
        for (int i = 0; i < N; i++) {
            seed = seed * 1664525 + 1013904223;
            text[i] = kind == 0 ? 'a' : kind == 1 ? ' ' : (char)('a' + (seed >> 8) % 26);
        }
        ids.n = 0;
        assert_int_equal(tokenizer_encode(t, NULL, text, N, 0, &ids, &st), ST_OK);
        for (size_t i = 0; i < ids.n; i++)
            assert_int_equal(detokenizer_push(&d, t, ids.ids[i], &back, &st), ST_OK);
        assert_int_equal(back.len, N);
        assert_memory_equal(back.data, text, N);
        buf_deinit(&back);
    }
    token_list_deinit(&ids);
    tokenizer_free(t);
    free(text);
}

static void invalid_utf8_is_refused_with_its_offset(void **state)
{
    static const struct {
        const char *text;
        size_t offset;
    } cases[] = {
        {"\x80", 0},
        {"abc\xFF", 3},
        {"\xC3", 0},
        {"aaaaaaaaaaaaaaaa\xC0\x80", 16},
        {"\xED\xA0\x80", 0},
        {"中\xE4\xB8", 3},
        {"\xF4\x90\x80\x80", 0},
        {"\xE0\x80\x80", 0},
        {"aaaaaaaa中文\xE4", 14},
    };
    struct tokenizer *t;
    struct status st;

    (void)state;
    assert_int_equal(open_toy(&(struct toy_tokenizer){.version = NULL}, &t, &st), ST_OK);
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct token_list ids = {0};
        char where[32];
        token_list_push(&ids, 5);
        assert_int_equal(
            tokenizer_encode(t, NULL, cases[i].text, strlen(cases[i].text), 0, &ids, &st),
            ST_INVALID);
        snprintf(where, sizeof(where), "offset %zu", cases[i].offset);
        assert_non_null(strstr(st.msg, where));
        assert_int_equal(ids.n, 1); /* what was there stays */
        token_list_deinit(&ids);
    }
    tokenizer_free(t);
}

static void a_prompt_has_special_tokens_only_where_it_says_so(void **state)
{
    struct tokenizer *t;
    struct prompt p;
    struct token_list ids = {0};
    struct status st;
    static const int32_t expected[] = {261, 60, 256, 261, 257, 263, 60, 115, 62};

    (void)state;
    assert_int_equal(open_toy(&(struct toy_tokenizer){.version = NULL}, &t, &st), ST_OK);
    prompt_init(&p);
    prompt_append_special(&p, 261, "<s>", 3);
    prompt_append_text(&p, "<a", 2);
    prompt_append_text(&p, "b", 1); /* neighbours are one text */
    prompt_append_special(&p, -1, "<s>", 3);
    prompt_append_text(&p, "abc", 3);
    prompt_append_special(&p, -1, "<abc>", 5);
    prompt_append_text(&p, "<s>", 3);
    assert_int_equal(tokenizer_encode_prompt(t, NULL, &p, &ids, &st), ST_OK);
    assert_int_equal(ids.n, 9);
    assert_memory_equal(ids.ids, expected, sizeof(expected));

    p.specials[2].id = 9999;
    assert_int_equal(tokenizer_encode_prompt(t, NULL, &p, &ids, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "9999"));
    p.specials[2].id = -1;
    p.specials[2].len = 4;
    assert_int_equal(tokenizer_encode_prompt(t, NULL, &p, &ids, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "no added token"));
    p.specials[2].offset = 1;
    assert_int_equal(tokenizer_encode_prompt(t, NULL, &p, &ids, &st), ST_INVALID);
    p.specials[2].offset = SIZE_MAX;
    assert_int_equal(tokenizer_encode_prompt(t, NULL, &p, &ids, &st), ST_INVALID);
    assert_int_equal(ids.n, 9);

    prompt_clear(&p);
    assert_int_equal(tokenizer_encode_prompt(t, NULL, &p, &ids, &st), ST_OK);
    assert_int_equal(ids.n, 9);
    prompt_append_text(&p, "\xFF", 1);
    assert_int_equal(tokenizer_encode_prompt(t, NULL, &p, &ids, &st), ST_INVALID);
    prompt_deinit(&p);
    token_list_deinit(&ids);
    tokenizer_free(t);
}

static void a_path_that_is_no_tokenizer_is_named(void **state)
{
    struct tokenizer *t;
    struct status st;

    (void)state;
    assert_int_equal(tokenizer_open("/nowhere/at/all", &t, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "/nowhere/at/all"));
    assert_int_equal(tokenizer_open(dir, &t, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "tokenizer.json"));
    write_file(toy_path, "", 0);
    assert_int_equal(tokenizer_open(toy_path, &t, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "empty"));
}

int main(int argc, char **argv)
{
#define T(f) cmocka_unit_test_setup_teardown(f, make_dir, drop_dir)
    const struct CMUnitTest tests[] = {
        T(a_small_file_is_read_and_added_tokens_go_in_two_passes),
        T(merges_may_stand_before_the_vocabulary),
        T(what_is_not_supported_is_refused_by_name),
        T(a_vocabulary_without_every_byte_is_refused),
        T(a_file_cut_anywhere_is_refused),
        T(a_damaged_file_never_does_harm),
        T(the_cache_file_gives_the_same_tokenizer),
        T(a_cache_file_of_another_tokenizer_json_is_not_used),
        T(a_damaged_cache_file_is_made_anew),
        T(nothing_is_written_into_a_read_only_folder),
        T(many_processes_may_open_at_once),
        T(the_word_cache_changes_no_ids),
        T(a_cache_serves_one_tokenizer_after_another),
        T(tables_and_caches_stay_within_their_budget_for_any_number_of_threads),
        T(long_pieces_are_encoded_in_bounded_time),
        T(invalid_utf8_is_refused_with_its_offset),
        T(a_prompt_has_special_tokens_only_where_it_says_so),
        T(a_path_that_is_no_tokenizer_is_named),
    };
    if (argc < 2)
        return 2;
    real_path = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
