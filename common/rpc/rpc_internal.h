/*
 * rpc_internal: what the files of common/rpc share. Everything on the wire is a session; a unary
 * call is a session of one message each way.
 */
#ifndef BATON_COMMON_RPC_RPC_INTERNAL_H
#define BATON_COMMON_RPC_RPC_INTERNAL_H

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "common/rpc/rpc.h"

enum { RPC_WINDOW_BYTES = 4 << 20 }; /* of a session, sent and not yet taken by the peer */

/* What a completion-queue event means: fn runs on the rpc thread. */
struct rpc_tag {
    void (*fn)(struct rpc_tag *tag, bool ok);
    void *owner;
};

/* What is written before an operation starts is seen by the thread that gets its event;
 * ThreadSanitizer is told so, since it cannot look into C core. */
#if defined(__SANITIZE_THREAD__)
void __tsan_acquire(void *at);
void __tsan_release(void *at);
#define RPC_TAG_HAND_OVER(tag) __tsan_release(tag)
#define RPC_TAG_TAKE(tag) __tsan_acquire(tag)
#else
#define RPC_TAG_HAND_OVER(tag) ((void)(tag))
#define RPC_TAG_TAKE(tag) ((void)(tag))
#endif

struct rpc {
    grpc_completion_queue *cq;
    pthread_t thread;
    pthread_mutex_t lock; /* guards connecting and its links; before a session's lock */
    char *tls_ca, *tls_cert, *tls_key; /* PEM texts; NULL: no TLS */
    struct rpc_session *connecting;    /* client sessions that the server has not answered yet */
};

/* ---- rpc.c ---- */

struct rpc_int_arg {
    const char *key;
    int value;
};

enum { RPC_ARGS_MAX = 16 };
struct rpc_channel_args {
    grpc_arg args[RPC_ARGS_MAX];
    grpc_channel_args list;
};

/** What all channels and servers have (keepalive, windows, sizes), and n own ones. @return
 * &out->list */
const grpc_channel_args *rpc_channel_args(struct rpc_channel_args *out, size_t n,
                                          const struct rpc_int_arg *own);

/* ---- rpc_tls.c: the caller releases them ---- */
grpc_channel_credentials *rpc_channel_credentials(const struct rpc *r);
grpc_server_credentials *rpc_server_credentials(const struct rpc *r);
void rpc_tls_deinit(struct rpc *r);

/* Counts the open sessions of a server or client, so that its free can wait for their on_close. */
struct rpc_group {
    pthread_mutex_t lock; /* guards all fields; never held while a callback runs */
    pthread_cond_t changed;
    struct rpc_session *first;
    bool closing; /* no new sessions */
};

void rpc_group_init(struct rpc_group *g);
void rpc_group_deinit(struct rpc_group *g);
/** Ends every session of the group with `why` and waits until each has had its on_close. */
void rpc_group_end_all(struct rpc_group *g, const struct status *why);

/* One message that waits to be sent. */
struct rpc_outgoing {
    struct rpc_outgoing *next;
    grpc_byte_buffer *bytes;
    size_t len;
};

struct rpc_session {
    _Atomic int refs;
    struct rpc *rpc;
    struct rpc_group *group;
    struct rpc_session *prev, *next;     /* in the group, under its lock */
    struct rpc_session *next_connecting; /* under the runtime's lock */
    uint64_t connect_deadline_us;
    bool is_client;
    grpc_call *call;
    char *peer; /* gpr memory */
    struct rpc_session_callbacks callbacks;
    void *arg;

    /* rpc thread only, once started */
    bool ended; /* the final status is known */
    struct status why;
    grpc_byte_buffer *received;
    grpc_metadata_array initial_md, trailing_md;
    grpc_status_code status_code;
    grpc_slice status_details;
    int cancelled;
    struct rpc_tag recv_tag, end_tag, start_tag;

    pthread_mutex_t lock; /* guards what follows; leaf lock */
    int n_pending;        /* events still to come, but for the two below */
    struct rpc_outgoing *head, *tail;
    size_t queued_bytes;
    bool writing; /* a send batch runs */
    bool close_asked;
    bool close_sent; /* half-close or status batch was started, or the call cancelled */
    bool dead;       /* nothing can be sent any more */
    struct status close_why;
    struct rpc_tag send_tag, close_tag;
    bool send_pending, close_pending; /* events of these tags still to come */
};

/** A session with one reference, in the group. NULL: no memory, or the group is closing. */
struct rpc_session *rpc_session_new(struct rpc *r, struct rpc_group *group, bool is_client,
                                    grpc_call *call, const struct rpc_session_callbacks *callbacks,
                                    void *arg);

/** Ends the call at once, also after rpc_session_close(); on_close follows. */
void rpc_session_cancel(struct rpc_session *s, const struct status *why);

/** Ends the sessions whose server has not answered in time. rpc thread. */
void rpc_check_connecting(struct rpc *r);

/** Starts receiving and the batches that end the call. @return false: the call could not be started
 */
bool rpc_session_start(struct rpc_session *s, int connect_timeout_ms);

#endif
