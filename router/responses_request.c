#include "router/responses_request.h"

#include <stdio.h>
#include <string.h>

#include "common/text/chat_error.h"

struct reader {
    const struct json *body, *input;
    struct json_doc *doc;
    struct chat_params *params;
    struct chat_body chat;
    struct chat_error *err;
    struct json *assistant; /* the message that calls join, NULL: none is open */
    struct json reasoning;  /* of the next assistant message; JSON_NULL: none */
};

/* ---- fields ---- */

#define AT(member) offsetof(struct chat_params, member)

static bool read_reasoning(const struct field *f, const struct json *v, void *out,
                           struct chat_error *err)
{
    static const struct field members[] = {
        FIELD_ELSEWHERE_ROW("effort"),
        FIELD_NEUTRAL_ROW("summary", "\"auto\""), /* the reasoning itself is told */
        FIELD_NEUTRAL_ROW("generate_summary", "\"auto\""),
        FIELD_NEUTRAL_ROW("context", "\"auto\""),
        FIELD_NEUTRAL_ROW("mode", "\"standard\""),
        {NULL},
    };

    return chat_params_read_inner(f, members, v, out, err);
}

static bool read_text(const struct field *f, const struct json *v, void *out,
                      struct chat_error *err)
{
    static const struct field members[] = {
        FIELD_ELSEWHERE_ROW("format"), FIELD_NEUTRAL_ROW("verbosity", "\"medium\""), {NULL}};

    return chat_params_read_inner(f, members, v, out, err);
}

static bool read_include(const struct field *f, const struct json *v, void *out,
                         struct chat_error *err)
{
    struct chat_params *p = out;

    if (v->type != JSON_ARRAY)
        return field_fail(err, f->name, "invalid_type", "include must be a list");
    for (uint32_t i = 0; i < v->len; i++) {
        const struct json *item = &v->items[i];

        if (json_is(item, "message.output_text.logprobs"))
            p->logprobs = true;
        else if (!json_is(item, "reasoning.encrypted_content"))
            return field_fail(err, f->name, "unsupported_parameter",
                              "include: \"%.*s\" is not supported by this server",
                              item->type == JSON_STRING ? chat_shown(item) : 0,
                              item->type == JSON_STRING ? item->text : "");
    }
    return true;
}

static bool read_stream_options(const struct field *f, const struct json *v, void *out,
                                struct chat_error *err)
{
    static const struct field members[] = {FIELD_NEUTRAL_ROW("include_obfuscation", "false"),
                                           {NULL}};

    return chat_params_read_inner(f, members, v, out, err);
}

