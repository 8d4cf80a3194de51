/* The HTTP parser: what it takes, what it refuses, and that neither depends on how bytes are cut.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/http_parser.h"

#define GET "GET / HTTP/1.1\r\n"
#define POST "POST /x HTTP/1.1\r\nHost: a\r\n"
#define CHUNKED POST "Transfer-Encoding: chunked\r\n\r\n"

static const struct http_limits limits = {.head_bytes_max = 1024, .body_bytes_max = 100};

struct outcome {
    enum http_event event;
    int http;
    const char *error;
    size_t consumed;
    size_t n_heads;
};

/* Feeds s in pieces of `step` bytes until something final happens. */
static struct outcome feed(struct http_parser *p, const char *s, size_t len, size_t step)
{
    struct outcome o = {.event = HTTP_MORE};

    while (o.event != HTTP_DONE && o.event != HTTP_BAD) {
        size_t n = len - o.consumed < step ? len - o.consumed : step, used;
        /* A fresh copy, so that the sanitizers see a read past the piece. */
        char *piece = malloc(n + 1);

        memcpy(piece, s + o.consumed, n);
        o.event = http_parser_feed(p, piece, n, &used);
        free(piece);
        assert_true(used <= n);
        o.consumed += used;
        o.n_heads += o.event == HTTP_HEAD_DONE;
        if (o.event == HTTP_MORE && o.consumed == len)
            break;
    }
    o.http = p->error_http;
    o.error = p->error;
    return o;
}

