#include "common/text/chat_render.h"

#include <string.h>

#include "common/text/chat_blocks.h"
#include "common/text/chat_tokens.h"

struct render {
    struct chat_messages *cm;
    const struct chat_style *style;
    struct prompt *out;
    struct chat_error *err;
    bool keep;         /* reasoning of earlier turns stays */
    int64_t last_user; /* turn of the last user or developer message; -1: none; n_turns: all turns
                          are history */
    bool opened;       /* an assistant turn has been opened and not yet written */
};

/* ---- content ---- */

static const struct json *part_text(const struct json *part)
{
    const struct json *text =
        json_is(json_get(part, "type"), "text") ? json_get(part, "text") : NULL;

    return text != NULL && text->type == JSON_STRING ? text : NULL;
}

static void append_part(struct prompt *out, const struct json *part)
{
    const struct json *type = json_get(part, "type"), *text = part_text(part);

    if (text != NULL) {
        prompt_append_text(out, text->text, text->len);
    } else if (!json_is(type, "text")) {
        buf_puts(&out->text, "[Unsupported ");
        if (type != NULL && type->type == JSON_STRING)
            prompt_append_text(out, type->text, type->len);
        else
            buf_puts(&out->text, "None");
        buf_puts(&out->text, "]");
    }
}

static void append_content(struct prompt *out, const struct json *content)
{
    if (content == NULL)
        return;
    if (content->type == JSON_STRING) {
        prompt_append_text(out, content->text, content->len);
        return;
    }
    for (uint32_t i = 0; i < content->len; i++) {
        if (i > 0)
            buf_puts(&out->text, "\n\n");
        append_part(out, &content->items[i]);
    }
}

bool chat_content_is_empty(const struct json *content)
{
    const struct json *text;

    if (content == NULL || content->len == 0)
        return true;
    if (content->type == JSON_STRING || content->len > 1)
        return false;
    text = part_text(&content->items[0]);
    return text != NULL && text->len == 0;
}

static void append_blocks(struct render *r, const struct chat_turn *turn)
{
    const struct chat_block *blocks = r->cm->blocks + turn->first_block;

    for (uint32_t i = 0; i < turn->n_blocks; i++) {
        if (i > 0)
            buf_puts(&r->out->text, "\n\n");
        if (blocks[i].is_result)
            buf_puts(&r->out->text, "<tool_result>");
        append_content(r->out, blocks[i].content);
        if (blocks[i].is_result)
            buf_puts(&r->out->text, "</tool_result>");
    }
}

/* ---- turns ---- */

static void append_opener(struct render *r, bool thinking)
{
    chat_token_append(r->out, CHAT_ASSISTANT);
    chat_token_append(r->out, thinking ? CHAT_THINK : CHAT_THINK_END);
    r->opened = true;
}

static bool append_instructions(struct render *r, const struct chat_turn *turn)
{
    append_blocks(r, turn);
    if (turn->tools != NULL && !chat_blocks_tools(r->out, turn, r->style, r->err))
        return false;
    chat_blocks_response(r->out, turn);
    return true;
}

static bool append_developer(struct render *r, const struct chat_turn *turn)
{
    if (turn->n_blocks == 0 || chat_content_is_empty(r->cm->blocks[turn->first_block].content))
        return chat_fail_at(r->err, turn->message, ".content",
                            "of a developer must be a string that is not empty");
    chat_token_append(r->out, CHAT_USER);
    return append_instructions(r, turn);
}

static bool append_assistant(struct render *r, uint32_t i)
{
    const struct chat_turn *turn = &r->cm->turns[i];
    bool continued = r->style->ending == CHAT_END_CONTINUE && i == r->cm->n_turns - 1;
    bool after_task = i > 0 && r->cm->turns[i - 1].task != CHAT_TASK_NONE;
    bool reasons = r->style->thinking && !after_task;
    const struct json *content =
        turn->n_blocks > 0 ? r->cm->blocks[turn->first_block].content : NULL;

    if (continued && !r->opened)
        append_opener(r, r->style->thinking);
    r->opened = continued;
    if (reasons && (continued || r->keep || i > r->last_user)) {
        append_content(r->out, turn->reasoning);
        if (continued && chat_content_is_empty(content))
            return true; /* the model goes on reasoning */
        chat_token_append(r->out, CHAT_THINK_END);
    }
    append_content(r->out, content);
    if (turn->tool_calls != NULL && !chat_blocks_calls(r->out, turn, r->err))
        return false;
    if (!turn->without_eos && !continued)
        chat_token_append(r->out, CHAT_EOS);
    return true;
}

