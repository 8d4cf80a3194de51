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
    struct trie trie;
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

/** Makes room for n more ids; false when memory is out. */
bool token_list_reserve(struct token_list *l, size_t n);

/**
 * tokenizer_encode_prompt() from behind the first `first` specials on.
 * @param marks  out, may be NULL, [n_specials]: out->n behind special i, for i >= first
 */
enum status_code tokenizer_encode_prompt_from(const struct tokenizer *t,
                                              struct tokenizer_cache *cache, const struct prompt *p,
                                              size_t first, size_t *marks, struct token_list *out,
                                              struct status *st);

#endif
