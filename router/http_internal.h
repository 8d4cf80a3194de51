/*
 * http_internal: what http_server.c (accepting), http_conn.c (phases, input) and http_reply.c
 * (output) share. The picture of the phases stands in http_server.h.
 */
#ifndef BATON_ROUTER_HTTP_INTERNAL_H
#define BATON_ROUTER_HTTP_INTERNAL_H

#include <event2/event.h>

#include "router/http_server.h"
#include "router/http_socket.h"

#define HTTP_NEVER UINT64_MAX

/* Taken from a socket at once; also input held for the next request. */
enum { HTTP_READ_BYTES_MAX = 64 << 10 };

enum http_phase {
    HTTP_PHASE_IDLE,
    HTTP_PHASE_HEAD,
    HTTP_PHASE_BODY,
    HTTP_PHASE_REPLYING,
    HTTP_PHASE_LINGERING,
    HTTP_PHASE_DEAD
};

struct http_exchange {
    struct http_server *server;
    struct http_exchange *prev, *next; /* the server's list */
    struct http_socket socket;
    struct event *readable, *writable; /* writable: added while the socket is full */
    struct event *timer;
    uint64_t deadline_us; /* of the phase; HTTP_NEVER for none */
    uint64_t timer_us;    /* when the timer fires; HTTP_NEVER while it is not armed. Deadlines that
                             move    back cost nothing: the timer finds out when it fires */
    uint64_t body_since_us;
    enum http_phase phase;
    size_t dirty_at;        /* place in the server's dirty list + 1; 0: not there */
    struct buf in;          /* arrived, for the next request */
    struct buf out;         /* did not fit into the socket */
    size_t out_sent;        /* of out */
    size_t out_at, out_len; /* what of the server's outbox is its own; follows what is in out, and
                               one of the two is empty while bytes are added */
    bool in_pump;           /* on the stack: do not free */
    bool streaming;         /* http_reply_start() was called */
    bool chunked;           /* and the stream is chunked */
    bool close_after;       /* no keep-alive after this answer */
    bool paused;            /* not read from: too much is held */
    bool half_closed;       /* the client sends nothing more */
    bool late;              /* came while the server drains */
    bool answering;         /* a request was handed over and has not ended: on_end is owed */
    int status;             /* of its answer; 0: none yet */
    uint64_t begun_us, body_bytes;
    uint64_t note[HTTP_NOTE_BYTES / 8];
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
    /* Connections with output of this turn: written once, at its end. Going through the event loop
     * would cost two more system calls for each. The bytes of all wait in one buffer: an own costs
     * allocations for each, and gets what the socket did not take. */
    struct http_exchange **dirty; /* [n_dirty] of [cap_dirty]; NULL: gone meanwhile */
    struct buf outbox;
    size_t n_dirty, cap_dirty;
    size_t n_drained_for; /* while draining: connections that are not late */
    char *arrived;        /* [HTTP_READ_BYTES_MAX]: read from one socket at a time, then parsed */
    struct event *flush;
    int port;
    bool draining;
};

/* ---- http_conn.c ----------------------------------------------------------------------------- */

/** A connection for an accepted socket, which it owns on success. NULL: no memory. */
struct http_exchange *http_conn_open(struct http_server *s, evutil_socket_t fd,
                                     const struct sockaddr *addr, int len);

/** Tells the handler's owner that the exchange has ended. */
void http_conn_ended(struct http_exchange *c, int status);

/** Closes now; the one who waits for the answer, if any, is told. */
void http_conn_close(struct http_exchange *c);

/** Waits for the output to leave, then for the client to stop sending (a close with unread input
 * resets the connection, and the client might lose the answer), for a bounded time. */
void http_conn_linger(struct http_exchange *c);

/** The answer is complete: on to the next request, or the end. */
void http_conn_finish(struct http_exchange *c);

/** Adds output: it leaves at the end of this turn of the loop. */
void http_conn_put(struct http_exchange *c, const void *data, size_t len);

/** Writes what it can now; the loop does the rest. May close the connection. */
void http_conn_flush(struct http_exchange *c);

/** True while no more output may be added for this client. */
static inline bool http_output_full(const struct http_exchange *c)
{
    return http_reply_pending(c) > c->server->config.output_bytes_max;
}

#endif
