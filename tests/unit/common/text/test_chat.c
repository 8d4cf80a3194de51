#include "common/text/chat.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/text/chat_json.h"
#include "common/text/chat_profile.h"
#include "common/text/chat_tokens.h"

static const struct chat_options ga = {.profile = CHAT_GA, .default_thinking = true};

#define U "{\"role\": \"user\", \"content\": \"u\"}"
#define S "{\"role\": \"system\", \"content\": \"s\"}"
#define A "{\"role\": \"assistant\", \"content\": \"a\"}"
#define CALL                                                                                       \
    "{\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"id\": \"c1\", "              \
    "\"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": \"{}\"}}]}"
#define RESULT "{\"role\": \"tool\", \"tool_call_id\": \"c1\", \"content\": \"r\"}"
#define TOOLS "\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\"}}]"
#define OFF "\"thinking\": {\"type\": \"disabled\"}"
#define BOS "<｜begin▁of▁sentence｜>"
#define EOS "<｜end▁of▁sentence｜>"
#define USER "<｜User｜>"
#define ASSISTANT "<｜Assistant｜>"

static enum status_code render(const char *body, const struct chat_options *opt,
                               struct chat_prompt *out, struct chat_error *err)
{
    struct json_doc *doc = NULL;
    struct status st;
    enum status_code rc;

    if (json_parse(body, strlen(body), CHAT_JSON_FLAGS, &doc, &st) != ST_OK)
        fail_msg("%s: %s", body, st.msg);
    rc = chat_request_render(json_root(doc), opt, out, err);
    json_free(doc);
    return rc;
}

/* Specials ascend, do not overlap and spell their tokens. */
static void check_specials(const struct prompt *p)
{
    size_t end = 0;

    for (size_t i = 0; i < p->n_specials; i++) {
        const struct prompt_special *s = &p->specials[i];
        bool known = false;

        assert_true(s->offset >= end);
        end = s->offset + s->len;
        assert_true(end <= p->text.len);
        for (int t = 0; t < CHAT_N_TOKENS; t++)
            known |= chat_tokens[t].id == s->id && chat_tokens[t].len == s->len &&
                     memcmp(chat_tokens[t].text, p->text.data + s->offset, s->len) == 0;
        assert_true(known);
    }
}

static void check(const char *body, const struct chat_options *opt, const char *want,
                  enum turn_start start)
{
    struct chat_prompt out = {0};
    struct chat_error err;

    if (render(body, opt, &out, &err) != ST_OK)
        fail_msg("%s: %s", body, err.message);
    check_specials(&out.prompt);
    if (strcmp(buf_cstr(&out.prompt.text), want) != 0)
        fail_msg("%s\n got %s\nwant %s", body, buf_cstr(&out.prompt.text), want);
    assert_int_equal(out.start, start);
    chat_prompt_deinit(&out);
}

static void refuse(const char *body, const char *param, const char *why)
{
    struct chat_prompt out = {0};
    struct chat_error err = {0};

    if (render(body, &ga, &out, &err) != ST_INVALID)
        fail_msg("taken: %s\n%s", body, buf_cstr(&out.prompt.text));
    assert_int_equal(err.status, 400);
    assert_non_null(err.code);
    if (strcmp(err.param, param) != 0 || strstr(err.message, why) == NULL)
        fail_msg("%s\n param \"%s\", message \"%s\"", body, err.param, err.message);
    chat_prompt_deinit(&out);
}

