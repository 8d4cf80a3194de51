/* The table of chat fields: each is honoured or refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "router/anthropic_request.h"
#include "router/chat_params.h"
#include "router/responses_request.h"

static bool read_body(const char *body, struct chat_params *p, struct chat_error *err)
{
    struct json_doc *doc;
    struct status st;
    bool ok;

    *err = (struct chat_error){0};
    assert_int_equal(json_parse(body, strlen(body), CHAT_JSON_FLAGS, &doc, &st), ST_OK);
    ok = chat_params_read(json_root(doc), 1000, p, err);
    json_free(doc);
    return ok;
}

static const struct field *first_field(void)
{
    return chat_params_tables[0];
}

/* Walks one table after the other. */
static const struct field *next_field(const struct field *f)
{
    if (f[1].name != NULL)
        return f + 1;
    for (size_t t = 0; chat_params_tables[t] != NULL; t++)
        for (const struct field *g = chat_params_tables[t]; g->name != NULL; g++)
            if (g == f)
                return chat_params_tables[t + 1];
    return NULL;
}

static void refused(const char *body, const char *param)
{
    struct chat_params p;
    struct chat_error err;

    if (read_body(body, &p, &err))
        fail_msg("taken: %s", body);
    assert_int_equal(err.status, 400);
    assert_string_equal(err.param, param);
    assert_non_null(err.code);
    assert_true(strlen(err.message) > 0);
}

static void taken(const char *body, struct chat_params *p)
{
    struct chat_error err;

    if (!read_body(body, p, &err))
        fail_msg("refused: %s: %s", body, err.message);
}

static void an_empty_body_means_the_defaults(void **state)
{
    struct chat_params p;

    (void)state;
    taken("{}", &p);
    assert_int_equal(p.n, 1);
    assert_int_equal(p.max_tokens, -1);
    assert_true(p.temperature == 1 && p.top_p == 1 && p.min_p == 0 && p.top_k == 0);
    assert_false(p.stream || p.has_seed || p.ignore_eos || p.no_stop_trim);
    assert_true(p.separate_reasoning);
}

static void every_field_takes_null_as_absent(void **state)
{
    (void)state;
    for (const struct field *f = first_field(); f != NULL; f = next_field(f)) {
        struct chat_params p;
        char body[128];

        snprintf(body, sizeof(body), "{\"%s\": null}", f->name);
        taken(body, &p);
    }
}

static void no_name_stands_twice_and_each_row_is_whole(void **state)
{
    (void)state;
    for (const struct field *f = first_field(); f != NULL; f = next_field(f)) {
        for (const struct field *g = next_field(f); g != NULL; g = next_field(g))
            assert_string_not_equal(f->name, g->name);
        if (f->kind == FIELD_READ)
            assert_non_null(f->read);
        if (f->kind == FIELD_INT || f->kind == FIELD_FLOAT)
            assert_true(f->max > f->min);
    }
    for (const struct field *f = completion_params_tables[0]; f->name != NULL; f++)
        for (const struct field *g = completion_params_tables[1]; g->name != NULL; g++)
            assert_string_not_equal(f->name, g->name);
}

static void the_tables_of_other_apis_are_whole(void **state)
{
    const struct field *const *const apis[] = {completion_params_tables, generate_params_tables,
                                               anthropic_tables, anthropic_count_tables,
                                               responses_tables};

    (void)state;
    for (size_t i = 0; i < sizeof(apis) / sizeof(apis[0]); i++)
        for (const struct field *const *t = apis[i]; *t != NULL; t++)
            for (const struct field *f = *t; f->name != NULL; f++) {
                size_t n = 0;

                for (const struct field *const *u = apis[i]; *u != NULL; u++)
                    for (const struct field *g = *u; g->name != NULL; g++)
                        n += strcmp(f->name, g->name) == 0;
                if (n != 1)
                    fail_msg("%s stands %zu times in table %zu", f->name, n, i);
                assert_true(f->kind != FIELD_READ || f->read != NULL);
                assert_true((f->kind != FIELD_INT && f->kind != FIELD_FLOAT) || f->max > f->min);
                assert_true(f->kind != FIELD_STRING || f->max > 0);
            }
}

