/*
 * chat_messages: a conversation as the format sees it: user messages and tool results merged into
 * turns, results in the order of their calls. Internal to common/text; ENCODING.md, section 3.
 *
 * Nothing is copied: turns and blocks point into the request's JSON, which must outlive them.
 */
#ifndef BATON_COMMON_TEXT_CHAT_MESSAGES_H
#define BATON_COMMON_TEXT_CHAT_MESSAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/text/chat_error.h"

enum chat_role {
    CHAT_ROLE_SYSTEM,
    CHAT_ROLE_DEVELOPER,
    CHAT_ROLE_USER, /* users and tool results, merged */
    CHAT_ROLE_ASSISTANT,
    CHAT_ROLE_TOOL, /* only before merging */
    CHAT_ROLE_REMINDER,
    CHAT_ROLE_UNKNOWN
};

/* What `task` says: a value of enum chat_token, or one of these. */
enum { CHAT_TASK_NONE = -1, CHAT_TASK_UNKNOWN = -2 };

enum chat_response {
    CHAT_RESPONSE_NONE,
    CHAT_RESPONSE_SCHEMA,     /* the response block with a JSON value */
    CHAT_RESPONSE_JSON_OBJECT /* the fixed sentence that asks for a JSON object */
};

/* A piece of text of a turn; pieces are joined with an empty line. */
struct chat_block {
    const struct json *content; /* string, list of parts, or NULL for no text */
    const struct json *call_id; /* results: tool_call_id, or NULL */
    uint32_t message;           /* index in the request, for errors */
    bool is_result;
};

struct chat_turn {
    enum chat_role role;
    uint32_t message; /* index in the request of its first message */
    uint32_t first_block, n_blocks;
    const struct json *reasoning;  /* string or NULL */
    const struct json *tool_calls; /* list with at least one call, or NULL */
    const struct json *tools;      /* list with at least one tool, or NULL */
    enum chat_response response;
    const struct json *schema; /* CHAT_RESPONSE_SCHEMA: its value */
    int task;                  /* enum chat_token or CHAT_TASK_* */
    bool without_eos;
};

struct chat_messages {
    struct chat_turn *turns;
    struct chat_block *blocks;
    uint32_t n_turns, n_blocks;
};

/** Room for n messages and one more turn; chat_messages_deinit() at the end, also after failure. */
bool chat_messages_init(struct chat_messages *cm, uint32_t n, struct chat_error *err);
void chat_messages_deinit(struct chat_messages *cm);

/** The role that v (a message's `role`, may be NULL) names. */
enum chat_role chat_role_parse(const struct json *v);

/** What v (a message's or a body's `task`, may be NULL) names: "action" is CHAT_TASK_ACTION. */
int chat_task_parse(const struct json *v);

/** Appends a turn of its own with one block of content (none when NULL). Borrowed until the next
 * change. */
struct chat_turn *chat_messages_add(struct chat_messages *cm, enum chat_role role, uint32_t message,
                                    const struct json *content);

/** Appends one more block to the last turn. */
void chat_messages_add_block(struct chat_messages *cm, const struct chat_block *block);

/** Appends a user message: to the last turn when that is a user's without a task, else as a new
 * turn, which takes the task over. */
void chat_messages_add_user(struct chat_messages *cm, uint32_t message, const struct json *content,
                            int task);

/** Appends a tool result: to the last turn when that is a user's, else as a new turn. */
void chat_messages_add_result(struct chat_messages *cm, uint32_t message,
                              const struct json *content, const struct json *call_id);

/** Puts the results of every turn in the order of the calls that they answer. */
bool chat_messages_sort_results(struct chat_messages *cm, struct chat_error *err);

/*
 * The calls of one assistant message by id. Ids come from outside and may be many: sorted once,
 * then found by bisection.
 */
struct chat_call {
    const char *id;
    uint32_t id_len, position;
};

/**
 * Collects the ids of a list of tool calls (`id`, else `function.id`; calls without one are left
 * out), sorted by id, then position.
 * @param calls  out, room for tool_calls->len entries
 * @return how many
 */
uint32_t chat_calls_collect(const struct json *tool_calls, struct chat_call *calls);

/** The last of the calls with this id, or NULL. */
struct chat_call *chat_calls_find(struct chat_call *calls, uint32_t n, const struct json *id);

#endif
