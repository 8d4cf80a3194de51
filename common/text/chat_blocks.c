#include "common/text/chat_blocks.h"

#include <stdio.h>

#include "common/text/chat_json.h"
#include "common/text/chat_tokens.h"

/* A piece of a fixed text: a real token, or text when text is not NULL. */
struct piece {
    const char *text;
    uint32_t len;
    enum chat_token token;
};

#define T(s)                                                                                       \
    {                                                                                              \
        .text = s, .len = sizeof(s) - 1                                                            \
    }
#define DSML                                                                                       \
    {                                                                                              \
        .token = CHAT_DSML                                                                         \
    }

static const struct piece effort_high[] = {
    T("Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
      "You MUST be very thorough in your thinking and comprehensively decompose the problem to "
      "resolve the root cause, rigorously stress-testing your logic against all potential paths, "
      "edge cases, and adversarial scenarios.\n"
      "Explicitly write out your entire deliberation process, documenting every intermediate step, "
      "considered alternative, and rejected hypothesis to ensure absolutely no assumption is left "
      "unchecked.\n\n")};

static const struct piece effort_max[] = {
    T("Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
      "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: "
      "exhaustively decompose the problem into its most fundamental components, trace every causal "
      "chain to its root, and resolve the underlying cause rather than any surface symptom.\n"
      "Do not stop reasoning until you have independently verified the solution from multiple "
      "angles and are certain that no assumption remains unchecked and no error remains "
      "undiscovered.\n\n")};

static const struct piece tools_head[] = {
    T("## Tools\n\n"
      "You have access to a set of tools to help answer the user's question. You can invoke tools "
      "by writing a \"<"),
    DSML,
    T("tool_calls>\" block like the following:\n\n<"),
    DSML,
    T("tool_calls>\n<"),
    DSML,
    T("invoke name=\"$TOOL_NAME\">\n<"),
    DSML,
    T("parameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE</"),
    DSML,
    T("parameter>\n...\n</"),
    DSML,
    T("invoke>\n<"),
    DSML,
    T("invoke name=\"$TOOL_NAME2\">\n...\n</"),
    DSML,
    T("invoke>\n</"),
    DSML,
    T("tool_calls>\n\n"
      "String parameters should be specified as is and set `string=\"true\"`. For all other types "
      "(numbers, booleans, arrays, objects), pass the value in JSON format and set "
      "`string=\"false\"`.\n\n"
      "If thinking_mode is enabled (triggered by "),
    {.token = CHAT_THINK},
    T("), you MUST output your complete reasoning inside "),
    {.token = CHAT_THINK},
    T("..."),
    {.token = CHAT_THINK_END},
    T(" BEFORE any tool calls or final response.\n\n"
      "Otherwise, output directly after "),
    {.token = CHAT_THINK_END},
    T(" with tool calls or final response.\n\n"
      "### Available Tool Schemas\n\n")};

static const struct piece tools_tail[] = {
    T("\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke "
      "tool calls.\n")};

static const struct piece response_schema[] = {
    T("## Response Format:\n\n"
      "You MUST strictly adhere to the following schema to reply:\n")};

static const struct piece response_json_object[] = {
    T("You are a helpful assistant designed to output JSON.\n"
      "## Response Format:\n\n"
      "Reply with JSON object ONLY.")};

static const struct piece calls_open[] = {T("\n\n<"), DSML, T("tool_calls>\n")};
static const struct piece calls_close[] = {T("</"), DSML, T("tool_calls>")};
static const struct piece invoke_open[] = {T("<"), DSML, T("invoke name=\"")};
static const struct piece invoke_close[] = {T("</"), DSML, T("invoke>\n")};
static const struct piece parameter_open[] = {T("<"), DSML, T("parameter name=\"")};
static const struct piece parameter_close[] = {T("</"), DSML, T("parameter>\n")};

#undef T
#undef DSML

static void append_pieces(struct prompt *out, const struct piece *pieces, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (pieces[i].text != NULL)
            prompt_append_text(out, pieces[i].text, pieces[i].len);
        else
            chat_token_append(out, pieces[i].token);
}

#define APPEND(out, pieces) append_pieces(out, pieces, sizeof(pieces) / sizeof(*(pieces)))

static void append_string(struct prompt *out, const char *s)
{
    prompt_append_text(out, s, strlen(s));
}

void chat_blocks_effort(struct prompt *out, enum chat_effort effort)
{
    if (effort == CHAT_EFFORT_HIGH)
        APPEND(out, effort_high);
    else if (effort == CHAT_EFFORT_MAX)
        APPEND(out, effort_max);
}

/* ---- tools ---- */

/* The member as JSON, or what stands for it when it is absent or null. */
static void append_member(struct prompt *out, const struct json *function, const char *key,
                          const char *otherwise)
{
    const struct json *v = chat_get(function, key);

    if (v != NULL)
        chat_json_write(&out->text, v);
    else
        append_string(out, otherwise);
}

static void append_tool(struct prompt *out, const struct json *function,
                        const struct chat_style *style)
{
    if (!style->normalise_tools) {
        chat_json_write(&out->text, function);
        return;
    }
    append_string(out, "{\"name\": ");
    append_member(out, function, "name", "\"\"");
    append_string(out, ", \"description\": ");
    append_member(out, function, "description", "\"\"");
    append_string(out, ", \"parameters\": ");
    append_member(out, function, "parameters", "{}");
    append_string(out, "}");
}

