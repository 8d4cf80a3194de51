/*
 * tokenizer_image: a tokenizer's tables, built in memory or mapped from a cache file.
 *
 * The tables are flat arrays without pointers, so that a file of them is a tokenizer: the first
 * process that reads a tokenizer.json leaves `tokenizer.json.baton` beside it, the next maps that.
 *
 *   offset  bytes
 *   0       8      "BATONTOK"
 *   8       4      IMAGE_VERSION
 *   12      4      0x01020304 in the machine's byte order
 *   16      8      bytes of the tokenizer.json it was made of
 *   24      4      CRC32C of that file
 *   28      4      CRC32C of everything from byte 32 on
 *   32      16 n   for each section: offset in the file, bytes
 *   ...            the sections, each at a multiple of 64
 *
 * Threads   start-up only; an image is constant afterwards.
 */
#ifndef BATON_COMMON_TEXT_TOKENIZER_IMAGE_H
#define BATON_COMMON_TEXT_TOKENIZER_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/base/status.h"

enum { IMAGE_VERSION = 4 };

enum image_section {
    IMAGE_META,         /* struct image_meta */
    IMAGE_OFFSETS,      /* u32 [n_tokens + 1] */
    IMAGE_BYTES,        /* the bytes of all tokens, by id */
    IMAGE_FLAGS,        /* u8 [n_tokens]: enum token_flag */
    IMAGE_BYTE_IDS,     /* u32 [256] */
    IMAGE_TOKENS,       /* struct bpe_token [n_tokens] */
    IMAGE_PREFIXES,     /* u32 [n_tokens] */
    IMAGE_MERGED,       /* u32 [n_merges] */
    IMAGE_PAIRS,        /* u64, a power of two */
    IMAGE_FILTER,       /* u64, a power of two */
    IMAGE_TRIE,         /* struct trie: tokens that encode to themselves; empty when not linear */
    IMAGE_ADDED_FIRST,  /* struct trie: added tokens with normalized: false */
    IMAGE_ADDED_SECOND, /* struct trie: the other added tokens */
    IMAGE_N_SECTIONS
};

enum token_flag {
    TOKEN_ADDED = 1,
    TOKEN_SPECIAL = 2,    /* added, and flagged special */
    TOKEN_CHARACTERS = 4, /* its bytes are whole UTF-8 characters */
};

struct image_meta {
    uint32_t n_tokens, n_merges;
    uint32_t n_added;
    uint32_t linear;
};

struct image {
    struct {
        void *data;
        size_t bytes;
    } sections[IMAGE_N_SECTIONS];
    void *mapping; /* NULL: each section is malloc'ed */
    size_t mapping_bytes;
};

void image_deinit(struct image *image);

/**
 * Maps the cache file that belongs to a tokenizer.json.
 * @param source  the contents of tokenizer.json
 * @return ST_OK; ST_UNAVAILABLE when there is none or it was made of another file or by another
 *         version; ST_CORRUPT when it is damaged. Whatever it is, building anew is the answer.
 */
enum status_code image_load(const char *cache_path, const void *source, size_t source_bytes,
                            struct image *out, struct status *st);

/**
 * Writes the cache file: into a file of its own, then renamed, so that a reader sees all or
 * nothing and of two writers one wins.
 * @param mode  who may read it: the permissions of the tokenizer.json
 * @return ST_OK; ST_UNAVAILABLE with the reason (a read-only directory, a full disk)
 */
enum status_code image_store(const char *cache_path, const void *source, size_t source_bytes,
                             mode_t mode, const struct image *image, struct status *st);

#endif
