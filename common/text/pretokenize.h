/*
 * pretokenize: cuts text into the pieces that BPE works on, as V3/V4's three regexes do.
 *
 * The splits, each applied to every piece of the one before, unmatched runs being pieces as well:
 *
 *   1. \p{N}{1,3}
 *   2. [U+4E00-9FA5 U+3040-309F U+30A0-30FF]+
 *   3. [ASCII punctuation][A-Za-z]+ | [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+
 *      | ?[\p{P}\p{S}]+[\r\n]* | \s*[\r\n]+ | \s+(?!\S) | \s+
 *
 * They come out in one pass: to the third split, a number or the border of a CJK run is the end of
 * the text. Cost is linear in the bytes, whatever they are.
 *
 * Threads   any.
 */
#ifndef BATON_COMMON_TEXT_PRETOKENIZE_H
#define BATON_COMMON_TEXT_PRETOKENIZE_H

#include <stddef.h>
#include <stdint.h>

/* The patterns, as tokenizer.json spells them. */
extern const char *const pretokenize_patterns[3];

/**
 * Where the piece that begins at pos ends.
 * @param s    [n] bytes of valid UTF-8, one stretch between added tokens
 * @param pos  < n, 0 or an earlier result for the same s
 */
size_t pretokenize_next(const uint8_t *s, size_t n, size_t pos);

#endif
