/* Tokens to deltas: the answer does not depend on how the worker batched the tokens. argv[1] is a
 * tokenizer.json. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/text/chat_tokens.h"
#include "router/chat_answer.h"

static const char *path;
static struct router router;

static int open_tokenizer(void **state)
{
    struct status st;

    (void)state;
    if (tokenizer_open(path, &router.tokenizer, &st) != ST_OK)
        return -1;
    router.eos_id = chat_tokens[CHAT_EOS].id;
    return 0;
}

static int close_tokenizer(void **state)
{
    (void)state;
    tokenizer_free(router.tokenizer);
    return 0;
}

/* What came out, with a mark where a delta of another kind begins. */
static void gather(void *arg, const struct chat_delta *d)
{
    static const char *const marks[] = {"[r]", "[c]", "[call]", "[a]"};
    struct buf *out = arg;
    const char *mark = marks[d->kind];
    static int last = -1;

    if (d->kind != CHAT_CALL)
        assert_true(d->len > 0);
    if (out->len == 0 || last != (int)d->kind || d->kind == CHAT_CALL)
        buf_puts(out, mark);
    last = (int)d->kind;
    buf_append(out, d->text, d->len);
}

struct outcome {
    struct buf text;
    const char *finish;
    uint64_t n_completion, n_reasoning;
};

static struct outcome run(const struct text_task *task, const struct token_list *ids, size_t batch,
                          Baton__V1__FinishReason finish)
{
    struct chat_answer_scratch scratch = {0};
    struct chat_answer a;
    struct outcome o = {0};
    struct status st;

    assert_int_equal(chat_answer_init(&a, &router, task, &scratch, gather, &o.text, &st), ST_OK);
    for (size_t at = 0; at < ids->n && a.finish == NULL; at += batch) {
        size_t n = ids->n - at < batch ? ids->n - at : batch;

        assert_int_equal(
            chat_answer_push(&a, ids->ids + at, n,
                             at + n == ids->n ? finish : BATON__V1__FINISH_REASON__FINISH_NONE,
                             &st),
            ST_OK);
        assert_int_equal(scratch.pending.len, 0);
    }
    o.finish = a.finish;
    o.n_completion = a.n_completion;
    o.n_reasoning = a.n_reasoning;
    chat_answer_deinit(&a);
    buf_deinit(&scratch.text);
    buf_deinit(&scratch.pending);
    return o;
}

