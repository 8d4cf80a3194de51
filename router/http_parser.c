#include "router/http_parser.h"

#include <stdlib.h>
#include <strings.h>

enum {
    KEEP_BYTES_MAX = 2 << 10,   /* buffers above this are freed between requests */
    RESERVE_BODY_MAX = 1 << 20, /* never reserve more on the word of a header */
    CHUNK_LINE_MAX = 256        /* a chunk size with its extensions */
};

/* Characters of RFC 9110: 1 token, 2 field value (VCHAR, obs-text, blank), 4 request target. */
enum { TOKEN = 1, VALUE = 2, TARGET = 4 };

static unsigned char_class(unsigned char c)
{
    if (c == ' ' || c == '\t' || c >= 0x80)
        return VALUE;
    if (c < 0x20 || c == 0x7f)
        return 0;
    if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
        strchr("!#$%&'*+-.^_`|~", c) != NULL)
        return TOKEN | VALUE | TARGET;
    return VALUE | TARGET;
}

static bool all_are(const char *s, size_t n, unsigned class)
{
    for (size_t i = 0; i < n; i++)
        if ((char_class((unsigned char)s[i]) & class) == 0)
            return false;
    return true;
}

static enum http_event bad(struct http_parser *p, int http, const char *why)
{
    p->state = HTTP_FAILED;
    p->error_http = http;
    p->error = why;
    return HTTP_BAD;
}

static bool same(const char *s, size_t n, const char *word)
{
    return strlen(word) == n && strncasecmp(s, word, n) == 0;
}

/* ---- request line ---------------------------------------------------------------------------- */

static int method_of(const char *s, size_t n)
{
    static const struct {
        const char *name;
        enum http_method method;
    } table[] = {{"GET", HTTP_GET},    {"HEAD", HTTP_HEAD},     {"POST", HTTP_POST},
                 {"PUT", HTTP_PUT},    {"DELETE", HTTP_DELETE}, {"OPTIONS", HTTP_OPTIONS},
                 {"PATCH", HTTP_PATCH}};

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (strlen(table[i].name) == n && memcmp(table[i].name, s, n) == 0)
            return (int)table[i].method;
    return 0;
}

static int hex_digit(unsigned char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool decode_path(struct buf *out, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char c = s[i];

        if (c == '%') {
            int hi = i + 2 < n ? hex_digit((unsigned char)s[i + 1]) : -1;
            int lo = hi >= 0 ? hex_digit((unsigned char)s[i + 2]) : -1;

            if (lo < 0 || hi * 16 + lo < 0x20 || hi * 16 + lo == 0x7f)
                return false;
            c = (char)(hi * 16 + lo);
            i += 2;
        }
        buf_append(out, &c, 1);
    }
    buf_cstr(out);
    return true;
}

/* origin-form, absolute-form of http(s), or "*" for OPTIONS. */
static enum http_event take_target(struct http_parser *p, const char *s, size_t n)
{
    struct http_request *r = &p->req;
    const char *question;
    size_t n_path;

    if (n == 0 || !all_are(s, n, TARGET) || memchr(s, '#', n) != NULL)
        return bad(p, 400, "malformed request target");
    for (int tls = 0; tls < 2; tls++) {
        const char *scheme = tls ? "https://" : "http://";
        size_t skip = strlen(scheme);

        if (n > skip && strncasecmp(s, scheme, skip) == 0) {
            const char *slash = memchr(s + skip, '/', n - skip);

            if (slash == NULL || slash == s + skip)
                return bad(p, 400, "malformed request target");
            n -= (size_t)(slash - s);
            s = slash;
            break;
        }
    }
    if (s[0] != '/' && !(n == 1 && s[0] == '*' && r->method == HTTP_OPTIONS))
        return bad(p, 400, "request target must begin with '/'");
    question = memchr(s, '?', n);
    n_path = question == NULL ? n : (size_t)(question - s);
    if (!decode_path(&r->path, s, n_path))
        return bad(p, 400, "malformed percent-encoding in the request target");
    if (question != NULL)
        buf_append(&r->query, question + 1, n - n_path - 1);
    buf_cstr(&r->query);
    return HTTP_MORE;
}

static enum http_event take_request_line(struct http_parser *p, const char *s, size_t n)
{
    struct http_request *r = &p->req;
    const char *target = memchr(s, ' ', n), *version;
    size_t n_method;

