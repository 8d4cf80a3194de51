/*
 * chat_json: JSON the way V4's prompts spell it: Python's json.dumps(x, ensure_ascii=False).
 *
 * ", " and ": ", member order kept; integers keep all their digits (-0 becomes 0); numbers with a
 * point or an exponent are doubles in shortest round-trip spelling (1.10 is 1.1, 1e5 is 100000.0,
 * 1e-5 is 1e-05, too large is Infinity).
 */
#ifndef BATON_COMMON_TEXT_CHAT_JSON_H
#define BATON_COMMON_TEXT_CHAT_JSON_H

#include "common/base/buf.h"
#include "common/base/json.h"

/** Appends v; any depth, without recursion. */
void chat_json_write(struct buf *out, const struct json *v);

/** Appends a double as Python's repr() spells it. */
void chat_json_write_double(struct buf *out, double d);

#endif
