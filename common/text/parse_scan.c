#include "common/text/parse_scan.h"

#include <stdint.h>

#define WORD(s)                                                                                    \
    {                                                                                              \
        s, sizeof(s) - 1                                                                           \
    }

const struct parse_word parse_think = WORD("<think>");
const struct parse_word parse_think_end = WORD("</think>");
const struct parse_word parse_eos = WORD("<｜end▁of▁sentence｜>");
const struct parse_word parse_dsml_open = WORD("<｜DSML｜");
const struct parse_word parse_dsml_close = WORD("</｜DSML｜");
const struct parse_word parse_block_open = WORD("<｜DSML｜tool_calls>");
const struct parse_word parse_block_close = WORD("</｜DSML｜tool_calls");
const struct parse_word parse_invoke_open = WORD("<｜DSML｜invoke");
const struct parse_word parse_invoke_named = WORD("<｜DSML｜invoke name=\"");
const struct parse_word parse_invoke_close = WORD("</｜DSML｜invoke");
const struct parse_word parse_param_open = WORD("<｜DSML｜parameter");
const struct parse_word parse_param_close = WORD("</｜DSML｜parameter");

enum {
    BAR = 0xef,          /* first byte of '｜' */
    MISSPELT_MAX = 32,   /* characters of a misspelt "tool_calls" */
    MISSPELT_BLANKS = 8, /* between it and its invoke */
    LANES = 16,
    STRIDE = 4 * LANES,
};

typedef uint8_t bytes __attribute__((vector_size(LANES)));
typedef uint64_t words __attribute__((vector_size(LANES)));

static inline bytes load(const char *p)
{
    bytes v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static inline bytes all(uint8_t c)
{
    return (bytes){0} + c;
}

/* 0xff in the lanes where a marker may begin. */
static inline bytes begins(const char *p)
{
    bytes next = load(p + 1);

    return (bytes)(load(p) == all('<')) & ((bytes)(next == all('/')) | (bytes)(next == all(BAR)));
}

/* Comparing the byte and its neighbour at once costs the same for any text: a run of '<' is not
 * slower than prose, which a search for '<' alone would make it. */
const char *parse_find(const char *p, const char *end)
{
    while (end - p > STRIDE) {
        bytes hit = begins(p) | begins(p + LANES) | begins(p + 2 * LANES) | begins(p + 3 * LANES);

        if (((words)hit)[0] | ((words)hit)[1])
            break;
        p += STRIDE;
    }
    for (; p < end; p++)
        if (*p == '<' && (p + 1 == end || p[1] == '/' || (uint8_t)p[1] == BAR))
            return p;
    return end;
}

/* After <｜DSML｜: letters, blanks and underscores, '>', a few blanks, an invoke. */
static enum parse_match match_misspelt(const char *start, const char *end, size_t *len)
{
    const char *p = start + parse_dsml_open.len, *name = p;
    enum parse_match match;

    while (p < end && p - name < MISSPELT_MAX &&
           ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || *p == '_' || *p == ' '))
        p++;
    if (p == end)
        return PARSE_PART;
    if (p == name || *p != '>')
        return PARSE_NO;
    p++;
    for (int i = 0; i < MISSPELT_BLANKS && p < end && parse_is_blank(*p); i++)
        p++;
    match = parse_match(p, end, &parse_invoke_named);
    *len = (size_t)(p - start) + parse_invoke_named.len;
    return match;
}

enum parse_match parse_match_opener(const char *p, const char *end, enum parse_opener *opener,
                                    size_t *len)
{
    enum parse_match dsml = parse_match(p, end, &parse_dsml_open), block, invoke, misspelt;

    if (dsml != PARSE_FULL)
        return dsml;
    block = parse_match(p, end, &parse_block_open);
    invoke = parse_match(p, end, &parse_invoke_named);
    *opener = block == PARSE_FULL ? PARSE_OPENS_BLOCK : PARSE_OPENS_INVOKE;
    *len = block == PARSE_FULL ? parse_block_open.len : parse_invoke_named.len;
    if (block == PARSE_FULL || invoke == PARSE_FULL)
        return PARSE_FULL;
    misspelt = match_misspelt(p, end, len);
    if (misspelt == PARSE_FULL)
        return PARSE_FULL;
    return block == PARSE_PART || invoke == PARSE_PART ? PARSE_PART : misspelt;
}
