#include "router/http_server.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/listener.h>
#include <event2/util.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "router/api_error.h"

enum {
    LISTEN_BACKLOG = 1024,
    READ_BYTES_MAX = 64 << 10,   /* taken from a socket at once; also input held while replying */
    WRITE_BYTES_MAX = 256 << 10, /* given to a socket at once */
    LINGER_US = 2000000,         /* a client may go on sending what was refused */
    ACCEPT_PAUSE_US = 100000     /* out of file descriptors: try again */
};

static const uint64_t NEVER = UINT64_MAX;

enum phase { IDLE, HEAD, BODY, REPLYING, LINGERING, DEAD };

struct http_exchange {
    struct http_server *server;
    struct http_exchange *prev, *next; /* the server's list */
    struct bufferevent *bev;
    struct event *timer;
    uint64_t deadline_us; /* of the phase; NEVER for none */
    uint64_t timer_us;    /* when the timer fires; NEVER while it is not armed. Deadlines that move
                             back cost nothing: the timer finds out when it fires */
    uint64_t body_since_us;
    enum phase phase;
    bool in_pump;     /* on the stack: do not free */
    bool streaming;   /* http_reply_start() was called */
    bool chunked;     /* and the stream is chunked */
    bool close_after; /* no keep-alive after this answer */
    bool half_closed; /* the client sends nothing more */
    struct http_parser parser;
    struct buf headers; /* extra ones of the answer */
    void (*on_gone)(void *arg);
    void *gone_arg;
    char peer[64];
};

struct http_server {
    struct event_base *base;
    struct evconnlistener *listener;
    struct event *accept_again;
    struct http_server_config config;
    struct http_server_callbacks callbacks;
    struct http_server_stats stats;
    struct http_exchange *first;
    int port;
    bool draining;
};

void http_server_config_default(struct http_server_config *c)
{
    *c = (struct http_server_config){
        .limits = {.head_bytes_max = 32 << 10, .body_bytes_max = 64 << 20},
        .head_timeout_ms = 10000,
        .body_timeout_ms = 15000,
        .body_rate_min = 16 << 10,
        .idle_timeout_ms = 75000,
        .write_timeout_ms = 60000,
        .output_bytes_max = 1 << 20,
        .connections_max = 65536,
    };
}

/* ---- connections: life and time -------------------------------------------------------------- */

static void conn_free(struct http_exchange *c)
{
    struct http_server *s = c->server;

    if (c->next != NULL)
        c->next->prev = c->prev;
    *(c->prev == NULL ? &s->first : &c->prev->next) = c->next;
    if (c->timer != NULL)
        event_free(c->timer);
    bufferevent_free(c->bev);
    http_parser_deinit(&c->parser);
    buf_deinit(&c->headers);
    free(c);
    s->stats.connections--;
    if (s->draining && s->first == NULL && s->callbacks.on_drained != NULL)
        s->callbacks.on_drained(s->callbacks.arg);
}

/* Closes now; the one who waits for the answer, if any, is told. */
static void conn_close(struct http_exchange *c)
{
    void (*on_gone)(void *) = c->phase == REPLYING ? c->on_gone : NULL;

    if (c->phase == DEAD)
        return;
    c->phase = DEAD;
    c->on_gone = NULL;
    if (on_gone != NULL)
        on_gone(c->gone_arg);
    if (!c->in_pump)
        conn_free(c);
}

static void set_deadline(struct http_exchange *c, uint64_t deadline_us)
{
    c->deadline_us = deadline_us;
    if (deadline_us < c->timer_us) {
        uint64_t now = clock_now_us(), left = deadline_us > now ? deadline_us - now : 0;
        struct timeval tv = {(time_t)(left / 1000000), (suseconds_t)(left % 1000000)};

        c->timer_us = deadline_us;
        event_add(c->timer, &tv);
    }
}

static uint64_t in_ms(int ms)
{
    return clock_now_us() + (uint64_t)ms * 1000;
}

/* Waits for the output to leave, then for the client to stop sending (a close with unread input
 * resets the connection, and the client might lose the answer), at most LINGER_US. */
static void linger(struct http_exchange *c)
{
    struct evbuffer *in = bufferevent_get_input(c->bev);

    c->phase = LINGERING;
    evbuffer_drain(in, evbuffer_get_length(in));
    set_deadline(c, NEVER);
    if (evbuffer_get_length(bufferevent_get_output(c->bev)) > 0)
        return; /* the write callback comes back here */
    if (c->half_closed || shutdown(bufferevent_getfd(c->bev), SHUT_WR) != 0) {
        conn_close(c);
        return;
    }
    set_deadline(c, clock_now_us() + LINGER_US);
}

