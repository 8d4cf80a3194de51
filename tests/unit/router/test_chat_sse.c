/* The SSE writer: each event is one line of valid JSON, whatever the text is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "common/base/json.h"
#include "router/api_error.h"
#include "router/chat_sse.h"

static const char hostile[] =
    "a\"b\\c\n\n\r\ndata: [DONE]\n\n\x01\x1f\x7f\xe2\x80\xa8\xf0\x9f\x98\x80";

/* Takes the one event off out and returns its JSON. */
static struct json_doc *event(struct buf *out)
{
    struct json_doc *doc;
    struct status st;
    const char *s = buf_cstr(out);

    assert_memory_equal(s, "data: ", 6);
    assert_string_equal(s + out->len - 2, "\n\n");
    assert_null(memchr(s, '\r', out->len));
    assert_ptr_equal(strstr(s, "\n"), s + out->len - 2);
    if (json_parse(s + 6, out->len - 8, 0, &doc, &st) != ST_OK)
        fail_msg("%s: %s", st.msg, s);
    out->len = 0;
    return doc;
}

static const struct json *choice(const struct json_doc *doc)
{
    return &json_get(json_root(doc), "choices")->items[0];
}

static void every_event_is_one_line_of_json(void **state)
{
    struct chat_usage u = {10, 4, 7, 2};
    struct chat_sse s = {0};
    struct buf out = {0};
    struct json_doc *doc;
    const struct json *call;

    (void)state;
    chat_sse_init(&s, "chat.completion.chunk", "chatcmpl-1", 5, hostile);
    chat_sse_role(&s, 0, NULL, &out);
    doc = event(&out);
    assert_true(json_is(json_get(json_root(doc), "model"), hostile));
    assert_true(json_is(json_get(json_get(choice(doc), "delta"), "role"), "assistant"));
    assert_null(json_get(json_root(doc), "usage"));
    json_free(doc);

    chat_sse_text(&s, 3, "content", hostile, strlen(hostile), NULL, &out);
    doc = event(&out);
    assert_true(json_is(json_get(json_get(choice(doc), "delta"), "content"), hostile));
    assert_int_equal(json_get(choice(doc), "finish_reason")->type, JSON_NULL);
    json_free(doc);

    chat_sse_call(&s, 0, 2, "call_x", hostile, strlen(hostile), NULL, &out);
    doc = event(&out);
    call = &json_get(json_get(choice(doc), "delta"), "tool_calls")->items[0];
    assert_true(json_is(json_get(json_get(call, "function"), "name"), hostile));
    assert_true(json_is(json_get(json_get(call, "function"), "arguments"), ""));
    json_free(doc);

    chat_sse_arguments(&s, 0, 2, hostile, strlen(hostile), NULL, &out);
    doc = event(&out);
    call = &json_get(json_get(choice(doc), "delta"), "tool_calls")->items[0];
    assert_true(json_is(json_get(json_get(call, "function"), "arguments"), hostile));
    assert_null(json_get(call, "id"));
    json_free(doc);

    s.null_usage = true;
    chat_sse_finish(&s, 1, "stop", NULL, &out);
    doc = event(&out);
    assert_true(json_is(json_get(choice(doc), "finish_reason"), "stop"));
    assert_int_equal(json_get(choice(doc), "matched_stop")->type, JSON_NULL);
    assert_int_equal(json_get(choice(doc), "delta")->len, 0);
    assert_int_equal(json_get(json_root(doc), "usage")->type, JSON_NULL);
    json_free(doc);

    chat_sse_usage(&s, &u, &out);
    doc = event(&out);
    assert_int_equal(json_get(json_root(doc), "choices")->len, 0);
    assert_string_equal(json_get(json_get(json_root(doc), "usage"), "total_tokens")->text, "17");
    json_free(doc);

    chat_sse_error(503, hostile, &out);
    doc = event(&out);
    assert_true(json_is(json_get(json_get(json_root(doc), "error"), "message"), hostile));
    json_free(doc);
    chat_sse_deinit(&s);
    buf_deinit(&out);
}

static void an_error_with_a_cut_character_is_still_json(void **state)
{
    struct buf out = {0};
    struct json_doc *doc;
    struct status st;

    (void)state;
    api_error_json(&out, 400, "f\xffg", NULL, "bad \xe2\x82");
    assert_int_equal(json_parse(out.data, out.len, 0, &doc, &st), ST_OK);
    assert_true(json_is(json_get(json_get(json_root(doc), "error"), "message"), "bad ??"));
    assert_true(json_is(json_get(json_get(json_root(doc), "error"), "param"), "f?g"));
    json_free(doc);
    buf_deinit(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_event_is_one_line_of_json),
        cmocka_unit_test(an_error_with_a_cut_character_is_still_json),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
