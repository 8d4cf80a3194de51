/* Allocation after allocation fails until the call passes: each time a clear status, nothing
 * written, nothing leaked. Linked with --wrap for malloc and realloc. */
#include "common/base/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static int n_until_failure; /* 0: never */

void *__real_malloc(size_t n);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_realloc(void *p, size_t n);

static int fails(void)
{
    return n_until_failure > 0 && --n_until_failure == 0;
}

void *__wrap_malloc(size_t n)
{
    return fails() ? NULL : __real_malloc(n);
}

void *__wrap_realloc(void *p, size_t n)
{
    return fails() ? NULL : __real_realloc(p, n);
}

static void a_document_fails_cleanly_wherever_memory_runs_out(void **state)
{
    struct buf text = {0};
    int n_failed = 0;

    (void)state;
    buf_puts(&text, "[{");
    for (int i = 0; i < 200; i++)
        buf_printf(&text, "%s\"key %d\": [[[\"some text\", %d]]]", i > 0 ? "," : "", i, i);
    buf_puts(&text, "}, ");
    for (int i = 0; i < 100; i++)
        buf_puts(&text, "[");
    for (int i = 0; i < 101; i++)
        buf_puts(&text, "]");
    for (int n = 1;; n++) {
        struct json_doc *doc = (void *)0x1;
        struct status st = {0};
        enum status_code rc;

        n_until_failure = n;
        rc = json_parse(text.data, text.len, 0, &doc, &st);
        if (rc == ST_OK) {
            n_until_failure = 0;
            json_free(doc);
            break;
        }
        assert_int_equal(rc, ST_EXHAUSTED);
        assert_int_equal(n_until_failure, 0);
        assert_ptr_equal(doc, (void *)0x1);
        assert_non_null(strstr(st.msg, "no memory"));
        n_failed++;
    }
    assert_true(n_failed > 5);
    buf_deinit(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_document_fails_cleanly_wherever_memory_runs_out),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
