/*
 * responses_request: reads the body of OpenAI's Responses API: its parameters, and its input as a
 * chat-completion body.
 *
 * Stateless: nothing is kept, so what refers to an earlier response is refused by name, and a
 * client sends its conversation back as items. Reasoning items carry their text in `content`;
 * those of this server are taken back as they are, which is what "reasoning.encrypted_content" is
 * asked for elsewhere. Tools are functions alone.
 *
 * Threads   any; no state.
 */
#ifndef BATON_ROUTER_RESPONSES_REQUEST_H
#define BATON_ROUTER_RESPONSES_REQUEST_H

#include "router/chat_body.h"
#include "router/chat_params.h"

/**
 * @param doc   of the request; gives its memory to chat
 * @param chat  out; lives as long as doc
 * @param echo  appended: the members of a response that repeat the request, without braces
 * @return false with err filled (400)
 */
bool responses_request_read(struct json_doc *doc, int32_t vocab, struct chat_params *params,
                            const struct json **chat, struct buf *echo, struct chat_error *err);

/* The field table, for tests and docs. */
extern const struct field *const responses_tables[];

#endif