static void errors_name_the_field_and_the_message(void **state)
{
    (void)state;
    refuse("[]", "", "must be a JSON object");
    refuse("{}", "messages", "at least one message");
    refuse("{\"messages\": {}}", "messages", "list");
    refuse("{\"messages\": [null]}", "messages[0].role", "none of");
    refuse("{\"messages\": [" U ", {\"role\": \"robot中\", \"content\": \"x\"}]}",
           "messages[1].role", "robot中");
    refuse("{\"messages\": [" U ", {\"role\": \"system\"}]}", "messages[1].content", "missing");
    refuse("{\"messages\": [{\"role\": \"user\", \"content\": 5}]}", "messages[0].content",
           "string or a list");
    refuse("{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]}",
           "messages[0].content", "part 0 is of type \"image_url\"");
    refuse("{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\"}]}]}",
           "messages[0].content", "part 0 needs");
    refuse("{\"messages\": [" U ", {\"role\": \"assistant\"}]}", "messages[1]", "content or");
    refuse("{\"messages\": [" U ", {\"role\": \"assistant\", \"content\": \"a\", "
           "\"reasoning_content\": 5}]}",
           "messages[1].reasoning_content", "string");
    refuse("{\"messages\": [" U "], \"thinking\": true}", "thinking", "enabled");
    refuse("{\"messages\": [" U "], \"chat_template_kwargs\": 5}", "chat_template_kwargs",
           "object");
    refuse("{\"messages\": [" U "], \"chat_template_kwargs\": {\"thinking\": 1}}",
           "chat_template_kwargs.thinking", "true or false");
    refuse("{\"messages\": [" U "], \"chat_template_kwargs\": {\"reasoning_effort\": \"x\"}}",
           "chat_template_kwargs.reasoning_effort", "must be none");
    refuse("{\"messages\": [" U "], \"reasoning_effort\": \"HIGH\"}", "reasoning_effort", "high");
    refuse("{\"messages\": [" U "], \"response_format\": {\"type\": \"xml\"}}",
           "response_format.type", "json_schema");
    refuse("{\"messages\": [" U "], \"response_format\": {\"type\": \"json_schema\"}}",
           "response_format.json_schema.schema", "missing");
    refuse("{\"messages\": [" U "], \"task\": \"dance\"}", "task", "query");
    refuse("{\"messages\": [" S "], \"task\": \"query\"}", "task", "user message");
    refuse("{\"messages\": [" U "], \"continue_final_message\": true}", "continue_final_message",
           "assistant");
}

static void bad_tools_are_refused(void **state)
{
    (void)state;
    refuse("{\"messages\": [" U "], \"tools\": {}}", "tools", "list");
    refuse("{\"messages\": [" U "], \"tools\": [{\"type\": \"custom\"}]}", "tools[0].type",
           "function");
    refuse("{\"messages\": [" U "], \"tools\": [{\"type\": \"function\"}]}", "tools[0].function",
           "object");
    refuse("{\"messages\": [" U "], \"tools\": [{\"type\": \"function\", \"function\": {\"name\": "
           "\"é\"}}], \"tool_choice\": \"none\"}",
           "tools[0].function.name", "a-zA-Z0-9_-");
    refuse("{\"messages\": [" U "], \"tools\": [{\"type\": \"function\", \"function\": {\"name\": "
           "\"f\", \"parameters\": []}}]}",
           "tools[0].function.parameters", "JSON Schema");
    refuse("{\"messages\": [" U "], " TOOLS ", \"tool_choice\": \"maybe\"}", "tool_choice",
           "required");
    refuse("{\"messages\": [" U "], " TOOLS ", \"tool_choice\": \"required\", "
           "\"reasoning_effort\": \"high\"}",
           "tool_choice", "Thinking mode does not support this tool_choice");
}

static void calls_and_results_must_pair_up(void **state)
{
    (void)state;
    refuse("{\"messages\": [" U ", " RESULT "]}", "messages[1]", "\"c1\"");
    refuse("{\"messages\": [" U ", " CALL "]}", "messages[1].tool_calls", "1 of 1");
    refuse("{\"messages\": [" U ", " CALL ", " U ", " RESULT "]}", "messages[1].tool_calls",
           "followed by");
    refuse("{\"messages\": [" U ", " CALL ", " S ", " RESULT "]}", "messages[1].tool_calls",
           "followed by");
    refuse("{\"messages\": [" U ", " CALL ", " RESULT ", " RESULT "]}", "messages[3]", "already");
    refuse("{\"messages\": [" U ", " CALL ", " RESULT ", " A ", " RESULT "]}", "messages[4]",
           "already");
    refuse("{\"messages\": [" U ", " CALL ", {\"role\": \"tool\", \"content\": \"r\"}]}",
           "messages[2].tool_call_id", "string");
    refuse("{\"messages\": [" U ", {\"role\": \"assistant\", \"tool_calls\": [{\"id\": \"c\"}, "
           "{\"id\": \"c\"}]}]}",
           "messages[1].tool_calls", "same id");
    refuse("{\"messages\": [" U ", {\"role\": \"assistant\", \"tool_calls\": [{}]}]}",
           "messages[1].tool_calls", "\"id\"");
    refuse("{\"messages\": [" U ", {\"role\": \"assistant\", \"tool_calls\": [{\"id\": \"c1\", "
           "\"function\": {\"name\": \"f\", \"arguments\": \"{\\\"a\\\": "
           "\\\"\\\\ud800\\\"}\"}}]}, " RESULT "]}",
           "messages[1].tool_calls[0].function.arguments", "surrogate");
}