static bool append_turn(struct render *r, uint32_t i)
{
    const struct chat_turn *turn = &r->cm->turns[i];

    switch (turn->role) {
    case CHAT_ROLE_SYSTEM:
        return append_instructions(r, turn);
    case CHAT_ROLE_DEVELOPER:
        return append_developer(r, turn);
    case CHAT_ROLE_USER:
        chat_token_append(r->out, CHAT_USER);
        append_blocks(r, turn);
        return true;
    case CHAT_ROLE_REMINDER:
        chat_token_append(r->out, CHAT_REMINDER);
        append_blocks(r, turn);
        return true;
    default:
        return append_assistant(r, i);
    }
}

/* What stands between turn i and what the model says next. */
static bool append_transition(struct render *r, uint32_t i)
{
    const struct chat_turn *turn = &r->cm->turns[i];

    if (i + 1 < r->cm->n_turns && r->cm->turns[i + 1].role != CHAT_ROLE_ASSISTANT &&
        r->cm->turns[i + 1].role != CHAT_ROLE_REMINDER)
        return true;
    if (turn->task == CHAT_TASK_UNKNOWN)
        return chat_fail_at(r->err, turn->message, ".task",
                            "must be action, query, authority, domain, title or read_url");
    if (turn->task != CHAT_TASK_NONE) {
        if (turn->task == CHAT_TASK_ACTION)
            append_opener(r, r->style->thinking);
        chat_token_append(r->out, (enum chat_token)turn->task);
        r->opened = true;
    } else if (turn->role == CHAT_ROLE_USER || turn->role == CHAT_ROLE_DEVELOPER) {
        append_opener(r, r->style->thinking && (r->keep || i >= r->last_user));
    }
    return true;
}

/* ---- what stays ---- */

static int64_t find_last_user(const struct chat_messages *cm)
{
    int64_t i = (int64_t)cm->n_turns - 1;

    while (i >= 0 && cm->turns[i].role != CHAT_ROLE_USER &&
           cm->turns[i].role != CHAT_ROLE_DEVELOPER)
        i--;
    return i;
}

/* Developer messages before the last user turn vanish with the reasoning of that time. */
static void remove_old_developers(struct chat_messages *cm, int64_t last_user)
{
    uint32_t out = 0;

    for (uint32_t i = 0; i < cm->n_turns; i++)
        if (cm->turns[i].role != CHAT_ROLE_DEVELOPER || i >= last_user)
            cm->turns[out++] = cm->turns[i];
    cm->n_turns = out;
}

/* True when the last assistant turn is finished and nobody has answered it. */
static bool is_finished(const struct chat_messages *cm)
{
    uint32_t i = cm->n_turns;

    while (i > 0 && cm->turns[i - 1].role == CHAT_ROLE_REMINDER)
        i--;
    return i > 0 && cm->turns[i - 1].role == CHAT_ROLE_ASSISTANT &&
           cm->turns[i - 1].task == CHAT_TASK_NONE;
}

static void decide_what_stays(struct render *r)
{
    r->keep = !r->style->drop_thinking;
    for (uint32_t i = 0; i < r->cm->n_turns; i++)
        r->keep |= r->cm->turns[i].tools != NULL;
    r->last_user = find_last_user(r->cm);
    if (r->style->thinking && !r->keep) {
        remove_old_developers(r->cm, r->last_user);
        r->last_user = find_last_user(r->cm);
    }
    if (r->style->ending == CHAT_END_GENERATE && is_finished(r->cm))
        r->last_user = r->cm->n_turns;
}

bool chat_render(struct chat_messages *cm, const struct chat_style *style, struct prompt *out,
                 struct chat_error *err)
{
    struct render r = {.cm = cm, .style = style, .out = out, .err = err};

    if (!chat_messages_sort_results(cm, err))
        return false;
    decide_what_stays(&r);
    chat_token_append(out, CHAT_BOS);
    if (style->thinking && cm->n_turns > 0)
        chat_blocks_effort(out, style->effort);
    for (uint32_t i = 0; i < cm->n_turns; i++) {
        if (!append_turn(&r, i))
            return false;
        if (r.style->ending == CHAT_END_CONTINUE && i == cm->n_turns - 1)
            break;
        if (!append_transition(&r, i))
            return false;
    }
    if (style->ending == CHAT_END_GENERATE && !r.opened)
        append_opener(&r, style->thinking);
    if (style->open_tool_block)
        chat_blocks_open_calls(out);
    return true;
}
