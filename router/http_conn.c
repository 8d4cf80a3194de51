#include "router/http_internal.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "router/api_error.h"

enum {
    WRITE_BYTES_MAX = 256 << 10, /* given to a socket at once */
    OUTBOX_PIECE_MAX = 64 << 10, /* larger pieces are not copied twice */
    LINGER_US = 2000000          /* a client may go on sending what was refused */
};

/* ---- life and time --------------------------------------------------------------------------- */

static void conn_free(struct http_exchange *c)
{
    struct http_server *s = c->server;
    bool late = c->late;

    if (c->next != NULL)
        c->next->prev = c->prev;
    *(c->prev == NULL ? &s->first : &c->prev->next) = c->next;
    if (c->dirty_at > 0)
        s->dirty[c->dirty_at - 1] = NULL;
    if (c->timer != NULL)
        event_free(c->timer);
    if (c->readable != NULL)
        event_free(c->readable);
    if (c->writable != NULL)
        event_free(c->writable);
    http_socket_close(&c->socket);
    buf_deinit(&c->in);
    buf_deinit(&c->out);
    http_parser_deinit(&c->parser);
    buf_deinit(&c->headers);
    free(c);
    s->stats.connections--;
    if (s->draining && !late && --s->n_drained_for == 0 && s->callbacks.on_drained != NULL)
        s->callbacks.on_drained(s->callbacks.arg);
}

void http_conn_ended(struct http_exchange *c, int status)
{
    const struct http_server_callbacks *callbacks = &c->server->callbacks;

    if (!c->answering)
        return;
    c->answering = false;
    if (callbacks->on_end != NULL)
        callbacks->on_end(callbacks->arg, c, status, c->body_bytes, clock_now_us() - c->begun_us);
}

