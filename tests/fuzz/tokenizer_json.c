/* Fuzzes the reader of tokenizer.json: any bytes are refused with a reason or give tables that a
 * text can be encoded with, in both ways alike. An input that begins with '+' is put in place of a
 * part of a good file (the next byte says which), so that the fuzzer need not find a vocabulary. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/text/tokenizer_impl.h"
#include "common/text/tokenizer_json.h"
#include "tests/lib/toy_tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void put_part(struct toy_tokenizer *toy, uint8_t which, const char *text)
{
    const char **parts[] = {&toy->version,       &toy->truncation,     &toy->padding,
                            &toy->added,         &toy->normalizer,     &toy->split,
                            &toy->pre_tokenizer, &toy->post_processor, &toy->decoder,
                            &toy->model,         &toy->vocab_tail,     &toy->merges,
                            &toy->more};

    toy->merges_first = which & 0x80;
    *parts[(which & 0x7F) % (sizeof(parts) / sizeof(*parts))] = text;
}

static void use(struct tokenizer *t)
{
    static const char text[] = "abcab the \"\" <s><abc> \xE4\xB8\xAD\xE6\x96\x87 123";
    struct bpe_scratch scratch = {0};
    uint32_t one[sizeof(text)], other[sizeof(text)];
    struct token_list ids = {0};
    struct detokenizer d = {.n_held = 0};
    struct buf out = {0};
    struct status st;
    size_t n, m;

    if (tokenizer_bind(t, &st) != ST_OK)
        abort();
    if (tokenizer_encode(t, NULL, text, sizeof(text) - 1, TOKENIZE_ADDED, &ids, &st) != ST_OK)
        abort();
    for (size_t i = 0; i < ids.n; i++)
        if (detokenizer_push(&d, t, ids.ids[i], &out, &st) != ST_OK)
            abort();
    if (out.len != sizeof(text) - 1 || memcmp(out.data, text, out.len) != 0)
        abort();
    bpe_encode(&t->bpe, &scratch, (const uint8_t *)text, 9, one, &n, &st);
    bpe_encode_by_merging(&t->bpe, &scratch, (const uint8_t *)text, 9, other, &m, &st);
    if (n != m || memcmp(one, other, n * sizeof(*one)) != 0)
        abort();
    bpe_scratch_deinit(&scratch);
    token_list_deinit(&ids);
    buf_deinit(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tokenizer t = {.meta = NULL};
    struct toy_tokenizer toy = {.version = NULL};
    struct buf file = {0};
    struct status st;
    char *text;

    if (size > 1 && data[0] == '+') {
        char *part = malloc(size - 1);
        memcpy(part, data + 2, size - 2);
        part[size - 2] = '\0';
        put_part(&toy, data[1], part);
        toy_tokenizer_json(&file, &toy);
        free(part);
    } else {
        buf_append(&file, data, size);
    }
    text = malloc(file.len ? file.len : 1); /* exactly as long as said */
    if (file.len > 0)
        memcpy(text, file.data, file.len);
    if (tokenizer_json_read(text, file.len, &t.image, &st) == ST_OK)
        use(&t);
    else if (st.code != ST_INVALID || st.msg[0] == '\0')
        abort();
    image_deinit(&t.image);
    buf_deinit(&file);
    free(text);
    return 0;
}