static void reply_error(struct http_exchange *c, int status, const char *message)
{
    struct buf body = {0};

    c->phase = REPLYING;
    c->close_after = true;
    api_error_json(&body, status, NULL, NULL, message);
    http_reply(c, status, "application/json", body.data, body.len);
    buf_deinit(&body);
}

static void on_deadline(evutil_socket_t fd, short what, void *arg)
{
    struct http_exchange *c = arg;
    const struct http_server_config *config = &c->server->config;
    uint64_t now = clock_now_us();

    (void)fd, (void)what;
    c->timer_us = NEVER;
    if (c->phase == BODY) /* what has arrived has earned more time */
        c->deadline_us = c->body_since_us + (uint64_t)config->body_timeout_ms * 1000 +
                         c->parser.req.body.len * 1000000 / config->body_rate_min;
    if (c->deadline_us == NEVER)
        return;
    if (now < c->deadline_us) {
        set_deadline(c, c->deadline_us);
        return;
    }
    if (c->phase == HEAD || c->phase == BODY) {
        c->server->stats.timeouts_total++;
        log_debug("%s: request timed out in its %s", c->peer, c->phase == HEAD ? "head" : "body");
        reply_error(c, 408, "the request did not arrive in time");
    } else if (c->phase == IDLE || c->phase == LINGERING) {
        conn_close(c);
    }
}

/* ---- connections: input ---------------------------------------------------------------------- */

static void begin_reply(struct http_exchange *c)
{
    struct http_server *s = c->server;

    c->phase = REPLYING;
    c->streaming = c->chunked = false;
    c->close_after = !c->parser.req.keep_alive || s->draining;
    c->on_gone = NULL;
    c->headers.len = 0;
    set_deadline(c, NEVER);
    s->stats.requests_total++;
    s->callbacks.on_request(s->callbacks.arg, c);
}

static void enter_reading_phase(struct http_exchange *c)
{
    const struct http_server_config *config = &c->server->config;
    enum phase phase = http_parser_is_idle(&c->parser)      ? IDLE
                       : c->parser.state <= HTTP_IN_HEADERS ? HEAD
                                                            : BODY;

    if (c->phase == phase)
        return;
    c->phase = phase;
    if (phase == BODY)
        c->body_since_us = clock_now_us();
    set_deadline(c, in_ms(phase == IDLE   ? config->idle_timeout_ms
                          : phase == HEAD ? config->head_timeout_ms
                                          : config->body_timeout_ms));
}

static bool output_full(const struct http_exchange *c)
{
    return http_reply_pending(c) > c->server->config.output_bytes_max;
}

/* Feeds what has arrived to the parser; answers follow. The only place that reads input. */
static void pump(struct http_exchange *c)
{
    struct evbuffer *in = bufferevent_get_input(c->bev);
    bool waits = false;

    if (c->in_pump)
        return;
    c->in_pump = true;
    while (c->phase < REPLYING && !waits && !output_full(c)) {
        size_t n = evbuffer_get_contiguous_space(in), used;
        const char *data = n == 0 ? NULL : (const char *)evbuffer_pullup(in, (ssize_t)n);
        enum http_event ev = http_parser_feed(&c->parser, data, n, &used);

        evbuffer_drain(in, used);
        switch (ev) {
        case HTTP_MORE:
            waits = evbuffer_get_length(in) == 0;
            break;
        case HTTP_HEAD_DONE:
            if (c->parser.req.expect_continue && evbuffer_get_length(in) == 0)
                bufferevent_write(c->bev, "HTTP/1.1 100 Continue\r\n\r\n", 25);
            break;
        case HTTP_DONE:
            begin_reply(c);
            break;
        case HTTP_BAD:
            c->server->stats.bad_requests_total++;
            log_debug("%s: bad request: %s", c->peer, c->parser.error);
            reply_error(c, c->parser.error_http, c->parser.error);
            break;
        }
    }
    if (c->phase < REPLYING)
        enter_reading_phase(c);
    c->in_pump = false;
    if (c->phase == DEAD)
        conn_free(c);
}

static void on_read(struct bufferevent *bev, void *arg)
{
    struct http_exchange *c = arg;

    if (c->phase == LINGERING)
        evbuffer_drain(bufferevent_get_input(bev), evbuffer_get_length(bufferevent_get_input(bev)));
    else
        pump(c);
}

/* All output has left. */
static void on_write(struct bufferevent *bev, void *arg)
{
    struct http_exchange *c = arg;

    (void)bev;
    if (c->phase == LINGERING && c->deadline_us == NEVER)
        linger(c);
    else if (c->phase < REPLYING)
        pump(c); /* pipelined requests that waited for room */
}

