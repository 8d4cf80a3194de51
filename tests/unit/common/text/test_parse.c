#include "common/text/parse.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/json.h"

static const char *cases_path;

/* What the events add up to, with the promises about single events checked on the way. */
struct answer {
    struct buf text; /* reasoning, '\1', content, then '\2' name '\3' arguments of each call */
    struct buf reasoning, content, calls, arguments;
    uint32_t n_calls;
    bool in_call, ended;
    size_t held_max;
};

static void check_object(const struct buf *text)
{
    struct json_doc *doc = NULL;
    struct status st;

    if (json_parse(text->data, text->len, JSON_LAST_KEY_WINS | JSON_LONE_SURROGATES, &doc, &st) !=
        ST_OK)
        fail_msg("arguments are no JSON: %.*s", (int)text->len, text->data);
    assert_int_equal(json_root(doc)->type, JSON_OBJECT);
    json_free(doc);
}

static void close_call(struct answer *a)
{
    if (a->in_call) {
        buf_puts(&a->calls, "\3");
        buf_append(&a->calls, a->arguments.data, a->arguments.len);
    }
    a->arguments.len = 0;
    a->in_call = false;
}

static void on_event(void *ctx, const struct parse_event *e)
{
    struct answer *a = ctx;

    switch (e->kind) {
    case PARSE_REASONING:
        assert_true(e->len > 0 && a->n_calls == 0 && a->content.len == 0);
        buf_append(&a->reasoning, e->text, e->len);
        break;
    case PARSE_CONTENT:
        assert_true(e->len > 0 && a->n_calls == 0);
        buf_append(&a->content, e->text, e->len);
        break;
    case PARSE_CALL:
        close_call(a);
        assert_int_equal(e->call, a->n_calls);
        assert_true(e->len > 0);
        a->n_calls++;
        a->in_call = true;
        a->ended = false;
        buf_puts(&a->calls, "\2");
        buf_append(&a->calls, e->text, e->len);
        break;
    case PARSE_CALL_ARGUMENTS:
        assert_true(e->len > 0 && a->in_call && !a->ended && e->call == a->n_calls - 1);
        buf_append(&a->arguments, e->text, e->len);
        break;
    case PARSE_CALL_END:
        assert_true(a->in_call && !a->ended && e->call == a->n_calls - 1);
        a->ended = true;
        check_object(&a->arguments);
        break;
    }
}

static void answer_deinit(struct answer *a)
{
    buf_deinit(&a->text);
    buf_deinit(&a->reasoning);
    buf_deinit(&a->content);
    buf_deinit(&a->calls);
    buf_deinit(&a->arguments);
}

static size_t next_cut(const char *text, size_t len, size_t at, uint32_t *seed)
{
    size_t n;

    *seed = *seed * 1664525 + 1013904223;
    n = 1 + (*seed >> 20) % ((*seed >> 12) % 4 == 0 ? 40 : 4);
    at = at + n < len ? at + n : len;
    while (at < len && ((unsigned char)text[at] & 0xc0) == 0x80)
        at++;
    return at;
}

/* Parses text, whole when *seed is 0, else in random pieces of whole characters. */
static const char *parse_all(const struct parse_options *opt, const char *text, size_t len,
                             const char *finish, uint32_t seed, struct answer *a)
{
    struct parse *p = NULL;
    struct status st;
    const char *reason;

    assert_int_equal(parse_new(opt, on_event, a, &p, &st), ST_OK);
    for (size_t at = 0, to; at < len; at = to) {
        char *piece;

        to = seed == 0 ? len : next_cut(text, len, at, &seed);
        piece = malloc(to - at); /* so that sanitizers see a read past a piece */
        memcpy(piece, text + at, to - at);
        parse_push(p, piece, to - at);
        free(piece);
        if (parse_held(p) > a->held_max)
            a->held_max = parse_held(p);
    }
    reason = parse_finish(p, finish);
    assert_true(parse_is_over(p));
    assert_int_equal(parse_held(p), 0);
    parse_free(p);
    close_call(a);
    buf_append(&a->text, a->reasoning.data, a->reasoning.len);
    buf_puts(&a->text, "\1");
    buf_append(&a->text, a->content.data, a->content.len);
    buf_append(&a->text, a->calls.data, a->calls.len);
    assert_true(a->held_max <= PARSE_HELD_MAX);
    return reason;
}

static void expected_text(const struct json *expect, struct buf *out)
{
    const struct json *calls = json_get(expect, "tool_calls");

    buf_append(out, json_get(expect, "reasoning_content")->text,
               json_get(expect, "reasoning_content")->len);
    buf_puts(out, "\1");
    buf_append(out, json_get(expect, "content")->text, json_get(expect, "content")->len);
    for (uint32_t i = 0; i < calls->len; i++) {
        const struct json *arguments = json_get(&calls->items[i], "arguments");

        buf_puts(out, "\2");
        buf_puts(out, json_get(&calls->items[i], "name")->text);
        buf_puts(out, "\3");
        buf_append(out, arguments->text, arguments->len);
    }
}

