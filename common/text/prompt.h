/*
 * prompt: a rendered prompt that knows which of its bytes are real special tokens.
 *
 * text is the whole prompt as the model's release encoder would print it; specials marks the byte
 * ranges that the renderer wrote as tokens. Everything between two specials came (or may have come)
 * from a client: it is tokenized with added tokens off, so text that only looks like a special
 * token cannot open a turn or a tool call (tests/data/text/ENCODING.md, section 10).
 *
 * Promises  specials ascend and do not overlap.
 * Lifetime  prompt_init() or zero-initialise, prompt_deinit() at the end.
 * Threads   one owner.
 */
#ifndef BATON_COMMON_TEXT_PROMPT_H
#define BATON_COMMON_TEXT_PROMPT_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"

struct prompt_special {
    size_t offset; /* first byte in text */
    int32_t id;    /* the token; -1: whichever added token spells these bytes */
    uint32_t len;  /* bytes */
};

struct prompt {
    struct buf text; /* UTF-8 */
    struct prompt_special *specials;
    size_t n_specials, cap;
};

/** Makes p empty. */
void prompt_init(struct prompt *p);

/** Frees the memory and zeroes the struct; it may be used again. */
void prompt_deinit(struct prompt *p);

/** Empties p and keeps its memory for the next prompt. */
void prompt_clear(struct prompt *p);

/** Appends text that is never a special token, whatever it spells. */
static inline void prompt_append_text(struct prompt *p, const char *text, size_t len)
{
    buf_append(&p->text, text, len);
}

/**
 * Appends a real special token.
 * @param text  how the token is spelled, [len] bytes
 * @param id    its id, or -1: the tokenizer looks its spelling up
 */
void prompt_append_special(struct prompt *p, int32_t id, const char *text, uint32_t len);

#endif