    if (target == NULL)
        return bad(p, 400, "malformed request line");
    n_method = (size_t)(target - s);
    target++;
    version = memchr(target, ' ', n - n_method - 1);
    if (version == NULL || n_method == 0 || !all_are(s, n_method, TOKEN))
        return bad(p, 400, "malformed request line");
    version++;
    if ((size_t)(s + n - version) != 8 || memcmp(version, "HTTP/", 5) != 0 || version[6] != '.' ||
        version[5] < '0' || version[5] > '9' || version[7] < '0' || version[7] > '9')
        return bad(p, 400, "malformed HTTP version");
    if (version[5] != '1' || version[7] > '1')
        return bad(p, 505, "only HTTP/1.1 and HTTP/1.0 are spoken here");
    r->minor = version[7] - '0';
    r->keep_alive = r->minor == 1;
    r->method = (enum http_method)method_of(s, n_method);
    if (r->method == 0)
        return bad(p, 501, "unknown method");
    p->state = HTTP_IN_HEADERS;
    return take_target(p, target, (size_t)(version - 1 - target));
}

/* ---- headers --------------------------------------------------------------------------------- */

static enum http_event take_length(struct http_parser *p, const char *s, size_t n)
{
    uint64_t v = 0;

    if (p->has_length)
        return bad(p, 400, "more than one Content-Length");
    if (n == 0 || n > 19)
        return bad(p, 400, "malformed Content-Length");
    for (size_t i = 0; i < n; i++) {
        if (s[i] < '0' || s[i] > '9')
            return bad(p, 400, "malformed Content-Length");
        v = v * 10 + (uint64_t)(s[i] - '0');
    }
    p->has_length = true;
    p->body_left = v;
    return HTTP_MORE;
}

/* Goes through "a, b, c" without case; *next is NULL at the end. */
static const char *list_item(const char *s, const char *end, size_t *n, const char **next)
{
    const char *stop = memchr(s, ',', (size_t)(end - s));
    const char *last = stop == NULL ? end : stop;

    *next = stop == NULL ? NULL : stop + 1;
    while (s < last && (*s == ' ' || *s == '\t'))
        s++;
    while (last > s && (last[-1] == ' ' || last[-1] == '\t'))
        last--;
    *n = (size_t)(last - s);
    return s;
}

static void take_connection(struct http_request *r, const char *s, size_t len)
{
    const char *end = s + len, *next = s;

    while (next != NULL) {
        size_t n;
        const char *item = list_item(next, end, &n, &next);

        if (same(item, n, "close"))
            r->keep_alive = false;
        else if (same(item, n, "keep-alive") && r->minor == 0)
            r->keep_alive = true;
    }
}

static enum http_event take_known(struct http_parser *p, const char *name, size_t n_name,
                                  const char *value, size_t n)
{
    struct http_request *r = &p->req;

    if (same(name, n_name, "content-length"))
        return take_length(p, value, n);
    if (same(name, n_name, "transfer-encoding")) {
        if (p->chunked)
            return bad(p, 400, "more than one Transfer-Encoding");
        if (r->minor == 0)
            return bad(p, 400, "Transfer-Encoding in HTTP/1.0");
        if (!same(value, n, "chunked"))
            return bad(p, 501, "Transfer-Encoding other than chunked");
        p->chunked = true;
    } else if (same(name, n_name, "host")) {
        if (p->has_host)
            return bad(p, 400, "more than one Host");
        if (!all_are(value, n, TARGET) || memchr(value, '/', n) != NULL ||
            memchr(value, ',', n) != NULL)
            return bad(p, 400, "malformed Host");
        p->has_host = true;
    } else if (same(name, n_name, "connection")) {
        take_connection(r, value, n);
    } else if (same(name, n_name, "expect")) {
        if (!same(value, n, "100-continue"))
            return bad(p, 417, "unknown expectation");
        r->expect_continue = r->minor == 1;
    }
    return HTTP_MORE;
}

