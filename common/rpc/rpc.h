/*
 * rpc: gRPC C core, wrapped once: a server, a client channel, and bidirectional sessions.
 *
 * A session is one long-lived bidirectional stream of protobuf messages (bytes here; the callers
 * pack and unpack). Unary calls serve Admin and health. One rpc thread owns all completion-queue
 * work and runs every callback; callbacks push a message into their owner's mailbox and return,
 * they never block.
 *
 * Promises  on_close comes exactly once for each session, after its last on_message; nothing is
 * called after it. Messages of a session arrive in order. rpc_session_send() never blocks. Threads
 * rpc_session_send/close, rpc_client_*: any thread. Callbacks: the rpc thread. Liveness  keepalive
 * both ways (2 s, 1 s timeout): a dead or cut-off peer closes the session within about 3 s with
 * ST_UNAVAILABLE, a killed process within milliseconds.
 */
#ifndef BATON_COMMON_RPC_RPC_H
#define BATON_COMMON_RPC_RPC_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

struct rpc; /* the runtime: completion queue and thread of one process */
struct rpc_server;
struct rpc_client;  /* a channel to one address; reconnects by itself */
struct rpc_session; /* counted: see rpc_session_ref() */

/** Starts gRPC and the rpc thread. */
enum status_code rpc_start(struct rpc **out, struct status *st);

/**
 * From now on servers and clients made speak TLS, both sides with certificates (mTLS): PEM files,
 * all three or none (then nothing changes). A client checks that the server's certificate names the
 * host of its address.
 * @return ST_OK; ST_INVALID naming what is missing
 */
enum status_code rpc_use_tls(struct rpc *r, const char *ca_file, const char *cert_file,
                             const char *key_file, struct status *st);

/** Closes what is left (sessions get on_close), joins the thread. Servers and clients are freed
 * before. */
void rpc_stop(struct rpc *r);

struct rpc_session_callbacks {
    /* data is borrowed until return. */
    void (*on_message)(void *arg, struct rpc_session *s, const void *data, size_t len);
    /* The stream is over; code ST_OK when the peer ended it normally. rpc lets go of the session on
     * return; who holds a reference may still call its functions: sends then fail. */
    void (*on_close)(void *arg, struct rpc_session *s, const struct status *why);
};

/** One more reference, and one less: a session's memory lives until on_close has returned and the
 * last reference is gone. Needed to use a session from a thread that can not see its on_close come.
 */
struct rpc_session *rpc_session_ref(struct rpc_session *s);
void rpc_session_unref(struct rpc_session *s);

/**
 * Queues one message. The bytes are copied.
 * @return ST_OK; ST_UNAVAILABLE after the stream has ended (on_close comes or came); ST_EXHAUSTED
 * when more than RPC_SESSION_QUEUE_MAX bytes wait for a slow peer (nothing was queued)
 */
enum status_code rpc_session_send(struct rpc_session *s, const void *data, size_t len,
                                  struct status *st);

/** The same without a copy: data is malloc memory and the session's from now on, whatever comes. */
enum status_code rpc_session_give(struct rpc_session *s, void *data, size_t len, struct status *st);

/** Bytes that wait for a slow peer. */
size_t rpc_session_waiting(struct rpc_session *s);
enum { RPC_SESSION_QUEUE_MAX = 256 << 20, RPC_MESSAGE_MAX = 64 << 20 };

/** Ends the stream. Client side: half-closes after the queued messages when `why` is ST_OK, else
 * cancels. Server side: ends with that status after the queued messages. on_close follows.
 * Idempotent. */
void rpc_session_close(struct rpc_session *s, const struct status *why);

/** "ipv4:127.0.0.1:4711": for logs. Valid as long as the session. */
const char *rpc_session_peer(const struct rpc_session *s);

/* ---- server -------------------------------------------------------------------------------- */

/* One method: unary when `unary` is set, else a session. */
struct rpc_method {
    const char *path; /* "/baton.v1.Decode/Session" */
    /* Answers a unary call: packs the reply into *reply (malloc; rpc frees) and returns ST_OK, or
     * sets st: the client sees that code and message. Runs on the rpc thread: quick. */
    enum status_code (*unary)(void *arg, const void *request, size_t len, void **reply,
                              size_t *reply_len, struct status *st);
    /* A new session: returns the argument for its callbacks, or NULL with st set to refuse it. */
    void *(*on_open)(void *arg, struct rpc_session *s, struct status *st);
    struct rpc_session_callbacks callbacks;
    void *arg; /* first argument of unary and on_open */
};

/**
 * Serves on address ("0.0.0.0:30000"; port 0 picks one). Also answers grpc.health.v1.Health/Check
 * and Watch by rpc_server_set_serving() (NOT_SERVING at first).
 * @param methods  [n], borrowed until rpc_server_free(); the callers' args too
 */
enum status_code rpc_server_start(struct rpc *r, const char *address,
                                  const struct rpc_method *methods, size_t n,
                                  struct rpc_server **out, struct status *st);
int rpc_server_port(const struct rpc_server *s);
void rpc_server_set_serving(struct rpc_server *s, int serving);

/** Stops accepting, cancels what runs (on_close comes), waits, frees. NULL is fine. */
void rpc_server_free(struct rpc_server *s);

/* ---- client -------------------------------------------------------------------------------- */

/** A channel to "host:port"; connects when first used and again (back-off 0.1 s .. 1 s) after a
 * loss. */
enum status_code rpc_client_new(struct rpc *r, const char *address, struct rpc_client **out,
                                struct status *st);
void rpc_client_free(struct rpc_client *c); /* open sessions get on_close */
const char *rpc_client_address(const struct rpc_client *c);

/**
 * Opens a session. Never blocks; a server that cannot be reached within connect_timeout_ms shows as
 * on_close(ST_UNAVAILABLE) with the reason.
 * @param out  carries a reference of the caller's: rpc_session_unref(). Callbacks may come before
 * return.
 */
enum status_code rpc_client_open(struct rpc_client *c, const char *path, int connect_timeout_ms,
                                 const struct rpc_session_callbacks *callbacks, void *arg,
                                 struct rpc_session **out, struct status *st);

/**
 * One unary call, waiting for its answer (start-up, tools, tests; never on an event or engine
 * thread).
 * @param reply  out, malloc; the caller frees
 */
enum status_code rpc_client_call(struct rpc_client *c, const char *path, int timeout_ms,
                                 const void *request, size_t len, void **reply, size_t *reply_len,
                                 struct status *st);

#endif
