/*
 * chat_mode: what a chat-completion request wants beside its messages: thinking or not, how much,
 * which tools, which response format. Internal to common/text; ENCODING.md, section 9.
 */
#ifndef BATON_COMMON_TEXT_CHAT_MODE_H
#define BATON_COMMON_TEXT_CHAT_MODE_H

#include "common/text/chat_render.h"

struct chat_mode {
    struct chat_style style;  /* all but the ending */
    const struct json *tools; /* list of tools to render, or NULL */
    bool has_tools;           /* the request lists tools, whatever tool_choice says */
    enum chat_response response;
    const struct json *schema; /* CHAT_RESPONSE_SCHEMA: its value */
};

/** Reads and checks it all. */
bool chat_mode_read(const struct json *body, const struct chat_options *opt, struct chat_mode *out,
                    struct chat_error *err);

#endif
