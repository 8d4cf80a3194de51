/*
 * chat_render: turns to prompt (ENCODING.md, sections 4-8). Internal to common/text.
 */
#ifndef BATON_COMMON_TEXT_CHAT_RENDER_H
#define BATON_COMMON_TEXT_CHAT_RENDER_H

#include "common/text/chat_messages.h"

/* The text in front of the first message that asks for more reasoning. */
enum chat_effort { CHAT_EFFORT_NONE, CHAT_EFFORT_HIGH, CHAT_EFFORT_MAX };

/* How the prompt ends. */
enum chat_ending {
    CHAT_END_AS_ENCODED, /* where the release encoder stops */
    CHAT_END_GENERATE,   /* with an opened assistant turn, whatever came last */
    CHAT_END_CONTINUE,   /* inside the last message, an assistant's, so that it is continued */
};

struct chat_style {
    bool thinking;
    bool drop_thinking;
    enum chat_effort effort;
    bool think_max; /* the most effort was asked for, whatever the profile writes for it */
    enum chat_ending ending;
    bool open_tool_block;         /* the prompt ends inside a tool-call block */
    bool normalise_tools;         /* tools are name, description, parameters in this order */
    const struct json *only_tool; /* the one `function` object to render, or NULL for all */
};

/**
 * Appends the whole prompt. Turns are changed (what is not rendered is removed).
 * @param out  empty
 */
bool chat_render(struct chat_messages *cm, const struct chat_style *style, struct prompt *out,
                 struct chat_error *err);

/** True when the content (string, list of parts or NULL) renders to nothing. */
bool chat_content_is_empty(const struct json *content);

#endif
