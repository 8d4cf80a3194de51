/*
 * An OpenAI chat-completion body: its messages are checked and become the encoder's.
 */
#include "common/text/chat.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/text/chat_mode.h"

struct reader {
    const struct json *body;
    const struct json *messages;
    struct chat_mode mode;
    struct chat_messages cm;
    struct chat_error *err;
    struct chat_call *pending; /* calls of the latest assistant message */
    uint32_t n_pending;
    uint32_t n_unanswered; /* of those */
    bool has_system;       /* turn 0 is the system's */
    bool continues;        /* the last message is to be continued */
};

/* ---- content ---- */

/* A string, or a list of text parts. */
static bool get_content(struct reader *r, uint32_t i, const struct json **out)
{
    const struct json *content = chat_get(&r->messages->items[i], "content");

    if (content == NULL)
        return chat_fail_at(r->err, i, ".content", "is missing or null");
    if (content->type != JSON_STRING && content->type != JSON_ARRAY)
        return chat_fail_at(r->err, i, ".content", "must be a string or a list of text parts");
    for (uint32_t j = 0; content->type == JSON_ARRAY && j < content->len; j++) {
        const struct json *type = json_get(&content->items[j], "type");
        const struct json *text = json_get(&content->items[j], "text");

        if (!json_is(type, "text"))
            return chat_fail_at(r->err, i, ".content",
                                "part %u is of type \"%.*s\": only text is served", j,
                                type != NULL && type->type == JSON_STRING ? chat_shown(type) : 0,
                                type != NULL && type->type == JSON_STRING ? type->text : "");
        if (text == NULL || text->type != JSON_STRING)
            return chat_fail_at(r->err, i, ".content", "part %u needs a string \"text\"", j);
    }
    *out = content;
    return true;
}

static bool string_has_json(const struct json *s)
{
    const char *p = s->text, *end = s->text + s->len;

    for (; end - p >= 4; p++)
        if ((*p == 'j' || *p == 'J') && strncasecmp(p, "json", 4) == 0)
            return true;
    return false;
}

/* JSON mode needs the word "json" in some message: without it models may write blanks for ever. */
static bool check_json_word(const struct reader *r)
{
    for (uint32_t b = 0; b < r->cm.n_blocks; b++) {
        const struct json *content = r->cm.blocks[b].content;

        if (content == NULL)
            continue;
        if (content->type == JSON_STRING && string_has_json(content))
            return true;
        for (uint32_t j = 0; content->type == JSON_ARRAY && j < content->len; j++)
            if (string_has_json(json_get(&content->items[j], "text")))
                return true;
    }
    return chat_fail(r->err, "invalid_value", "messages",
                     "some message must contain the word 'json' to use response_format of type "
                     "'json_object'");
}

/* ---- tool calls and their results ---- */

static bool check_call(struct reader *r, uint32_t i, uint32_t j, const struct json *call)
{
    const struct json *id = json_get(call, "id");

    if (id == NULL || id->type != JSON_STRING || id->len == 0)
        return chat_fail_at(r->err, i, ".tool_calls",
                            "call %u needs an \"id\" that its tool message answers", j);
    return true;
}

/* Remembers the calls of an assistant message, which the next messages must answer. */
static bool expect_results(struct reader *r, uint32_t i, const struct json *tool_calls)
{
    for (uint32_t j = 0; j < tool_calls->len; j++)
        if (!check_call(r, i, j, &tool_calls->items[j]))
            return false;
    free(r->pending);
    r->pending = malloc(tool_calls->len * sizeof(*r->pending));
    if (r->pending == NULL)
        return chat_fail_memory(r->err);
    r->n_pending = r->n_unanswered = chat_calls_collect(tool_calls, r->pending);
    for (uint32_t j = 1; j < r->n_pending; j++)
        if (r->pending[j].id_len == r->pending[j - 1].id_len &&
            memcmp(r->pending[j].id, r->pending[j - 1].id, r->pending[j].id_len) == 0)
            return chat_fail_at(r->err, i, ".tool_calls", "two calls have the same id");
    return true;
}

static bool check_all_answered(struct reader *r, uint32_t i)
{
    if (r->n_unanswered == 0)
        return true;
    for (uint32_t k = i; k-- > 0;)
        if (json_is(json_get(&r->messages->items[k], "role"), "assistant"))
            return chat_fail_at(r->err, k, ".tool_calls",
                                "must be followed by one tool message for each call: %u of %u are "
                                "unanswered",
                                r->n_unanswered, r->n_pending);
    return true;
}

static bool add_result(struct reader *r, uint32_t i)
{
    const struct json *id = chat_get(&r->messages->items[i], "tool_call_id");
    struct chat_call *call = chat_calls_find(r->pending, r->n_pending, id);
    const struct json *content;

    if (id == NULL || id->type != JSON_STRING)
        return chat_fail_at(r->err, i, ".tool_call_id", "must be a string");
    if (call == NULL || call->position == UINT32_MAX)
        return chat_fail_at(r->err, i, "",
                            "a tool message must answer a call of the assistant message before it; "
                            "no call has the id \"%.*s\" or it is answered already",
                            chat_shown(id), id->text);
    call->position = UINT32_MAX; /* answered */
    r->n_unanswered--;
    if (!get_content(r, i, &content))
        return false;
    chat_messages_add_result(&r->cm, i, content, id);
    return true;
}

