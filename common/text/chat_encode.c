/*
 * The release encoder's own input: what stands in a message here is what the format knows.
 */
#include "common/text/chat_render.h"

/* A string, or NULL when absent or null. */
static bool get_text(const struct json *message, uint32_t i, const char *key, const char *field,
                     const struct json **out, struct chat_error *err)
{
    *out = chat_get(message, key);
    if (*out != NULL && (*out)->type != JSON_STRING)
        return chat_fail_at(err, i, field, "must be a string");
    return true;
}

/* A list with at least one entry, or NULL when absent, null or empty. */
static bool get_list(const struct json *object, const char *key, const struct json **out)
{
    *out = chat_get(object, key);
    if (*out != NULL && (*out)->type != JSON_ARRAY)
        return false;
    if (*out != NULL && (*out)->len == 0)
        *out = NULL;
    return true;
}

static void set_response(struct chat_turn *turn, const struct json *schema)
{
    bool empty = schema == NULL || ((schema->type == JSON_OBJECT || schema->type == JSON_ARRAY ||
                                     schema->type == JSON_STRING) &&
                                    schema->len == 0);

    turn->response = empty ? CHAT_RESPONSE_NONE : CHAT_RESPONSE_SCHEMA;
    turn->schema = schema;
}

/* The tools and the response format that a message carries itself. */
static bool set_own_blocks(struct chat_turn *turn, const struct json *message, uint32_t i,
                           struct chat_error *err)
{
    if (!get_list(message, "tools", &turn->tools))
        return chat_fail_at(err, i, ".tools", "must be a list");
    set_response(turn, chat_get(message, "response_format"));
    return true;
}

static bool add_result(struct chat_messages *cm, const struct json *message, uint32_t i,
                       struct chat_error *err)
{
    const struct json *content = chat_get(message, "content");

    if (content != NULL && content->type != JSON_STRING && content->type != JSON_ARRAY)
        return chat_fail_at(err, i, ".content", "must be a string or a list of parts");
    for (uint32_t j = 0; content != NULL && content->type == JSON_ARRAY && j < content->len; j++)
        if (content->items[j].type != JSON_OBJECT)
            return chat_fail_at(err, i, ".content", "has a part that is no object");
    chat_messages_add_result(cm, i, content, chat_get(message, "tool_call_id"));
    return true;
}

static bool add_assistant(struct chat_messages *cm, const struct json *message, uint32_t i,
                          const struct json *content, struct chat_error *err)
{
    struct chat_turn *turn = chat_messages_add(cm, CHAT_ROLE_ASSISTANT, i, content);
    const struct json *wo_eos = chat_get(message, "wo_eos");

    turn->without_eos = wo_eos != NULL && wo_eos->type == JSON_TRUE;
    turn->task = chat_task_parse(json_get(message, "task"));
    if (!get_list(message, "tool_calls", &turn->tool_calls))
        return chat_fail_at(err, i, ".tool_calls", "must be a list");
    return get_text(message, i, "reasoning_content", ".reasoning_content", &turn->reasoning, err);
}

static bool add_message(struct chat_messages *cm, const struct json *message, uint32_t i,
                        struct chat_error *err)
{
    enum chat_role role = chat_role_parse(json_get(message, "role"));
    int task = chat_task_parse(json_get(message, "task"));
    const struct json *content;
    struct chat_turn *turn;

    if (role == CHAT_ROLE_UNKNOWN)
        return chat_fail_at(err, i, ".role",
                            "must be system, user, assistant, tool, developer or latest_reminder");
    if (role == CHAT_ROLE_TOOL)
        return add_result(cm, message, i, err);
    if (!get_text(message, i, "content", ".content", &content, err))
        return false;
    if (role == CHAT_ROLE_USER) {
        if (content == NULL && json_get(message, "content") != NULL)
            return chat_fail_at(err, i, ".content", "of a user must be a string, not null");
        chat_messages_add_user(cm, i, content, task);
        return true;
    }
    if (role == CHAT_ROLE_ASSISTANT)
        return add_assistant(cm, message, i, content, err);
    turn = chat_messages_add(cm, role, i, content);
    turn->task = task;
    return role == CHAT_ROLE_REMINDER || set_own_blocks(turn, message, i, err);
}

static bool add_messages(struct chat_messages *cm, const struct json *request,
                         const struct json *messages, struct chat_error *err)
{
    const struct json *tools, *schema = chat_get(request, "response_format");
    struct chat_turn carrier = {0};
    enum chat_role first = CHAT_ROLE_UNKNOWN;

    if (!get_list(request, "tools", &tools))
        return chat_fail(err, "invalid_type", "tools", "tools must be a list");
    set_response(&carrier, schema);
    if (messages->len > 0)
        first = chat_role_parse(json_get(&messages->items[0], "role"));
    if ((tools != NULL || carrier.response != CHAT_RESPONSE_NONE) && first != CHAT_ROLE_SYSTEM &&
        first != CHAT_ROLE_DEVELOPER)
        chat_messages_add(cm, CHAT_ROLE_SYSTEM, 0, NULL);
    for (uint32_t i = 0; i < messages->len; i++)
        if (!add_message(cm, &messages->items[i], i, err))
            return false;
    if (tools != NULL)
        cm->turns[0].tools = tools;
    if (carrier.response != CHAT_RESPONSE_NONE)
        set_response(&cm->turns[0], schema);
    return true;
}

static bool parse_style(const struct json *request, enum chat_profile profile,
                        struct chat_style *style, struct chat_error *err)
{
    const struct json *mode = json_get(request, "thinking_mode");
    const struct json *effort = chat_get(request, "reasoning_effort");

    *style = (struct chat_style){.drop_thinking = true, .thinking = json_is(mode, "thinking")};
    if (!style->thinking && !json_is(mode, "chat"))
        return chat_fail(err, "invalid_value", "thinking_mode",
                         "thinking_mode must be \"chat\" or \"thinking\"");
    if (!chat_get_bool(request, "", "drop_thinking", &style->drop_thinking, err))
        return false;
    if (json_is(effort, "max"))
        style->effort = profile == CHAT_GA ? CHAT_EFFORT_MAX : CHAT_EFFORT_HIGH;
    else if (json_is(effort, "high"))
        style->effort = profile == CHAT_GA ? CHAT_EFFORT_HIGH : CHAT_EFFORT_NONE;
    else if (effort != NULL && !(profile == CHAT_GA && json_is(effort, "low")))
        return chat_fail(err, "invalid_value", "reasoning_effort",
                         profile == CHAT_GA ? "reasoning_effort must be low, high or max"
                                            : "reasoning_effort must be high or max");
    return true;
}

enum status_code chat_encode(const struct json *request, enum chat_profile profile,
                             struct prompt *out, struct chat_error *err)
{
    const struct json *messages = json_get(request, "messages");
    struct chat_messages cm = {0};
    struct chat_style style;
    bool ok = true;

    prompt_clear(out);
    if (messages == NULL || messages->type != JSON_ARRAY)
        ok = chat_fail(err, "missing_required_parameter", "messages", "messages must be a list");
    ok = ok && parse_style(request, profile, &style, err) &&
         chat_messages_init(&cm, messages->len, err) && add_messages(&cm, request, messages, err) &&
         chat_render(&cm, &style, out, err);
    chat_messages_deinit(&cm);
    return ok ? ST_OK : err->status == 503 ? ST_EXHAUSTED : ST_INVALID;
}