static void each_field_of_generate_is_honoured_or_refused_by_name(void **state)
{
    (void)state;
    for (const struct field *f = generate_params_tables[0]; f->name != NULL; f++) {
        struct chat_error err = {0};
        struct chat_params p;
        struct json_doc *doc;
        struct status st;
        char body[256];

        if (f->kind == FIELD_ELSEWHERE || f->kind == FIELD_NO_EFFECT)
            continue;
        for (const struct field *g = f + 1; g->name != NULL; g++)
            assert_string_not_equal(f->name, g->name);
        snprintf(body, sizeof(body), "{\"%s\": [[]]}", f->name); /* no field takes that */
        assert_int_equal(json_parse(body, strlen(body), 0, &doc, &st), ST_OK);
        assert_false(generate_params_read(json_root(doc), 1000, &p, &err));
        assert_string_equal(err.param, f->name);
        assert_int_equal(err.status, 400);
        json_free(doc);
    }
}

static void what_is_not_offered_is_refused_by_name_unless_it_asks_for_nothing(void **state)
{
    (void)state;
    for (const struct field *f = first_field(); f != NULL; f = next_field(f)) {
        struct chat_params p;
        char body[256];

        if (f->kind != FIELD_NEUTRAL)
            continue;
        snprintf(body, sizeof(body), "{\"%s\": \"surely not offered\"}", f->name);
        refused(body, f->name);
        snprintf(body, sizeof(body), "{\"%s\": 0.123}", f->name);
        refused(body, f->name);
        for (const char *v = f->neutral; v != NULL;) {
            size_t n = strcspn(v, "|");

            snprintf(body, sizeof(body), "{\"%s\": %.*s}", f->name, (int)n, v);
            taken(body, &p);
            v = v[n] == '|' ? v + n + 1 : NULL;
        }
    }
}

static void numbers_are_bounded_and_typed(void **state)
{
    (void)state;
    for (const struct field *f = first_field(); f != NULL; f = next_field(f)) {
        char body[128];

        if (f->kind != FIELD_INT && f->kind != FIELD_FLOAT)
            continue;
        snprintf(body, sizeof(body), "{\"%s\": %.0f}", f->name, f->min - 1);
        refused(body, f->name);
        snprintf(body, sizeof(body), "{\"%s\": %.0f}", f->name, f->max + 1);
        refused(body, f->name);
        snprintf(body, sizeof(body), "{\"%s\": \"1\"}", f->name);
        refused(body, f->name);
        snprintf(body, sizeof(body), "{\"%s\": true}", f->name);
        refused(body, f->name);
        snprintf(body, sizeof(body), "{\"%s\": 1e400}", f->name);
        refused(body, f->name);
    }
}

static void fields_that_contradict_each_other_are_refused(void **state)
{
    struct chat_params p;

    (void)state;
    refused("{\"max_tokens\": 5, \"max_completion_tokens\": 6}", "max_tokens");
    refused("{\"max_tokens\": 5, \"min_tokens\": 6}", "min_tokens");
    refused("{\"stream_options\": {\"include_usage\": true}}", "stream_options");
    refused("{\"stream\": true, \"stream_options\": {\"x\": 1}}", "stream_options.x");
    refused("{\"stream\": true, \"stream_options\": []}", "stream_options");
    refused("{\"stop_token_ids\": [1, 1000]}", "stop_token_ids");
    refused("{\"top_logprobs\": 1}", "top_logprobs");
    refused("{\"top_logprobs\": 1, \"logprobs\": false}", "top_logprobs");
    refused("{\"logit_bias\": {\"1000\": 1}}", "logit_bias");
    refused("{\"logit_bias\": {\"\\u0000\": 1}}", "logit_bias");
    refused("{\"logit_bias\": {\"1\": 1e9}}", "logit_bias");
    refused("{\"no such\": 1}", "no such");
    taken("{\"max_completion_tokens\": 6}", &p);
    assert_int_equal(p.max_tokens, 6);
    taken("{\"seed\": -1, \"stop_token_ids\": [999]}", &p);
    assert_true(p.has_seed && p.seed == UINT64_MAX && p.stop_ids[0] == 999);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_body_means_the_defaults),
        cmocka_unit_test(every_field_takes_null_as_absent),
        cmocka_unit_test(no_name_stands_twice_and_each_row_is_whole),
        cmocka_unit_test(the_tables_of_other_apis_are_whole),
        cmocka_unit_test(each_field_of_generate_is_honoured_or_refused_by_name),
        cmocka_unit_test(what_is_not_offered_is_refused_by_name_unless_it_asks_for_nothing),
        cmocka_unit_test(numbers_are_bounded_and_typed),
        cmocka_unit_test(fields_that_contradict_each_other_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
