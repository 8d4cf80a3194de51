/*
 * jsonl: a command that reads JSON lines on standard input and answers each with one line.
 */
#ifndef BATON_DEPLOY_BATON_JSONL_H
#define BATON_DEPLOY_BATON_JSONL_H

#include "common/base/buf.h"
#include "common/base/json.h"
#include "common/base/status.h"

/**
 * Answers one line.
 * @param line  the parsed line
 * @param out   empty; the answer, one JSON value without a newline
 * @return ST_OK, or a failure, which becomes {"error": message, "status": HTTP status} in place of
 *         what out holds
 */
typedef enum status_code (*jsonl_fn)(void *ctx, const struct json *line, struct buf *out,
                                     struct status *st);

/**
 * Runs answer for every line until the end of standard input; lines that are no JSON are answered
 * with an error too, empty lines are passed over, and the command goes on.
 * @param json_flags  for json_parse()
 * @return the process's exit status: 0, or 1 when standard input or output fails
 */
int jsonl_run(unsigned json_flags, jsonl_fn answer, void *ctx);

#endif
