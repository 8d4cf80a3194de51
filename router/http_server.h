/*
 * http_server: HTTP/1.1 connections of one event loop, plain or TLS.
 *
 *   accept ─▶ IDLE ─▶ HEAD ─▶ BODY ─▶ REPLYING ─▶ IDLE (keep-alive)
 *                │       │       │        │
 *                └───────┴───────┴────────┴─────▶ LINGERING ─▶ closed
 *
 * The handler gets a struct http_exchange when a request is complete and answers it now or later,
 * whole or as a stream. Pipelined requests wait until the one before is answered. Every phase has
 * a deadline: the whole head, the body by a least rate, idle between requests, and a client that
 * does not read.
 *
 * Promises  an exchange ends exactly once: by http_reply(), http_reply_end() or http_reply_abort(),
 *           or, when the client goes away first, by on_gone(). It must not be touched afterwards.
 *           Output held for one client never exceeds output_bytes_max plus one write.
 * Threads   the loop's, all of it.
 * Lifetime  exchanges live in their connection; the server outlives both.
 */
#ifndef BATON_ROUTER_HTTP_SERVER_H
#define BATON_ROUTER_HTTP_SERVER_H

#include <event2/event.h>

#include "router/http_parser.h"

struct http_server;
struct http_exchange;

struct http_server_config {
    const char *host; /* numeric address or name to listen on */
    int port;         /* 0 picks one */
    bool reuse_port;  /* several servers on one port: one per router thread */
    struct http_limits limits;
    int head_timeout_ms;     /* from the first byte of a request to the end of its head */
    int body_timeout_ms;     /* for the body, plus the time that body_rate_min allows */
    size_t body_rate_min;    /* bytes/s */
    int idle_timeout_ms;     /* between requests */
    int write_timeout_ms;    /* output waits and nothing is taken */
    size_t output_bytes_max; /* bound on output that waits for one client */
    struct tls *tls;         /* NULL: plain HTTP. Borrowed */
    size_t connections_max;  /* beyond: refused at accept with 503 */
};

/** Fills every field but host and port with its default. */
void http_server_config_default(struct http_server_config *c);

struct http_server_callbacks {
    /* A complete request. The exchange is the callee's until it ends it. */
    void (*on_request)(void *arg, struct http_exchange *x);
    /* An exchange has ended: answered, or (status 499) the client went away or was cut off. bytes:
     * of the answer's body; us: since the request was complete. May be NULL. */
    void (*on_end)(void *arg, struct http_exchange *x, int status, uint64_t bytes, uint64_t us);
    /* After http_server_drain(): the last connection that was open then has closed. */
    void (*on_drained)(void *arg);
    void *arg;
};

struct http_server_stats {
    uint64_t connections_total;
    uint64_t requests_total;
    uint64_t bad_requests_total; /* refused by the parser */
    uint64_t timeouts_total;
    uint64_t refused_total; /* over connections_max */
    size_t connections;     /* now open */
};

/**
 * Listens and serves on base until http_server_free().
 * @return ST_OK; ST_INVALID for a host that does not resolve; ST_UNAVAILABLE when the port is taken
 */
enum status_code http_server_new(struct event_base *base, const struct http_server_config *config,
                                 const struct http_server_callbacks *callbacks,
                                 struct http_server **out, struct status *st);

/** Closes everything at once; exchanges still open get on_gone(). NULL is fine. */
void http_server_free(struct http_server *s);

int http_server_port(const struct http_server *s);
const struct http_server_stats *http_server_stats(const struct http_server *s);

/** Closes idle connections, lets running exchanges finish and then closes theirs. Connections that
 * come meanwhile are still answered (a listener that accepts nothing would leave them hanging),
 * each once; nobody waits for them. */
void http_server_drain(struct http_server *s);

/* ---- one exchange ---------------------------------------------------------------------------- */

/** Valid until the exchange ends. The handler may take the body's buffer (and zero it). */
struct http_request *http_exchange_request(struct http_exchange *x);

/** HTTP_NOTE_BYTES for the handler's own use, 8-byte aligned, zero when a request begins; on_end
 * sees them. */
enum { HTTP_NOTE_BYTES = 320 };
void *http_exchange_note(struct http_exchange *x);

/** "127.0.0.1:4711": for logs. */
const char *http_exchange_peer(const struct http_exchange *x);

/** Whether its connection came after http_server_drain(): work that takes time is to be refused. */
bool http_exchange_is_late(const struct http_exchange *x);

/** What happens when the client goes away before the answer is complete. Set it before the handler
 * returns when the answer comes later. */
void http_exchange_on_gone(struct http_exchange *x, void (*on_gone)(void *arg), void *arg);

/** Adds one header to the answer, before it starts. value must be free of CR, LF and NUL (such a
 * header is left out). */
void http_reply_header(struct http_exchange *x, const char *name, const char *value);

/** Answers whole and ends the exchange. For HEAD the body is left out, its length is not. */
void http_reply(struct http_exchange *x, int status, const char *content_type, const void *body,
                size_t len);

/** Begins a streamed answer: chunked for HTTP/1.1, up to the close for HTTP/1.0. */
void http_reply_start(struct http_exchange *x, int status, const char *content_type);

/**
 * Appends to a streamed answer; writes of one turn of the loop leave in one packet.
 * @return ST_OK; ST_EXHAUSTED when the client reads so slowly that output_bytes_max is exceeded:
 *         nothing was added, http_reply_abort() it
 */
enum status_code http_reply_write(struct http_exchange *x, const void *data, size_t len,
                                  struct status *st);

/** Bytes that wait for the client. */
size_t http_reply_pending(const struct http_exchange *x);

/** Ends a streamed answer. */
void http_reply_end(struct http_exchange *x);

/** Gives up a streamed answer: the connection is cut, so that the client sees that it is
 * incomplete. */
void http_reply_abort(struct http_exchange *x);

/** "Not Found" for 404. */
const char *http_reason(int status);

#endif
