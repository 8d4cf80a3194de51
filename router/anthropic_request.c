#include "router/anthropic_request.h"

#include <stdio.h>
#include <string.h>

#include "common/text/chat_error.h"

enum { THINKING_BUDGET_MIN = 1024 };

struct reader {
    const struct json *body;
    struct json_doc *doc;
    struct chat_params *params;
    struct chat_body chat;
    struct chat_error *err;
};

/* ---- fields ---- */

#define AT(member) offsetof(struct chat_params, member)

static bool read_metadata(const struct field *f, const struct json *v, void *out,
                          struct chat_error *err)
{
    static const struct field members[] = {FIELD_NO_EFFECT_ROW("user_id"), {NULL}};

    return chat_params_read_inner(f, members, v, out, err);
}

static const struct field prompt_fields[] = {
    {"model", FIELD_STRING, AT(model), .max = 256},
    FIELD_ELSEWHERE_ROW("messages"),
    FIELD_ELSEWHERE_ROW("system"),
    FIELD_ELSEWHERE_ROW("tools"),
    FIELD_ELSEWHERE_ROW("tool_choice"),
    FIELD_ELSEWHERE_ROW("thinking"),
    FIELD_ELSEWHERE_ROW("output_config"),
    /* Hints: every prefix is cached anyway. */
    FIELD_NO_EFFECT_ROW("cache_control"),
    FIELD_NO_EFFECT_ROW("user_profile_id"),
    FIELD_NO_EFFECT_ROW("workspace_id"),
    /* Not offered. */
    FIELD_NEUTRAL_ROW("speed", "\"standard\""),
    FIELD_NEUTRAL_ROW("betas", "[]"),
    FIELD_NEUTRAL_ROW("context_management", "{}"),
    FIELD_NEUTRAL_ROW("mcp_servers", "[]"),
    FIELD_NEUTRAL_ROW("compaction", NULL),
    FIELD_NEUTRAL_ROW("thread", NULL),
    {NULL},
};

static const struct field sampling_fields[] = {
    {"max_tokens", FIELD_INT, AT(max_tokens), 1, INT32_MAX},
    {"stream", FIELD_BOOL, AT(stream)},
    {"temperature", FIELD_FLOAT, AT(temperature), 0, 1},
    {"top_p", FIELD_FLOAT, AT(top_p), 1e-9, 1},
    {"top_k", FIELD_INT, AT(top_k), 0, INT32_MAX},
    {"stop_sequences", FIELD_READ, .read = chat_params_read_stop},
    {"metadata", FIELD_READ, .read = read_metadata},
    FIELD_NEUTRAL_ROW("service_tier", "\"auto\"|\"standard_only\""),
    FIELD_NEUTRAL_ROW("inference_geo", NULL),
    FIELD_NEUTRAL_ROW("container", NULL),
    FIELD_NEUTRAL_ROW("diagnostics", NULL),
    FIELD_NEUTRAL_ROW("billing_policy", NULL),
    FIELD_NEUTRAL_ROW("fallbacks", "[]"),
    FIELD_NEUTRAL_ROW("fallback_credit_token", NULL),
    /* SGLang's, on this API too. */
    {"rid", FIELD_STRING, AT(rid), .max = 63},
    {"priority", FIELD_INT, AT(priority), INT32_MIN, INT32_MAX},
    {"cache_salt", FIELD_STRING, AT(cache_salt), .max = CHAT_SALT_BYTES_MAX},
    {"extra_key", FIELD_STRING, AT(extra_key), .max = CHAT_SALT_BYTES_MAX},
    {NULL},
};

const struct field *const anthropic_tables[] = {prompt_fields, sampling_fields, NULL};
const struct field *const anthropic_count_tables[] = {prompt_fields, NULL};

/* ---- blocks ---- */

static bool refuse_type(struct reader *r, const struct chat_place *at, const struct json *type,
                        const char *served)
{
    bool known = type != NULL && type->type == JSON_STRING;

    return field_fail(r->err, at->text, "unsupported_parameter",
                      "%s: a block of type \"%.*s\" is not served here, only %s", at->text,
                      known ? chat_shown(type) : 0, known ? type->text : "", served);
}

