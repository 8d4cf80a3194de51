/*
 * toy_tokenizer: writes a small tokenizer.json, whole or with one part replaced.
 *
 * 256 bytes (their ids are the bytes), five merges (256-260: ab, abc, " t", " th", two quotes), the
 * added tokens <s> (261), <ab, <abc>, b<s (262-264, normalized) and <s><s> (265).
 */
#ifndef BATON_TESTS_LIB_TOY_TOKENIZER_H
#define BATON_TESTS_LIB_TOY_TOKENIZER_H

#include <stdbool.h>

#include "common/base/buf.h"

/* JSON texts; a part that is not NULL replaces the usual one. */
struct toy_tokenizer {
    const char *version, *truncation, *padding, *added, *normalizer, *pre_tokenizer,
        *post_processor, *decoder;
    const char *model;      /* members before vocab and merges */
    const char *vocab_tail; /* entries behind the bytes */
    const char *merges;
    const char *more;  /* members before model */
    const char *split; /* members of each Split behind its pattern */
    bool merges_first;
};

#define TOY_ADDED(id, content, normalized, special)                                                \
    "{\"id\": " #id ", \"content\": \"" content "\", \"single_word\": false, \"lstrip\": false, "  \
    "\"rstrip\": false, \"normalized\": " #normalized ", \"special\": " #special "}"

/** Replaces the contents of b by the file. */
void toy_tokenizer_json(struct buf *b, const struct toy_tokenizer *t);

#endif
