/*
 * internal: what the files of common/transfer share. Nobody else includes it.
 *
 * Who does what:
 *   transfer.c         the thread: commands in, progress, sleep
 *   transfer_slab.c    memory that peers write, and the descriptor
 *   transfer_peer.c    a peer's life
 *   transfer_put.c     puts: turns, completion
 *   transfer_verify.c  checksums of what arrived, on a thread of its own
 *   lane_ucx.c         bytes over UCX: RDMA, shared memory
 *   lane_tcp.c         bytes over a socket, the sending side
 *   lifeline.c         tells each side that the other has ended, the sending side
 *   dial.c             connects those two to a peer; tcp_server.c is whom they talk to
 *   link_probe.c       measures the way to a peer
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

enum { SLAB_PROBE = TRANSFER_SLABS_MAX }; /* our own, after those of the owner */

enum {
    PUT_QUANTUM = 256 << 10, /* bytes of one put before the next put has its turn */
    PIECES_MAX = 1 << 24,    /* per put or verify: 2 GiB of bookkeeping at most */
    GROUPS_MAX = 1 << 24,
    IDLE_SPINS = 64, /* fruitless rounds before the thread sleeps */
};

/* A file descriptor in the thread's epoll set. */
struct watch {
    void (*ready)(struct watch *w, uint32_t events);
};

struct slab_region {
    void *base;
    uint64_t bytes; /* 0: no such slab */
    ucp_mem_h memh;
};

struct put;
struct verifier;
struct lane_ucx;
struct lane_tcp;
struct lifeline;
struct tcp_server;

struct transfer {
    ucp_context_h context;
    ucp_worker_h worker;
    int ucx_fd; /* readable when an armed worker has something to do */
    int epoll_fd;
    int n_watches;
    struct transport_plan plan;
    uint64_t incarnation;
    uint64_t writers; /* names given by transfer_describe_to() */
    /* Written before the first peer, inside a call that the caller waits for; read by any thread
     * afterwards. */
    struct slab_region slabs[DESCRIPTOR_SLABS];
    struct verifier *verifier;
    struct tcp_server *server;
    struct transfer_peer *peers; /* list by next */
    struct put *turn_head;       /* puts that still have bytes to send, next turn first */
    struct put *turn_tail;
    struct put *ended; /* puts whose last request has ended: callbacks due, oldest first */
    struct put **ended_end;
    uint64_t rate_limit; /* bytes per second; 0: none */
    uint64_t rate_ns;    /* with a limit: when the bytes sent so far would have left the link */
    bool stopping;
    struct mailbox *box;
    struct msg stop; /* CMD_STOP, sent once */
    pthread_t thread;
    atomic_int flips; /* any thread: transfer_inject_flips() */
};

/*  OPEN ──▶ FAILED ──▶ CLOSING ──▶ freed     FAILED: the peer is lost, its puts fail
 *    └────────────────────▲                  CLOSING: the owner gave it up; waits for the lane */
enum peer_state { PEER_OPEN, PEER_FAILED, PEER_CLOSING };

struct transfer_peer {
    struct transfer *t;
    struct transfer_peer *next;
    struct msg close; /* CMD_CLOSE, sent once by transfer_peer_close() */
    char name[64];
    enum peer_state state;
    struct status why;                              /* when not OPEN: what its puts end with */
    struct descriptor_slab slabs[DESCRIPTOR_SLABS]; /* rkey pointers are not kept; any thread */
    const struct lane_ops *lane;
    struct lane_ucx *ucx; /* the lane's own, by its kind */
    struct lane_tcp *tcp;
    struct lifeline *lifeline;
    bool lost;        /* the lifeline is broken: nothing is to be confirmed any more */
    bool hurried;     /* the lane knows that this worker stops */
    struct put *puts; /* all that have not ended, list by peer_next */
    void (*on_closed)(void *arg);
    void *on_closed_arg;
    pthread_mutex_t lock; /* guards transport and link: written once, read by any thread */
    char transport[128];
    struct transfer_link link;
    bool link_known;
    bool transport_known; /* transfer thread's own note that the text is there */
};

enum { LANE_FOREVER = -1, LANE_GONE = -2 };

/* How bytes reach a peer. */
struct lane_ops {
    /** May a put have a turn now? */
    bool (*has_room)(const struct transfer_peer *p);
    /** Sends about PUT_QUANTUM of u's next bytes (put_next()). */
    void (*turn)(struct put *u);
    /** Asks the peer to confirm what was sent for u. */
    void (*flush)(struct put *u);
    /** Begins the end: by force when the peer is lost, else so that nothing is under way after. All
     * requests end in time. Called again when this worker stops meanwhile. */
    void (*close)(struct transfer_peer *p);
    /** Housekeeping, after every round. @return how long the thread may sleep, in ms; LANE_FOREVER;
     * LANE_GONE when the close has ended */
    int (*tend)(struct transfer_peer *p);
    /** What transfer_peer_transport() says; after the first flush. */
    void (*describe)(struct transfer_peer *p, char *buf, size_t n);
    void (*free)(struct transfer_peer *p);
};

/** The shorter of two sleeps; negative: none. */
static inline int sooner(int a_ms, int b_ms)
{
    return a_ms < 0 || (b_ms >= 0 && b_ms < a_ms) ? b_ms : a_ms;
}

/* transfer.c */

/* A command that runs a function on the transfer thread while the caller waits. */
typedef enum status_code (*transfer_call_fn)(struct transfer *t, void *arg, struct status *st);

