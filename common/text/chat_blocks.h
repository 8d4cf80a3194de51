/*
 * chat_blocks: the fixed texts of the format and the two blocks that carry JSON: tool schemas and
 * past tool calls (ENCODING.md, sections 6 and 7). Internal to common/text.
 */
#ifndef BATON_COMMON_TEXT_CHAT_BLOCKS_H
#define BATON_COMMON_TEXT_CHAT_BLOCKS_H

#include "common/text/chat_render.h"

/** Appends the effort prefix; nothing for CHAT_EFFORT_NONE. */
void chat_blocks_effort(struct prompt *out, enum chat_effort effort);

/** Appends "\n\n" and the tools block of a turn. */
bool chat_blocks_tools(struct prompt *out, const struct chat_turn *turn,
                       const struct chat_style *style, struct chat_error *err);

/** Appends "\n\n" and the response block of a turn; nothing when it has none. */
void chat_blocks_response(struct prompt *out, const struct chat_turn *turn);

/** Appends "\n\n" and the past tool calls of an assistant turn. */
bool chat_blocks_calls(struct prompt *out, const struct chat_turn *turn, struct chat_error *err);

/** Appends "\n\n<｜DSML｜tool_calls>\n", the opening of a block that the model goes on with. */
void chat_blocks_open_calls(struct prompt *out);

#endif