void http_conn_close(struct http_exchange *c)
{
    void (*on_gone)(void *) = c->phase == HTTP_PHASE_REPLYING ? c->on_gone : NULL;

    if (c->phase == HTTP_PHASE_DEAD)
        return;
    c->phase = HTTP_PHASE_DEAD;
    c->on_gone = NULL;
    if (on_gone != NULL)
        on_gone(c->gone_arg);
    http_conn_ended(c, 499);
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

static void pause_input(struct http_exchange *c, bool pause)
{
    if (pause == c->paused)
        return;
    c->paused = pause;
    if (pause) {
        event_del(c->readable);
    } else if (!c->half_closed) {
        event_add(c->readable, NULL);
        if (http_socket_has_more(&c->socket))
            event_active(c->readable, EV_READ, 0);
    }
}

void http_conn_linger(struct http_exchange *c)
{
    c->phase = HTTP_PHASE_LINGERING;
    buf_deinit(&c->in);
    pause_input(c, false);
    set_deadline(c, HTTP_NEVER);
    if (http_reply_pending(c) > 0)
        return; /* on_output_gone() comes back here */
    if (!http_socket_end(&c->socket) || c->half_closed) {
        http_conn_close(c);
        return;
    }
    set_deadline(c, clock_now_us() + LINGER_US);
}

static void reply_error(struct http_exchange *c, int status, const char *message)
{
    struct buf body = {0};

    c->phase = HTTP_PHASE_REPLYING;
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
    c->timer_us = HTTP_NEVER;
    if (c->phase == HTTP_PHASE_BODY) /* what has arrived has earned more time */
        c->deadline_us = c->body_since_us + (uint64_t)config->body_timeout_ms * 1000 +
                         c->parser.req.body.len * 1000000 / config->body_rate_min;
    if (c->deadline_us == HTTP_NEVER)
        return;
    if (now < c->deadline_us) {
        set_deadline(c, c->deadline_us);
        return;
    }
    if (c->phase == HTTP_PHASE_HEAD || c->phase == HTTP_PHASE_BODY) {
        c->server->stats.timeouts_total++;
        log_debug("%s: request timed out in its %s", c->peer,
                  c->phase == HTTP_PHASE_HEAD ? "head" : "body");
        reply_error(c, 408, "the request did not arrive in time");
    } else if (c->phase == HTTP_PHASE_IDLE || c->phase == HTTP_PHASE_LINGERING) {
        http_conn_close(c);
    }
}

/* ---- input ----------------------------------------------------------------------------------- */

static void begin_reply(struct http_exchange *c)
{
    struct http_server *s = c->server;

    c->phase = HTTP_PHASE_REPLYING;
    c->streaming = c->chunked = false;
    c->close_after = !c->parser.req.keep_alive || s->draining;
    c->on_gone = NULL;
    c->headers.len = 0;
    c->answering = true;
    c->status = 0;
    c->body_bytes = 0;
    c->begun_us = clock_now_us();
    memset(c->note, 0, sizeof(c->note));
    set_deadline(c, HTTP_NEVER);
    s->stats.requests_total++;
    s->callbacks.on_request(s->callbacks.arg, c);
}

static void enter_reading_phase(struct http_exchange *c)
{
    const struct http_server_config *config = &c->server->config;
    enum http_phase phase = http_parser_is_idle(&c->parser)      ? HTTP_PHASE_IDLE
                            : c->parser.state <= HTTP_IN_HEADERS ? HTTP_PHASE_HEAD
                                                                 : HTTP_PHASE_BODY;

    if (c->phase == phase)
        return;
    c->phase = phase;
    if (phase == HTTP_PHASE_BODY)
        c->body_since_us = clock_now_us();
    set_deadline(c, in_ms(phase == HTTP_PHASE_IDLE   ? config->idle_timeout_ms
                          : phase == HTTP_PHASE_HEAD ? config->head_timeout_ms
                                                     : config->body_timeout_ms));
}

static void send_continue(struct http_exchange *c)
{
    static const char line[] = "HTTP/1.1 100 Continue\r\n\r\n";

    http_conn_put(c, line, sizeof(line) - 1);
}

/* Gives input to the parser while it may; answers follow. @return bytes used */
static size_t feed(struct http_exchange *c, const char *data, size_t n)
{
    size_t at = 0, used;
    bool waits = false;

    while (c->phase < HTTP_PHASE_REPLYING && !waits && !http_output_full(c)) {
        enum http_event ev = http_parser_feed(&c->parser, data + at, n - at, &used);

        at += used;
        switch (ev) {
        case HTTP_MORE:
            waits = at == n;
            break;
        case HTTP_HEAD_DONE:
            if (c->parser.req.expect_continue && at == n)
                send_continue(c);
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
    return at;
}

/* Takes n bytes that have arrived behind those that are held: parses what it may and holds the
 * rest. The only place that does. May free c. */
static void pump(struct http_exchange *c, const char *data, size_t n)
{
    struct buf held = c->in;
    size_t used = 0;

    c->in_pump = true;
    c->in = (struct buf){0};
    if (held.len > 0) {
        buf_append(&held, data, n);
        data = held.data;
        n = held.len;
    }
    used = feed(c, data, n);
    if (c->phase < HTTP_PHASE_REPLYING)
        enter_reading_phase(c);
    if (c->phase <= HTTP_PHASE_REPLYING)
        buf_append(&c->in, data + used, n - used);
    buf_deinit(&held);
    pause_input(c, c->in.len >= HTTP_READ_BYTES_MAX);
    c->in_pump = false;
    if (c->phase == HTTP_PHASE_DEAD)
        conn_free(c);
}

/* The client sends nothing more. */
static void on_input_end(struct http_exchange *c)
{
    c->half_closed = true;
    event_del(c->readable);
    /* Answers that are complete still reach a client that has only stopped sending. */
    if ((c->phase == HTTP_PHASE_IDLE || c->phase == HTTP_PHASE_LINGERING) &&
        http_reply_pending(c) > 0) {
        c->phase = HTTP_PHASE_LINGERING;
        set_deadline(c, HTTP_NEVER);
    } else {
        http_conn_close(c);
    }
}

static void want_write(struct http_exchange *c);

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
    struct http_exchange *c = arg;
    char *data = c->server->arrived;
    ssize_t n = http_socket_read(&c->socket, data, HTTP_READ_BYTES_MAX);

    (void)fd, (void)what;
    if (n > 0 && http_socket_has_more(&c->socket))
        event_active(c->readable, EV_READ, 0); /* others first */
    if (n == HTTP_SOCKET_GONE)
        http_conn_close(c);
    else if (n == HTTP_SOCKET_END)
        on_input_end(c);
    else if (n == HTTP_SOCKET_AGAIN && c->socket.read_wants_write)
        want_write(c);
    else if (c->phase != HTTP_PHASE_LINGERING && (n > 0 || c->in.len > 0))
        pump(c, data, n > 0 ? (size_t)n : 0);
}

/* All output has left. */
static void on_output_gone(struct http_exchange *c)
{
    if (c->phase == HTTP_PHASE_LINGERING && c->deadline_us == HTTP_NEVER)
        http_conn_linger(c);
    else if (c->phase < HTTP_PHASE_REPLYING && c->in.len > 0)
        pump(c, NULL, 0); /* pipelined requests that waited for room */
}

/* Goes on when the socket takes more; ends the connection when it does not for too long. */
static void want_write(struct http_exchange *c)
{
    const int ms = c->server->config.write_timeout_ms;
    struct timeval limit = {ms / 1000, ms % 1000 * 1000};

    event_add(c->writable, &limit);
}

/* Behind what the socket did not take before. */
static void keep_output(struct http_exchange *c, const void *data, size_t n)
{
    if (c->out_sent > c->out.len / 2) {
        c->out.len -= c->out_sent;
        memmove(c->out.data, c->out.data + c->out_sent, c->out.len);
        c->out_sent = 0;
    }
    buf_append(&c->out, data, n);
}

static void keep_outbox(struct http_exchange *c)
{
    if (c->out_len > 0) /* else out_at is of an older turn */
        keep_output(c, c->server->outbox.data + c->out_at, c->out_len);
    c->out_len = 0;
}

/* Writes what the socket takes. @return false when the connection is lost */
static bool write_some(struct http_exchange *c, const char *data, size_t n, size_t *sent)
{
    ssize_t k = 1;

    for (*sent = 0; *sent < n && k > 0; *sent += k > 0 ? (size_t)k : 0) {
        size_t left = n - *sent;

        k = http_socket_write(&c->socket, data + *sent,
                              left < WRITE_BYTES_MAX ? left : WRITE_BYTES_MAX);
    }
    return k != HTTP_SOCKET_GONE;
}

void http_conn_flush(struct http_exchange *c)
{
    size_t sent;
    bool fine = true;

    if (c->out.len > 0) {
        keep_outbox(c);
        if (event_pending(c->writable, EV_WRITE, NULL))
            return; /* the socket is full */
        fine = write_some(c, c->out.data + c->out_sent, c->out.len - c->out_sent, &sent);
        c->out_sent += sent;
        if (c->out_sent == c->out.len) {
            buf_deinit(&c->out);
            c->out_sent = 0;
        }
    } else if (c->out_len > 0) {
        fine = write_some(c, c->server->outbox.data + c->out_at, c->out_len, &sent);
        c->out_at += sent;
        c->out_len -= sent;
        keep_outbox(c);
    }
    if (!fine)
        http_conn_close(c);
    else if (c->out.len > 0)
        want_write(c);
    else
        on_output_gone(c);
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
    struct http_exchange *c = arg;

    (void)fd;
    if (what & EV_TIMEOUT)
        http_conn_close(c);
    else if (c->socket.read_wants_write)
        on_readable(fd, EV_READ, c);
    else if (http_reply_pending(c) > 0)
        http_conn_flush(c);
}

/* To be flushed at the end of the turn. */
static void touch(struct http_exchange *c)
{
    struct http_server *s = c->server;

    if (c->dirty_at > 0)
        return;
    if (s->n_dirty == s->cap_dirty) {
        size_t cap = s->cap_dirty == 0 ? 64 : s->cap_dirty * 2;
        struct http_exchange **more = realloc(s->dirty, cap * sizeof(struct http_exchange *));

        if (more == NULL)
            abort(); /* as a buffer that cannot grow */
        s->dirty = more;
        s->cap_dirty = cap;
    }
    s->dirty[s->n_dirty++] = c;
    c->dirty_at = s->n_dirty;
    if (s->n_dirty == 1)
        event_active(s->flush, EV_TIMEOUT, 0);
}

void http_conn_put(struct http_exchange *c, const void *data, size_t len)
{
    struct buf *box = &c->server->outbox;

    /* Others have written since, or it is too much to copy twice. */
    if (c->out_len > 0 && (c->out_at + c->out_len != box->len || len > OUTBOX_PIECE_MAX))
        keep_outbox(c);
    if (len > OUTBOX_PIECE_MAX || c->out.len > 0) {
        keep_output(c, data, len);
    } else {
        if (c->out_len == 0)
            c->out_at = box->len;
        buf_append(box, data, len);
        c->out_len += len;
    }
    touch(c);
}

void http_conn_finish(struct http_exchange *c)
{
    c->on_gone = NULL;
    http_conn_ended(c, c->status);
    if (c->close_after) {
        http_conn_linger(c);
        return;
    }
    http_parser_reset(&c->parser);
    c->phase = HTTP_PHASE_IDLE;
    set_deadline(c, in_ms(c->server->config.idle_timeout_ms));
    /* The next request is begun when this answer has left, not from here: the handler's stack is
     * under us. */
    touch(c);
}

/* ---- opening --------------------------------------------------------------------------------- */

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

    if (c == NULL || !http_socket_open(&c->socket, fd, s->config.tls)) {
        free(c);
        return NULL;
    }
    c->server = s;
    c->late = s->draining;
    c->deadline_us = c->timer_us = HTTP_NEVER;
    http_parser_init(&c->parser, &s->config.limits);
    c->timer = evtimer_new(s->base, on_deadline, c);
    c->readable = event_new(s->base, fd, EV_READ | EV_PERSIST, on_readable, c);
    c->writable = event_new(s->base, fd, EV_WRITE, on_writable, c);
    return c;
}

struct http_exchange *http_conn_open(struct http_server *s, evutil_socket_t fd,
                                     const struct sockaddr *addr, int len)
{
    struct http_exchange *c = conn_new(s, fd);
    int one = 1;

    if (c == NULL)
        return NULL;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    name_peer(addr, len, c->peer, sizeof(c->peer));
    c->next = s->first;
    if (s->first != NULL)
        s->first->prev = c;
    s->first = c;
    s->stats.connections++;
    if (c->timer == NULL || c->readable == NULL || c->writable == NULL ||
        event_add(c->readable, NULL) != 0) {
        c->socket.fd = -1; /* still the caller's */
        conn_free(c);
        return NULL;
    }
    set_deadline(c, in_ms(s->config.idle_timeout_ms));
    return c;
}
