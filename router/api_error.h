/*
 * api_error: errors in the shape that OpenAI's clients read.
 *
 *     {"error": {"message": "...", "type": "invalid_request_error", "param": "n", "code": "..."}}
 *
 * Threads   any.
 */
#ifndef BATON_ROUTER_API_ERROR_H
#define BATON_ROUTER_API_ERROR_H

#include "common/base/buf.h"

/**
 * Appends the JSON object. The type follows from the HTTP status.
 * @param param    the field that is at fault; NULL or empty for none
 * @param code     a word for programs; NULL: one that follows from the status
 * @param message  bytes that are not UTF-8 (a cut character) become '?'
 */
void api_error_json(struct buf *out, int http_status, const char *param, const char *code,
                    const char *message);

/** A message as a JSON string; bytes that are not UTF-8 become '?'. */
void api_error_text(struct buf *out, const char *message);

/** The same as api_error_json() in the shape that Anthropic's clients read. */
void api_error_anthropic_json(struct buf *out, int http_status, const char *request_id,
                              const char *message);

#endif
