#include "common/text/chat_mode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum tool_choice { TOOLS_AUTO, TOOLS_NONE, TOOLS_REQUIRED, TOOLS_NAMED };

/* ---- thinking ---- */

/* What one setting says about thinking; several may speak. */
struct toggles {
    bool on, off;
};

static void toggle(struct toggles *t, bool thinking)
{
    t->on |= thinking;
    t->off |= !thinking;
}

static bool read_thinking(const struct json *body, struct toggles *t, struct chat_error *err)
{
    const struct json *thinking = chat_get(body, "thinking");
    const struct json *type = json_get(thinking, "type");

    if (thinking == NULL)
        return true;
    if (json_is(type, "enabled") || json_is(type, "adaptive"))
        toggle(t, true);
    else if (json_is(type, "disabled"))
        toggle(t, false);
    else
        return chat_fail(err, "invalid_value", "thinking",
                         "thinking must be {\"type\": \"enabled\"} or {\"type\": \"disabled\"}");
    return true;
}

static bool read_template_toggle(const struct json *kwargs, const char *key, struct toggles *t,
                                 struct chat_error *err)
{
    bool thinking = false;

    if (!chat_get_bool(kwargs, "chat_template_kwargs.", key, &thinking, err))
        return false;
    if (chat_get(kwargs, key) != NULL)
        toggle(t, thinking);
    return true;
}

static bool read_effort(const struct json *effort, const char *param, enum chat_profile profile,
                        struct chat_style *style, struct toggles *t, struct chat_error *err)
{
    static const struct {
        const char *name;
        enum chat_effort ga, preview;
        bool max;
    } efforts[] = {
        {"minimal", CHAT_EFFORT_NONE, CHAT_EFFORT_NONE},
        {"low", CHAT_EFFORT_NONE, CHAT_EFFORT_NONE},
        {"medium", CHAT_EFFORT_HIGH, CHAT_EFFORT_NONE},
        {"high", CHAT_EFFORT_HIGH, CHAT_EFFORT_NONE},
        {"xhigh", CHAT_EFFORT_HIGH, CHAT_EFFORT_NONE},
        {"max", CHAT_EFFORT_MAX, CHAT_EFFORT_HIGH, true},
        {"ultra", CHAT_EFFORT_MAX, CHAT_EFFORT_HIGH, true},
    };

    if (effort == NULL) {
        style->effort = profile == CHAT_GA ? CHAT_EFFORT_HIGH : CHAT_EFFORT_NONE;
        return true;
    }
    if (json_is(effort, "none")) {
        t->off = true;
        return true;
    }
    t->on = true;
    for (size_t i = 0; i < sizeof(efforts) / sizeof(*efforts); i++)
        if (json_is(effort, efforts[i].name)) {
            style->effort = profile == CHAT_GA ? efforts[i].ga : efforts[i].preview;
            style->think_max = efforts[i].max;
            return true;
        }
    return chat_fail(err, "invalid_value", param,
                     "%s must be none, minimal, low, medium, high, xhigh, max or ultra", param);
}

static bool read_mode(const struct json *body, const struct chat_options *opt,
                      struct chat_style *style, struct toggles *t, struct chat_error *err)
{
    const struct json *kwargs = chat_get(body, "chat_template_kwargs");
    const struct json *effort = chat_get(body, "reasoning_effort");
    const char *param = "reasoning_effort";

    if (kwargs != NULL && kwargs->type != JSON_OBJECT)
        return chat_fail(err, "invalid_type", "chat_template_kwargs",
                         "chat_template_kwargs must be an object");
    if (effort == NULL) {
        effort = chat_get(kwargs, "reasoning_effort");
        param = "chat_template_kwargs.reasoning_effort";
    }
    style->drop_thinking = true;
    if (!read_thinking(body, t, err) || !read_template_toggle(kwargs, "thinking", t, err) ||
        !read_template_toggle(kwargs, "enable_thinking", t, err) ||
        !read_effort(effort, param, opt->profile, style, t, err) ||
        !chat_get_bool(kwargs, "chat_template_kwargs.", "drop_thinking", &style->drop_thinking,
                       err))
        return false;
    style->thinking = !t->off && (t->on || opt->default_thinking);
    return true;
}

/* ---- tools ---- */

static bool name_is_plain(const struct json *name)
{
    for (uint32_t i = 0; i < name->len; i++) {
        char c = name->text[i];

        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              c == '_' || c == '-'))
            return false;
    }
    return name->len > 0;
}

static bool check_tool(const struct json *tool, uint32_t i, struct chat_error *err)
{
    const struct json *function = json_get(tool, "function"), *name = json_get(function, "name");
    const struct json *description = chat_get(function, "description");
    const struct json *parameters = chat_get(function, "parameters");
    char param[64];

    snprintf(param, sizeof(param), "tools[%u]", i);
    if (!json_is(json_get(tool, "type"), "function"))
        return chat_fail(err, "invalid_value", strcat(param, ".type"), "%s must be \"function\"",
                         param);
    strcat(param, ".function");
    if (function == NULL || function->type != JSON_OBJECT)
        return chat_fail(err, "missing_required_parameter", param, "%s must be an object", param);
    if (name == NULL || name->type != JSON_STRING || !name_is_plain(name))
        return chat_fail(err, "invalid_value", strcat(param, ".name"),
                         "%s must be a string that matches ^[a-zA-Z0-9_-]+$", param);
    if (description != NULL && description->type != JSON_STRING)
        return chat_fail(err, "invalid_type", strcat(param, ".description"), "%s must be a string",
                         param);
    if (parameters != NULL && parameters->type != JSON_OBJECT)
        return chat_fail(err, "invalid_type", strcat(param, ".parameters"),
                         "%s must be an object, a JSON Schema", param);
    return true;
}

