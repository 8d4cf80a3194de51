/*
 * fields: reads the members of a request body by a table, so that each one is honoured or refused
 * by name and none is dropped in silence.
 *
 * A member that is null counts as absent. A name that is not in the table is refused.
 *
 * Threads   any; no state.
 */
#ifndef BATON_ROUTER_FIELDS_H
#define BATON_ROUTER_FIELDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/json.h"
#include "common/text/chat.h"

enum field_kind {
    FIELD_INT,    /* int64_t at offset, within [min, max] */
    FIELD_FLOAT,  /* double at offset, within [min, max] */
    FIELD_BOOL,   /* bool at offset */
    FIELD_STRING, /* const char * at offset: borrowed from the body, no U+0000, at most max bytes */
    FIELD_READ,   /* the row's function */
    FIELD_ELSEWHERE, /* another part of the program reads and checks it */
    FIELD_NO_EFFECT, /* a label of the client's: asks nothing of a server that keeps no records */
    FIELD_NEUTRAL,   /* not offered: only values that ask for nothing are let through */
};

struct field {
    const char *name;
    enum field_kind kind;
    size_t offset;
    double min, max;
    const char *neutral; /* FIELD_NEUTRAL: JSON texts separated by '|', such as "0|false" */
    bool (*read)(const struct field *f, const struct json *v, void *out, struct chat_error *err);
};

/* Rows of the three kinds that need no place. */
#define FIELD_ELSEWHERE_ROW(text)                                                                  \
    {                                                                                              \
        .name = text, .kind = FIELD_ELSEWHERE                                                      \
    }
#define FIELD_NO_EFFECT_ROW(text)                                                                  \
    {                                                                                              \
        .name = text, .kind = FIELD_NO_EFFECT                                                      \
    }
#define FIELD_NEUTRAL_ROW(text, values)                                                            \
    {                                                                                              \
        .name = text, .kind = FIELD_NEUTRAL, .neutral = values                                     \
    }

/**
 * Reads every member of body, an object.
 * @param tables  each ends with a row whose name is NULL, the list of them with NULL
 * @param out  the caller's struct, with its defaults
 * @return false with err filled (400): wrong type, out of bounds, not offered, unknown
 */
bool fields_read(const struct field *const *tables, const struct json *body, void *out,
                 struct chat_error *err);

/** Fills err with status 400; returns false. */
bool field_fail(struct chat_error *err, const char *name, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#endif
