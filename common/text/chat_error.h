/*
 * chat_error: how the parts of chat say what is wrong with a request. Internal to common/text.
 */
#ifndef BATON_COMMON_TEXT_CHAT_ERROR_H
#define BATON_COMMON_TEXT_CHAT_ERROR_H

#include "common/text/chat.h"

/** Fills err with status 400; returns false, so that `return chat_fail(...)` reads well. */
bool chat_fail(struct chat_error *err, const char *code, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/** The same for a field of message i: param and message begin with "messages[i]" + field. */
bool chat_fail_at(struct chat_error *err, uint32_t i, const char *field, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/** Memory is out: status 503. */
bool chat_fail_memory(struct chat_error *err);

/** How many bytes of a client's string a message shows: whole characters, at most 40 bytes. For
 * "%.*s" with v->text. */
int chat_shown(const struct json *v);

/** The value, or NULL when it is absent or null. */
const struct json *chat_get(const struct json *object, const char *key);

/** False with err filled unless the member is absent, null or a bool; *out keeps its value when
 * absent. @param where  the object's name in messages, such as "chat_template_kwargs." */
bool chat_get_bool(const struct json *object, const char *where, const char *key, bool *out,
                   struct chat_error *err);

#endif
