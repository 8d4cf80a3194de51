/*
 * parse_scan: finds the markers of the model's output in a piece of text that may end inside one.
 * Internal to common/text.
 */
#ifndef BATON_COMMON_TEXT_PARSE_SCAN_H
#define BATON_COMMON_TEXT_PARSE_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* A constant text with its length. */
struct parse_word {
    const char *text;
    size_t len;
};

extern const struct parse_word parse_think, parse_think_end, parse_eos;
extern const struct parse_word parse_dsml_open;    /* <｜DSML｜ */
extern const struct parse_word parse_dsml_close;   /* </｜DSML｜ */
extern const struct parse_word parse_block_open;   /* <｜DSML｜tool_calls> */
extern const struct parse_word parse_block_close;  /* </｜DSML｜tool_calls */
extern const struct parse_word parse_invoke_open;  /* <｜DSML｜invoke */
extern const struct parse_word parse_invoke_named; /* <｜DSML｜invoke name=" */
extern const struct parse_word parse_invoke_close; /* </｜DSML｜invoke */
extern const struct parse_word parse_param_open;   /* <｜DSML｜parameter */
extern const struct parse_word parse_param_close;  /* </｜DSML｜parameter */

enum parse_match {
    PARSE_NO,
    PARSE_PART, /* the text ends before this can be decided */
    PARSE_FULL
};

/** Does word stand at p? */
static inline enum parse_match parse_match(const char *p, const char *end,
                                           const struct parse_word *word)
{
    size_t n = (size_t)(end - p) < word->len ? (size_t)(end - p) : word->len;

    if (n > 1 && p[1] != word->text[1]) /* '/' or not: half of the words at once */
        return PARSE_NO;
    if (memcmp(p, word->text, n) != 0)
        return PARSE_NO;
    return n == word->len ? PARSE_FULL : PARSE_PART;
}

/** The first place in [p, end) where a marker may begin: '<' followed by '/', the first byte of
 * '｜', or the end; end when there is none. */
const char *parse_find(const char *p, const char *end);

enum parse_opener { PARSE_OPENS_BLOCK, PARSE_OPENS_INVOKE };

/**
 * Does one of the three openers of a block stand at p?
 * @param opener  out, on PARSE_FULL
 * @param len     out, on PARSE_FULL its bytes
 */
enum parse_match parse_match_opener(const char *p, const char *end, enum parse_opener *opener,
                                    size_t *len);

/** Space, \t \r \n \f \v. */
static inline bool parse_is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

#endif