static void check_case(const struct json *c, int n_splits)
{
    const struct json *output = json_get(c, "output"), *start = json_get(c, "start");
    const struct json *finish = json_get(c, "engine_finish"), *tools = json_get(c, "tools");
    const struct json *expect = json_get(c, "expect");
    struct parse_options opt = {.tools = tools == NULL || tools->type == JSON_TRUE};
    struct buf want = {0};

    opt.start = json_is(json_get(c, "thinking_mode"), "thinking") ? TURN_REASONING : TURN_CONTENT;
    if (start != NULL)
        opt.start = json_is(start, "tool_calls")  ? TURN_TOOL_CALLS
                    : json_is(start, "reasoning") ? TURN_REASONING
                                                  : TURN_CONTENT;
    expected_text(expect, &want);
    for (int i = 0; i <= n_splits; i++) {
        struct answer a = {0};
        const char *reason = parse_all(&opt, output->text, output->len,
                                       finish == NULL ? "stop" : finish->text, (uint32_t)i, &a);

        if (a.text.len != want.len || memcmp(a.text.data, want.data, want.len) != 0)
            fail_msg("%s, split %d:\n got %s\nwant %s", json_get(c, "id")->text, i,
                     buf_cstr(&a.text), buf_cstr(&want));
        assert_true(json_is(json_get(expect, "finish_reason"), reason));
        answer_deinit(&a);
    }
    buf_deinit(&want);
}

static void every_case_gives_the_same_answer_under_a_thousand_splits(void **state)
{
    FILE *f = fopen(cases_path, "rb");
    char *line = NULL;
    size_t cap = 0, n_cases = 0;
    ssize_t n;

    (void)state;
    assert_non_null(f);
    while ((n = getline(&line, &cap, f)) > 0) {
        struct json_doc *doc;
        struct status st;

        assert_int_equal(json_parse(line, (size_t)n, 0, &doc, &st), ST_OK);
        check_case(json_root(doc), 1000);
        json_free(doc);
        n_cases++;
    }
    free(line);
    fclose(f);
    assert_true(n_cases > 200);
}

/* Random soup of markers, pieces of markers and text: no answer to compare with, but the promises
 * and the independence of splits hold. */
static void any_output_gives_one_answer_however_it_is_cut(void **state)
{
    static const char *const words[] = {
        "<think>",
        "</think>",
        "<｜DSML｜tool_calls>",
        "</｜DSML｜tool_calls>",
        "<｜DSML｜invoke name=\"f\">",
        "<｜DSML｜invoke name=\"",
        "</｜DSML｜invoke>",
        "<｜DSML｜parameter name=\"a\" string=\"true\">",
        "<｜DSML｜parameter name=\"b\" string=\"false\">",
        "</｜DSML｜parameter>",
        "<｜end▁of▁sentence｜>",
        "<｜DSML｜",
        "</｜DSML｜",
        "｜DSML｜",
        "invoke",
        "<",
        "</",
        "｜",
        "\n",
        "\n\n",
        " ",
        "\"",
        ">",
        "{\"x\": [1, \"中\"]}",
        "中",
        "text",
        "<｜DSML｜function calls>",
        "1.5",
        "name=\"",
        "tool_calls",
    };
    uint32_t seed = 99;

    (void)state;
    for (int round = 0; round < 20000; round++) {
        struct parse_options opt = {.start = (enum turn_start)(round % 3), .tools = round % 7 != 0};
        struct answer whole = {0}, cut = {0};
        struct buf text = {0};
        const char *reason;

        for (int i = 0; i < 14; i++) {
            seed = seed * 1664525 + 1013904223;
            buf_puts(&text, words[(seed >> 16) % (sizeof(words) / sizeof(*words))]);
        }
        reason = parse_all(&opt, text.data, text.len, "stop", 0, &whole);
        assert_string_equal(reason, parse_all(&opt, text.data, text.len, "stop", seed | 1, &cut));
        if (whole.text.len != cut.text.len ||
            memcmp(whole.text.data, cut.text.data, cut.text.len) != 0)
            fail_msg("%s\nwhole %s\n cut %s", buf_cstr(&text), buf_cstr(&whole.text),
                     buf_cstr(&cut.text));
        answer_deinit(&whole);
        answer_deinit(&cut);
        buf_deinit(&text);
    }
}

