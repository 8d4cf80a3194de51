/*
 * stop: ends the answer at the first of a request's stop strings, wherever the text was cut into
 * pieces.
 *
 * The stop string that is complete first wins; of two that end at the same byte the longer. Give it
 * answer text only: reasoning and tool markup are not searched.
 *
 * Promises  what is delivered never depends on how the text was cut; cost is linear in the text; at
 *           most the longest stop string less one byte is withheld, and nothing when not trimming;
 *           pieces end between characters when the input's do.
 * Threads   one owner.
 */
#ifndef BATON_COMMON_TEXT_STOP_H
#define BATON_COMMON_TEXT_STOP_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/buf.h"
#include "common/base/status.h"

enum {
    STOP_STRINGS_MAX = 64,
    STOP_BYTES_MAX = 4096 /* of one stop string */
};

struct stop_string {
    const char *text; /* UTF-8, copied */
    size_t len;       /* 1 .. STOP_BYTES_MAX */
};

struct stop;

/**
 * @param n     0 .. STOP_STRINGS_MAX; with 0 everything passes
 * @param trim  true: the stop string itself is not delivered
 * @return ST_OK; ST_INVALID naming the string that is empty or too long; ST_EXHAUSTED
 */
enum status_code stop_new(size_t n, const struct stop_string *strings, bool trim, struct stop **out,
                          struct status *st);
void stop_free(struct stop *s);

/**
 * Appends to out what may be delivered.
 * @return true when a stop string is complete; what comes later is dropped
 */
bool stop_push(struct stop *s, const char *text, size_t len, struct buf *out);

/** The text has ended: appends what was withheld. */
void stop_finish(struct stop *s, struct buf *out);

/** Index of the string that was found, or -1. */
int stop_found(const struct stop *s);

/** The text of string i, as given to stop_new(); borrowed until stop_free(). */
const char *stop_text(const struct stop *s, size_t i, size_t *len);

/** Bytes withheld now. */
size_t stop_held(const struct stop *s);

#endif