bool chat_blocks_tools(struct prompt *out, const struct chat_turn *turn,
                       const struct chat_style *style, struct chat_error *err)
{
    bool first = true;

    append_string(out, "\n\n");
    APPEND(out, tools_head);
    for (uint32_t i = 0; i < turn->tools->len; i++) {
        const struct json *function = json_get(&turn->tools->items[i], "function");
        char param[40];

        snprintf(param, sizeof(param), "tools[%u].function", i);
        if (function == NULL)
            return chat_fail(err, "missing_required_parameter", param,
                             "%s is missing: a tool is {\"type\": \"function\", \"function\": "
                             "{...}}",
                             param);
        if (style->only_tool != NULL && function != style->only_tool)
            continue;
        if (!first)
            append_string(out, "\n");
        first = false;
        append_tool(out, function, style);
    }
    APPEND(out, tools_tail);
    return true;
}

void chat_blocks_response(struct prompt *out, const struct chat_turn *turn)
{
    if (turn->response == CHAT_RESPONSE_NONE)
        return;
    append_string(out, "\n\n");
    if (turn->response == CHAT_RESPONSE_JSON_OBJECT) {
        APPEND(out, response_json_object);
        return;
    }
    APPEND(out, response_schema);
    chat_json_write(&out->text, turn->schema);
}

/* ---- past tool calls ---- */

static void append_parameter(struct prompt *out, const char *key, uint32_t key_len,
                             const struct json *value)
{
    bool is_string = value->type == JSON_STRING;

    APPEND(out, parameter_open);
    prompt_append_text(out, key, key_len);
    append_string(out, is_string ? "\" string=\"true\">" : "\" string=\"false\">");
    if (is_string)
        prompt_append_text(out, value->text, value->len);
    else
        chat_json_write(&out->text, value);
    APPEND(out, parameter_close);
}

static void append_parameters(struct prompt *out, const struct json *object)
{
    for (uint32_t i = 0; i < object->len; i++)
        append_parameter(out, object->members[i].key, object->members[i].key_len,
                         &object->members[i].value);
    if (object->len == 0)
        append_string(out, "\n"); /* the empty line where parameters would stand */
}

/* Arguments as a string: its JSON when it is an object, the raw text when it is no JSON. */
static bool append_spelled_arguments(struct prompt *out, uint32_t message, const char *field,
                                     const struct json *arguments, struct chat_error *err)
{
    struct json_doc *doc = NULL;
    struct status st;
    bool ok = true;

    switch (json_parse(arguments->text, arguments->len,
                       JSON_ALLOW_NAN | JSON_LAST_KEY_WINS | JSON_LONE_SURROGATES, &doc, &st)) {
    case ST_OK:
        if (json_root(doc)->type != JSON_OBJECT)
            ok = chat_fail_at(err, message, field,
                              "is JSON but no object; arguments are an object of parameters");
        else if (json_lone_surrogates(doc))
            ok = chat_fail_at(err, message, field,
                              "has half of a surrogate pair (\\ud800-\\udfff), which is no text");
        else
            append_parameters(out, json_root(doc));
        break;
    case ST_INVALID:
        append_parameter(out, "arguments", sizeof("arguments") - 1, arguments);
        break;
    default:
        ok = chat_fail_memory(err);
    }
    json_free(doc);
    return ok;
}

static bool append_call(struct prompt *out, uint32_t message, uint32_t index,
                        const struct json *call, struct chat_error *err)
{
    const struct json *function = json_get(call, "function");
    const struct json *name = json_get(function, "name");
    const struct json *arguments = json_get(function, "arguments");
    char field[64];

    snprintf(field, sizeof(field), ".tool_calls[%u].function", index);
    if (function == NULL || function->type != JSON_OBJECT)
        return chat_fail_at(err, message, field, "must be an object with name and arguments");
    if (name == NULL || name->type != JSON_STRING)
        return chat_fail_at(err, message, strcat(field, ".name"), "must be a string");
    APPEND(out, invoke_open);
    prompt_append_text(out, name->text, name->len);
    append_string(out, "\">\n");
    strcat(field, ".arguments");
    if (arguments != NULL && arguments->type == JSON_OBJECT)
        append_parameters(out, arguments);
    else if (arguments == NULL || arguments->type != JSON_STRING)
        return chat_fail_at(err, message, field, "must be a string that holds a JSON object");
    else if (!append_spelled_arguments(out, message, field, arguments, err))
        return false;
    APPEND(out, invoke_close);
    return true;
}

bool chat_blocks_calls(struct prompt *out, const struct chat_turn *turn, struct chat_error *err)
{
    APPEND(out, calls_open);
    for (uint32_t i = 0; i < turn->tool_calls->len; i++)
        if (!append_call(out, turn->message, i, &turn->tool_calls->items[i], err))
            return false;
    APPEND(out, calls_close);
    return true;
}

void chat_blocks_open_calls(struct prompt *out)
{
    APPEND(out, calls_open);
}
