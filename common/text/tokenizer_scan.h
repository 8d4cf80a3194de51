/*
 * tokenizer_scan: walks over the JSON text of a tokenizer.json without making a tree of it.
 *
 * Each call reads one thing at pos and moves past it. On failure the status says what was expected
 * and at which byte, and the scan must not go on.
 */
#ifndef BATON_COMMON_TEXT_TOKENIZER_SCAN_H
#define BATON_COMMON_TEXT_TOKENIZER_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/status.h"

struct scan {
    const char *s;
    size_t n, pos;
    struct buf string; /* the last string that had escapes; scan_deinit() frees it */
    struct status *st;
};

void scan_deinit(struct scan *s);

/** Past blanks, the byte that comes next; 0 at the end. */
char scan_peek(struct scan *s);

/** Past blanks and this byte. */
bool scan_expect(struct scan *s, char c);

/** Past blanks and this byte, when it comes next; without an error when it does not. */
bool scan_accept(struct scan *s, char c);

/**
 * A string, decoded. Checks escapes and control characters, not UTF-8.
 * @param text  out, borrowed until the next string
 */
bool scan_string(struct scan *s, const char **text, size_t *len);

/** A whole number from 0 to max. */
bool scan_number(struct scan *s, uint32_t max, uint32_t *out);

/** Any value: where it stands in the text. Only strings and brackets are looked at. */
bool scan_skip(struct scan *s, const char **text, size_t *len);

#endif