static void refusals_do_not_depend_on_how_the_bytes_are_cut(void **state)
{
#define SHAPE(text, http)                                                                          \
    {                                                                                              \
        text, sizeof(text) - 1, http                                                               \
    }
    static const struct {
        const char *bytes;
        size_t len;
        int http;
    } table[] = {
        /* two lengths for one body */
        SHAPE(POST "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        SHAPE(POST "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400),
        SHAPE(POST "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        SHAPE(POST "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
        SHAPE(POST "Content-Length: 3, 3\r\n\r\nabc", 400),
        SHAPE(POST "Content-Length: +3\r\n\r\nabc", 400),
        SHAPE(POST "Content-Length: -3\r\n\r\nabc", 400),
        SHAPE(POST "Content-Length: 0x3\r\n\r\nabc", 400),
        SHAPE(POST "Content-Length: 3 3\r\n\r\nabc", 400),
        SHAPE(POST "Content-Length:\r\n\r\n", 400),
        SHAPE(POST "Content-Length: 99999999999999999999\r\n\r\n", 400),
        SHAPE(POST "Content-Length: 101\r\n\r\n", 413),
        SHAPE(POST "Content-Length: 9999999999999999999\r\n\r\n", 413),
        /* transfer codings */
        SHAPE(POST "Transfer-Encoding: xchunked\r\n\r\n", 501),
        SHAPE(POST "Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        SHAPE(POST "Transfer-Encoding: chunked, chunked\r\n\r\n", 501),
        SHAPE(POST "Transfer-Encoding: identity\r\n\r\n", 501),
        SHAPE(POST "Transfer-Encoding:\r\n\r\n", 501),
        SHAPE(POST "Transfer-Encoding: \x0b"
                   "chunked\r\n\r\n",
              400),
        SHAPE(POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        SHAPE(POST "Transfer-Encoding : chunked\r\n\r\n", 400),
        SHAPE(POST "Transfer-Encoding\t: chunked\r\n\r\n", 400),
        SHAPE("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        /* header lines */
        SHAPE(POST " folded: yes\r\n\r\n", 400),
        SHAPE(POST "X: a\r\n b\r\n\r\n", 400),
        SHAPE(POST "X: a\r\n\tb\r\n\r\n", 400),
        SHAPE(POST "X: a\n\r\n", 400),
        SHAPE(POST "X: a\r\n\n", 400),
        SHAPE(POST "X: a\rb\r\n\r\n", 400),
        SHAPE(POST "X: a\r\r\n\r\n", 400),
        SHAPE(POST "X: a\0b\r\n\r\n", 400),
        SHAPE(POST "X: a\x01\r\n\r\n", 400),
        SHAPE(POST "X: a\x7f\r\n\r\n", 400),
        SHAPE(POST "X\x80: a\r\n\r\n", 400),
        SHAPE(POST ": a\r\n\r\n", 400),
        SHAPE(POST "novalue\r\n\r\n", 400),
        SHAPE(POST "a b: c\r\n\r\n", 400),
        SHAPE(GET "\r\n", 400), /* no Host */
        SHAPE(GET "Host: a\r\nHost: a\r\n\r\n", 400),
        SHAPE(GET "Host: a, b\r\n\r\n", 400),
        SHAPE(GET "Host: a/b\r\n\r\n", 400),
        SHAPE(GET "Host: a b\r\n\r\n", 400),
        SHAPE(POST "Expect: 200-maybe\r\n\r\n", 417),
        /* request lines */
        SHAPE("\r\n\r\n" GET "Host: a\r\n\r\n", 400),
        SHAPE("\n" GET "Host: a\r\n\r\n", 400),
        SHAPE("GET / HTTP/1.1\n", 400),
        SHAPE("GET  / HTTP/1.1\r\n", 400),
        SHAPE("GET / HTTP/1.1 \r\n", 400),
        SHAPE("GET /\r\n", 400),
        SHAPE("GET\r\n", 400),
        SHAPE(" GET / HTTP/1.1\r\n", 400),
        SHAPE("G\x01T / HTTP/1.1\r\n", 400),
        SHAPE("GET / http/1.1\r\n", 400),
        SHAPE("GET / HTTP/1.1x\r\n", 400),
        SHAPE("GET / HTTP/11.1\r\n", 400),
        SHAPE("GET / HTTP/2.0\r\n", 505),
        SHAPE("GET / HTTP/1.2\r\n", 505),
        SHAPE("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        SHAPE("BREW / HTTP/1.1\r\n", 501),
        SHAPE("get / HTTP/1.1\r\n", 501),
        SHAPE("GET x HTTP/1.1\r\n", 400),
        SHAPE("GET * HTTP/1.1\r\n", 400),
        SHAPE("GET http:///x HTTP/1.1\r\n", 400),
        SHAPE("GET /a#b HTTP/1.1\r\n", 400),
        SHAPE("GET /\xc3\xa9 HTTP/1.1\r\n", 400),
        SHAPE("GET /%00 HTTP/1.1\r\n", 400),
        SHAPE("GET /%0d%0a HTTP/1.1\r\n", 400),
        SHAPE("GET /%zz HTTP/1.1\r\n", 400),
        SHAPE("GET /%4 HTTP/1.1\r\n", 400),
        SHAPE("GET /% HTTP/1.1\r\n", 400),
        SHAPE("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", 400), /* TLS to a plain port */
        /* chunks */
        SHAPE(CHUNKED "0x3\r\nabc\r\n0\r\n\r\n", 400),
        SHAPE(CHUNKED "+3\r\nabc\r\n0\r\n\r\n", 400),
        SHAPE(CHUNKED "-1\r\n", 400),
        SHAPE(CHUNKED " 3\r\nabc\r\n0\r\n\r\n", 400),
        SHAPE(CHUNKED "3 \r\nabc\r\n0\r\n\r\n", 400),
        SHAPE(CHUNKED "\r\n", 400),
        SHAPE(CHUNKED "g\r\n", 400),
        SHAPE(CHUNKED "3\nabc\r\n", 400),
        SHAPE(CHUNKED "3\r\nabcd\r\n", 400),
        SHAPE(CHUNKED "3\r\nabc\n", 400),
        SHAPE(CHUNKED "3\r\nabc\rX", 400),
        SHAPE(CHUNKED "65\r\n", 413),
        SHAPE(CHUNKED "60\r\n", 0), /* 96 of 100: fine so far */
        SHAPE(CHUNKED "fffffffffffffff\r\n", 413),
        SHAPE(CHUNKED "ffffffffffffffff\r\n", 400),
        SHAPE(CHUNKED "00000000000000003\r\n", 400),
        SHAPE(CHUNKED "3;a=\x01\r\n", 400),
        SHAPE(CHUNKED "0\r\nbad\r\n\r\n", 400),
        SHAPE(CHUNKED "0\r\n folded: x\r\n\r\n", 400),
    };

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        struct outcome whole = {0};

        for (size_t step = table[i].len; step > 0; step = step == 7   ? 3
                                                          : step == 3 ? 1
                                                          : step == 1 ? 0
                                                                      : 7) {
            struct http_parser p;
            struct outcome o;
            size_t used;

            http_parser_init(&p, &limits);
            o = feed(&p, table[i].bytes, table[i].len, step);
            if (o.http != table[i].http)
                fail_msg("shape %zu, step %zu: %d (%s), expected %d:\n%s", i, step, o.http,
                         o.error == NULL ? "taken" : o.error, table[i].http, table[i].bytes);
            if (step == table[i].len)
                whole = o;
            assert_int_equal(o.event, whole.event);
            assert_int_equal(o.consumed, whole.consumed);
            assert_ptr_equal(o.error, whole.error);
            if (o.event == HTTP_BAD) { /* and stays refused */
                assert_int_equal(http_parser_feed(&p, GET, sizeof(GET) - 1, &used), HTTP_BAD);
                assert_int_equal(used, 0);
            }
            http_parser_deinit(&p);
        }
    }
}

static void takes_good_requests_in_any_pieces(void **state)
{
    static const struct {
        const char *bytes, *path, *query, *body;
        enum http_method method;
        bool keep_alive, expect;
    } table[] = {
        {GET "Host: a\r\n\r\n", "/", "", "", HTTP_GET, true, false},
        {"\r\n" GET "Host: a\r\n\r\n", "/", "", "", HTTP_GET, true, false},
        {GET "Host:\r\n\r\n", "/", "", "", HTTP_GET, true, false},
        {GET "Host: [::1]:8000\r\n\r\n", "/", "", "", HTTP_GET, true, false},
        {GET "Host: a\r\nConnection: foo, Close\r\n\r\n", "/", "", "", HTTP_GET, false, false},
        {"GET / HTTP/1.0\r\n\r\n", "/", "", "", HTTP_GET, false, false},
        {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "/", "", "", HTTP_GET, true, false},
        {"GET /v1/models/a%2Fb%20c?x=%41&y HTTP/1.1\r\nHost: a\r\n\r\n", "/v1/models/a/b c",
         "x=%41&y", "", HTTP_GET, true, false},
        {"GET http://h:80/a?b HTTP/1.1\r\nHost: a\r\n\r\n", "/a", "b", "", HTTP_GET, true, false},
        {"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "*", "", "", HTTP_OPTIONS, true, false},
        {"DELETE /x HTTP/1.1\r\nhOsT:a\r\n\r\n", "/x", "", "", HTTP_DELETE, true, false},
        {POST "Content-Length: 3\r\n\r\nabc", "/x", "", "abc", HTTP_POST, true, false},
        {POST "Content-Length:\t0003 \r\n\r\nabc", "/x", "", "abc", HTTP_POST, true, false},
        {POST "Content-Length: 0\r\nExpect: 100-continue\r\n\r\n", "/x", "", "", HTTP_POST, true,
         false},
        {POST "Content-Length: 3\r\nExpect: 100-Continue\r\n\r\nabc", "/x", "", "abc", HTTP_POST,
         true, true},
        {CHUNKED "0\r\n\r\n", "/x", "", "", HTTP_POST, true, false},
        {CHUNKED "3\r\nabc\r\n00A;ext=\"x\"\r\n0123456789\r\n0\r\nTrailer: yes\r\n\r\n", "/x", "",
         "abc0123456789", HTTP_POST, true, false},
        {CHUNKED "1\r\na\r\n1\r\n\r\r\n1\r\n\n\r\n0\r\n\r\n", "/x", "", "a\r\n", HTTP_POST, true,
         false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        for (size_t step = 1; step < 200; step++) {
            struct http_parser p;
            struct outcome o;

            http_parser_init(&p, &limits);
            assert_true(http_parser_is_idle(&p));
            o = feed(&p, table[i].bytes, strlen(table[i].bytes), step);
            if (o.event != HTTP_DONE)
                fail_msg("request %zu, step %zu: event %d, %s", i, step, o.event, o.error);
            assert_int_equal(o.consumed, strlen(table[i].bytes));
            assert_int_equal(o.n_heads, 1);
            assert_string_equal(p.req.path.data, table[i].path);
            assert_string_equal(p.req.query.data, table[i].query);
            assert_int_equal(p.req.body.len, strlen(table[i].body));
            assert_string_equal(p.req.body.data, table[i].body);
            assert_int_equal(p.req.method, table[i].method);
            assert_int_equal(p.req.keep_alive, table[i].keep_alive);
            assert_int_equal(p.req.expect_continue, table[i].expect);
            http_parser_deinit(&p);
        }
}

static void pipelined_requests_come_one_by_one(void **state)
{
    static const char bytes[] =
        CHUNKED "2\r\nhi\r\n0\r\n\r\n" GET "Host: b\r\n\r\n" POST "Content-Length: 1\r\n\r\nxGET";
    static const char *const bodies[] = {"hi", "", "x"};
    size_t at = 0;
    struct http_parser p;

    (void)state;
    http_parser_init(&p, &limits);
    for (int i = 0; i < 3; i++) {
        struct outcome o = feed(&p, bytes + at, sizeof(bytes) - 1 - at, 1000);
        size_t n;

        assert_int_equal(o.event, HTTP_DONE);
        assert_string_equal(p.req.body.data, bodies[i]);
        assert_non_null(http_request_header(&p.req, "HOST", &n));
        assert_int_equal(n, 1);
        at += o.consumed;
        http_parser_reset(&p);
        assert_true(http_parser_is_idle(&p));
    }
    assert_int_equal(feed(&p, bytes + at, sizeof(bytes) - 1 - at, 1000).event, HTTP_MORE);
    assert_false(http_parser_is_idle(&p));
    http_parser_deinit(&p);
}

static void headers_are_found_without_case_and_stripped(void **state)
{
    static const char bytes[] =
        GET "Host: a\r\nX-Request-Id: \t abc d \t\r\nX-Empty:\r\nx-utf: \xc3\xa9\r\n\r\n";
    struct http_parser p;
    const char *v;
    size_t n;

    (void)state;
    http_parser_init(&p, &limits);
    assert_int_equal(feed(&p, bytes, sizeof(bytes) - 1, 1000).event, HTTP_DONE);
    v = http_request_header(&p.req, "x-request-ID", &n);
    assert_int_equal(n, 5);
    assert_memory_equal(v, "abc d", 5);
    assert_non_null(http_request_header(&p.req, "x-empty", &n));
    assert_int_equal(n, 0);
    assert_non_null(http_request_header(&p.req, "x-utf", &n));
    assert_null(http_request_header(&p.req, "x-none", &n));
    http_parser_deinit(&p);
}

/* Bytes that a generator makes without end: the parser must refuse them within its bounds. */
static int endless(const char *start, const char *repeat)
{
    struct http_parser p;
    size_t used;
    int http = 0;
    enum http_event ev;

    http_parser_init(&p, &limits);
    ev = http_parser_feed(&p, start, strlen(start), &used);
    if (ev == HTTP_HEAD_DONE)
        ev = http_parser_feed(&p, start + used, strlen(start) - used, &used);
    for (int i = 0; i < 100000 && ev == HTTP_MORE; i++)
        ev = http_parser_feed(&p, repeat, strlen(repeat), &used);
    if (ev == HTTP_BAD)
        http = p.error_http;
    assert_true(p.req.head.cap < 4096);
    http_parser_deinit(&p);
    return http;
}

static void endless_input_is_refused_within_bounds(void **state)
{
    (void)state;
    assert_int_equal(endless("GET /", "aaaa"), 431);
    assert_int_equal(endless(GET "X: ", "aaaa"), 431);
    assert_int_equal(endless(GET, "x: y\r\n"), 431);
    assert_int_equal(endless(GET, "a:\r\n"), 431);
    assert_int_equal(endless(CHUNKED "1;", "aaaa"), 400);
    assert_int_equal(endless(CHUNKED "0\r\n", "x: y\r\n"), 431);
    assert_int_equal(endless(CHUNKED, "1\r\na\r\n"), 413);
    assert_int_equal(endless(CHUNKED, "1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\na\r\n"), 431);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refusals_do_not_depend_on_how_the_bytes_are_cut),
        cmocka_unit_test(takes_good_requests_in_any_pieces),
        cmocka_unit_test(pipelined_requests_come_one_by_one),
        cmocka_unit_test(headers_are_found_without_case_and_stripped),
        cmocka_unit_test(endless_input_is_refused_within_bounds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
