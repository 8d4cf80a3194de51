/* buf: what is printed into it is what printf would print. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <limits.h>
#include <stdio.h>

#include "common/base/buf.h"

#define SAME(...)                                                                                  \
    do {                                                                                           \
        char want[512];                                                                            \
        struct buf got = {0};                                                                      \
                                                                                                   \
        snprintf(want, sizeof(want), __VA_ARGS__);                                                 \
        buf_puts(&got, "before ");                                                                 \
        buf_printf(&got, __VA_ARGS__);                                                             \
        assert_memory_equal(buf_cstr(&got), "before ", 7);                                         \
        assert_string_equal(buf_cstr(&got) + 7, want);                                             \
        buf_deinit(&got);                                                                          \
    } while (0)

static void numbers_and_texts_are_printed_as_by_printf(void **state)
{
    char longer[300];

    (void)state;
    memset(longer, 'x', sizeof(longer));
    longer[sizeof(longer) - 1] = '\0';
    SAME("%s", "");
    SAME("plain");
    SAME("%s and %s%%", "this", longer);
    SAME("%d %d %d %d", 0, -1, INT_MAX, INT_MIN);
    SAME("%ld %ld %lld %lld", LONG_MAX, LONG_MIN, LLONG_MAX, LLONG_MIN);
    SAME("%u %lu %llu %zu", UINT_MAX, ULONG_MAX, ULLONG_MAX, SIZE_MAX);
    SAME("%d%s%u", 1, "2", 3u);
}

/* libc goes on in the middle of the arguments. */
static void other_conversions_are_left_to_libc(void **state)
{
    char longer[300];

    (void)state;
    memset(longer, 'x', sizeof(longer));
    longer[sizeof(longer) - 1] = '\0';
    SAME("%s %d %.3f %s %llu", "a", 1, 2.5, "b", 3ull);
    SAME("%5d|%-5d|%05d|%+d|%x|%c", 1, 2, 3, 4, 255, 'c');
    SAME("%d %.*s %s", 7, 2, "abc", longer);
    SAME("%zu %zd %hhu %g", (size_t)1, (ssize_t)-1, 300, 1e-9);
    SAME("%s %016llx", longer, 0x1234ull);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_and_texts_are_printed_as_by_printf),
        cmocka_unit_test(other_conversions_are_left_to_libc),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