static void on_event(struct bufferevent *bev, short what, void *arg)
{
    struct http_exchange *c = arg;
    bool eof = (what & BEV_EVENT_EOF) != 0;

    (void)bev;
    if (what & BEV_EVENT_CONNECTED)
        return;
    c->half_closed |= eof;
    /* Answers that are complete still reach a client that has only stopped sending. */
    if (eof && (c->phase == IDLE || c->phase == LINGERING) && http_reply_pending(c) > 0) {
        c->phase = LINGERING;
        set_deadline(c, NEVER);
        return;
    }
    conn_close(c);
}

/* ---- answers --------------------------------------------------------------------------------- */

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
    bufferevent_write(x->bev, head.data, head.len);
    buf_deinit(&head);
}

/* The answer is complete: on to the next request. */
static void finish(struct http_exchange *x)
{
    x->on_gone = NULL;
    if (x->close_after) {
        linger(x);
        return;
    }
    http_parser_reset(&x->parser);
    x->phase = IDLE;
    set_deadline(x, in_ms(x->server->config.idle_timeout_ms));
    /* Later, not from here: the handler's stack is under us. */
    if (!x->in_pump && evbuffer_get_length(bufferevent_get_input(x->bev)) > 0)
        bufferevent_trigger(x->bev, EV_READ, BEV_TRIG_IGNORE_WATERMARKS | BEV_TRIG_DEFER_CALLBACKS);
}

void http_reply(struct http_exchange *x, int status, const char *content_type, const void *body,
                size_t len)
{
    char framing[64] = "";

    if (status != 204)
        snprintf(framing, sizeof(framing), "content-length: %zu\r\n", len);
    write_head(x, status, content_type, framing);
    if (x->parser.req.method != HTTP_HEAD && status != 204)
        bufferevent_write(x->bev, body, len);
    finish(x);
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
    return evbuffer_get_length(bufferevent_get_output(x->bev));
}

enum status_code http_reply_write(struct http_exchange *x, const void *data, size_t len,
                                  struct status *st)
{
    struct evbuffer *out = bufferevent_get_output(x->bev);
    char size[20];

    if (len == 0 || x->parser.req.method == HTTP_HEAD)
        return status_ok(st);
    if (output_full(x))
        return status_set(st, ST_EXHAUSTED, "the client does not read: %zu bytes wait for it",
                          http_reply_pending(x));
    if (x->chunked)
        evbuffer_add(out, size, (size_t)snprintf(size, sizeof(size), "%zx\r\n", len));
    evbuffer_add(out, data, len);
    if (x->chunked)
        evbuffer_add(out, "\r\n", 2);
    return status_ok(st);
}

void http_reply_end(struct http_exchange *x)
{
    if (x->chunked && x->parser.req.method != HTTP_HEAD)
        bufferevent_write(x->bev, "0\r\n\r\n", 5);
    finish(x);
}

void http_reply_abort(struct http_exchange *x)
{
    x->on_gone = NULL;
    conn_close(x);
}

/* ---- accepting ------------------------------------------------------------------------------- */

static void name_peer(const struct sockaddr *addr, int len, char *out, size_t cap)
{
    char host[48] = "?", port[8] = "?";

    (void)getnameinfo(addr, (socklen_t)len, host, sizeof(host), port, sizeof(port),
                      NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(out, cap, "%s:%s", host, port);
}

static struct http_exchange *conn_new(struct http_server *s, evutil_socket_t fd)
{
    struct http_exchange *c = calloc(1, sizeof(*c));

    if (c == NULL)
        return NULL;
    c->server = s;
    c->deadline_us = c->timer_us = NEVER;
    http_parser_init(&c->parser, &s->config.limits);
    c->timer = evtimer_new(s->base, on_deadline, c);
    c->bev = bufferevent_socket_new(s->base, fd, BEV_OPT_CLOSE_ON_FREE);
    if (c->timer != NULL && c->bev != NULL)
        return c;
    if (c->timer != NULL)
        event_free(c->timer);
    if (c->bev != NULL) {
        bufferevent_setfd(c->bev, -1);
        bufferevent_free(c->bev);
    }
    free(c);
    return NULL;
}

static void on_accept(struct evconnlistener *l, evutil_socket_t fd, struct sockaddr *addr, int len,
                      void *arg)
{
    static const char full[] = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n"
                               "retry-after: 1\r\nconnection: close\r\n\r\n";
    struct http_server *s = arg;
    struct http_exchange *c = NULL;
    struct timeval write_timeout = {s->config.write_timeout_ms / 1000,
                                    s->config.write_timeout_ms % 1000 * 1000};
    int one = 1;

    (void)l;
    s->stats.connections_total++;
    if (s->stats.connections < s->config.connections_max)
        c = conn_new(s, fd);
    if (c == NULL) {
        s->stats.refused_total++;
        (void)!write(fd, full, sizeof(full) - 1);
        close(fd);
        return;
    }
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    name_peer(addr, len, c->peer, sizeof(c->peer));
    c->next = s->first;
    if (s->first != NULL)
        s->first->prev = c;
    s->first = c;
    s->stats.connections++;
    bufferevent_set_max_single_read(c->bev, READ_BYTES_MAX);
    bufferevent_set_max_single_write(c->bev, WRITE_BYTES_MAX);
    bufferevent_setwatermark(c->bev, EV_READ, 0, READ_BYTES_MAX);
    bufferevent_set_timeouts(c->bev, NULL, &write_timeout);
    bufferevent_setcb(c->bev, on_read, on_write, on_event, c);
    set_deadline(c, in_ms(s->config.idle_timeout_ms));
    bufferevent_enable(c->bev, EV_READ | EV_WRITE);
}

static void on_accept_again(evutil_socket_t fd, short what, void *arg)
{
    struct http_server *s = arg;

    (void)fd, (void)what;
    if (!s->draining)
        evconnlistener_enable(s->listener);
}

/* Out of file descriptors, mostly: the listener stays readable, so without a pause it would spin.
 */
static void on_accept_error(struct evconnlistener *l, void *arg)
{
    struct http_server *s = arg;
    struct timeval pause = {0, ACCEPT_PAUSE_US};

    log_warn("accept failed: %s: pausing %d ms", strerror(errno), ACCEPT_PAUSE_US / 1000);
    evconnlistener_disable(l);
    evtimer_add(s->accept_again, &pause);
}

/* ---- the server ------------------------------------------------------------------------------ */

static int bound_port(evutil_socket_t fd)
{
    struct sockaddr_storage addr;
    socklen_t len = sizeof(addr);

    if (getsockname(fd, (struct sockaddr *)&addr, &len) != 0)
        return 0;
    return ntohs(addr.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&addr)->sin6_port
                                            : ((struct sockaddr_in *)&addr)->sin_port);
}

