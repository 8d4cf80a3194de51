/*
 * transfer: moves KV bytes from this process's slabs into a peer's.
 *
 * The receiver (decode) exposes its slabs; the sender (prefill) writes into units that the receiver
 * named for one request, flushes, and only then is told that the bytes are there. Checksums are
 * taken from the sender's memory as it is sent, and computed again by the receiver over what
 * arrived.
 *
 * Two lanes carry bytes, chosen per peer: UCX (RDMA; shared memory on one node, as a copy fused
 * with the checksum) where it leads to the peer natively, else a socket of our own, where TCP is
 * allowed. The socket lane listens on every interface, admits senders that know the descriptor's
 * token and holds every write against the slabs' bounds; it does not encrypt.
 *
 * Beside either lane a writer keeps a lifeline to its receiver (lifeline.h), by which each side
 * learns that the other has ended, and the receiver that nothing is written any more.
 *
 * Owns      every UCX object and socket, on one thread that sleeps when there is nothing to do.
 * Promises  a put's completion comes exactly once, ok only after a flush: the bytes are visible to
 * the peer. After it (ok or not) local memory is not read any more. After transfer_peer_close()
 * returns through its callback nothing more is written to that peer (but see there for a frozen
 * one). Threads   calls: any. Callbacks: the transfer or the verify thread; they push to a mailbox
 * and return. Do not fork while a transfer is up: UCX does not survive it.
 */
#ifndef BATON_COMMON_TRANSFER_TRANSFER_H
#define BATON_COMMON_TRANSFER_TRANSFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/status.h"

struct transfer;
struct transfer_peer;

enum transfer_kind { TRANSFER_AUTO, TRANSFER_RDMA, TRANSFER_NVLINK, TRANSFER_SHM, TRANSFER_TCP };

struct transfer_options {
    enum transfer_kind transport; /* --kv-transport */
    enum transfer_kind require;   /* --kv-require; TRANSFER_AUTO: nothing required */
    const char *devices;          /* --kv-devices: "mlx5_0:1,eth0", NULL: all */
    uint16_t tcp_port;            /* --kv-port: of the socket lane and lifelines; 0: any free one */
    uint64_t rate_limit;          /* --kv-rate-limit: bytes per second sent to all peers; 0: none */
};

enum { TRANSFER_SLABS_MAX = 4 };

/** Starts UCX and the thread. ST_UNAVAILABLE with the reason and the fix when a required transport
 * is not there, or when UCX_TLS / UCX_NET_DEVICES in the environment contradict the options. */
enum status_code transfer_start(const struct transfer_options *opt, struct transfer **out,
                                struct status *st);

/** Ends: peers are closed (outstanding puts complete with ST_CANCELLED), the thread joined. */
void transfer_stop(struct transfer *t);

/**
 * Memory that is good for every transport (shared memory on one node), registered as slab `index`,
 * for peers to write. Zeroed, page-aligned. Call before the first peer; freed by transfer_stop().
 */
enum status_code transfer_slab_alloc(struct transfer *t, int index, size_t bytes, void **out,
                                     struct status *st);

/** Registers memory of the caller's as slab `index` instead (it must outlive transfer_stop()). */
enum status_code transfer_slab_register(struct transfer *t, int index, void *base, size_t bytes,
                                        struct status *st);

/** Appends what a peer needs to write into our slabs (worker address, slab bases, sizes, packed
 * rkeys) as opaque bytes; they travel over the authenticated gRPC session. */
enum status_code transfer_describe(struct transfer *t, struct buf *out, struct status *st);

/**
 * A writer has ended: it has closed its peer, has died or is out of reach.
 * @param proven  nothing that it sent is written to our slabs from now on; else that is not known
 * yet: transfer_revoke() proves it, or this is called once more when it is proven
 */
typedef void (*transfer_end_fn)(void *arg, uint64_t writer, bool proven);

/**
 * The same for one writer, who alone is to connect with these bytes, once; transfer_revoke() shuts
 * it out again.
 * @param writer  out: names it, never 0
 * @param on_end  on the transfer thread; pushes to a mailbox and returns. Death within the host is
 * told at once, a silent network within 2 s, a frozen process not at all. Not called when this
 * transfer stops first, nor after transfer_revoke() has returned true
 */
enum status_code transfer_describe_to(struct transfer *t, transfer_end_fn on_end, void *arg,
                                      uint64_t *writer, struct buf *out, struct status *st);

