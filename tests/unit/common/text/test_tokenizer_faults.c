/* Memory that runs out at every place where the tokenizer asks for it (linked with
 * --wrap=malloc,calloc). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/text/prefix_tokens.h"
#include "common/text/tokenizer_impl.h"
#include "common/text/tokenizer_json.h"
#include "tests/lib/toy_tokenizer.h"

/* The allocation with this number fails; -1: none. The trie's thread allocates too. */
static _Atomic int left = -1;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);

static bool fails(void)
{
    return left >= 0 && left-- == 0;
}

void *__wrap_malloc(size_t n)
{
    return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails() ? NULL : __real_calloc(n, size);
}

static void reading_tokenizer_json_reports_every_failure(void **state)
{
    struct tokenizer t = {.meta = NULL};
    struct buf file = {0};
    struct status st;
    int n = 0;

    (void)state;
    toy_tokenizer_json(&file, &(struct toy_tokenizer){.version = NULL});
    for (;; n++) {
        left = n;
        if (tokenizer_json_read(file.data, file.len, &t.image, &st) == ST_OK)
            break;
        assert_int_equal(st.code, ST_EXHAUSTED);
        assert_string_not_equal(st.msg, "");
    }
    left = -1;
    assert_true(n > 20);
    assert_int_equal(tokenizer_bind(&t, &st), ST_OK);
    image_deinit(&t.image);
    buf_deinit(&file);
}

static void remembering_prompts_gives_the_ids_or_a_failure(void **state)
{
    struct tokenizer t = {.meta = NULL};
    struct prompt p = {0};
    struct token_list plain = {0};
    struct buf file = {0};
    struct status st;
    int n = 0;

    (void)state;
    toy_tokenizer_json(&file, &(struct toy_tokenizer){.version = NULL});
    assert_int_equal(tokenizer_json_read(file.data, file.len, &t.image, &st), ST_OK);
    assert_int_equal(tokenizer_bind(&t, &st), ST_OK);
    for (int i = 0; i < 3; i++) {
        prompt_append_special(&p, 261, "<s>", 3);
        for (int k = 0; k < 1000; k++)
            prompt_append_text(&p, "abc the ", 8);
    }
    assert_int_equal(tokenizer_encode_prompt(&t, NULL, &p, &plain, &st), ST_OK);
    for (bool through = false; !through; n++) {
        struct prefix_tokens *c = NULL;
        struct tokenizer_cache *words = NULL;
        struct token_list ids = {0};
        left = n;
        if (prefix_tokens_new(&t, 0, &c, &st) == ST_OK &&
            tokenizer_cache_new(0, &words, &st) == ST_OK &&
            prefix_tokens_encode(c, words, &p, &ids, NULL, &st) == ST_OK) {
            through = left >= 0; /* nothing failed; what is only not remembered is no failure */
            assert_int_equal(ids.n, plain.n);
            assert_memory_equal(ids.ids, plain.ids, ids.n * sizeof(*ids.ids));
        } else {
            assert_int_equal(st.code, ST_EXHAUSTED);
            assert_int_equal(ids.n, 0);
        }
        left = -1;
        token_list_deinit(&ids);
        tokenizer_cache_free(words);
        prefix_tokens_free(c);
    }
    assert_true(n > 5);
    token_list_deinit(&plain);
    prompt_deinit(&p);
    image_deinit(&t.image);
    buf_deinit(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reading_tokenizer_json_reports_every_failure),
        cmocka_unit_test(remembering_prompts_gives_the_ids_or_a_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
