#include "common/text/prompt.h"

#include <stdio.h>
#include <stdlib.h>

void prompt_init(struct prompt *p)
{
    *p = (struct prompt){0};
}

void prompt_deinit(struct prompt *p)
{
    buf_deinit(&p->text);
    free(p->specials);
    prompt_init(p);
}

void prompt_clear(struct prompt *p)
{
    p->text.len = 0;
    p->n_specials = 0;
}

void prompt_append_special(struct prompt *p, int32_t id, const char *text, uint32_t len)
{
    if (p->n_specials == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 16;
        void *grown = realloc(p->specials, cap * sizeof(*p->specials));
        if (grown == NULL) { /* like buf: prompts are bounded before they are rendered */
            fprintf(stderr, "fatal: no memory for %zu special tokens of a prompt\n", cap);
            abort();
        }
        p->specials = grown;
        p->cap = cap;
    }
    p->specials[p->n_specials++] =
        (struct prompt_special){.offset = p->text.len, .id = id, .len = len};
    buf_append(&p->text, text, len);
}
