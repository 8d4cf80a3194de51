#include "router/http_internal.h"

#include <stdio.h>

const char *http_reason(int status)
{
    static const struct {
        int status;
        const char *reason;
    } table[] = {{200, "OK"},
                 {204, "No Content"},
                 {400, "Bad Request"},
                 {401, "Unauthorized"},
                 {403, "Forbidden"},
                 {404, "Not Found"},
                 {405, "Method Not Allowed"},
                 {408, "Request Timeout"},
                 {413, "Content Too Large"},
                 {415, "Unsupported Media Type"},
                 {417, "Expectation Failed"},
                 {429, "Too Many Requests"},
                 {431, "Request Header Fields Too Large"},
                 {499, "Client Closed Request"},
                 {500, "Internal Server Error"},
                 {501, "Not Implemented"},
                 {502, "Bad Gateway"},
                 {503, "Service Unavailable"},
                 {504, "Gateway Timeout"},
                 {505, "HTTP Version Not Supported"}};

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (table[i].status == status)
            return table[i].reason;
    return "Unknown";
}

struct http_request *http_exchange_request(struct http_exchange *x)
{
    return &x->parser.req;
}

const char *http_exchange_peer(const struct http_exchange *x)
{
    return x->peer;
}

bool http_exchange_is_late(const struct http_exchange *x)
{
    return x->late;
}

void *http_exchange_note(struct http_exchange *x)
{
    return x->note;
}

void http_exchange_on_gone(struct http_exchange *x, void (*on_gone)(void *arg), void *arg)
{
    x->on_gone = on_gone;
    x->gone_arg = arg;
}

void http_reply_header(struct http_exchange *x, const char *name, const char *value)
{
    if (strpbrk(value, "\r\n") == NULL)
        buf_printf(&x->headers, "%s: %s\r\n", name, value);
}

/* Status line and headers; framing is the line that says where the body ends. */
static void write_head(struct http_exchange *x, int status, const char *content_type,
                       const char *framing)
{
    struct buf head = {0};
    int minor = x->parser.req.minor;

    x->status = status;
    buf_reserve(&head, 256 + x->headers.len);
    buf_printf(&head, "HTTP/1.1 %d %s\r\n", status, http_reason(status));
    if (content_type != NULL)
        buf_printf(&head, "content-type: %s\r\n", content_type);
    buf_append(&head, x->headers.data, x->headers.len);
    buf_puts(&head, framing);
    if (x->close_after)
        buf_puts(&head, "connection: close\r\n");
    else if (minor == 0)
        buf_puts(&head, "connection: keep-alive\r\n");
    buf_puts(&head, "\r\n");
    http_conn_put(x, head.data, head.len);
    buf_deinit(&head);
}

void http_reply(struct http_exchange *x, int status, const char *content_type, const void *body,
                size_t len)
{
    char framing[64] = "";

    if (status != 204)
        snprintf(framing, sizeof(framing), "content-length: %zu\r\n", len);
    write_head(x, status, content_type, framing);
    if (x->parser.req.method != HTTP_HEAD && status != 204)
        http_conn_put(x, body, len);
    x->body_bytes += len;
    http_conn_finish(x);
}

void http_reply_start(struct http_exchange *x, int status, const char *content_type)
{
    x->streaming = true;
    x->chunked = x->parser.req.minor == 1;
    if (!x->chunked)
        x->close_after = true;
    write_head(x, status, content_type, x->chunked ? "transfer-encoding: chunked\r\n" : "");
}

size_t http_reply_pending(const struct http_exchange *x)
{
    return x->out_len + x->out.len - x->out_sent;
}

/* The line before a chunk. @return its length, at most 18 */
static size_t chunk_size(size_t n, char out[20])
{
    size_t len = 1;

    while (len < 16 && n >> (4 * len) != 0)
        len++;
    for (size_t i = len; i-- > 0; n >>= 4)
        out[i] = "0123456789abcdef"[n & 15];
    memcpy(out + len, "\r\n", 2);
    return len + 2;
}

enum status_code http_reply_write(struct http_exchange *x, const void *data, size_t len,
                                  struct status *st)
{
    char size[20];

    if (len == 0 || x->parser.req.method == HTTP_HEAD)
        return status_ok(st);
    if (http_output_full(x))
        return status_set(st, ST_EXHAUSTED, "the client does not read: %zu bytes wait for it",
                          http_reply_pending(x));
    if (x->chunked)
        http_conn_put(x, size, chunk_size(len, size));
    http_conn_put(x, data, len);
    x->body_bytes += len;
    if (x->chunked)
        http_conn_put(x, "\r\n", 2);
    return status_ok(st);
}

void http_reply_end(struct http_exchange *x)
{
    if (x->chunked && x->parser.req.method != HTTP_HEAD)
        http_conn_put(x, "0\r\n\r\n", 5);
    http_conn_finish(x);
}

void http_reply_abort(struct http_exchange *x)
{
    x->on_gone = NULL;
    http_conn_close(x);
}