static bool check_text(struct reader *r, const struct chat_place *at, const struct json *block,
                       const char *served)
{
    const struct json *type = json_get(block, "type"), *text = json_get(block, "text");

    if (!json_is(type, "text"))
        return refuse_type(r, at, type, served);
    return (text != NULL && text->type == JSON_STRING) ||
           field_fail(r->err, at->text, "invalid_type", "%s.text must be a string", at->text);
}

/* A string, or a list of text blocks. */
static bool check_texts(struct reader *r, const char *name, const struct json *v)
{
    struct chat_place at;

    if (v->type == JSON_STRING)
        return true;
    if (v->type != JSON_ARRAY)
        return field_fail(r->err, name, "invalid_type", "%s must be a string or a list of blocks",
                          name);
    for (uint32_t i = 0; i < v->len; i++) {
        snprintf(at.text, sizeof(at.text), "%.50s[%u]", name, i);
        if (!check_text(r, &at, &v->items[i], "text"))
            return false;
    }
    return true;
}

/* ---- messages ---- */

static bool add_result(struct reader *r, uint32_t i, const struct chat_place *at,
                       const struct json *block)
{
    const struct json *id = json_get(block, "tool_use_id"), *content = chat_get(block, "content");
    struct json *message;
    char name[80];

    snprintf(name, sizeof(name), "%s.content", at->text);
    if (!chat_body_need_string(r->err, at, id, "tool_use_id") ||
        (content != NULL && !check_texts(r, name, content)))
        return false;
    message = chat_body_message(&r->chat, i, "tool");
    chat_body_put(message, "tool_call_id", *id);
    /* is_error has no mark in V4's format: the content is what the model learns of it. */
    chat_body_put(message, "content", content != NULL ? *content : chat_body_string(""));
    return true;
}

/* Results of tools, then text. */
static bool add_user_blocks(struct reader *r, uint32_t i, const struct json *blocks)
{
    struct json texts = {.type = JSON_ARRAY};
    struct chat_place at;

    for (uint32_t k = 0; k < blocks->len; k++) {
        const struct json *block = &blocks->items[k];
        bool is_result = json_is(json_get(block, "type"), "tool_result");

        snprintf(at.text, sizeof(at.text), "messages[%u].content[%u]", i, k);
        if (is_result && texts.len > 0)
            return field_fail(r->err, at.text, "invalid_value",
                              "%s: tool_result blocks must stand before text", at.text);
        if (is_result ? !add_result(r, i, &at, block)
                      : !check_text(r, &at, block, "text and tool_result"))
            return false;
        if (!is_result && texts.len++ == 0)
            texts.items = (struct json *)block; /* the rest of the list, borrowed */
    }
    if (texts.len > 0)
        chat_body_put(chat_body_message(&r->chat, i, "user"), "content", texts);
    return true;
}

static bool add_call(struct reader *r, const struct chat_place *at, const struct json *block,
                     struct json *calls)
{
    const struct json *id = json_get(block, "id"), *name = json_get(block, "name");
    const struct json *input = json_get(block, "input");

    if (!chat_body_need_string(r->err, at, id, "id") ||
        !chat_body_need_string(r->err, at, name, "name"))
        return false;
    if (input == NULL || input->type != JSON_OBJECT)
        return field_fail(r->err, at->text, "invalid_type", "%s.input must be an object", at->text);
    chat_body_push(calls, chat_body_call(r->doc, id, name, input));
    return true;
}

static bool add_assistant_blocks(struct reader *r, uint32_t i, const struct json *blocks)
{
    struct json texts = chat_body_array(r->doc, blocks->len),
                calls = chat_body_array(r->doc, blocks->len),
                thinking = chat_body_join(r->doc, blocks, "thinking", "thinking"), *message;
    struct chat_place at;

    for (uint32_t k = 0; k < blocks->len; k++) {
        const struct json *block = &blocks->items[k], *type = json_get(block, "type");

        snprintf(at.text, sizeof(at.text), "messages[%u].content[%u]", i, k);
        if (json_is(type, "thinking")) {
            if (!chat_body_need_string(r->err, &at, json_get(block, "thinking"), "thinking"))
                return false;
        } else if (json_is(type, "tool_use")) {
            if (!add_call(r, &at, block, &calls))
                return false;
        } else if (check_text(r, &at, block, "text, thinking and tool_use")) {
            chat_body_push(&texts, *block);
        } else {
            return false;
        }
    }
    message = chat_body_message(&r->chat, i, "assistant");
    if (texts.len > 0 || calls.len == 0)
        chat_body_put(message, "content", texts);
    if (thinking.type == JSON_STRING)
        chat_body_put(message, "reasoning_content", thinking);
    if (calls.len > 0)
        chat_body_put(message, "tool_calls", calls);
    return true;
}