static const struct field fields[] = {
    {"model", FIELD_STRING, AT(model), .max = 256},
    FIELD_ELSEWHERE_ROW("input"),
    FIELD_ELSEWHERE_ROW("instructions"),
    FIELD_ELSEWHERE_ROW("tools"),
    FIELD_ELSEWHERE_ROW("tool_choice"),
    FIELD_ELSEWHERE_ROW("chat_template_kwargs"),
    {"reasoning", FIELD_READ, .read = read_reasoning},
    {"text", FIELD_READ, .read = read_text},
    {"include", FIELD_READ, .read = read_include},
    {"max_output_tokens", FIELD_INT, AT(max_tokens), 1, INT32_MAX},
    {"temperature", FIELD_FLOAT, AT(temperature), 0, 2},
    {"top_p", FIELD_FLOAT, AT(top_p), 1e-9, 1},
    {"top_logprobs", FIELD_INT, AT(top_logprobs), 0, GENERATION_TOP_LOGPROBS_MAX},
    {"parallel_tool_calls", FIELD_BOOL, AT(parallel_tool_calls)},
    {"stream", FIELD_BOOL, AT(stream)},
    {"stream_options", FIELD_READ, .read = read_stream_options},
    /* SGLang's, on this API too. */
    {"top_k", FIELD_INT, AT(top_k), -1, INT32_MAX},
    {"min_p", FIELD_FLOAT, AT(min_p), 0, 1},
    {"frequency_penalty", FIELD_FLOAT, AT(frequency_penalty), -2, 2},
    {"presence_penalty", FIELD_FLOAT, AT(presence_penalty), -2, 2},
    {"repetition_penalty", FIELD_FLOAT, AT(repetition_penalty), 1e-3, 2},
    {"stop", FIELD_READ, .read = chat_params_read_stop},
    {"priority", FIELD_INT, AT(priority), INT32_MIN, INT32_MAX},
    {"request_id", FIELD_STRING, AT(rid), .max = 63},
    {"cache_salt", FIELD_STRING, AT(cache_salt), .max = CHAT_SALT_BYTES_MAX},
    {"extra_key", FIELD_STRING, AT(extra_key), .max = CHAT_SALT_BYTES_MAX},
    /* Labels and hints; calls of built-in tools, of which there are none. */
    FIELD_NO_EFFECT_ROW("user"),
    FIELD_NO_EFFECT_ROW("metadata"),
    FIELD_NO_EFFECT_ROW("safety_identifier"),
    FIELD_NO_EFFECT_ROW("prompt_cache_key"),
    FIELD_NO_EFFECT_ROW("prompt_cache_options"),
    FIELD_NO_EFFECT_ROW("prompt_cache_retention"),
    FIELD_NO_EFFECT_ROW("max_tool_calls"),
    /* Not offered. */
    FIELD_NEUTRAL_ROW("store", "false"),
    FIELD_NEUTRAL_ROW("background", "false"),
    FIELD_NEUTRAL_ROW("background_options", NULL),
    FIELD_NEUTRAL_ROW("previous_response_id", NULL),
    FIELD_NEUTRAL_ROW("conversation", NULL),
    FIELD_NEUTRAL_ROW("prompt", NULL),
    FIELD_NEUTRAL_ROW("truncation", "\"disabled\""),
    FIELD_NEUTRAL_ROW("service_tier", "\"auto\"|\"default\""),
    FIELD_NEUTRAL_ROW("context_management", "[]"),
    FIELD_NEUTRAL_ROW("moderation", NULL),
    FIELD_NEUTRAL_ROW("image", NULL),
    FIELD_NEUTRAL_ROW("access_programs", NULL),
    FIELD_NEUTRAL_ROW("session_id", "\"\""),
    FIELD_NEUTRAL_ROW("data_parallel_rank", NULL),
    FIELD_NEUTRAL_ROW("routed_dp_rank", NULL),
    FIELD_NEUTRAL_ROW("disagg_prefill_dp_rank", NULL),
    FIELD_NEUTRAL_ROW("bootstrap_host", NULL),
    FIELD_NEUTRAL_ROW("bootstrap_port", NULL),
    FIELD_NEUTRAL_ROW("bootstrap_room", NULL),
    {NULL},
};

const struct field *const responses_tables[] = {fields, NULL};

/* ---- input ---- */

/* A string, or a list of parts that hold text, as chat's content. */
static bool read_content(struct reader *r, const char *name, const struct json *v, struct json *out)
{
    static const char *const types[] = {"input_text", "output_text", "text"};

    if (v != NULL && v->type == JSON_STRING) {
        *out = *v;
        return true;
    }
    if (v == NULL || v->type != JSON_ARRAY)
        return field_fail(r->err, name, "invalid_type", "%s must be a string or a list of parts",
                          name);
    *out = chat_body_array(r->doc, v->len);
    for (uint32_t i = 0; i < v->len; i++) {
        const struct json *type = json_get(&v->items[i], "type"),
                          *text = json_get(&v->items[i], "text");
        struct json part = chat_body_object(r->doc, 2);
        bool served = false;

        for (size_t k = 0; k < sizeof(types) / sizeof(types[0]); k++)
            served |= json_is(type, types[k]);
        if (!served)
            return field_fail(r->err, name, "unsupported_parameter",
                              "%s[%u]: a part of type \"%.*s\" is not served here, only text", name,
                              i, type != NULL && type->type == JSON_STRING ? chat_shown(type) : 0,
                              type != NULL && type->type == JSON_STRING ? type->text : "");
        if (text == NULL || text->type != JSON_STRING)
            return field_fail(r->err, name, "invalid_type", "%s[%u].text must be a string", name,
                              i);
        chat_body_put(&part, "type", chat_body_string("text"));
        chat_body_put(&part, "text", *text);
        chat_body_push(out, part);
    }
    return true;
}

/* Opens an assistant's message, which takes the reasoning before it. */
static void open_assistant(struct reader *r, uint32_t i)
{
    r->assistant = chat_body_message(&r->chat, i, "assistant");
    if (r->reasoning.type == JSON_STRING)
        chat_body_put(r->assistant, "reasoning_content", r->reasoning);
    r->reasoning.type = JSON_NULL;
}