static void modes_and_efforts_follow_flags_and_profile(void **state)
{
    struct chat_options chat = {.profile = CHAT_GA}, preview = {.default_thinking = true};

    (void)state;
    check("{\"messages\": [" U "]}", &chat, BOS USER "u" ASSISTANT "</think>", TURN_CONTENT);
    check("{\"messages\": [" U "], \"reasoning_effort\": \"low\"}", &chat,
          BOS USER "u" ASSISTANT "<think>", TURN_REASONING);
    check("{\"messages\": [" U "]}", &preview, BOS USER "u" ASSISTANT "<think>", TURN_REASONING);
    check("{\"messages\": [" U "], \"reasoning_effort\": \"xhigh\"}", &preview,
          BOS USER "u" ASSISTANT "<think>", TURN_REASONING);
    check("{\"messages\": [" U "], \"reasoning_effort\": \"low\", \"chat_template_kwargs\": "
          "{\"reasoning_effort\": \"none\"}}",
          &ga, BOS USER "u" ASSISTANT "<think>", TURN_REASONING);
    check("{\"messages\": [" U ", {\"role\": \"assistant\", \"content\": \"a\", "
          "\"reasoning_content\": \"r\"}, " U "], \"reasoning_effort\": \"low\", "
          "\"chat_template_kwargs\": {\"drop_thinking\": false}}",
          &ga, BOS USER "u" ASSISTANT "<think>r</think>a" EOS USER "u" ASSISTANT "<think>",
          TURN_REASONING);
}

/* What the reference leaves to the reader, as the vendor's own conversion does it. */
static void systems_continuations_and_reminders(void **state)
{
    (void)state;
    check("{\"messages\": [" S ", {\"role\": \"system\", \"content\": \"\"}, " U "], " OFF "}", &ga,
          BOS "s" USER "u" ASSISTANT "</think>", TURN_CONTENT);
    check("{\"messages\": [" S "], " OFF "}", &ga, BOS "s" ASSISTANT "</think>", TURN_CONTENT);
    check("{\"messages\": [" U ", " A ", {\"role\": \"assistant\", \"content\": \"x\", \"prefix\": "
          "true}], " OFF "}",
          &ga, BOS USER "u" ASSISTANT "</think>a" EOS ASSISTANT "</think>x", TURN_CONTENT);
    check("{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\", \"prefix\": true}], "
          "\"reasoning_effort\": \"low\"}",
          &ga, BOS ASSISTANT "<think></think>x", TURN_CONTENT);
    check("{\"messages\": [" U ", " A ", {\"role\": \"latest_reminder\", \"content\": \"now\"}], "
          "\"reasoning_effort\": \"low\"}",
          &ga,
          BOS USER "u" ASSISTANT "</think>a" EOS "<｜latest_reminder｜>now" ASSISTANT "<think>",
          TURN_REASONING);
    check("{\"messages\": [" U "], \"tool_choice\": \"auto\", \"tools\": [], " OFF "}", &ga,
          BOS USER "u" ASSISTANT "</think>", TURN_CONTENT);
    check("{\"messages\": [" U "], \"task\": \"action\", \"reasoning_effort\": \"low\"}", &ga,
          BOS USER "u" ASSISTANT "<think><｜action｜>", TURN_CONTENT);
}

