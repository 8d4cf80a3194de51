#include "router/http_internal.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <event2/listener.h>

#include "common/base/log.h"

enum {
    LISTEN_BACKLOG = 1024,
    OUTBOX_KEPT_MAX = 4 << 20, /* bytes kept from turn to turn */
    ACCEPT_PAUSE_US = 100000   /* out of file descriptors: try again */
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

/* ---- accepting ------------------------------------------------------------------------------- */

static void on_accept(struct evconnlistener *l, evutil_socket_t fd, struct sockaddr *addr, int len,
                      void *arg)
{
    static const char full[] = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n"
                               "retry-after: 1\r\nconnection: close\r\n\r\n";
    struct http_server *s = arg;
    struct http_exchange *c = NULL;

    (void)l;
    s->stats.connections_total++;
    if (s->stats.connections < s->config.connections_max)
        c = http_conn_open(s, fd, addr, len);
    if (c == NULL) {
        s->stats.refused_total++;
        (void)!write(fd, full, sizeof(full) - 1);
        close(fd);
    }
}

static void on_accept_again(evutil_socket_t fd, short what, void *arg)
{
    struct http_server *s = arg;

    (void)fd, (void)what;
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

static void on_flush(evutil_socket_t fd, short what, void *arg)
{
    struct http_server *s = arg;

    (void)fd, (void)what;
    /* What answers add meanwhile goes to the end and is written too. */
    for (size_t i = 0; i < s->n_dirty; i++) {
        struct http_exchange *c = s->dirty[i];

        if (c == NULL)
            continue;
        s->dirty[i] = NULL;
        c->dirty_at = 0;
        http_conn_flush(c);
    }
    s->n_dirty = 0;
    s->outbox.len = 0;
    if (s->outbox.cap > OUTBOX_KEPT_MAX)
        buf_deinit(&s->outbox);
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
    s->flush = event_new(base, -1, 0, on_flush, s);
    s->arrived = malloc(HTTP_READ_BYTES_MAX);
    if (s->accept_again == NULL || s->flush == NULL || s->arrived == NULL) {
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
        http_conn_close(s->first);
    if (s->listener != NULL)
        evconnlistener_free(s->listener);
    if (s->accept_again != NULL)
        event_free(s->accept_again);
    if (s->flush != NULL)
        event_free(s->flush);
    free(s->dirty);
    free(s->arrived);
    buf_deinit(&s->outbox);
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
    s->n_drained_for = s->stats.connections;
    if (s->n_drained_for == 0 && s->callbacks.on_drained != NULL)
        s->callbacks.on_drained(s->callbacks.arg);
    for (struct http_exchange *c = s->first; c != NULL; c = next) {
        next = c->next;
        c->close_after = true;
        if (c->phase == HTTP_PHASE_IDLE && http_reply_pending(c) == 0)
            http_conn_close(c);
        else if (c->phase == HTTP_PHASE_IDLE)
            http_conn_linger(c);
    }
}