static bool add_message(struct reader *r, uint32_t i, const struct json *item)
{
    static const char *const roles[] = {"user", "system", "developer", "assistant"};
    const struct json *role = json_get(item, "role");
    struct json content, *message = NULL;
    struct chat_place at;

    snprintf(at.text, sizeof(at.text), "input[%u].content", i);
    if (!read_content(r, at.text, json_get(item, "content"), &content))
        return false;
    for (size_t k = 0; k < sizeof(roles) / sizeof(roles[0]); k++) {
        if (!json_is(role, roles[k]))
            continue;
        if (k == 3) {
            open_assistant(r, i);
            message = r->assistant;
        } else {
            r->assistant = NULL;
            message = chat_body_message(&r->chat, i, roles[k]);
        }
    }
    snprintf(at.text, sizeof(at.text), "input[%u].role", i);
    if (message == NULL)
        return field_fail(r->err, at.text, "invalid_value",
                          "%s must be user, system, developer or assistant", at.text);
    chat_body_put(message, "content", content);
    return true;
}

/* Room for the calls of one turn: those up to the next item of somebody else's. */
static uint32_t calls_from(const struct reader *r, uint32_t i)
{
    uint32_t n = 0;

    for (; i < r->input->len; i++) {
        const struct json *type = json_get(&r->input->items[i], "type");

        if (json_is(type, "function_call"))
            n++;
        else if (!json_is(type, "reasoning"))
            break;
    }
    return n;
}

static bool add_call(struct reader *r, uint32_t i, const struct json *item)
{
    const struct json *id = json_get(item, "call_id"), *name = json_get(item, "name");
    const struct json *arguments = json_get(item, "arguments");
    struct json *calls;
    struct chat_place at;

    snprintf(at.text, sizeof(at.text), "input[%u]", i);
    if (!chat_body_need_string(r->err, &at, id, "call_id") ||
        !chat_body_need_string(r->err, &at, name, "name") ||
        !chat_body_need_string(r->err, &at, arguments, "arguments"))
        return false;
    if (r->assistant == NULL)
        open_assistant(r, i);
    calls = (struct json *)json_get(r->assistant, "tool_calls");
    if (calls == NULL) {
        chat_body_put(r->assistant, "tool_calls", chat_body_array(r->doc, calls_from(r, i)));
        calls = (struct json *)json_get(r->assistant, "tool_calls");
    }
    chat_body_push(calls, chat_body_call(r->doc, id, name, arguments));
    return true;
}

static bool add_output(struct reader *r, uint32_t i, const struct json *item)
{
    const struct json *id = json_get(item, "call_id");
    struct json content, *message;
    struct chat_place at, at_output;

    snprintf(at.text, sizeof(at.text), "input[%u]", i);
    snprintf(at_output.text, sizeof(at_output.text), "input[%u].output", i);
    if (!chat_body_need_string(r->err, &at, id, "call_id") ||
        !read_content(r, at_output.text, json_get(item, "output"), &content))
        return false;
    r->assistant = NULL;
    message = chat_body_message(&r->chat, i, "tool");
    chat_body_put(message, "tool_call_id", *id);
    chat_body_put(message, "content", content);
    return true;
}

static bool add_reasoning(struct reader *r, uint32_t i, const struct json *item)
{
    const struct json *sealed = chat_get(item, "encrypted_content");
    struct json text = chat_body_join(r->doc, json_get(item, "content"), "reasoning_text", "text");
    struct chat_place at;

    snprintf(at.text, sizeof(at.text), "input[%u].encrypted_content", i);
    if (text.type == JSON_NULL)
        text = chat_body_join(r->doc, json_get(item, "summary"), "summary_text", "text");
    if (text.type == JSON_NULL && sealed != NULL)
        return field_fail(r->err, at.text, "unsupported_parameter",
                          "%s is another server's: it cannot be read here", at.text);
    if (text.type == JSON_STRING) {
        r->reasoning = text;
        r->assistant = NULL;
    }
    return true;
}

/* Reasoning that no item of the assistant's follows would be lost. */
static bool check_reasoning(struct reader *r, uint32_t i)
{
    struct chat_place at;

    if (r->reasoning.type == JSON_NULL)
        return true;
    snprintf(at.text, sizeof(at.text), "input[%u]", i);
    return field_fail(r->err, at.text, "invalid_value",
                      "%s: a reasoning item must be followed by the message or the function_call "
                      "that it led to",
                      at.text);
}