static void arguments_may_come_as_an_object(void **state)
{
    (void)state;
    check("{\"messages\": [" U ", {\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": "
          "[{\"id\": \"c1\", \"function\": {\"name\": \"f\", \"arguments\": {\"x\": "
          "[1.0]}}}]}, " RESULT "], " OFF "}",
          &ga,
          BOS USER "u" ASSISTANT "</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n"
                   "<｜DSML｜parameter name=\"x\" string=\"false\">[1.0]</｜DSML｜parameter>\n"
                   "</｜DSML｜invoke>\n</｜DSML｜tool_calls>" EOS USER
                   "<tool_result>r</tool_result>" ASSISTANT "</think>",
          TURN_CONTENT);
}

static void one_prompt_serves_many_requests(void **state)
{
    struct chat_prompt out = {0};
    struct chat_error err;
    size_t n;

    (void)state;
    assert_int_equal(render("{\"messages\": [" U "], " TOOLS "}", &ga, &out, &err), ST_OK);
    assert_true(out.tools);
    n = out.prompt.text.len;
    assert_int_equal(render("{\"messages\": []}", &ga, &out, &err), ST_INVALID);
    assert_int_equal(render("{\"messages\": [" U "]}", &ga, &out, &err), ST_OK);
    assert_false(out.tools);
    assert_true(out.prompt.text.len < n);
    assert_int_equal(out.prompt.n_specials, 4);
    check_specials(&out.prompt);
    chat_prompt_deinit(&out);
}

/* Sorting results, pairing ids and checking names would not end in time if they compared all. */
static void thousands_of_calls_are_not_quadratic(void **state)
{
    enum { N = 30000 };
    struct chat_prompt out = {0};
    struct chat_error err;
    struct buf b = {0};

    (void)state;
    buf_puts(&b, "{\"messages\": [" U ", {\"role\": \"assistant\", \"tool_calls\": [");
    for (int i = 0; i < N; i++)
        buf_printf(&b, "%s{\"id\": \"%d\", \"function\": {\"name\": \"f\", \"arguments\": \"{}\"}}",
                   i > 0 ? "," : "", i);
    buf_puts(&b, "]}");
    for (int i = N - 1; i >= 0; i--)
        buf_printf(&b, ",{\"role\": \"tool\", \"tool_call_id\": \"%d\", \"content\": \"r%d\"}", i,
                   i);
    buf_puts(&b, "], \"tools\": [");
    for (int i = 0; i < N; i++)
        buf_printf(&b, "%s{\"type\": \"function\", \"function\": {\"name\": \"t%d\"}}",
                   i > 0 ? "," : "", i);
    buf_puts(&b, "]}");
    assert_int_equal(render(buf_cstr(&b), &ga, &out, &err), ST_OK);
    assert_non_null(strstr(buf_cstr(&out.prompt.text),
                           USER "<tool_result>r0</tool_result>\n\n<tool_result>r1</tool_result>"));
    chat_prompt_deinit(&out);
    buf_deinit(&b);
}

static void doubles_are_spelled_shortest(void **state)
{
    static const struct {
        double d;
        const char *want;
    } cases[] = {
        {0.0, "0.0"},
        {-0.0, "-0.0"},
        {1.0, "1.0"},
        {0.1, "0.1"},
        {1e15, "1000000000000000.0"},
        {9999999999999998.0, "9999999999999998.0"},
        {1e16, "1e+16"},
        {1e22, "1e+22"},
        {0.0001, "0.0001"},
        {0.00001, "1e-05"},
        {1.5e-7, "1.5e-07"},
        {5e-324, "5e-324"},
        {1.7976931348623157e308, "1.7976931348623157e+308"},
        {123456.789, "123456.789"},
        {-2.5e-300, "-2.5e-300"},
        {7.678447687145631e-239, "7.678447687145631e-239"}, /* a power of two */
        {1.0 / 3, "0.3333333333333333"},
        {HUGE_VAL, "Infinity"},
    };
    struct buf b = {0};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        b.len = 0;
        chat_json_write_double(&b, cases[i].d);
        assert_string_equal(buf_cstr(&b), cases[i].want);
    }
    buf_deinit(&b);
}

/* ---- profiles ---- */

