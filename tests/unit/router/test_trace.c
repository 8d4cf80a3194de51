/* W3C trace context, good and bad. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "router/trace.h"

static const char good[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

static void a_trace_goes_on_with_a_span_of_its_own(void **state)
{
    struct trace_context t, u;
    char out[TRACE_PARENT_LEN + 1];

    (void)state;
    trace_begin(&t, good, strlen(good), false);
    assert_true(t.has_parent && t.sampled);
    trace_parent(&t, out);
    assert_int_equal(strlen(out), TRACE_PARENT_LEN);
    assert_memory_equal(out, good, 36);
    assert_memory_not_equal(out + 36, good + 36, 16);
    assert_string_equal(out + 52, "-01");
    trace_begin(&u, out, strlen(out), false);
    assert_memory_equal(u.trace_id, t.trace_id, 16);
    assert_memory_equal(u.parent_id, t.span_id, 8);
}

static void anything_malformed_begins_a_new_trace(void **state)
{
    static const char *const bad[] = {
        "",
        "00",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "0g-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319cxb7ad6b7169203331-01",
        "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
    };
    struct trace_context t;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        trace_begin(&t, bad[i], strlen(bad[i]), true);
        assert_false(t.has_parent);
        assert_true(t.sampled);
        assert_memory_not_equal(t.trace_id, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16);
    }
    trace_begin(&t, NULL, 0, false);
    assert_false(t.sampled);
}

static void later_versions_are_read_as_far_as_known(void **state)
{
    char later[] = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more";
    struct trace_context t;

    (void)state;
    trace_begin(&t, later, strlen(later), true);
    assert_true(t.has_parent);
    assert_false(t.sampled);
}

static void endpoints_are_checked(void **state)
{
    static const char *const bad[] = {"",          "x",           "https://h:1",
                                      "http://",   "http://h",    "http://:1",
                                      "http://h:", "http://h:/p", "http://h:1/a b"};
    struct trace_exporter *e;
    struct status st;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(trace_exporter_start(bad[i], &e, &st), ST_INVALID);
    assert_int_equal(trace_exporter_start("http://127.0.0.1:9", &e, &st), ST_OK);
    trace_exporter_stop(e);
    trace_exporter_stop(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_trace_goes_on_with_a_span_of_its_own),
        cmocka_unit_test(anything_malformed_begins_a_new_trace),
        cmocka_unit_test(later_versions_are_read_as_far_as_known),
        cmocka_unit_test(endpoints_are_checked),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