static bool add_item(struct reader *r, uint32_t i, const struct json *item)
{
    const struct json *type = chat_get(item, "type");
    struct chat_place at;

    if (!json_is(json_get(item, "role"), "assistant") && !json_is(type, "function_call") &&
        !check_reasoning(r, i - 1))
        return false;
    snprintf(at.text, sizeof(at.text), "input[%u].type", i);
    if (type == NULL || json_is(type, "message"))
        return add_message(r, i, item);
    if (json_is(type, "function_call"))
        return add_call(r, i, item);
    if (json_is(type, "function_call_output"))
        return add_output(r, i, item);
    if (json_is(type, "reasoning"))
        return add_reasoning(r, i, item);
    return field_fail(r->err, at.text, "unsupported_parameter",
                      "input[%u]: an item of type \"%.*s\" is not served here, only message, "
                      "reasoning, function_call and function_call_output",
                      i, type->type == JSON_STRING ? chat_shown(type) : 0,
                      type->type == JSON_STRING ? type->text : "");
}

static bool add_input(struct reader *r)
{
    const struct json *instructions = chat_get(r->body, "instructions");
    bool is_list;

    r->input = chat_get(r->body, "input");
    is_list = r->input != NULL && r->input->type == JSON_ARRAY && r->input->len > 0;
    if (!is_list && (r->input == NULL || r->input->type != JSON_STRING))
        return field_fail(r->err, "input", "missing_required_parameter",
                          "input must be a string, or a list with at least one item");
    chat_body_init(&r->chat, r->doc, "input", (is_list ? r->input->len : 1) + 1, r->err);
    if (instructions != NULL) {
        if (instructions->type != JSON_STRING)
            return field_fail(r->err, "instructions", "invalid_type",
                              "instructions must be a string");
        chat_body_put(chat_body_message(&r->chat, 0, "system"), "content", *instructions);
    }
    if (!is_list)
        chat_body_put(chat_body_message(&r->chat, 0, "user"), "content", *r->input);
    for (uint32_t i = 0; is_list && i < r->input->len; i++)
        if (!add_item(r, i, &r->input->items[i]))
            return false;
    return check_reasoning(r, r->input->len - 1);
}

/* ---- tools, format, effort ---- */

static bool add_tool(struct reader *r, uint32_t i, const struct json *tool, struct json *tools)
{
    static const struct field members[] = {
        FIELD_ELSEWHERE_ROW("type"),
        FIELD_ELSEWHERE_ROW("name"),
        FIELD_ELSEWHERE_ROW("description"),
        FIELD_ELSEWHERE_ROW("parameters"),
        /* The model is shown the schema either way; clients set it without being asked. */
        FIELD_NO_EFFECT_ROW("strict"),
        FIELD_NEUTRAL_ROW("defer_loading", "false"),
        FIELD_NEUTRAL_ROW("allowed_callers", NULL),
        FIELD_NEUTRAL_ROW("output_schema", NULL),
        FIELD_NEUTRAL_ROW("async", "false"),
        {NULL},
    };
    static const char *const shown[] = {"name", "description", "parameters"};
    const struct json *type = json_get(tool, "type");
    struct json function;
    struct chat_place at;
    struct field f = {.name = at.text};

    snprintf(at.text, sizeof(at.text), "tools[%u]", i);
    if (!json_is(type, "function"))
        return field_fail(r->err, at.text, "unsupported_parameter",
                          "%s: a tool of type \"%.*s\" is not served here, only functions", at.text,
                          type != NULL && type->type == JSON_STRING ? chat_shown(type) : 0,
                          type != NULL && type->type == JSON_STRING ? type->text : "");
    if (!chat_params_read_inner(&f, members, tool, r->params, r->err) ||
        !chat_body_need_string(r->err, &at, json_get(tool, "name"), "name"))
        return false;
    function = chat_body_object(r->doc, 3);
    for (size_t k = 0; k < sizeof(shown) / sizeof(shown[0]); k++)
        if (chat_get(tool, shown[k]) != NULL)
            chat_body_put(&function, shown[k], *chat_get(tool, shown[k]));
    chat_body_push(tools, chat_body_function(r->doc, function));
    return true;
}

static bool add_tools(struct reader *r)
{
    const struct json *tools = chat_get(r->body, "tools");
    const struct json *choice = chat_get(r->body, "tool_choice"), *name = json_get(choice, "name");
    struct json made;

    if (tools != NULL && tools->type != JSON_ARRAY)
        return field_fail(r->err, "tools", "invalid_type", "tools must be a list");
    if (tools != NULL) {
        made = chat_body_array(r->doc, tools->len);
        for (uint32_t i = 0; i < tools->len; i++)
            if (!add_tool(r, i, &tools->items[i], &made))
                return false;
        chat_body_put(&r->chat.root, "tools", made);
    }
    if (choice == NULL)
        return true;
    if (choice->type == JSON_STRING) {
        chat_body_put(&r->chat.root, "tool_choice", *choice);
        return true;
    }
    if (!json_is(json_get(choice, "type"), "function") || name == NULL || name->type != JSON_STRING)
        return field_fail(r->err, "tool_choice", "invalid_value",
                          "tool_choice must be none, auto, required or {\"type\": \"function\", "
                          "\"name\": ...}");
    chat_body_put(&r->chat.root, "tool_choice", chat_body_choice(r->doc, name));
    return true;
}