static bool add_message(struct reader *r, uint32_t i, const struct json *message)
{
    const struct json *role = json_get(message, "role"), *content = json_get(message, "content");
    bool user = json_is(role, "user");
    struct chat_place at;

    snprintf(at.text, sizeof(at.text), "messages[%u].role", i);
    if (!user && !json_is(role, "assistant"))
        return field_fail(r->err, at.text, "invalid_value", "%s must be user or assistant",
                          at.text);
    if (content != NULL && content->type == JSON_STRING) {
        chat_body_put(chat_body_message(&r->chat, i, user ? "user" : "assistant"), "content",
                      *content);
        return true;
    }
    snprintf(at.text, sizeof(at.text), "messages[%u].content", i);
    if (content == NULL || content->type != JSON_ARRAY || content->len == 0)
        return field_fail(r->err, at.text, "invalid_type",
                          "%s must be a string or a list with at least one block", at.text);
    return user ? add_user_blocks(r, i, content) : add_assistant_blocks(r, i, content);
}

/* An assistant's message at the end is gone on with. */
static void continue_last(struct reader *r)
{
    const struct json *last = &r->chat.messages.items[r->chat.messages.len - 1];

    if (json_is(json_get(last, "role"), "assistant") && json_get(last, "tool_calls") == NULL)
        chat_body_put(&r->chat.root, "continue_final_message", chat_body_true());
}

static bool add_messages(struct reader *r)
{
    const struct json *messages = chat_get(r->body, "messages"),
                      *system = chat_get(r->body, "system");
    uint64_t n = 1;

    if (messages == NULL || messages->type != JSON_ARRAY || messages->len == 0)
        return field_fail(r->err, "messages", "missing_required_parameter",
                          "messages must be a list with at least one message");
    for (uint32_t i = 0; i < messages->len; i++) {
        const struct json *content = json_get(&messages->items[i], "content");

        n += 1 + (content != NULL && content->type == JSON_ARRAY ? content->len : 0);
    }
    chat_body_init(&r->chat, r->doc, "messages", (uint32_t)n, r->err);
    if (system != NULL) {
        if (!check_texts(r, "system", system))
            return false;
        chat_body_put(chat_body_message(&r->chat, 0, "system"), "content", *system);
    }
    for (uint32_t i = 0; i < messages->len; i++)
        if (!add_message(r, i, &messages->items[i]))
            return false;
    continue_last(r);
    return true;
}

/* ---- tools ---- */

static bool read_tool_type(const struct field *f, const struct json *v, void *out,
                           struct chat_error *err)
{
    (void)out;
    return json_is(v, "custom") ||
           field_fail(err, f->name, "unsupported_parameter",
                      "a tool of type \"%.*s\" is not served here, only custom ones",
                      v->type == JSON_STRING ? chat_shown(v) : 0,
                      v->type == JSON_STRING ? v->text : "");
}

static bool read_callers(const struct field *f, const struct json *v, void *out,
                         struct chat_error *err)
{
    (void)out;
    return (v->type == JSON_ARRAY && v->len == 1 && json_is(&v->items[0], "direct")) ||
           field_fail(err, f->name, "unsupported_parameter",
                      "allowed_callers is not supported by this server other than as [\"direct\"]");
}

