/*
 * chat_body: a chat-completion body made from a request of another API, so that all of them render
 * through common/text/chat. It borrows its parts from that request; only the nodes between are new.
 *
 * Lifetime  of the request's document, whose memory it takes; memory that is out aborts, as in buf.
 * Threads   one owner.
 */
#ifndef BATON_ROUTER_CHAT_BODY_H
#define BATON_ROUTER_CHAT_BODY_H

#include "common/base/json.h"
#include "common/text/chat.h"

/* What errors call a part of the request: "messages[3].content[1]". */
struct chat_place {
    char text[64];
};

struct chat_body {
    struct json_doc *doc;
    struct json root, messages;
    uint32_t *origin; /* [messages.len] element of the request's list that each was made from */
    uint32_t messages_max;
};

/**
 * @param list          what the request calls its messages; err says so from now on
 * @param messages_max  that will be added
 */
void chat_body_init(struct chat_body *b, struct json_doc *doc, const char *list,
                    uint32_t messages_max, struct chat_error *err);

/** Adds a message, { "role": role } so far; at most 4 more members may be put. Borrowed until the
 * next one is added. */
struct json *chat_body_message(struct chat_body *b, uint32_t origin, const char *role);

/** The whole, once all messages are there and other members (at most 8) are put into root; lives as
 * long as the document. */
const struct json *chat_body_finish(struct chat_body *b);

/** False with err filled unless v, a member of what stands at that place, is a string. */
bool chat_body_need_string(struct chat_error *err, const struct chat_place *at,
                           const struct json *v, const char *name);

/* ---- nodes ---- */

struct json chat_body_object(struct json_doc *doc, uint32_t members_max);
struct json chat_body_array(struct json_doc *doc, uint32_t items_max);
/** A string that the caller keeps; NUL-terminated. */
struct json chat_body_string(const char *s);
struct json chat_body_true(void);

/** Neither may pass the number that the node was made for. key is borrowed. */
void chat_body_put(struct json *object, const char *key, struct json value);
void chat_body_push(struct json *array, struct json value);

/** { "type": "function", "function": function }: a tool, or the choice of one. */
struct json chat_body_function(struct json_doc *doc, struct json function);

/** The choice of the function of this name. */
struct json chat_body_choice(struct json_doc *doc, const struct json *name);

/** A past call. @param arguments  an object, or a string that spells one */
struct json chat_body_call(struct json_doc *doc, const struct json *id, const struct json *name,
                           const struct json *arguments);

/** Strings joined by newlines: the list's members of that key, of its items of that type.
 * JSON_NULL when there are none. */
struct json chat_body_join(struct json_doc *doc, const struct json *list, const char *type,
                           const char *key);

#endif
