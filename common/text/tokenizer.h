/*
 * tokenizer: text to V4 token ids and back, exactly as the released tokenizer.json says.
 *
 * Reads a Hugging Face tokenizer.json (ByteLevel BPE with V3/V4's pre-tokenizer family); a
 * component that is not supported is refused by name. The rules: tests/data/text/TOKENIZER.md.
 *
 * Threads   a struct tokenizer is read-only after tokenizer_open(); encoding uses a struct
 *           tokenizer_cache, one per thread.
 */
#ifndef BATON_COMMON_TEXT_TOKENIZER_H
#define BATON_COMMON_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/status.h"
#include "common/text/prompt.h"

struct tokenizer;
struct tokenizer_cache;

/* A growing list of ids; zero-initialise, token_list_deinit() at the end. */
struct token_list {
    int32_t *ids;
    size_t n, cap;
};
void token_list_push(struct token_list *l, int32_t id);
void token_list_deinit(struct token_list *l);

/**
 * @param path  tokenizer.json, or the directory that holds it
 * @return ST_OK; ST_INVALID naming what is missing, malformed or unsupported
 */
enum status_code tokenizer_open(const char *path, struct tokenizer **out, struct status *st);
void tokenizer_free(struct tokenizer *t);

/** Ids are 0 .. tokenizer_vocab() - 1. */
int32_t tokenizer_vocab(const struct tokenizer *t);

/** Bytes of the tables, which all threads share. */
size_t tokenizer_memory(const struct tokenizer *t);

/** The id of an added token by its exact text, or -1. */
int32_t tokenizer_added_id(const struct tokenizer *t, const char *text, size_t len);

/** A cache of words already encoded; cap_bytes bounds its memory (0: a default). */
enum status_code tokenizer_cache_new(size_t cap_bytes, struct tokenizer_cache **out,
                                     struct status *st);
void tokenizer_cache_free(struct tokenizer_cache *c);

/** Bytes of its memory, at most what tokenizer_cache_new() was given (or 64 KiB, the least). */
size_t tokenizer_cache_memory(const struct tokenizer_cache *c);

enum {
    TOKENIZE_ADDED = 1
}; /* recognise added tokens in the text; without it they are plain text */

/**
 * Appends the ids of text (valid UTF-8; invalid bytes are ST_INVALID with their offset).
 * @param cache  may be NULL
 */
enum status_code tokenizer_encode(const struct tokenizer *t, struct tokenizer_cache *cache,
                                  const char *text, size_t len, unsigned flags,
                                  struct token_list *out, struct status *st);

/**
 * Appends the ids of a rendered prompt: specials as their ids, each stretch of text between two of
 * them tokenized as one, with added tokens taken as plain text.
 * @param cache  may be NULL
 * @return ST_OK; ST_INVALID for invalid UTF-8, a special outside the text or out of order, an id
 *         outside the vocabulary, or (id -1) a spelling that is no added token
 */
enum status_code tokenizer_encode_prompt(const struct tokenizer *t, struct tokenizer_cache *cache,
                                         const struct prompt *p, struct token_list *out,
                                         struct status *st);

/** The bytes of one token (added tokens: their text); NULL for an id outside the vocabulary.
 * Borrowed. */
const char *tokenizer_bytes(const struct tokenizer *t, int32_t id, size_t *len, bool *is_added);

/*
 * detokenizer: incremental decoding, never half a code point (TOKENIZER.md, "Decoding").
 * Zero-initialise one per stream.
 */
struct detokenizer {
    unsigned char held[4]; /* a proper prefix of one UTF-8 character */
    unsigned n_held;
};

/** Appends to out the text that is decided after this token. ST_INVALID for an id outside
 * 0..vocab-1. */
enum status_code detokenizer_push(struct detokenizer *d, const struct tokenizer *t, int32_t id,
                                  struct buf *out, struct status *st);

/** Appends what the end of the stream decides: U+FFFD when a character was left unfinished. */
void detokenizer_finish(struct detokenizer *d, struct buf *out);

#endif
