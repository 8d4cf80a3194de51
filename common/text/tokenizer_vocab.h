/*
 * tokenizer_vocab: model.vocab and model.merges of a tokenizer.json, read straight from its text.
 *
 * Threads   start-up only.
 */
#ifndef BATON_COMMON_TEXT_TOKENIZER_VOCAB_H
#define BATON_COMMON_TEXT_TOKENIZER_VOCAB_H

#include "common/text/bpe_build.h"
#include "common/text/tokenizer_scan.h"

#define VOCAB_NOWHERE UINT32_MAX

enum { VOCAB_MAX_STRING = 1 << 20 };

/* A token while the file is read; pos VOCAB_NOWHERE: no token has this id yet. Eight bytes: looking
 * 380,000 strings up waits for memory most of the time. */
struct vocab_token {
    uint32_t pos; /* of its bytes in vocab.bytes */
    uint32_t len : 24;
    uint32_t flags : 3;      /* enum token_flag */
    uint32_t in_vocab : 1;   /* listed in model.vocab */
    uint32_t byte_level : 1; /* spelled in byte-level characters, so that BPE may make it */
    uint32_t normalized : 1; /* added tokens: for the second pass */
};

struct vocab {
    uint8_t *bytes; /* the file's length is room enough: nothing is longer decoded than written */
    size_t n_bytes;
    struct vocab_token *tokens; /* by id */
    uint32_t n, cap;            /* ids below n were seen */
    uint64_t *index;            /* byte-level strings by their hash: its upper half | id + 1 */
    uint64_t index_mask;
    struct bpe_merge *merges; /* [n_merges] by rank */
    uint32_t n_merges, merges_cap;
};

/** @param file_bytes  the length of the file that will be read: bounds what is kept of it */
enum status_code vocab_init(struct vocab *v, size_t file_bytes, struct status *st);
void vocab_deinit(struct vocab *v);

/** The entry of an id below BPE_MAX_TOKENS, made when it is new; NULL when memory is out. */
struct vocab_token *vocab_at(struct vocab *v, uint32_t id);

/** Appends bytes to v->bytes; returns where they stand. */
uint32_t vocab_put(struct vocab *v, const char *bytes, size_t len);

/** The value of model.vocab: {"string": id, ...}. */
bool vocab_read(struct scan *s, struct vocab *v);

/** The value of model.merges, after the vocabulary: ["left right", ...] or [["left", "right"],
 * ...]. */
bool vocab_read_merges(struct scan *s, struct vocab *v);

/** True when model.vocab has this string, spelled in byte-level characters. */
bool vocab_has(struct vocab *v, const char *text, size_t len);

/** The id of the byte-level token of one byte, or BPE_NONE; after vocab_read(). */
uint32_t vocab_find_byte(const struct vocab *v, uint8_t byte);

#endif
