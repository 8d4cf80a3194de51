/*
 * tokenizer_impl: what the files that make up the tokenizer share; not for its users.
 */
#ifndef BATON_COMMON_TEXT_TOKENIZER_IMPL_H
#define BATON_COMMON_TEXT_TOKENIZER_IMPL_H

#include "common/text/bpe.h"
#include "common/text/tokenizer.h"
#include "common/text/tokenizer_image.h"

/* Added tokens of one pass: matched leftmost, longest at that place. */
struct added_pass {
    const uint64_t *trie;
    bool starts[256];  /* bytes that one of them begins with */
    unsigned n_starts; /* how many those are */
    uint8_t first[2];  /* the least and the greatest of them */
};

struct tokenizer {
    struct image image;
    const struct image_meta *meta;
    const uint8_t *flags; /* [n_tokens] enum token_flag */
    struct bpe bpe;
    struct added_pass passes[2]; /* normalized: false, then true */
};

/** Points t at the tables of t->image and checks that no lookup can leave them. */
enum status_code tokenizer_bind(struct tokenizer *t, struct status *st);

#endif