static void text_that_cannot_begin_a_marker_is_not_held(void **state)
{
    struct parse_options opt = {.start = TURN_CONTENT, .tools = true};
    struct answer a = {0};
    struct parse *p;
    struct status st;

    (void)state;
    parse_new(&opt, on_event, &a, &p, &st);
    parse_push(p, "abc", 3);
    assert_int_equal(a.content.len, 3);
    parse_push(p, " <b", 3);
    assert_int_equal(parse_held(p), 0);
    parse_push(p, "\n\n\n", 3);
    assert_int_equal(parse_held(p), 2);
    parse_push(p, "x<", 2);
    assert_int_equal(parse_held(p), 1);
    parse_push(p, "｜DSML｜foo", strlen("｜DSML｜foo"));
    assert_true(parse_held(p) > 0);
    parse_push(p, "!", 1);
    assert_int_equal(parse_held(p), 0);
    parse_finish(p, "stop");
    assert_string_equal(buf_cstr(&a.content), "abc <b\n\n\nx<｜DSML｜foo!");
    parse_free(p);
    answer_deinit(&a);
}

static void a_string_argument_streams_and_another_waits(void **state)
{
    static const char head[] = "<｜DSML｜invoke name=\"f\"><｜DSML｜parameter name=\"k\" "
                               "string=\"true\">ab\"c";
    static const char next[] =
        "</｜DSML｜parameter><｜DSML｜parameter name=\"n\" string=\"false\">12";
    struct parse_options opt = {.start = TURN_CONTENT, .tools = true};
    struct answer a = {0};
    struct parse *p;
    struct status st;

    (void)state;
    parse_new(&opt, on_event, &a, &p, &st);
    parse_push(p, head, sizeof(head) - 1);
    assert_string_equal(buf_cstr(&a.arguments), "{\"k\": \"ab\\\"c");
    parse_push(p, next, sizeof(next) - 1);
    assert_string_equal(buf_cstr(&a.arguments), "{\"k\": \"ab\\\"c\"");
    parse_push(p, "</｜DSML｜invoke>", strlen("</｜DSML｜invoke>"));
    assert_string_equal(buf_cstr(&a.arguments), "{\"k\": \"ab\\\"c\", \"n\": 12}");
    assert_true(a.ended);
    assert_string_equal(parse_finish(p, "stop"), "tool_calls");
    parse_free(p);
    answer_deinit(&a);
}

/* These would not end within the test's time if any of them were quadratic. */
static void hostile_output_costs_what_its_length_costs(void **state)
{
    static const char *const units[] = {
        "<",
        "</",
        "<｜",
        "<｜DSML｜",
        "<｜DSML｜x>",
        "\n",
        "</think",
        "<｜DSML｜tool_calls",
        "<｜DSML｜a a a a a a a a a a a a a a a a a a> <｜DSML｜invoke name="};
    struct parse_options opt = {.start = TURN_CONTENT, .tools = true};

    (void)state;
    for (size_t u = 0; u < sizeof(units) / sizeof(*units); u++) {
        struct answer a = {0};
        struct buf text = {0};

        while (text.len < 2 << 20)
            buf_puts(&text, units[u]);
        parse_all(&opt, text.data, text.len, "length", 0, &a);
        assert_true(a.content.len + 2 * PARSE_HELD_MAX >= text.len);
        answer_deinit(&a);
        a = (struct answer){0};
        parse_all(&opt, text.data, text.len, "length", 5, &a);
        assert_true(a.content.len + 2 * PARSE_HELD_MAX >= text.len);
        answer_deinit(&a);
        buf_deinit(&text);
    }
}

static void many_parameters_are_not_quadratic(void **state)
{
    enum { N = 100000 };
    struct parse_options opt = {.start = TURN_CONTENT, .tools = true};
    struct answer a = {0};
    struct buf text = {0};

    (void)state;
    buf_puts(&text, "<｜DSML｜invoke name=\"f\">");
    for (int i = 0; i < N; i++) /* every key comes twice: the second is dropped */
        buf_printf(&text, "<｜DSML｜parameter name=\"k%d\" string=\"false\">%d</｜DSML｜parameter>",
                   i / 2, i);
    buf_puts(&text, "</｜DSML｜invoke>");
    parse_all(&opt, text.data, text.len, "stop", 0, &a);
    assert_true(a.ended);
    assert_non_null(memmem(a.calls.data, a.calls.len, "\"k1\": 2,", 8));
    assert_null(memmem(a.calls.data, a.calls.len, "\"k1\": 3", 7));
    answer_deinit(&a);
    buf_deinit(&text);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_case_gives_the_same_answer_under_a_thousand_splits),
        cmocka_unit_test(any_output_gives_one_answer_however_it_is_cut),
        cmocka_unit_test(text_that_cannot_begin_a_marker_is_not_held),
        cmocka_unit_test(a_string_argument_streams_and_another_waits),
        cmocka_unit_test(hostile_output_costs_what_its_length_costs),
        cmocka_unit_test(many_parameters_are_not_quadratic),
    };

    if (argc != 2) {
        fprintf(stderr, "usage: %s PARSE_CASES\n", argv[0]);
        return 2;
    }
    cases_path = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}
