/*
 * pcre2_split: the pre-tokenizer by PCRE2, with the same three regexes: a second opinion.
 */
#ifndef BATON_TESTS_LIB_PCRE2_SPLIT_H
#define BATON_TESTS_LIB_PCRE2_SPLIT_H

#include <stddef.h>

struct pcre2_split;

struct pcre2_split *pcre2_split_new(void);
void pcre2_split_free(struct pcre2_split *s);

/**
 * @param text  [n] bytes of valid UTF-8
 * @param ends  out, room for n: where each piece ends
 * @return how many pieces
 */
size_t pcre2_split_ends(const struct pcre2_split *s, const char *text, size_t n, size_t *ends);

#endif