static const struct json *tool_name(const struct json *tool)
{
    return json_get(json_get(tool, "function"), "name");
}

static int compare_names(const void *pa, const void *pb)
{
    const struct json *a = *(const struct json *const *)pa, *b = *(const struct json *const *)pb;

    return a->len != b->len ? (a->len < b->len ? -1 : 1) : memcmp(a->text, b->text, a->len);
}

static bool check_unique_names(const struct json *tools, struct chat_error *err)
{
    const struct json **names = malloc(tools->len * sizeof(*names));
    bool ok = true;

    if (names == NULL)
        return chat_fail_memory(err);
    for (uint32_t i = 0; i < tools->len; i++)
        names[i] = tool_name(&tools->items[i]);
    qsort(names, tools->len, sizeof(*names), compare_names);
    for (uint32_t i = 1; ok && i < tools->len; i++)
        if (compare_names(&names[i - 1], &names[i]) == 0)
            ok = chat_fail(err, "invalid_value", "tools",
                           "tools has two functions named \"%.*s\": names must be unique",
                           chat_shown(names[i]), names[i]->text);
    free(names);
    return ok;
}

static bool read_tool_choice(const struct json *choice, enum tool_choice *out,
                             const struct json **name, struct chat_error *err)
{
    *out = TOOLS_AUTO;
    *name = NULL;
    if (choice == NULL || json_is(choice, "auto"))
        return true;
    if (json_is(choice, "none")) {
        *out = TOOLS_NONE;
        return true;
    }
    *out = TOOLS_REQUIRED;
    if (json_is(choice, "required"))
        return true;
    *out = TOOLS_NAMED;
    *name = tool_name(choice);
    if (!json_is(json_get(choice, "type"), "function") || *name == NULL ||
        (*name)->type != JSON_STRING)
        return chat_fail(err, "invalid_value", "tool_choice",
                         "tool_choice must be \"none\", \"auto\", \"required\" or {\"type\": "
                         "\"function\", \"function\": {\"name\": ...}}");
    return true;
}

static bool find_named(struct chat_mode *out, const struct json *name, struct chat_error *err)
{
    for (uint32_t i = 0; i < out->tools->len; i++)
        if (compare_names(&name, &(const struct json *){tool_name(&out->tools->items[i])}) == 0) {
            out->style.only_tool = json_get(&out->tools->items[i], "function");
            return true;
        }
    return chat_fail(err, "invalid_value", "tool_choice",
                     "tool_choice names the function \"%.*s\", which tools does not have",
                     chat_shown(name), name->text);
}

/* Without tools "auto" and "none" say nothing; a call cannot be forced. */
static bool read_tools(const struct json *body, struct chat_mode *out, struct toggles *t,
                       struct chat_error *err)
{
    const struct json *tools = chat_get(body, "tools"), *name;
    enum tool_choice choice;

    if (!read_tool_choice(chat_get(body, "tool_choice"), &choice, &name, err))
        return false;
    if (tools != NULL && tools->type != JSON_ARRAY)
        return chat_fail(err, "invalid_type", "tools", "tools must be a list");
    if (tools == NULL || tools->len == 0)
        return choice == TOOLS_AUTO || choice == TOOLS_NONE ||
               chat_fail(err, "invalid_value", "tool_choice",
                         "tool_choice asks for a call, but there are no tools");
    out->has_tools = true;
    for (uint32_t i = 0; i < tools->len; i++)
        if (!check_tool(&tools->items[i], i, err))
            return false;
    if (choice == TOOLS_NONE)
        return true;
    out->tools = tools;
    out->style.normalise_tools = true;
    if (!check_unique_names(tools, err) || (choice == TOOLS_NAMED && !find_named(out, name, err)))
        return false;
    if (choice == TOOLS_AUTO)
        return true;
    if (t->on && !t->off)
        return chat_fail(err, "invalid_value", "tool_choice",
                         "Thinking mode does not support this tool_choice");
    out->style.thinking = false;
    out->style.open_tool_block = true;
    return true;
}

/* ---- response format ---- */

static bool read_response(const struct json *body, struct chat_mode *out, struct chat_error *err)
{
    const struct json *format = chat_get(body, "response_format");
    const struct json *type = json_get(format, "type");

    if (format == NULL || json_is(type, "text"))
        return true;
    if (json_is(type, "json_object")) {
        out->response = CHAT_RESPONSE_JSON_OBJECT;
        return true;
    }
    if (!json_is(type, "json_schema"))
        return chat_fail(err, "invalid_value", "response_format.type",
                         "response_format.type must be text, json_object or json_schema");
    out->response = CHAT_RESPONSE_SCHEMA;
    out->schema = chat_get(chat_get(format, "json_schema"), "schema");
    if (out->schema == NULL)
        return chat_fail(err, "missing_required_parameter", "response_format.json_schema.schema",
                         "response_format.json_schema.schema is missing");
    return true;
}

bool chat_mode_read(const struct json *body, const struct chat_options *opt, struct chat_mode *out,
                    struct chat_error *err)
{
    struct toggles t = {0};

    *out = (struct chat_mode){0};
    return read_mode(body, opt, &out->style, &t, err) && read_tools(body, out, &t, err) &&
           read_response(body, out, err);
}