/* One "name: value" line, checked; name and value without blanks around the value. */
static enum http_event split_header(struct http_parser *p, const char *s, size_t n, size_t *n_name,
                                    const char **value, size_t *n_value)
{
    const char *colon, *end = s + n, *v;

    if (s[0] == ' ' || s[0] == '\t')
        return bad(p, 400, "folded header line");
    colon = memchr(s, ':', n);
    if (colon == NULL || colon == s || !all_are(s, (size_t)(colon - s), TOKEN))
        return bad(p, 400, "malformed header name");
    for (v = colon + 1; v < end && (*v == ' ' || *v == '\t'); v++)
        ;
    while (end > v && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    if (!all_are(v, (size_t)(end - v), VALUE))
        return bad(p, 400, "control character in a header value");
    *n_name = (size_t)(colon - s);
    *value = v;
    *n_value = (size_t)(end - v);
    return HTTP_MORE;
}

static enum http_event take_header(struct http_parser *p, const char *s, size_t n)
{
    struct http_request *r = &p->req;
    size_t n_name, n_value;
    const char *value;
    struct http_header *h;

    if (split_header(p, s, n, &n_name, &value, &n_value) == HTTP_BAD)
        return HTTP_BAD;
    if (r->n_headers == HTTP_HEADERS_MAX)
        return bad(p, 431, "too many headers");
    h = &r->headers[r->n_headers++];
    *h = (struct http_header){(uint32_t)(s - r->head.data), (uint32_t)n_name,
                              (uint32_t)(value - r->head.data), (uint32_t)n_value};
    return take_known(p, s, n_name, value, n_value);
}

static enum http_event end_headers(struct http_parser *p)
{
    struct http_request *r = &p->req;

    if (r->minor == 1 && !p->has_host)
        return bad(p, 400, "no Host header");
    if (p->chunked && p->has_length)
        return bad(p, 400, "Content-Length beside Transfer-Encoding");
    if (!p->chunked && p->body_left > p->limits.body_bytes_max)
        return bad(p, 413, "request body too large");
    if (p->chunked) {
        p->state = HTTP_IN_CHUNK_SIZE;
    } else if (p->body_left > 0) {
        buf_reserve(&r->body,
                    p->body_left < RESERVE_BODY_MAX ? (size_t)p->body_left + 1 : RESERVE_BODY_MAX);
        p->state = HTTP_IN_BODY;
    } else {
        r->expect_continue = false; /* nothing to wait for */
        p->state = HTTP_COMPLETE;
    }
    p->line = r->head.len;
    return HTTP_MORE;
}

/* ---- chunks ---------------------------------------------------------------------------------- */

/* 1-15 hex digits, then nothing or ";extensions", which are skipped. */
static enum http_event take_chunk_size(struct http_parser *p, const char *s, size_t n)
{
    uint64_t v = 0;
    size_t i = 0;

    for (; i < n && hex_digit((unsigned char)s[i]) >= 0; i++) {
        if (i == 15)
            return bad(p, 400, "chunk size too long");
        v = v * 16 + (uint64_t)hex_digit((unsigned char)s[i]);
    }
    if (i == 0)
        return bad(p, 400, "malformed chunk size");
    if (i < n && (s[i] != ';' || !all_are(s + i, n - i, VALUE)))
        return bad(p, 400, "malformed chunk extension");
    if (v > p->limits.body_bytes_max - p->req.body.len)
        return bad(p, 413, "request body too large");
    p->body_left = v;
    p->state = v == 0 ? HTTP_IN_TRAILERS : HTTP_IN_CHUNK_DATA;
    return HTTP_MORE;
}

/* Checked like headers, then forgotten: a trailer changes nothing here. */
static enum http_event take_trailer(struct http_parser *p, const char *s, size_t n)
{
    size_t n_name, n_value;
    const char *value;

    if (n == 0) {
        p->state = HTTP_COMPLETE;
        return HTTP_MORE;
    }
    return split_header(p, s, n, &n_name, &value, &n_value);
}

/* ---- lines and bodies ------------------------------------------------------------------------ */

static enum http_event take_line(struct http_parser *p, const char *s, size_t n)
{
    switch (p->state) {
    case HTTP_IN_REQUEST_LINE:
        /* One empty line before a request is tolerated (RFC 9112, 2.2). */
        if (n == 0)
            return p->n_head > 2 ? bad(p, 400, "malformed request line") : HTTP_MORE;
        return take_request_line(p, s, n);
    case HTTP_IN_HEADERS:
        return n == 0 ? end_headers(p) : take_header(p, s, n);
    case HTTP_IN_CHUNK_SIZE:
        return take_chunk_size(p, s, n);
    case HTTP_IN_CHUNK_END:
        if (n != 0)
            return bad(p, 400, "chunk longer than its size");
        p->state = HTTP_IN_CHUNK_SIZE;
        return HTTP_MORE;
    default:
        return take_trailer(p, s, n);
    }
}

/* The bound on what the unfinished line may hold, so that an endless line is refused early. */
static enum http_event check_bounds(struct http_parser *p)
{
    size_t line = p->req.head.len - p->line;

    if (p->state == HTTP_IN_CHUNK_END && line > 2)
        return bad(p, 400, "chunk longer than its size");
    if (p->state == HTTP_IN_CHUNK_SIZE && line > CHUNK_LINE_MAX)
        return bad(p, 400, "chunk size line too long");
    return HTTP_MORE;
}

/* Takes bytes up to and with one line end; the line is in req.head, which keeps header lines and
 * forgets those of chunks. Bytes are judged one by one, so that the verdict never depends on how
 * they were cut. */
static enum http_event feed_line(struct http_parser *p, const char *data, size_t len, size_t *taken)
{
    struct buf *head = &p->req.head;
    bool keeps = p->state == HTTP_IN_REQUEST_LINE || p->state == HTTP_IN_HEADERS;

    *taken = 0;
    while (*taken < len) {
        char c = data[(*taken)++];
        enum http_event ev;

        /* Chunk framing is paid back by data, see feed(); the rest is bounded by the head's limit.
         */
        if (++p->n_head > p->limits.head_bytes_max)
            return bad(p, 431, "request headers too large");
        if (c == '\n') {
            if (head->len == p->line || head->data[head->len - 1] != '\r')
                return bad(p, 400, "line feed without carriage return");
            ev = take_line(p, head->data + p->line, head->len - 1 - p->line);
            if (ev == HTTP_BAD)
                return ev;
            if (keeps)
                p->line = head->len;
            else
                head->len = p->line;
            return HTTP_MORE;
        }
        if (head->len > p->line && head->data[head->len - 1] == '\r')
            return bad(p, 400, "carriage return without line feed");
        if (c == '\0')
            return bad(p, 400, "NUL in the request head");
        buf_append(head, &c, 1);
        if (check_bounds(p) == HTTP_BAD)
            return HTTP_BAD;
    }
    return HTTP_MORE;
}

static size_t feed_body(struct http_parser *p, const char *data, size_t len)
{
    size_t n = p->body_left < len ? (size_t)p->body_left : len;

    buf_append(&p->req.body, data, n);
    p->body_left -= n;
    if (p->state == HTTP_IN_CHUNK_DATA) {
        /* A chunk of one byte costs six of framing: allow that, but not framing without data. */
        size_t credit = n * 8;

        p->n_head -= credit < p->n_head ? credit : p->n_head;
        if (p->body_left == 0)
            p->state = HTTP_IN_CHUNK_END;
    } else if (p->body_left == 0) {
        p->state = HTTP_COMPLETE;
    }
    return n;
}

/* ---- public ---------------------------------------------------------------------------------- */

void http_parser_init(struct http_parser *p, const struct http_limits *limits)
{
    *p = (struct http_parser){.limits = *limits};
}

void http_parser_deinit(struct http_parser *p)
{
    buf_deinit(&p->req.head);
    buf_deinit(&p->req.path);
    buf_deinit(&p->req.query);
    buf_deinit(&p->req.body);
}

static void recycle(struct buf *b)
{
    if (b->cap > KEEP_BYTES_MAX)
        buf_deinit(b);
    b->len = 0;
}

void http_parser_reset(struct http_parser *p)
{
    struct http_request *r = &p->req;
    struct http_limits limits = p->limits;
    struct buf head, path, query, body;

    recycle(&r->head);
    recycle(&r->path);
    recycle(&r->query);
    recycle(&r->body);
    head = r->head, path = r->path, query = r->query, body = r->body;
    http_parser_init(p, &limits);
    r->head = head, r->path = path, r->query = query, r->body = body;
}

enum http_event http_parser_feed(struct http_parser *p, const char *data, size_t len,
                                 size_t *consumed)
{
    size_t at = 0;
    enum http_event ev = HTTP_MORE;

    while (ev == HTTP_MORE) {
        if (p->state == HTTP_FAILED) {
            ev = HTTP_BAD;
        } else if (!p->head_reported && p->state > HTTP_IN_HEADERS) {
            p->head_reported = true;
            ev = HTTP_HEAD_DONE;
        } else if (p->state == HTTP_COMPLETE) {
            ev = HTTP_DONE;
        } else if (at == len) {
            break;
        } else if (p->state == HTTP_IN_BODY || p->state == HTTP_IN_CHUNK_DATA) {
            at += feed_body(p, data + at, len - at);
        } else {
            size_t taken;

            ev = feed_line(p, data + at, len - at, &taken);
            at += taken;
        }
    }
    if (ev == HTTP_DONE)
        buf_cstr(&p->req.body);
    *consumed = at;
    return ev;
}

bool http_parser_is_idle(const struct http_parser *p)
{
    return p->state == HTTP_IN_REQUEST_LINE && p->n_head == 0;
}

const char *http_request_header(const struct http_request *r, const char *name, size_t *len)
{
    for (uint32_t i = 0; i < r->n_headers; i++) {
        const struct http_header *h = &r->headers[i];

        if (same(r->head.data + h->name, h->name_len, name)) {
            *len = h->value_len;
            return r->head.data + h->value;
        }
    }
    return NULL;
}