/* ---- messages ---- */

static bool add_assistant(struct reader *r, uint32_t i)
{
    const struct json *message = &r->messages->items[i], *content = NULL;
    const struct json *tool_calls = chat_get(message, "tool_calls");
    const struct json *reasoning = chat_get(message, "reasoning_content");
    struct chat_turn *turn;

    if (tool_calls != NULL && tool_calls->type != JSON_ARRAY)
        return chat_fail_at(r->err, i, ".tool_calls", "must be a list");
    if (tool_calls != NULL && tool_calls->len == 0)
        tool_calls = NULL;
    if (tool_calls == NULL && chat_get(message, "content") == NULL)
        return chat_fail_at(r->err, i, "", "an assistant message needs content or tool_calls");
    if (chat_get(message, "content") != NULL && !get_content(r, i, &content))
        return false;
    if (reasoning == NULL)
        reasoning = chat_get(message, "reasoning");
    if (reasoning != NULL && reasoning->type != JSON_STRING)
        return chat_fail_at(r->err, i, ".reasoning_content", "must be a string");
    turn = chat_messages_add(&r->cm, CHAT_ROLE_ASSISTANT, i, content);
    turn->reasoning = reasoning;
    turn->tool_calls = tool_calls;
    return tool_calls == NULL || expect_results(r, i, tool_calls);
}

static bool add_message(struct reader *r, uint32_t i)
{
    const struct json *message = &r->messages->items[i], *role = json_get(message, "role");
    enum chat_role known = chat_role_parse(role);
    int task = chat_task_parse(json_get(message, "task"));
    const struct json *content;

    if (known != CHAT_ROLE_TOOL && !check_all_answered(r, i))
        return false;
    if (task == CHAT_TASK_UNKNOWN)
        return chat_fail_at(r->err, i, ".task",
                            "must be action, query, authority, domain, title or read_url");
    switch (known) {
    case CHAT_ROLE_SYSTEM: /* stand in front already */
    case CHAT_ROLE_DEVELOPER:
        return true;
    case CHAT_ROLE_TOOL:
        return add_result(r, i);
    case CHAT_ROLE_ASSISTANT:
        if (!add_assistant(r, i))
            return false;
        r->cm.turns[r->cm.n_turns - 1].task = task;
        return true;
    case CHAT_ROLE_USER:
        if (!get_content(r, i, &content))
            return false;
        chat_messages_add_user(&r->cm, i, content, task);
        return true;
    case CHAT_ROLE_REMINDER:
        if (!get_content(r, i, &content))
            return false;
        chat_messages_add(&r->cm, CHAT_ROLE_REMINDER, i, content)->task = task;
        return true;
    default:
        return chat_fail_at(
            r->err, i, ".role",
            "\"%.*s\" is none of system, developer, user, assistant, tool, latest_reminder",
            role != NULL && role->type == JSON_STRING ? chat_shown(role) : 0,
            role != NULL && role->type == JSON_STRING ? role->text : "");
    }
}

/* System and developer messages, wherever they stand, are one message in front of all others; it
 * also carries tools and response format, and is made when only they need it. */
static bool hoist_system(struct reader *r)
{
    struct chat_turn *system = NULL;

    if (r->mode.tools != NULL || r->mode.response != CHAT_RESPONSE_NONE)
        system = chat_messages_add(&r->cm, CHAT_ROLE_SYSTEM, 0, NULL);
    for (uint32_t i = 0; i < r->messages->len; i++) {
        enum chat_role role = chat_role_parse(json_get(&r->messages->items[i], "role"));
        const struct json *content;

        if (role != CHAT_ROLE_SYSTEM && role != CHAT_ROLE_DEVELOPER)
            continue;
        if (!get_content(r, i, &content))
            return false;
        if (system == NULL)
            system = chat_messages_add(&r->cm, CHAT_ROLE_SYSTEM, i, NULL);
        if (!chat_content_is_empty(content))
            chat_messages_add_block(&r->cm, &(struct chat_block){.content = content, .message = i});
    }
    if (system != NULL) {
        system->tools = r->mode.tools;
        system->response = r->mode.response;
        system->schema = r->mode.schema;
    }
    return true;
}

/* ---- continuing the last message ---- */

static bool read_prefix(struct reader *r, uint32_t i, bool *prefix)
{
    const struct json *message = &r->messages->items[i];
    const struct json *v = chat_get(message, "prefix");

    *prefix = false;
    if (v == NULL || !json_is(json_get(message, "role"), "assistant"))
        return true;
    if (v->type != JSON_TRUE && v->type != JSON_FALSE)
        return chat_fail_at(r->err, i, ".prefix", "must be true or false");
    *prefix = v->type == JSON_TRUE;
    return true;
}

