/*
 * parse_call: the arguments string of one tool call, as its parameters come. Internal to
 * common/text; PARSING.md, R8 to R12.
 *
 * A string value is written piece by piece while it comes; any other value waits for its end,
 * because it may turn out to be no JSON.
 */
#ifndef BATON_COMMON_TEXT_PARSE_CALL_H
#define BATON_COMMON_TEXT_PARSE_CALL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"

/* The keys that a call has, to drop a second parameter of the same name. */
struct parse_keys {
    struct buf text; /* all keys */
    uint32_t *slots; /* open addressing: index into spans + 1, 0 is free; NULL while keys are few */
    size_t n_slots;  /* a power of two, or 0 */
    struct buf spans; /* of struct parse_span: where each key stands in text */
    uint64_t seed;
};

struct parse_call {
    bool active; /* a call was announced and is not ended */
    uint32_t n_members;
    bool had_parameter; /* then junk is no argument object */
    bool muted;         /* the parameter at hand is dropped */
    bool is_string;     /* the parameter at hand */
    struct buf key;     /* the parameter at hand */
    struct buf value;   /* of it, when it is no string */
    struct buf junk;    /* text of an invoke without parameters that may be its argument object */
    bool junk_dead;     /* it cannot */
    struct parse_keys keys;
    struct buf out; /* arguments not yet emitted */
};

void parse_call_deinit(struct parse_call *c);

/** A call begins (active), or an invoke without a usable name (then all of it is dropped). */
void parse_call_begin(struct parse_call *c, bool active);

/** Text between the tags of the call. */
void parse_call_junk(struct parse_call *c, const char *text, size_t len);

/** A parameter begins; c->key holds its name. */
void parse_call_parameter(struct parse_call *c, bool is_string);

/** More of its value. */
void parse_call_value(struct parse_call *c, const char *text, size_t len);

/** The parameter ends. */
void parse_call_parameter_end(struct parse_call *c);

/** The call ends: completes the arguments. */
void parse_call_end(struct parse_call *c);

#endif
