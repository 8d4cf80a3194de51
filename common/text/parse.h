/*
 * parse: from the model's text to reasoning, content and tool calls, as it streams.
 *
 * One state machine serves streams and whole answers: the events' texts, joined, never depend on
 * how the output was cut into chunks. The rules, with their sources: tests/data/text/PARSING.md.
 *
 *   start ──▶ REASONING ──</think>──▶ CONTENT          an opener leads from either into the block,
 *                 │                      │             <｜end▁of▁sentence｜> from anywhere outside
 * a └──────┬───────────────┘             value to OVER ▼ ┌─▶ BETWEEN ──</｜DSML｜tool_calls──▶ OVER
 *          │      │ <｜DSML｜invoke
 *          │      ▼
 *          └── INVOKE ◀──▶ VALUE                       (headers of invokes and parameters between)
 *
 * Promises  cost is linear in the output, also for hostile output; at most PARSE_HELD_MAX bytes of
 *           text are withheld, until it is clear whether they begin a marker; nothing is trimmed
 *           but up to two newlines before a block; a call that was ended has arguments that are
 *           valid JSON.
 * Threads   one owner; events are emitted inside parse_push() and parse_finish().
 * Limits    chunks are whole UTF-8 characters. Arguments that may not be JSON, keys and names are
 *           kept until their end: memory is bounded by the length of the output.
 */
#ifndef BATON_COMMON_TEXT_PARSE_H
#define BATON_COMMON_TEXT_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/text/turn.h"

enum {
    /* Two newlines and the longest opener: 70 characters, some of three bytes. */
    PARSE_HELD_MAX = 80
};

enum parse_kind {
    PARSE_REASONING,      /* text: more of reasoning_content; never empty */
    PARSE_CONTENT,        /* text: more of content; never empty */
    PARSE_CALL,           /* a call begins; text: its whole name */
    PARSE_CALL_ARGUMENTS, /* text: more of the call's arguments string; never empty */
    PARSE_CALL_END        /* the call's arguments are complete: valid JSON, an object; no text */
};

struct parse_event {
    enum parse_kind kind;
    uint32_t call;    /* calls: 0, 1, ... */
    const char *text; /* [len], not NUL-terminated; valid during the call-back only */
    size_t len;
};

typedef void (*parse_emit_fn)(void *ctx, const struct parse_event *event);

struct parse_options {
    enum turn_start start; /* what the renderer of the prompt said */
    bool tools;            /* false: all DSML is text */
};

struct parse;

/** @return ST_OK, ST_EXHAUSTED. The caller frees with parse_free(). */
enum status_code parse_new(const struct parse_options *opt, parse_emit_fn emit, void *ctx,
                           struct parse **out, struct status *st);
void parse_free(struct parse *p);

/** Takes the next piece of output and emits what it decides. */
void parse_push(struct parse *p, const char *text, size_t len);

/**
 * The output has ended: emits what was held back, as far as it is deliverable.
 * @param engine_finish  why the engine stopped: "stop", "length", ...
 * @return the finish reason for the client: engine_finish, or "tool_calls" in place of "stop" when
 *         a call was begun
 */
const char *parse_finish(struct parse *p, const char *engine_finish);

/** True when nothing that comes will be used: generation may be stopped. */
bool parse_is_over(const struct parse *p);

/** Bytes held back now; <= PARSE_HELD_MAX. */
size_t parse_held(const struct parse *p);

/** True while the output is in its reasoning part; for counting reasoning tokens. */
bool parse_in_reasoning(const struct parse *p);

#endif
