/*
 * tokenizer_parts: which small components of a tokenizer.json this tokenizer does.
 *
 * Whatever changes ids or text and is not done here is refused with its name, its value and what is
 * supported; a key that is not known too, since nobody can say what it changes.
 */
#ifndef BATON_COMMON_TEXT_TOKENIZER_PARTS_H
#define BATON_COMMON_TEXT_TOKENIZER_PARTS_H

#include "common/text/tokenizer_scan.h"

enum tokenizer_parts {
    TOKENIZER_TOP_PARTS,  /* version, truncation, padding, normalizer, pre_tokenizer, ... */
    TOKENIZER_MODEL_PARTS /* what stands in model beside vocab and merges */
};

/** Reads the value of a key (s stands behind the colon) and checks it. */
bool tokenizer_part_check(enum tokenizer_parts where, const char *key, size_t len, struct scan *s);

#endif