static void put_file(const char *dir, const char *name, const char *text)
{
    char path[512];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

/* Finds the profile of a folder with these files (NULL: without); what the message or the reason
 * says goes to said. */
static enum status_code find(const char *encoder, const char *other, const char *config,
                             enum chat_profile *profile, const char **said)
{
    static struct status st;
    char dir[] = "/tmp/baton-profile-XXXXXX", path[512];
    const char *names[] = {"encoding/encoding_dsv4.py", other, "config.json", "encoding", "."};
    enum status_code rc;

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/encoding", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    if (encoder != NULL)
        put_file(dir, "encoding/encoding_dsv4.py", encoder);
    if (other != NULL)
        put_file(dir, other, "x");
    if (config != NULL)
        put_file(dir, "config.json", config);
    snprintf(path, sizeof(path), "%s/tokenizer.json", dir);
    *said = "";
    rc = chat_profile_find("auto", path, profile, said, &st);
    if (rc != ST_OK)
        *said = st.msg;
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, names[i] == NULL ? "none" : names[i]);
        remove(path);
    }
    rmdir(dir);
    return rc;
}

static void the_profile_is_read_from_the_checkpoint(void **state)
{
    enum chat_profile profile;
    const char *said;
    struct status st;

    (void)state;
    assert_int_equal(find("REASONING_EFFORT_PROMPTS = {}\nDEFAULT_REASONING_EFFORT = None\n", NULL,
                          "{}", &profile, &said),
                     ST_OK);
    assert_int_equal(profile, CHAT_GA);
    assert_int_equal(
        find("import re\nREASONING_EFFORT_MAX: str = (\n", NULL, NULL, &profile, &said), ST_OK);
    assert_int_equal(profile, CHAT_PREVIEW);
    assert_int_equal(find(NULL, NULL, "{\"model_type\": \"deepseek_v4\"}", &profile, &said), ST_OK);
    assert_int_equal(profile, CHAT_GA);
    assert_non_null(strstr(said, "no encoding"));
    assert_int_equal(find("# REASONING_EFFORT_MAX = 1\nif REASONING_EFFORT_MAX == 2:\n", NULL, NULL,
                          &profile, &said),
                     ST_INVALID);
    assert_non_null(strstr(said, "--effort-profile"));
    assert_int_equal(chat_profile_find("preview", "/nowhere", &profile, &said, &st), ST_OK);
    assert_int_equal(profile, CHAT_PREVIEW);
}

static void another_format_is_refused_by_name(void **state)
{
    enum chat_profile profile;
    const char *said;

    (void)state;
    assert_int_equal(
        find(NULL, NULL, "{\"architectures\": [\"DeepseekV4_1ForCausalLM\"]}", &profile, &said),
        ST_INVALID);
    assert_non_null(strstr(said, "DeepSeek-V4.1"));
    assert_int_equal(
        find("REASONING_EFFORT_MAX = 1\nx = '<｜DSML｜ invoke'\n", NULL, NULL, &profile, &said),
        ST_INVALID);
    assert_non_null(strstr(said, "DeepSeek-V4.1"));
    assert_int_equal(find(NULL, "encoding/encoding_dsv41.py", NULL, &profile, &said), ST_INVALID);
    assert_non_null(strstr(said, "DeepSeek-V4.1"));
    assert_int_equal(find(NULL, "encoding/encoding_dsv32.py", NULL, &profile, &said), ST_INVALID);
    assert_non_null(strstr(said, "encoding_dsv32.py"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_name_the_field_and_the_message),
        cmocka_unit_test(bad_tools_are_refused),
        cmocka_unit_test(calls_and_results_must_pair_up),
        cmocka_unit_test(modes_and_efforts_follow_flags_and_profile),
        cmocka_unit_test(systems_continuations_and_reminders),
        cmocka_unit_test(arguments_may_come_as_an_object),
        cmocka_unit_test(one_prompt_serves_many_requests),
        cmocka_unit_test(thousands_of_calls_are_not_quadratic),
        cmocka_unit_test(doubles_are_spelled_shortest),
        cmocka_unit_test(the_profile_is_read_from_the_checkpoint),
        cmocka_unit_test(another_format_is_refused_by_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
