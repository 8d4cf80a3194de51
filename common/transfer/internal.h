/*
 * internal: what the files of common/transfer share. Nobody else includes it.
 *
 * Who does what:
 *   transfer.c         the thread: commands in, progress, sleep
 *   transfer_slab.c    memory that peers write
 *   transfer_peer.c    an endpoint and its life
 *   transfer_put.c     writing pieces: window, turns, flush, completion
 *   transfer_verify.c  checksums of what arrived, on a thread of its own
 *   transport.c        which transports may be used, and which one was
 *
 * Any thread pushes a command to the mailbox; everything else is touched by the transfer thread
 * alone, except where a field says otherwise.
 */
#ifndef BATON_COMMON_TRANSFER_INTERNAL_H
#define BATON_COMMON_TRANSFER_INTERNAL_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <ucp/api/ucp.h>

#include "common/base/mailbox.h"
#include "common/transfer/descriptor.h"
#include "common/transfer/transfer.h"
#include "common/transfer/transport.h"

enum {
    PUT_QUANTUM = 256 << 10,     /* bytes of one put before the next put has its turn */
    PEER_WINDOW_BYTES = 8 << 20, /* posted and not ended, per peer */
    PEER_WINDOW_REQUESTS = 1024,
    PIECES_MAX = 1 << 24, /* per put or verify: 2 GiB of bookkeeping at most */
    GROUPS_MAX = 1 << 24,
    IDLE_SPINS = 64,  /* fruitless progress calls before the thread sleeps */
    TEND_MS = 10,     /* longest sleep while an endpoint closes */
    PENDING_MS = 200, /* longest sleep while requests are out: a net under UCX's wake-ups */
};

struct slab_region {
    void *base;
    uint64_t bytes; /* 0: no such slab */
    ucp_mem_h memh;
};

struct put;
struct verifier;

/* Written before the first peer, by the transfer thread inside a call that the caller waits for;
 * read by any thread afterwards. */
struct transfer_slabs {
    struct slab_region at[TRANSFER_SLABS_MAX];
};

struct transfer {
    ucp_context_h context;
    ucp_worker_h worker;
    int ucx_fd; /* readable when an armed worker has something to do */
    struct transport_plan plan;
    uint64_t incarnation;
    struct transfer_slabs slabs;
    struct verifier *verifier;
    struct transfer_peer *peers; /* list by next */
    struct put *turn_head;       /* puts that still have pieces to post, next turn first */
    struct put *turn_tail;
    struct put *ended; /* puts whose last request has ended: callbacks due */
    bool stopping;
    struct mailbox *box;
    struct msg stop; /* CMD_STOP, sent once */
    pthread_t thread;
    atomic_int flips; /* any thread: transfer_inject_flips() */
};

/*  OPEN ──▶ FAILED ──▶ CLOSING ──▶ freed     FAILED: UCX reported the peer dead, its puts fail
 *    └────────────────────▲                  CLOSING: the owner gave it up; waits for requests */
enum peer_state { PEER_OPEN, PEER_FAILED, PEER_CLOSING };

struct transfer_peer {
    struct transfer *t;
    struct transfer_peer *next;
    struct msg close; /* CMD_CLOSE, sent once by transfer_peer_close() */
    char name[64];
    enum peer_state state;
    struct status why;  /* when not OPEN: what its puts end with */
    bool error_seen;    /* UCX's error callback came; handled by peer_tend() */
    ucs_status_t error; /* what it said */
    ucp_ep_h ep;        /* NULL once its close has begun */
    void *close_req;    /* NULL, or the close under way */
    struct descriptor_slab slabs[TRANSFER_SLABS_MAX]; /* rkey pointers are not kept */
    ucp_rkey_h rkeys[TRANSFER_SLABS_MAX];
    uint64_t window_bytes; /* posted and not ended */
    uint32_t window_requests;
    struct put *puts; /* all that have not ended, list by peer_next */
    void (*on_closed)(void *arg);
    void *on_closed_arg;
    pthread_mutex_t lock; /* guards transport: written once, read by any thread */
    char transport[128];
    bool transport_known; /* transfer thread's own note that the text is there */
};

/* A command that runs a function on the transfer thread while the caller waits. */
typedef enum status_code (*transfer_call_fn)(struct transfer *t, void *arg, struct status *st);

/* transfer.c */

/** Runs fn on the transfer thread (at once when this is it) and returns what it returned. */
enum status_code transfer_call(struct transfer *t, transfer_call_fn fn, void *arg,
                               struct status *st);

/** Is the caller the transfer thread? */
bool transfer_on_thread(const struct transfer *t);

/* Commands: types of struct msg in the transfer thread's mailbox. */
enum transfer_cmd { CMD_CALL, CMD_PUT, CMD_CANCEL, CMD_CLOSE, CMD_STOP };

/** Checks pieces against our slabs and, when remote is not NULL, the peer's. */
enum status_code pieces_check(const struct transfer *t, const struct descriptor_slab *remote,
                              const struct transfer_piece *pieces, size_t n, uint32_t n_groups,
                              struct status *st);

/* transfer_slab.c */

/** Unregisters and frees all slabs; on the transfer thread. */
void slabs_deinit(struct transfer *t);

/* transfer_peer.c */

/** Moves p to FAILED (or CLOSING): no put posts any more, the endpoint is closed by force. */
void peer_fail(struct transfer_peer *p, enum peer_state state, enum status_code code,
               const char *why);

/** After progress: handles reported errors, frees peers whose closing has ended.
 * @return how long the thread may sleep now, in ms; -1: until something happens */
int peers_tend(struct transfer *t);

void peer_begin_close(struct msg *m); /* CMD_CLOSE */
void peers_close_all(struct transfer *t);

/** Notes what UCX chose, once. */
void peer_note_transport(struct transfer_peer *p);

/* transfer_put.c */

void put_accept(struct msg *m); /* CMD_PUT: takes its place among the turns */
void put_cancel(struct msg *m); /* CMD_CANCEL */
void put_drop(struct msg *m);   /* CMD_PUT found in the mailbox at the end */

/** Gives the next put whose peer's window has room its turn. @return whether there was one */
bool puts_pump(struct transfer *t);

/** Stops the puts of p (all; or the given id) with a status; they end when their requests have. */
void puts_stop(struct transfer_peer *p, const uint64_t *id, const struct status *why);

/** Calls back for puts that have ended. @return whether there were any */
bool puts_deliver(struct transfer *t);

/* transfer_verify.c */

enum status_code verifier_start(struct transfer *t, struct verifier **out, struct status *st);

/** Ends the thread; verifications under way end with ST_CANCELLED. Takes NULL. */
void verifier_stop(struct verifier *v);

#endif
