#include "router/http_internal.h"

#include <errno.h>
#include <event2/bufferevent_ssl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "router/api_error.h"

enum {
    READ_BYTES_MAX = 64 << 10,   /* taken from a socket at once; also input held while replying */
    WRITE_BYTES_MAX = 256 << 10, /* given to a socket at once */
    OUTBOX_PIECE_MAX = 64 << 10, /* larger pieces go to a bufferevent */
    LINGER_US = 2000000          /* a client may go on sending what was refused */
};

/* ---- life and time --------------------------------------------------------------------------- */

static void conn_free(struct http_exchange *c)
{
    struct http_server *s = c->server;

    if (c->next != NULL)
        c->next->prev = c->prev;
    *(c->prev == NULL ? &s->first : &c->prev->next) = c->next;
    if (c->dirty_at > 0)
        s->dirty[c->dirty_at - 1] = NULL;
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

void http_conn_linger(struct http_exchange *c)
{
    struct evbuffer *in = bufferevent_get_input(c->bev);

    c->phase = HTTP_PHASE_LINGERING;
    evbuffer_drain(in, evbuffer_get_length(in));
    set_deadline(c, HTTP_NEVER);
    if (http_reply_pending(c) > 0)
        return; /* on_output_gone() comes back here */
    if (c->tls)
        (void)SSL_shutdown(bufferevent_openssl_get_ssl(c->bev));
    if (c->half_closed || shutdown(bufferevent_getfd(c->bev), SHUT_WR) != 0) {
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

/* Feeds what has arrived to the parser; answers follow. The only place that reads input. */
static void pump(struct http_exchange *c)
{
    struct evbuffer *in = bufferevent_get_input(c->bev);
    bool waits = false;

    if (c->in_pump)
        return;
    c->in_pump = true;
    while (c->phase < HTTP_PHASE_REPLYING && !waits && !http_output_full(c)) {
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
    if (c->phase < HTTP_PHASE_REPLYING)
        enter_reading_phase(c);
    c->in_pump = false;
    if (c->phase == HTTP_PHASE_DEAD)
        conn_free(c);
}

static void on_read(struct bufferevent *bev, void *arg)
{
    struct http_exchange *c = arg;

    if (c->phase == HTTP_PHASE_LINGERING)
        evbuffer_drain(bufferevent_get_input(bev), evbuffer_get_length(bufferevent_get_input(bev)));
    else
        pump(c);
}

/* All output has left. */
static void on_output_gone(struct http_exchange *c)
{
    if (c->phase == HTTP_PHASE_LINGERING && c->deadline_us == HTTP_NEVER)
        http_conn_linger(c);
    else if (c->phase < HTTP_PHASE_REPLYING &&
             evbuffer_get_length(bufferevent_get_input(c->bev)) > 0)
        pump(c); /* pipelined requests that waited for room */
}

static void on_write(struct bufferevent *bev, void *arg)
{
    struct http_exchange *c = arg;

    if (!c->tls)
        bufferevent_disable(bev, EV_WRITE);
    on_output_gone(c);
}

/* What it has in the outbox goes behind what its bufferevent has. A bufferevent of TLS writes, and
 * may call back and free c. */
static void move_to_bufferevent(struct http_exchange *c)
{
    size_t n = c->out_len;

    c->out_len = 0;
    if (n > 0)
        evbuffer_add(bufferevent_get_output(c->bev), c->server->outbox.data + c->out_at, n);
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
    struct evbuffer *out = bufferevent_get_output(c->bev);

    /* Others have written since, or it is too much to copy twice. */
    if (c->out_len > 0 && (c->out_at + c->out_len != box->len || len > OUTBOX_PIECE_MAX))
        move_to_bufferevent(c);
    if (len > OUTBOX_PIECE_MAX || evbuffer_get_length(out) > 0) {
        evbuffer_add(out, data, len);
    } else {
        if (c->out_len == 0)
            c->out_at = box->len;
        buf_append(box, data, len);
        c->out_len += len;
    }
    touch(c);
}

/* Gives n bytes of the outbox to the socket, the rest to the bufferevent. @return as send() */
static ssize_t send_from_outbox(struct http_exchange *c)
{
    const char *data = c->server->outbox.data + c->out_at;
    size_t n = c->out_len;
    ssize_t sent = send(bufferevent_getfd(c->bev), data, n, MSG_DONTWAIT | MSG_NOSIGNAL);

    c->out_len = 0;
    if (sent < 0 && (errno == EAGAIN || errno == EINTR))
        sent = 0;
    if (sent >= 0 && (size_t)sent < n)
        evbuffer_add(bufferevent_get_output(c->bev), data + sent, n - (size_t)sent);
    return sent;
}

static ssize_t send_from_bufferevent(struct http_exchange *c)
{
    struct evbuffer *out = bufferevent_get_output(c->bev);
    ssize_t sent;

    move_to_bufferevent(c);
    evbuffer_unfreeze(out, 1); /* the bufferevent guards its front against others */
    sent = evbuffer_write_atmost(out, bufferevent_getfd(c->bev), WRITE_BYTES_MAX);
    evbuffer_freeze(out, 1);
    return sent < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : sent;
}

void http_conn_flush(struct http_exchange *c)
{
    struct evbuffer *out = bufferevent_get_output(c->bev);

    if (bufferevent_get_enabled(c->bev) & EV_WRITE) {
        /* TLS, which writes it as one record; or the socket was full: the loop goes on when it is
         * not. */
        move_to_bufferevent(c);
        return;
    }
    if ((evbuffer_get_length(out) > 0 ? send_from_bufferevent(c) : send_from_outbox(c)) < 0)
        http_conn_close(c);
    else if (evbuffer_get_length(out) > 0)
        bufferevent_enable(c->bev, EV_WRITE);
    else
        on_output_gone(c);
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
    if (eof && (c->phase == HTTP_PHASE_IDLE || c->phase == HTTP_PHASE_LINGERING) &&
        http_reply_pending(c) > 0) {
        c->phase = HTTP_PHASE_LINGERING;
        set_deadline(c, HTTP_NEVER);
        return;
    }
    http_conn_close(c);
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
    /* Later, not from here: the handler's stack is under us. */
    if (!c->in_pump && evbuffer_get_length(bufferevent_get_input(c->bev)) > 0)
        bufferevent_trigger(c->bev, EV_READ, BEV_TRIG_IGNORE_WATERMARKS | BEV_TRIG_DEFER_CALLBACKS);
}

/* ---- opening --------------------------------------------------------------------------------- */

static void name_peer(const struct sockaddr *addr, int len, char *out, size_t cap)
{
    char host[48] = "?", port[8] = "?";

    (void)getnameinfo(addr, (socklen_t)len, host, sizeof(host), port, sizeof(port),
                      NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(out, cap, "%s:%s", host, port);
}

static struct bufferevent *make_bufferevent(struct http_server *s, evutil_socket_t fd)
{
    struct bufferevent *bev;
    SSL *ssl;

    if (s->config.tls == NULL)
        return bufferevent_socket_new(s->base, fd, BEV_OPT_CLOSE_ON_FREE);
    ssl = SSL_new(s->config.tls);
    if (ssl == NULL)
        return NULL;
    /* Frees ssl with itself. */
    bev = bufferevent_openssl_socket_new(s->base, fd, ssl, BUFFEREVENT_SSL_ACCEPTING,
                                         BEV_OPT_CLOSE_ON_FREE);
    if (bev == NULL)
        SSL_free(ssl);
    else
        bufferevent_openssl_set_allow_dirty_shutdown(bev, 1); /* bodies have lengths */
    return bev;
}

static struct http_exchange *conn_new(struct http_server *s, evutil_socket_t fd)
{
    struct http_exchange *c = calloc(1, sizeof(*c));

    if (c == NULL)
        return NULL;
    c->server = s;
    c->deadline_us = c->timer_us = HTTP_NEVER;
    http_parser_init(&c->parser, &s->config.limits);
    c->timer = evtimer_new(s->base, on_deadline, c);
    c->bev = make_bufferevent(s, fd);
    c->tls = s->config.tls != NULL;
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

struct http_exchange *http_conn_open(struct http_server *s, evutil_socket_t fd,
                                     const struct sockaddr *addr, int len)
{
    struct timeval write_timeout = {s->config.write_timeout_ms / 1000,
                                    s->config.write_timeout_ms % 1000 * 1000};
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
    bufferevent_set_max_single_read(c->bev, READ_BYTES_MAX);
    bufferevent_set_max_single_write(c->bev, WRITE_BYTES_MAX);
    bufferevent_setwatermark(c->bev, EV_READ, 0, READ_BYTES_MAX);
    bufferevent_set_timeouts(c->bev, NULL, &write_timeout);
    bufferevent_setcb(c->bev, on_read, on_write, on_event, c);
    set_deadline(c, in_ms(s->config.idle_timeout_ms));
    if (!c->tls)
        bufferevent_disable(c->bev, EV_WRITE); /* until a socket is full: see http_conn_flush() */
    bufferevent_enable(c->bev, EV_READ);
    return c;
}