static bool add_tool(struct reader *r, uint32_t i, const struct json *tool, struct json *tools)
{
    static const struct field members[] = {
        FIELD_ELSEWHERE_ROW("type"),
        FIELD_ELSEWHERE_ROW("name"),
        FIELD_ELSEWHERE_ROW("description"),
        FIELD_ELSEWHERE_ROW("input_schema"),
        FIELD_NO_EFFECT_ROW("cache_control"),
        FIELD_NO_EFFECT_ROW("eager_input_streaming"), /* arguments always stream */
        {"allowed_callers", FIELD_READ, .read = read_callers},
        FIELD_NEUTRAL_ROW("strict", "false"),
        FIELD_NEUTRAL_ROW("defer_loading", "false"),
        FIELD_NEUTRAL_ROW("input_examples", "[]"),
        {NULL},
    };
    const struct json *type = chat_get(tool, "type"), *schema = chat_get(tool, "input_schema");
    const struct json *name = json_get(tool, "name"), *description = chat_get(tool, "description");
    struct json function;
    struct chat_place at, at_type;
    struct field f = {.name = at.text};

    snprintf(at.text, sizeof(at.text), "tools[%u]", i);
    snprintf(at_type.text, sizeof(at_type.text), "tools[%u].type", i);
    /* First: a tool of another type has other members, too. */
    if (type != NULL && !read_tool_type(&(struct field){.name = at_type.text}, type, NULL, r->err))
        return false;
    if (!chat_params_read_inner(&f, members, tool, r->params, r->err) ||
        !chat_body_need_string(r->err, &at, name, "name"))
        return false;
    if (schema == NULL || schema->type != JSON_OBJECT)
        return field_fail(r->err, at.text, "missing_required_parameter",
                          "%s.input_schema must be an object, a JSON Schema", at.text);
    function = chat_body_object(r->doc, 3);
    chat_body_put(&function, "name", *name);
    if (description != NULL)
        chat_body_put(&function, "description", *description);
    chat_body_put(&function, "parameters", *schema);
    chat_body_push(tools, chat_body_function(r->doc, function));
    return true;
}

static bool add_tools(struct reader *r)
{
    const struct json *tools = chat_get(r->body, "tools");
    struct json made;

    if (tools == NULL)
        return true;
    if (tools->type != JSON_ARRAY)
        return field_fail(r->err, "tools", "invalid_type", "tools must be a list");
    made = chat_body_array(r->doc, tools->len);
    for (uint32_t i = 0; i < tools->len; i++)
        if (!add_tool(r, i, &tools->items[i], &made))
            return false;
    chat_body_put(&r->chat.root, "tools", made);
    return true;
}

static bool add_choice(struct reader *r)
{
    static const char *const names[][2] = {{"auto", "auto"}, {"any", "required"}, {"none", "none"}};
    const struct json *choice = chat_get(r->body, "tool_choice"), *type = json_get(choice, "type");
    const struct json *name = json_get(choice, "name");
    bool single = false;

    if (choice == NULL)
        return true;
    if (!chat_get_bool(choice, "tool_choice.", "disable_parallel_tool_use", &single, r->err))
        return false;
    r->params->parallel_tool_calls = !single;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (json_is(type, names[i][0])) {
            chat_body_put(&r->chat.root, "tool_choice", chat_body_string(names[i][1]));
            return true;
        }
    if (!json_is(type, "tool") || name == NULL || name->type != JSON_STRING)
        return field_fail(r->err, "tool_choice", "invalid_value",
                          "tool_choice.type must be auto, any, none, or tool with a name");
    chat_body_put(&r->chat.root, "tool_choice", chat_body_choice(r->doc, name));
    return true;
}

/* ---- thinking, effort, format ---- */

static bool check_budget(struct reader *r, const struct json *thinking, bool counting)
{
    const struct json *budget = chat_get(thinking, "budget_tokens");
    int64_t n;

    if (budget == NULL || !json_int(budget, &n) || n < THINKING_BUDGET_MIN)
        return field_fail(r->err, "thinking.budget_tokens", "invalid_value",
                          "thinking.budget_tokens must be a whole number of at least %d",
                          THINKING_BUDGET_MIN);
    return counting || n < r->params->max_tokens ||
           field_fail(r->err, "thinking.budget_tokens", "invalid_value",
                      "thinking.budget_tokens (%lld) must be less than max_tokens (%lld)",
                      (long long)n, (long long)r->params->max_tokens);
}

