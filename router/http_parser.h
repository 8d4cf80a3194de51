/*
 * http_parser: bytes of a client to HTTP/1.1 requests, strictly (RFC 9112).
 *
 * A state machine over bytes: no sockets, no clock. The same bytes give the same requests and the
 * same error in whatever pieces they arrive. Whatever two parsers could read differently is
 * refused, because behind a proxy such a request is a way to smuggle another one: Content-Length
 * beside Transfer-Encoding, repeated or odd Content-Length, blanks before a colon, folded header
 * lines, bare LF or CR, NUL and other controls, chunk sizes with signs or prefixes.
 *
 * Promises  after HTTP_BAD nothing more is consumed: answer and close. Memory held never exceeds
 *           head_bytes_max + body_bytes_max and growth slack.
 * Threads   one owner.
 * Lifetime  http_parser_init(), feed until HTTP_DONE, use the request, http_parser_reset(), again;
 *           http_parser_deinit() at the end.
 */
#ifndef BATON_ROUTER_HTTP_PARSER_H
#define BATON_ROUTER_HTTP_PARSER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/status.h"

enum http_method {
    HTTP_GET = 1,
    HTTP_HEAD = 2,
    HTTP_POST = 4,
    HTTP_PUT = 8,
    HTTP_DELETE = 16,
    HTTP_OPTIONS = 32,
    HTTP_PATCH = 64
};

struct http_limits {
    size_t head_bytes_max; /* request line, headers and trailers together */
    size_t body_bytes_max; /* after removal of chunk framing */
};

enum { HTTP_HEADERS_MAX = 64 };

/* Offsets into the head's bytes, which may move while they arrive. */
struct http_header {
    uint32_t name, name_len;
    uint32_t value, value_len; /* without blanks around */
};

struct http_request {
    enum http_method method;
    int minor;            /* HTTP/1.<minor>, 0 or 1 */
    bool keep_alive;      /* the client wants to go on after this request */
    bool expect_continue; /* and waits for "100 Continue" before it sends the body */
    struct buf path;      /* percent-decoded, NUL-terminated; "*" for OPTIONS * */
    struct buf query;     /* as sent, without '?', NUL-terminated */
    struct buf body;      /* complete at HTTP_DONE */
    uint32_t n_headers;
    struct http_header headers[HTTP_HEADERS_MAX];
    struct buf head; /* the bytes that the offsets mean */
};

enum http_event {
    HTTP_MORE,      /* everything was consumed, the request is not complete */
    HTTP_HEAD_DONE, /* the head is complete (once per request): the place to send 100 Continue */
    HTTP_DONE,      /* the request is complete; bytes left belong to the next one */
    HTTP_BAD        /* refused: see http_parser.error */
};

enum http_parser_state {
    HTTP_IN_REQUEST_LINE,
    HTTP_IN_HEADERS,
    HTTP_IN_BODY, /* Content-Length */
    HTTP_IN_CHUNK_SIZE,
    HTTP_IN_CHUNK_DATA,
    HTTP_IN_CHUNK_END, /* the CRLF after the data */
    HTTP_IN_TRAILERS,
    HTTP_COMPLETE,
    HTTP_FAILED
};

struct http_parser {
    struct http_limits limits;
    enum http_parser_state state;
    struct http_request req;
    size_t line;        /* where the unfinished line begins in req.head */
    size_t n_head;      /* bytes of head, chunk framing and trailers: bounded by head_bytes_max */
    uint64_t body_left; /* of the body, or of the chunk */
    bool head_reported; /* HTTP_HEAD_DONE was returned */
    bool chunked;
    bool has_length;
    bool has_host;
    int error_http;    /* after HTTP_BAD: 400, 413, 417, 431, 501, 505 */
    const char *error; /* and the reason, a static string */
};

void http_parser_init(struct http_parser *p, const struct http_limits *limits);
void http_parser_deinit(struct http_parser *p);

/** Forgets the request and gets ready for the next one on the connection; keeps small buffers,
 * frees big ones. */
void http_parser_reset(struct http_parser *p);

/**
 * Takes bytes until something happened.
 * @param consumed  out: how many of them were taken; the caller feeds the rest again
 * @return see enum http_event; HTTP_DONE and HTTP_BAD repeat until reset
 */
enum http_event http_parser_feed(struct http_parser *p, const char *data, size_t len,
                                 size_t *consumed);

/** True when no byte of a request has come yet: the connection is idle. */
bool http_parser_is_idle(const struct http_parser *p);

/**
 * The value of a header, or NULL; names are compared without case, the first one wins.
 * Borrowed until the parser's reset. Not NUL-terminated.
 */
const char *http_request_header(const struct http_request *r, const char *name, size_t *len);

#endif