static enum status_code bind_listener(struct http_server *s, struct status *st)
{
    const struct http_server_config *c = &s->config;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list;
    unsigned flags = LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_REUSEABLE;
    char port[16];
    int rc;

    snprintf(port, sizeof(port), "%d", c->port);
    rc = getaddrinfo(c->host, port, &hints, &list);
    if (rc != 0)
        return status_set(st, ST_INVALID, "--host %s: %s", c->host, gai_strerror(rc));
    if (c->reuse_port)
        flags |= LEV_OPT_REUSEABLE_PORT;
    s->listener = evconnlistener_new_bind(s->base, on_accept, s, flags, LISTEN_BACKLOG,
                                          list->ai_addr, (int)list->ai_addrlen);
    rc = errno;
    freeaddrinfo(list);
    if (s->listener == NULL)
        return status_set(st, ST_UNAVAILABLE, "cannot listen on %s port %d: %s", c->host, c->port,
                          strerror(rc));
    evconnlistener_set_error_cb(s->listener, on_accept_error);
    s->port = bound_port(evconnlistener_get_fd(s->listener));
    return status_ok(st);
}

enum status_code http_server_new(struct event_base *base, const struct http_server_config *config,
                                 const struct http_server_callbacks *callbacks,
                                 struct http_server **out, struct status *st)
{
    struct http_server *s = calloc(1, sizeof(*s));

    if (s == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the HTTP server");
    s->base = base;
    s->config = *config;
    s->callbacks = *callbacks;
    s->accept_again = evtimer_new(base, on_accept_again, s);
    if (s->accept_again == NULL) {
        http_server_free(s);
        return status_set(st, ST_EXHAUSTED, "no memory for the HTTP server");
    }
    if (bind_listener(s, st) != ST_OK) {
        http_server_free(s);
        return st->code;
    }
    *out = s;
    return status_ok(st);
}

void http_server_free(struct http_server *s)
{
    if (s == NULL)
        return;
    s->draining = false; /* nobody waits for on_drained any more */
    while (s->first != NULL)
        conn_close(s->first);
    if (s->listener != NULL)
        evconnlistener_free(s->listener);
    if (s->accept_again != NULL)
        event_free(s->accept_again);
    free(s);
}

int http_server_port(const struct http_server *s)
{
    return s->port;
}

const struct http_server_stats *http_server_stats(const struct http_server *s)
{
    return &s->stats;
}

void http_server_drain(struct http_server *s)
{
    struct http_exchange *next;

    if (s->draining)
        return;
    s->draining = true;
    evconnlistener_disable(s->listener);
    if (s->first == NULL && s->callbacks.on_drained != NULL)
        s->callbacks.on_drained(s->callbacks.arg);
    for (struct http_exchange *c = s->first; c != NULL; c = next) {
        next = c->next;
        c->close_after = true;
        if (c->phase == IDLE && http_reply_pending(c) == 0)
            conn_close(c);
        else if (c->phase == IDLE)
            linger(c);
    }
}