/* What the vendor's own service refuses to continue: the model was not trained on it. */
static bool check_continuation(struct reader *r, uint32_t last)
{
    bool tools = r->mode.has_tools;

    for (uint32_t i = 0; i <= last; i++) {
        const struct json *calls = json_get(&r->messages->items[i], "tool_calls");

        tools |= calls != NULL && calls->type == JSON_ARRAY && calls->len > 0;
    }
    if (tools)
        return chat_fail_at(r->err, last, "", "cannot be continued: there are tools or tool calls");
    if (r->mode.response == CHAT_RESPONSE_JSON_OBJECT)
        return chat_fail_at(r->err, last, "",
                            "cannot be continued with response_format of type json_object");
    return true;
}

static bool read_continuation(struct reader *r)
{
    uint32_t last = r->messages->len - 1;
    const struct json *role = json_get(&r->messages->items[last], "role");
    bool final = false, turn = true, prefix;

    if (!chat_get_bool(r->body, "", "continue_final_message", &final, r->err))
        return false;
    for (uint32_t i = 0; i <= last; i++) {
        if (!read_prefix(r, i, &prefix))
            return false;
        if (prefix && i != last)
            return chat_fail_at(r->err, i, ".prefix", "only the last message can be continued");
        r->continues |= prefix;
    }
    if (final && !json_is(role, "assistant"))
        return chat_fail(r->err, "invalid_value", "continue_final_message",
                         "continue_final_message needs an assistant message at the end");
    r->continues |= final;
    if (!chat_get_bool(r->body, "", "add_generation_prompt", &turn, r->err))
        return false;
    if (!turn && !r->continues)
        return chat_fail(r->err, "invalid_value", "add_generation_prompt",
                         "add_generation_prompt can be false only where the last message is "
                         "continued (continue_final_message)");
    return !r->continues || check_continuation(r, last);
}

/* ---- the whole ---- */

/* A task beside the messages belongs to the last user message. */
static bool set_body_task(struct reader *r)
{
    int task = chat_task_parse(json_get(r->body, "task"));

    if (task == CHAT_TASK_NONE)
        return true;
    if (task == CHAT_TASK_UNKNOWN)
        return chat_fail(r->err, "invalid_value", "task",
                         "task must be action, query, authority, domain, title or read_url");
    for (uint32_t i = r->cm.n_turns; i-- > 0;)
        if (r->cm.turns[i].role == CHAT_ROLE_USER) {
            r->cm.turns[i].task = task;
            return true;
        }
    return chat_fail(r->err, "invalid_value", "task", "task needs a user message");
}

static bool read_messages(struct reader *r)
{
    if (!chat_messages_init(&r->cm, r->messages->len, r->err) || !hoist_system(r))
        return false;
    for (uint32_t i = 0; i < r->messages->len; i++)
        if (!add_message(r, i))
            return false;
    return check_all_answered(r, r->messages->len) && set_body_task(r) &&
           (r->mode.response != CHAT_RESPONSE_JSON_OBJECT || check_json_word(r));
}

/* Where the model goes on. */
static enum turn_start start_of(const struct reader *r)
{
    const struct chat_turn *last = &r->cm.turns[r->cm.n_turns - 1];

    if (r->mode.style.open_tool_block)
        return TURN_TOOL_CALLS;
    if (!r->mode.style.thinking || last->task != CHAT_TASK_NONE)
        return TURN_CONTENT;
    if (r->continues && last->n_blocks > 0 &&
        !chat_content_is_empty(r->cm.blocks[last->first_block].content))
        return TURN_CONTENT;
    return TURN_REASONING;
}

enum status_code chat_request_render(const struct json *body, const struct chat_options *opt,
                                     struct chat_prompt *out, struct chat_error *err)
{
    struct reader r = {.body = body, .messages = json_get(body, "messages"), .err = err};
    bool ok = true;

    prompt_clear(&out->prompt);
    if (body->type != JSON_OBJECT)
        ok = chat_fail(err, "invalid_type", "", "the body must be a JSON object");
    else if (r.messages == NULL || r.messages->type != JSON_ARRAY || r.messages->len == 0)
        ok = chat_fail(err, "missing_required_parameter", "messages",
                       "messages must be a list with at least one message");
    ok =
        ok && chat_mode_read(body, opt, &r.mode, err) && read_continuation(&r) && read_messages(&r);
    if (ok) {
        r.mode.style.ending = r.continues ? CHAT_END_CONTINUE : CHAT_END_GENERATE;
        ok = chat_render(&r.cm, &r.mode.style, &out->prompt, err);
    }
    if (ok) {
        out->start = start_of(&r);
        out->tools = r.mode.tools != NULL;
        out->thinking = r.mode.style.thinking;
        out->think_max = out->thinking && r.mode.style.think_max;
    }
    free(r.pending);
    chat_messages_deinit(&r.cm);
    return ok ? ST_OK : err->status == 503 ? ST_EXHAUSTED : ST_INVALID;
}

void chat_prompt_deinit(struct chat_prompt *out)
{
    prompt_deinit(&out->prompt);
}