static void the_answer_does_not_depend_on_batches(void **state)
{
    static const char call[] =
        "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n"
        "<｜DSML｜parameter name=\"x\" string=\"true\">é…</｜DSML｜parameter>\n"
        "</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
    static const struct {
        enum turn_start start;
        bool tools, joined, keep_stop;
        const char *stop, *text, *expect, *finish;
    } table[] = {
        {TURN_REASONING, false, false, false, NULL, "hm</think>Hi 世界👩‍👩‍👧",
         "[r]hm[c]Hi 世界👩‍👩‍👧", "stop"},
        {TURN_REASONING, false, true, false, NULL, "hm</think>Hi", "[c]hm</think>Hi", "stop"},
        {TURN_REASONING, false, true, false, "Hi", "hm Hi</think>Hi", "[c]hm Hi</think>", "stop"},
        {TURN_REASONING, false, false, false, NULL, "all of it", "[r]all of it", "stop"},
        {TURN_CONTENT, false, false, false, "two th", "one two three", "[c]one ", "stop"},
        {TURN_CONTENT, false, false, true, "two th", "one two three", "[c]one two th", "stop"},
        {TURN_CONTENT, false, false, false, "threefold", "one two three", "[c]one two three",
         "stop"},
        {TURN_CONTENT, true, false, false, NULL, call, "[call]f[a]{\"x\": \"é…\"}", "tool_calls"},
        {TURN_CONTENT, true, false, false, "é", call, "[call]f[a]{\"x\": \"é…\"}", "tool_calls"},
        {TURN_CONTENT, false, false, false, NULL, "half \xe4\xb8\x96 </th", "[c]half 世 </th",
         "stop"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        struct text_task task = {.start = table[i].start, .tools = table[i].tools};
        struct token_list ids = {0};
        struct status st;

        task.params.separate_reasoning = !table[i].joined;
        task.params.no_stop_trim = table[i].keep_stop;
        if (table[i].stop != NULL)
            task.params.stop[task.params.n_stop++] =
                (struct stop_string){table[i].stop, strlen(table[i].stop)};
        assert_int_equal(tokenizer_encode(router.tokenizer, NULL, table[i].text,
                                          strlen(table[i].text), TOKENIZE_ADDED, &ids, &st),
                         ST_OK);
        token_list_push(&ids, router.eos_id);
        for (size_t batch = 1; batch <= ids.n; batch++) {
            struct outcome o = run(&task, &ids, batch, BATON__V1__FINISH_REASON__FINISH_STOP);

            assert_string_equal(buf_cstr(&o.text), table[i].expect);
            assert_string_equal(o.finish, table[i].finish);
            buf_deinit(&o.text);
        }
        token_list_deinit(&ids);
    }
}

/* Deltas one by one, to see in how many pieces text comes. */
static void list(void *arg, const struct chat_delta *d)
{
    struct buf *out = arg;

    buf_printf(out, "%d:%.*s|", (int)d->kind, (int)d->len, d->text);
}

static void answer_to_list(const struct text_task *task, const char *text, size_t n_max,
                           Baton__V1__FinishReason finish, struct chat_answer *a, struct buf *out)
{
    struct chat_answer_scratch scratch = {0};
    struct token_list ids = {0};
    struct status st;

    out->len = 0;
    assert_int_equal(chat_answer_init(a, &router, task, &scratch, list, out, &st), ST_OK);
    assert_int_equal(
        tokenizer_encode(router.tokenizer, NULL, text, strlen(text), TOKENIZE_ADDED, &ids, &st),
        ST_OK);
    for (size_t i = 0; i < ids.n && i < n_max && a->finish == NULL; i++)
        assert_int_equal(chat_answer_push(a, ids.ids + i, 1,
                                          i + 1 == ids.n || i + 1 == n_max
                                              ? finish
                                              : BATON__V1__FINISH_REASON__FINISH_NONE,
                                          &st),
                         ST_OK);
    token_list_deinit(&ids);
    buf_deinit(&scratch.text);
    buf_deinit(&scratch.pending);
}

static void reasoning_may_be_held_until_it_is_complete(void **state)
{
    struct text_task task = {.start = TURN_REASONING};
    struct buf out = {0};
    struct chat_answer a;

    (void)state;
    task.params.separate_reasoning = task.params.stream = true;
    answer_to_list(&task, "a b c</think>d", 99, BATON__V1__FINISH_REASON__FINISH_LENGTH, &a, &out);
    assert_string_equal(buf_cstr(&out), "0:a b c|1:d|");
    chat_answer_deinit(&a);
    answer_to_list(&task, "a b c</think>d", 2, BATON__V1__FINISH_REASON__FINISH_LENGTH, &a, &out);
    assert_string_equal(buf_cstr(&out), "0:a b|"); /* it ends there: what is held comes out */
    chat_answer_deinit(&a);
    task.params.stream_reasoning = true;
    answer_to_list(&task, "a b c</think>d", 99, BATON__V1__FINISH_REASON__FINISH_LENGTH, &a, &out);
    assert_string_equal(buf_cstr(&out), "0:a|0: b|0: c|1:d|");
    chat_answer_deinit(&a);
    buf_deinit(&out);
}

static void a_single_call_ends_the_answer(void **state)
{
    static const char calls[] = "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n"
                                "</｜DSML｜invoke>\n<｜DSML｜invoke name=\"g\">\n"
                                "</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
    struct text_task task = {.start = TURN_CONTENT, .tools = true};
    struct buf out = {0};
    struct chat_answer a;

    (void)state;
    for (int parallel = 0; parallel < 2; parallel++) {
        task.params.parallel_tool_calls = parallel;
        answer_to_list(&task, calls, 999, BATON__V1__FINISH_REASON__FINISH_STOP, &a, &out);
        assert_string_equal(a.finish, "tool_calls");
        assert_true((strstr(buf_cstr(&out), "2:g|") != NULL) == parallel);
        assert_non_null(strstr(buf_cstr(&out), "2:f|"));
        chat_answer_deinit(&a);
    }
    buf_deinit(&out);
}

static void what_ended_it_is_told(void **state)
{
    struct text_task task = {.start = TURN_CONTENT};
    struct buf out = {0};
    struct chat_answer a;
    size_t n;

    (void)state;
    task.params.stop[0] = (struct stop_string){"zz", 2};
    task.params.stop[1] = (struct stop_string){"two", 3};
    task.params.n_stop = 2;
    answer_to_list(&task, "one two three", 99, BATON__V1__FINISH_REASON__FINISH_STOP, &a, &out);
    assert_memory_equal(chat_answer_stop_string(&a, &n), "two", 3);
    assert_int_equal(n, 3);
    chat_answer_deinit(&a);
    answer_to_list(&task, "one!", 99, BATON__V1__FINISH_REASON__FINISH_STOP, &a, &out);
    assert_null(chat_answer_stop_string(&a, &n));
    assert_int_equal(a.stop_id, 3); /* '!' */
    chat_answer_deinit(&a);
    answer_to_list(&task, "one!", 99, BATON__V1__FINISH_REASON__FINISH_LENGTH, &a, &out);
    assert_int_equal(a.stop_id, -1);
    chat_answer_deinit(&a);
    buf_deinit(&out);
}

static void tokens_are_counted_and_the_end_token_is_not_shown(void **state)
{
    struct text_task task = {.start = TURN_REASONING};
    struct token_list ids = {0};
    struct outcome o;
    struct status st;

    (void)state;
    task.params.separate_reasoning = true;
    assert_int_equal(
        tokenizer_encode(router.tokenizer, NULL, "a b</think>c", 12, TOKENIZE_ADDED, &ids, &st),
        ST_OK);
    assert_int_equal(ids.n, 4);
    token_list_push(&ids, router.eos_id);
    o = run(&task, &ids, 2, BATON__V1__FINISH_REASON__FINISH_STOP);
    assert_int_equal(o.n_completion, 5);
    assert_int_equal(o.n_reasoning, 3);
    buf_deinit(&o.text);
    /* A stop token, last, is not shown; at a length limit the last token is. */
    ids.n = 4;
    o = run(&task, &ids, 4, BATON__V1__FINISH_REASON__FINISH_STOP);
    assert_string_equal(buf_cstr(&o.text), "[r]a b");
    buf_deinit(&o.text);
    o = run(&task, &ids, 4, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    assert_string_equal(buf_cstr(&o.text), "[r]a b[c]c");
    assert_string_equal(o.finish, "length");
    buf_deinit(&o.text);
    token_list_deinit(&ids);
}

static void half_a_character_at_the_end_becomes_the_replacement_character(void **state)
{
    struct text_task task = {.start = TURN_CONTENT};
    struct token_list ids = {0};
    struct outcome o;
    struct status st;

    (void)state;
    /* U+1FAE8: four bytes in several tokens. */
    assert_int_equal(tokenizer_encode(router.tokenizer, NULL, "\xf0\x9f\xab\xa8", 4, 0, &ids, &st),
                     ST_OK);
    assert_true(ids.n > 1);
    ids.n--;
    o = run(&task, &ids, 1, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    assert_string_equal(buf_cstr(&o.text), "[c]\xef\xbf\xbd");
    buf_deinit(&o.text);
    token_list_deinit(&ids);
}

static void an_id_outside_the_vocabulary_is_corrupt(void **state)
{
    static const int32_t bad[] = {-1, 129280, INT32_MAX};
    struct text_task task = {.start = TURN_CONTENT};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct chat_answer_scratch scratch = {0};
        struct buf out = {0};
        struct chat_answer a;
        struct status st;

        assert_int_equal(chat_answer_init(&a, &router, &task, &scratch, gather, &out, &st), ST_OK);
        assert_int_equal(
            chat_answer_push(&a, &bad[i], 1, BATON__V1__FINISH_REASON__FINISH_NONE, &st),
            ST_CORRUPT);
        chat_answer_deinit(&a);
        buf_deinit(&scratch.text);
        buf_deinit(&scratch.pending);
        buf_deinit(&out);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_answer_does_not_depend_on_batches),
        cmocka_unit_test(reasoning_may_be_held_until_it_is_complete),
        cmocka_unit_test(a_single_call_ends_the_answer),
        cmocka_unit_test(what_ended_it_is_told),
        cmocka_unit_test(tokens_are_counted_and_the_end_token_is_not_shown),
        cmocka_unit_test(half_a_character_at_the_end_becomes_the_replacement_character),
        cmocka_unit_test(an_id_outside_the_vocabulary_is_corrupt),
    };

    if (argc < 2)
        return 2;
    path = argv[1];
    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
