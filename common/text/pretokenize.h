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
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "common/text/unicode.h"

/* The patterns, as tokenizer.json spells them. */
extern const char *const pretokenize_patterns[3];

/* How many of the 16 bytes at s are A-Z, a-z before the first that is not. */
static inline unsigned ascii_letters(const uint8_t *s)
{
#ifdef __SSE2__
    __m128i folded = _mm_or_si128(_mm_loadu_si128((const void *)s), _mm_set1_epi8(0x20));
    /* 'a'..'z' become -128..-103, everything else is above */
    __m128i moved = _mm_add_epi8(folded, _mm_set1_epi8((char)(0x80 - 'a')));
    unsigned other = (unsigned)_mm_movemask_epi8(_mm_cmpgt_epi8(moved, _mm_set1_epi8(-103)));
    return (unsigned)__builtin_ctz(other | 0x10000);
#else
    unsigned i = 0;
    while (i < 16 && (uint8_t)((s[i] | 0x20) - 'a') < 26)
        i++;
    return i;
#endif
}

/* pretokenize_next() for every kind of piece. */
size_t pretokenize_any(const uint8_t *s, size_t n, size_t pos);

/**
 * Where the piece that begins at pos ends.
 * @param s    [n] bytes of valid UTF-8, one stretch between added tokens
 * @param pos  < n, 0 or an earlier result for the same s
 *
 * Inline: the commonest piece, up to 15 ASCII letters behind at most one character that is none.
 * It ends where an ASCII character stands that is no letter; behind a punctuation mark, where
 * anything stands that is no ASCII letter.
 */
static inline size_t pretokenize_next(const uint8_t *s, size_t n, size_t pos)
{
    enum { NOT_BEFORE_WORD = UNICODE_NUMBER | UNICODE_NEWLINE };
    uint8_t class;
    size_t word;
    unsigned k;

    if (n - pos < 18 || s[pos] >= 0x80)
        return pretokenize_any(s, n, pos);
    class = unicode_classes[0][s[pos]];
    word = pos + !(class & UNICODE_LETTER);
    k = ascii_letters(s + word);
    if (k == 0 || k == 16 || (class & NOT_BEFORE_WORD) ||
        (s[word + k] >= 0x80 && !(class & UNICODE_SYMBOL)))
        return pretokenize_any(s, n, pos);
    return word + k;
}

#endif
