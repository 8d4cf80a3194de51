/*
 * anthropic_request: reads the body of Anthropic's Messages API: its parameters, and its
 * conversation as a chat-completion body.
 *
 * What V4's format has no words for is refused by name (images, documents, server tools); what is a
 * hint to caches or to billing is taken and has no effect. thinking: absent or disabled is
 * Non-think; budget_tokens is checked as Anthropic does and is a target that the format cannot tell
 * the model; output_config.effort is reasoning_effort and by itself turns thinking on.
 *
 * Threads   any; no state.
 */
#ifndef BATON_ROUTER_ANTHROPIC_REQUEST_H
#define BATON_ROUTER_ANTHROPIC_REQUEST_H

#include "router/chat_body.h"
#include "router/chat_params.h"

/**
 * @param doc       of the request; gives its memory to chat
 * @param counting  of count_tokens: no max_tokens, nothing that samples
 * @param chat      out; lives as long as doc
 * @return false with err filled (400)
 */
bool anthropic_request_read(struct json_doc *doc, bool counting, int32_t vocab,
                            struct chat_params *params, const struct json **chat,
                            struct chat_error *err);

/* The field tables, for tests and docs. */
extern const struct field *const anthropic_tables[], *const anthropic_count_tables[];

#endif