/* @param effort  whether one is asked for */
static bool add_thinking(struct reader *r, bool counting, bool effort)
{
    const struct json *thinking = chat_get(r->body, "thinking");
    const struct json *type = json_get(thinking, "type"), *display = chat_get(thinking, "display");
    struct json made;
    bool on = thinking == NULL && effort;

    if (thinking != NULL) {
        on = json_is(type, "adaptive") || json_is(type, "enabled");
        if (!on && !json_is(type, "disabled"))
            return field_fail(r->err, "thinking.type", "invalid_value",
                              "thinking.type must be enabled, adaptive or disabled");
        if (json_is(type, "enabled") && !check_budget(r, thinking, counting))
            return false;
        if (display != NULL && !json_is(display, "summarized") && !json_is(display, "omitted"))
            return field_fail(r->err, "thinking.display", "invalid_value",
                              "thinking.display must be summarized or omitted");
        r->params->omit_reasoning = json_is(display, "omitted");
    }
    made = chat_body_object(r->doc, 1);
    chat_body_put(&made, "type", chat_body_string(on ? "enabled" : "disabled"));
    chat_body_put(&r->chat.root, "thinking", made);
    return true;
}

static bool add_format(struct reader *r, const struct json *format)
{
    const struct json *schema = chat_get(format, "schema");
    struct json outer, inner;

    if (!json_is(json_get(format, "type"), "json_schema") || schema == NULL ||
        schema->type != JSON_OBJECT)
        return field_fail(r->err, "output_config.format", "invalid_value",
                          "output_config.format must be {\"type\": \"json_schema\", \"schema\": "
                          "{...}}");
    inner = chat_body_object(r->doc, 1);
    chat_body_put(&inner, "schema", *schema);
    outer = chat_body_object(r->doc, 2);
    chat_body_put(&outer, "type", chat_body_string("json_schema"));
    chat_body_put(&outer, "json_schema", inner);
    chat_body_put(&r->chat.root, "response_format", outer);
    return true;
}

static bool add_output(struct reader *r, bool counting)
{
    static const struct field members[] = {FIELD_ELSEWHERE_ROW("effort"),
                                           FIELD_ELSEWHERE_ROW("format"),
                                           FIELD_NEUTRAL_ROW("task_budget", NULL),
                                           {NULL}};
    static const struct field f = {.name = "output_config"};
    static const char *const efforts[] = {"low", "medium", "high", "xhigh", "max"};
    const struct json *output = chat_get(r->body, "output_config");
    const struct json *effort = chat_get(output, "effort"), *format = chat_get(output, "format");
    bool known = effort == NULL;

    if (output != NULL && !chat_params_read_inner(&f, members, output, r->params, r->err))
        return false;
    for (size_t i = 0; i < sizeof(efforts) / sizeof(efforts[0]); i++)
        known |= json_is(effort, efforts[i]);
    if (!known)
        return field_fail(r->err, "output_config.effort", "invalid_value",
                          "output_config.effort must be low, medium, high, xhigh or max");
    if (!add_thinking(r, counting, effort != NULL) || (format != NULL && !add_format(r, format)))
        return false;
    /* An effort beside "disabled" has nothing to act on: reasoning_effort would turn it on. */
    if (effort != NULL && !json_is(json_get(chat_get(r->body, "thinking"), "type"), "disabled"))
        chat_body_put(&r->chat.root, "reasoning_effort", *effort);
    return true;
}

bool anthropic_request_read(struct json_doc *doc, bool counting, int32_t vocab,
                            struct chat_params *params, const struct json **chat,
                            struct chat_error *err)
{
    struct reader r = {.body = json_root(doc), .doc = doc, .params = params, .err = err};

    *params = chat_params_defaults;
    if (!fields_read(counting ? anthropic_count_tables : anthropic_tables, r.body, params, err))
        return false;
    if (params->model == NULL)
        return field_fail(err, "model", "missing_required_parameter", "model is needed");
    if (!counting && params->max_tokens < 0)
        return field_fail(err, "max_tokens", "missing_required_parameter", "max_tokens is needed");
    if (!chat_params_check(params, vocab, err) || !add_messages(&r) || !add_tools(&r) ||
        !add_choice(&r) || !add_output(&r, counting))
        return false;
    *chat = chat_body_finish(&r.chat);
    return true;
}
