/* args: tokenizer.json */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/text/prefix_tokens.h"

static const char *real_path;
static struct tokenizer *t;

static int open_tokenizer(void **state)
{
    struct status st;

    (void)state;
    return tokenizer_open(real_path, &t, &st) == ST_OK ? 0 : -1;
}

static int close_tokenizer(void **state)
{
    (void)state;
    tokenizer_free(t);
    return 0;
}

static uint32_t next(uint32_t *seed, uint32_t n)
{
    *seed = *seed * 1664525 + 1013904223;
    return (*seed >> 8) % n;
}

static void add_text(struct prompt *p, uint32_t *seed, size_t n_words)
{
    static const char *const words[] = {"the ",       "quick", "\n\n",     "日本", "。",
                                        "<｜User｜>", " 1234", "<think>",  "é",    ", ",
                                        "fox",        "  ",    "｜DSML｜", "😀",    "_x"};

    for (size_t i = 0; i < n_words; i++) {
        const char *w = words[next(seed, sizeof(words) / sizeof(*words))];
        prompt_append_text(p, w, strlen(w));
    }
}

static void add_turn(struct prompt *p, uint32_t *seed, size_t n_words)
{
    prompt_append_special(p, 128803, "<｜User｜>", strlen("<｜User｜>"));
    add_text(p, seed, n_words);
    prompt_append_special(p, -1, "<｜Assistant｜>", strlen("<｜Assistant｜>"));
    prompt_append_special(p, -1, "<think>", 7);
}

/* Both ways; the cache's ids must be the plain ones. Returns how many were reused. */
static size_t check(struct prefix_tokens *c, struct tokenizer_cache *words, const struct prompt *p)
{
    struct token_list plain = {0}, cached = {0};
    struct status st;
    size_t n_reused;

    token_list_push(&cached, 42); /* what was in the list stays */
    assert_int_equal(tokenizer_encode_prompt(t, NULL, p, &plain, &st), ST_OK);
    assert_int_equal(prefix_tokens_encode(c, words, p, &cached, &n_reused, &st), ST_OK);
    assert_int_equal(cached.n, plain.n + 1);
    assert_int_equal(cached.ids[0], 42);
    assert_memory_equal(cached.ids + 1, plain.ids, plain.n * sizeof(*plain.ids));
    assert_true(n_reused <= plain.n);
    token_list_deinit(&plain);
    token_list_deinit(&cached);
    return n_reused;
}

static void a_next_turn_tokenizes_only_its_tail(void **state)
{
    struct prefix_tokens *c;
    struct prompt p;
    struct status st;
    struct token_list ids = {0};
    uint32_t seed = 1;
    size_t before;

    (void)state;
    assert_int_equal(prefix_tokens_new(t, 0, &c, &st), ST_OK);
    prompt_init(&p);
    prompt_append_special(&p, 0, "<｜begin▁of▁sentence｜>", strlen("<｜begin▁of▁sentence｜>"));
    add_turn(&p, &seed, 30000);
    assert_int_equal(check(c, NULL, &p), 0);
    assert_int_equal(tokenizer_encode_prompt(t, NULL, &p, &ids, &st), ST_OK);
    before = ids.n;
    assert_int_equal(check(c, NULL, &p), before); /* the same again: nothing is left to do */
    add_text(&p, &seed, 50);
    add_turn(&p, &seed, 50);
    assert_int_equal(check(c, NULL, &p), before);
    token_list_deinit(&ids);
    prompt_deinit(&p);
    prefix_tokens_free(c);
}