/** Runs fn on the transfer thread (at once when this is it) and returns what it returned. */
enum status_code transfer_call(struct transfer *t, transfer_call_fn fn, void *arg,
                               struct status *st);

/* Commands: types of struct msg in the transfer thread's mailbox. */
enum transfer_cmd { CMD_CALL, CMD_PUT, CMD_HURRY, CMD_CANCEL, CMD_CLOSE, CMD_STOP };

/** Checks pieces against the first n_slabs of our slabs and, when remote is not NULL, the peer's.
 */
enum status_code pieces_check(const struct transfer *t, const struct descriptor_slab *remote,
                              int n_slabs, const struct transfer_piece *pieces, size_t n,
                              uint32_t n_groups, struct status *st);

/** Adds fd to the epoll set, or changes its events; watch_close() takes it out and closes it. */
bool watch_add(struct transfer *t, int fd, uint32_t events, struct watch *w);
void watch_change(struct transfer *t, int fd, uint32_t events, struct watch *w);
void watch_close(struct transfer *t, int fd);

/* transfer_slab.c */

/** Allocates slab SLAB_PROBE. */
enum status_code slab_probe_alloc(struct transfer *t, struct status *st);

/** Unregisters and frees all slabs. */
void slabs_deinit(struct transfer *t);

/** Asks for large pages and maps all of [base, base + bytes) now. @return 0, or errno: the memory
 * is not there */
int slab_advise(void *base, uint64_t bytes);

/* transfer_peer.c */

/** Moves p to FAILED or CLOSING: no put sends any more, the lane is closed. */
void peer_fail(struct transfer_peer *p, enum peer_state state, enum status_code code,
               const char *why);

/** After every round: lanes' housekeeping; frees peers whose closing has ended.
 * @return how long the thread may sleep now, in ms; -1: until something happens */
int peers_tend(struct transfer *t);

/** Notes what the lane really uses, once; a flush has ended. */
void peer_note_transport(struct transfer_peer *p);

void peer_begin_close(struct msg *m); /* CMD_CLOSE */
void peers_close_all(struct transfer *t);

/* transfer_put.c: commands */

/** transfer_put(), into the first n_slabs slabs. */
enum status_code put_start(struct transfer_peer *p, uint64_t id, int n_slabs,
                           const struct transfer_piece *pieces, size_t n, uint32_t n_groups,
                           void (*done)(void *arg, const struct transfer_result *r), void *arg,
                           struct status *st);

void put_accept(struct msg *m); /* CMD_PUT: takes its place among the turns */
void put_hurry(struct msg *m);  /* CMD_HURRY */
void put_cancel(struct msg *m); /* CMD_CANCEL */
void put_drop(struct msg *m);   /* one found in the mailbox at the end */

/** Gives the next put whose lane has room its turn. @return whether there was one */
bool puts_pump(struct transfer *t);

/** How long the rate limit keeps puts that are due from their turn, in ms; -1: it does not. */
int puts_held(const struct transfer *t);

/** Stops the puts of p (all; or the given id) with a status; they end when their requests have. */
void puts_stop(struct transfer_peer *p, const uint64_t *id, const struct status *why);

/** Calls back for puts that have ended. @return whether there were any */
bool puts_deliver(struct transfer *t);

/* transfer_put.c: for lanes */

/* A run of local bytes on its way. */
struct chunk {
    const uint8_t *from; /* our memory: what the checksum is of */
    uint64_t bytes;
    int slab;
    uint64_t remote_off;
    uint32_t *crc; /* to be continued over the bytes */
    void
        *scratch; /* NULL, or what to send in place of from: a fault to inject; the lane frees it */
};

/** The next run of u, at most max bytes; false when all are out. */
bool put_next(struct put *u, uint64_t max, struct chunk *c);

/** One more request of u is out. */
void put_request_began(struct put *u);

/** One has ended. status_why: NULL when well, else why not. */
void put_request_ended(struct put *u, const char *why);

struct transfer_peer *put_peer(const struct put *u);
bool put_is_sending(const struct put *u);

/* transfer_verify.c */

enum status_code verifier_start(struct transfer *t, struct verifier **out, struct status *st);

/** Ends the thread; verifications under way end with ST_CANCELLED. Takes NULL. */
void verifier_stop(struct verifier *v);

/* lane_ucx.c, lane_tcp.c */

/** Opens p's lane to the peer of d. ST_UNAVAILABLE: this lane does not lead there. */
enum status_code lane_ucx_open(struct transfer_peer *p, const struct descriptor *d,
                               struct status *st);

/** The same; connects in the background, a failure ends the peer. */
enum status_code lane_tcp_open(struct transfer_peer *p, const struct descriptor *d,
                               struct status *st);

/* tcp_server.c */

enum status_code tcp_server_start(struct transfer *t, uint16_t port, struct tcp_server **out,
                                  struct status *st);
void tcp_server_stop(struct tcp_server *s); /* takes NULL */
/** Our addresses and a token: the writer's own (ST_EXHAUSTED: no memory for it; see
 * transfer_describe_to() for on_end), with writer 0 one that all share. */
enum status_code tcp_server_offer(struct tcp_server *s, uint64_t writer, transfer_end_fn on_end,
                                  void *arg, struct tcp_offer *out, struct status *st);

/** Forgets the writer's token, closes its connections or asks it to stop: see transfer_revoke(). */
bool tcp_server_revoke(struct tcp_server *s, uint64_t writer);

/** Beats; ends connections that do not greet in time. @return ms to the next such bound; -1: none
 */
int tcp_server_tend(struct tcp_server *s);

#endif
