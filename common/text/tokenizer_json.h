/*
 * tokenizer_json: reads a Hugging Face tokenizer.json into the tables of tokenizer_image.h.
 *
 * The vocabulary and the merges are most of the file and are read straight into the tables; the
 * small parts go through common/base/json.h. Every part that changes ids is checked: what this
 * tokenizer does not do is refused with its name and value.
 */
#ifndef BATON_COMMON_TEXT_TOKENIZER_JSON_H
#define BATON_COMMON_TEXT_TOKENIZER_JSON_H

#include "common/text/tokenizer_image.h"

/**
 * @param text  [len] the file
 * @param out   image_deinit() it
 * @return ST_OK; ST_INVALID with the place (key, byte offset, token or merge), what was found and
 *         what is supported; ST_EXHAUSTED
 */
enum status_code tokenizer_json_read(const char *text, size_t len, struct image *out,
                                     struct status *st);

#endif