/* Turns that fork: each is one of the conversations so far, cut at a random special, gone on. */
static void fork_conversations(struct prefix_tokens *c, uint32_t seed, int rounds)
{
    enum { KEPT = 6 };
    struct prompt kept[KEPT] = {0};
    struct tokenizer_cache *words;
    struct status st;
    size_t reused = 0;

    assert_int_equal(tokenizer_cache_new(0, &words, &st), ST_OK);
    for (int round = 0; round < rounds; round++) {
        struct prompt *from = &kept[next(&seed, KEPT)], *to = &kept[next(&seed, KEPT)];
        struct prompt p = {0};
        size_t n = from->n_specials > 0 ? next(&seed, (uint32_t)from->n_specials + 1) : 0, done = 0;
        for (size_t i = 0; i < n; i++) {
            const struct prompt_special *s = &from->specials[i];
            prompt_append_text(&p, from->text.data + done, s->offset - done);
            /* now and then what was a token is only text: same bytes, other ids */
            if (next(&seed, 50) == 0)
                prompt_append_text(&p, from->text.data + s->offset, s->len);
            else
                prompt_append_special(&p, s->id, from->text.data + s->offset, s->len);
            done = s->offset + s->len;
        }
        while (p.text.len < 200000 && next(&seed, 3) != 0)
            add_turn(&p, &seed, next(&seed, 4000));
        add_text(&p, &seed, next(&seed, 20));
        reused += check(c, words, &p);
        assert_true(prefix_tokens_memory(c) <= 3000000);
        prompt_deinit(to);
        *to = p;
    }
    assert_true(reused > 0);
    tokenizer_cache_free(words);
    for (int i = 0; i < KEPT; i++)
        prompt_deinit(&kept[i]);
}

static void ids_are_those_of_the_plain_way_whatever_is_remembered(void **state)
{
    struct prefix_tokens *c;
    struct status st;

    (void)state;
    for (uint32_t run = 0; run < 3; run++) {
        assert_int_equal(prefix_tokens_new(t, run == 0 ? 100000 : 1000000 * run, &c, &st), ST_OK);
        fork_conversations(c, run + 1, 120);
        prefix_tokens_free(c);
    }
}

struct worker {
    pthread_t thread;
    struct prefix_tokens *c;
    uint32_t seed;
};

static void *work(void *arg)
{
    struct worker *w = arg;

    fork_conversations(w->c, w->seed, 60);
    return NULL;
}

static void threads_share_one_cache(void **state)
{
    enum { THREADS = 4 };
    struct worker workers[THREADS];
    struct prefix_tokens *c;
    struct status st;

    (void)state;
    assert_int_equal(prefix_tokens_new(t, 1500000, &c, &st), ST_OK);
    for (uint32_t i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.c = c, .seed = 10 + i / 2}; /* two of each: the same texts */
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(workers[i].thread, NULL);
    assert_true(prefix_tokens_memory(c) <= 1500000);
    prefix_tokens_free(c);
}

static void bad_prompts_get_the_plain_ways_error(void **state)
{
    struct prefix_tokens *c;
    struct token_list ids = {0};
    struct status plain, cached;
    struct prompt p = {0};
    uint32_t seed = 4;

    (void)state;
    assert_int_equal(prefix_tokens_new(t, 0, &c, &plain), ST_OK);
    add_turn(&p, &seed, 20000);
    check(c, NULL, &p);
    add_turn(&p, &seed, 20);
    for (int kind = 0; kind < 4; kind++) {
        struct prompt_special was = p.specials[5];
        char byte = p.text.data[p.text.len - 1];
        if (kind == 0)
            p.specials[5].id = 500000;
        else if (kind == 1)
            p.specials[5].offset = 3;
        else if (kind == 2)
            p.specials[5].len = 100000000;
        else
            p.text.data[p.text.len - 1] = '\xFF';
        if (kind == 3)
            p.n_specials--;
        assert_int_equal(tokenizer_encode_prompt(t, NULL, &p, &ids, &plain), ST_INVALID);
        assert_int_equal(prefix_tokens_encode(c, NULL, &p, &ids, NULL, &cached), ST_INVALID);
        assert_string_equal(cached.msg, plain.msg);
        assert_int_equal(ids.n, 0);
        if (kind == 3)
            p.n_specials++;
        p.specials[5] = was;
        p.text.data[p.text.len - 1] = byte;
    }
    assert_true(check(c, NULL, &p) > 0);
    prompt_deinit(&p);
    token_list_deinit(&ids);
    prefix_tokens_free(c);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_next_turn_tokenizes_only_its_tail),
        cmocka_unit_test(ids_are_those_of_the_plain_way_whatever_is_remembered),
        cmocka_unit_test(threads_share_one_cache),
        cmocka_unit_test(bad_prompts_get_the_plain_ways_error),
    };
    if (argc < 2)
        return 2;
    real_path = argv[1];
    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