static bool add_format(struct reader *r)
{
    const struct json *format = chat_get(chat_get(r->body, "text"), "format");
    const struct json *type = json_get(format, "type"), *schema = chat_get(format, "schema");
    struct json outer, inner;

    if (format == NULL || json_is(type, "text"))
        return true;
    if (!json_is(type, "json_object") && !json_is(type, "json_schema"))
        return field_fail(r->err, "text.format", "invalid_value",
                          "text.format.type must be text, json_object or json_schema");
    outer = chat_body_object(r->doc, 2);
    chat_body_put(&outer, "type", *type);
    if (json_is(type, "json_schema")) {
        if (schema == NULL || schema->type != JSON_OBJECT)
            return field_fail(r->err, "text.format", "missing_required_parameter",
                              "text.format.schema must be an object, a JSON Schema");
        inner = chat_body_object(r->doc, 1);
        chat_body_put(&inner, "schema", *schema);
        chat_body_put(&outer, "json_schema", inner);
    }
    chat_body_put(&r->chat.root, "response_format", outer);
    return true;
}

static void add_mode(struct reader *r)
{
    const struct json *effort = chat_get(chat_get(r->body, "reasoning"), "effort");
    const struct json *kwargs = chat_get(r->body, "chat_template_kwargs");

    if (effort != NULL)
        chat_body_put(&r->chat.root, "reasoning_effort", *effort);
    if (kwargs != NULL)
        chat_body_put(&r->chat.root, "chat_template_kwargs", *kwargs);
}

/* ---- what a response repeats ---- */

/* The member as it was sent, or what stands for its absence. */
static void echo_member(const struct reader *r, const char *key, const char *otherwise,
                        struct buf *out)
{
    const struct json *v = chat_get(r->body, key);

    buf_printf(out, ",\"%s\":", key);
    if (v != NULL)
        json_write(out, v, NULL);
    else
        buf_puts(out, otherwise);
}

static void write_echo(const struct reader *r, struct buf *out)
{
    static const char *const members[][2] = {
        {"instructions", "null"},        {"max_output_tokens", "null"},
        {"max_tool_calls", "null"},      {"metadata", "{}"},
        {"parallel_tool_calls", "true"}, {"prompt_cache_key", "null"},
        {"safety_identifier", "null"},   {"temperature", "1.0"},
        {"tool_choice", "\"auto\""},     {"tools", "[]"},
        {"top_logprobs", "0"},           {"top_p", "1.0"},
        {"truncation", "\"disabled\""},  {"user", "null"},
    };
    const struct json *effort = chat_get(chat_get(r->body, "reasoning"), "effort");
    const struct json *format = chat_get(chat_get(r->body, "text"), "format");

    buf_puts(out, "\"background\":false,\"previous_response_id\":null,\"prompt\":null,"
                  "\"service_tier\":\"default\",\"store\":false");
    for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++)
        echo_member(r, members[i][0], members[i][1], out);
    buf_puts(out, ",\"reasoning\":{\"effort\":");
    if (effort != NULL)
        json_write(out, effort, NULL);
    else
        buf_puts(out, "null");
    buf_puts(out, ",\"summary\":null},\"text\":{\"format\":");
    if (format != NULL)
        json_write(out, format, NULL);
    else
        buf_puts(out, "{\"type\":\"text\"}");
    buf_puts(out, ",\"verbosity\":\"medium\"}");
}

bool responses_request_read(struct json_doc *doc, int32_t vocab, struct chat_params *params,
                            const struct json **chat, struct buf *echo, struct chat_error *err)
{
    struct reader r = {.body = json_root(doc), .doc = doc, .params = params, .err = err};

    *params = chat_params_defaults;
    if (!fields_read(responses_tables, r.body, params, err))
        return false;
    params->logprobs |= params->top_logprobs > 0;
    if (!chat_params_check(params, vocab, err) || !add_input(&r) || !add_tools(&r) ||
        !add_format(&r))
        return false;
    add_mode(&r);
    write_echo(&r, echo);
    *chat = chat_body_finish(&r.chat);
    return true;
}