/**
 * Ends what that writer may do, once; returns when it is done.
 * @return true: proven, nothing that it sent or sends is written to our slabs from now on. false:
 * it writes by memory or RDMA and has been asked to stop; on_end tells when that is proven: when it
 * has said so, when it has died; while it is frozen it is not. (It is behind a cut cable: after 60
 * s, by when its own side has long given up.)
 */
bool transfer_revoke(struct transfer *t, uint64_t writer);

/**
 * Connects to a peer described by its transfer_describe() bytes (input: checked). The lifeline, and
 * a socket lane, are dialled in the background, 8 s at most: a put waits for them, and ends with
 * ST_UNAVAILABLE and the addresses tried when there is none.
 * @param name  for logs
 * @return ST_OK; ST_INVALID: these bytes are no descriptor; ST_UNAVAILABLE: no allowed transport
 * leads there
 */
enum status_code transfer_peer_open(struct transfer *t, const char *name, const void *desc,
                                    size_t desc_len, struct transfer_peer **out, struct status *st);

/**
 * Closes: outstanding puts complete with ST_UNAVAILABLE, then on_closed (may be NULL) says that
 * nothing can be written to the peer any more, and the peer is freed. Over a socket the peer is
 * asked to confirm that it has read everything; one that is frozen while its kernel lives is cut
 * off after 20 s, and may then still read the few bytes that its kernel holds when it thaws.
 */
void transfer_peer_close(struct transfer_peer *p, void (*on_closed)(void *arg), void *arg);

/* One contiguous piece: local slab bytes to the same kind of slab at the peer. */
struct transfer_piece {
    int slab;            /* index, both sides */
    uint64_t local_off;  /* from our slab's base */
    uint64_t remote_off; /* from the peer's */
    uint64_t bytes;
    uint32_t group; /* pieces of one group share a checksum: CRC32C over them in order */
};

struct transfer_result {
    struct status status; /* ST_OK; ST_UNAVAILABLE (peer lost); ST_INVALID (bounds); ST_CANCELLED */
    uint64_t bytes;
    uint64_t elapsed_us; /* from the first byte posted to the flush's end */
    uint32_t n_groups;
    const uint32_t *crc; /* [n_groups], taken from local memory; borrowed until return */
};

/**
 * Writes pieces into the peer's slabs, flushes, calls done. Pieces are copied; groups are 0 ..
 * n_groups - 1.
 * @param id  for transfer_cancel() and logs
 */
enum status_code transfer_put(struct transfer_peer *p, uint64_t id,
                              const struct transfer_piece *pieces, size_t n, uint32_t n_groups,
                              void (*done)(void *arg, const struct transfer_result *r), void *arg,
                              struct status *st);

/**
 * Somebody waits for these puts, those of that id that are there now: they go before all that are
 * not hurried. Puts of one id go in their order, and ids of one rank take turns, whatever their
 * lengths: a long handoff does not delay a short one by more than a turn of each.
 */
void transfer_hurry(struct transfer_peer *p, uint64_t id);

/** Stops posting pieces of that put; done comes with ST_CANCELLED after what was posted has ended.
 */
void transfer_cancel(struct transfer_peer *p, uint64_t id);

/**
 * Checksums what arrived in our own slabs, on a thread of its own: the groups of pieces (remote_off
 * is ignored), against the expected values.
 * @param done  status ST_OK, or ST_CORRUPT naming the first differing group and both values
 */
enum status_code transfer_verify(struct transfer *t, const struct transfer_piece *pieces, size_t n,
                                 const uint32_t *expected, uint32_t n_groups,
                                 void (*done)(void *arg, const struct transfer_result *r),
                                 void *arg, struct status *st);

/** What UCX really uses towards the peer, after the first flush: "shm (posix/memory)", "tcp
 * (tcp/eth0)", "rdma (rc_mlx5/mlx5_0:1)"; "unknown" before. Copied into buf. */
void transfer_peer_transport(struct transfer_peer *p, char *buf, size_t n);

/* What the way to a peer gave when it was opened, nothing else going over it. */
struct transfer_link {
    uint64_t bytes_per_s;
    uint64_t expected_bytes_per_s; /* by the port's or interface's rate, or a copy; 0: not known */
    double latency_us;             /* of a put of 64 bytes, from call to callback */
    bool slow;                     /* far below what is expected; logged once as a warning */
};

/** @return false: the probe is not through, the peer was lost meanwhile, or there is a rate limit
 */
bool transfer_peer_link(struct transfer_peer *p, struct transfer_link *out);

/** Fault injection for tests: the next n puts flip one bit of one byte on the way (the checksum is
 * of the true bytes). */
void transfer_inject_flips(struct transfer *t, int n);

#endif
