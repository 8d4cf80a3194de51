/*
 * node: a process with a transfer of its own, driven by a test.
 *
 * UCX must not see a fork, so the test itself never starts it: it forks nodes and tells each what
 * to do over a socket pair, one request at a time. Every wait has a bound (NODE_WAIT_S); past it
 * the test fails instead of hanging.
 */
#ifndef TESTS_UNIT_COMMON_TRANSFER_NODE_H
#define TESTS_UNIT_COMMON_TRANSFER_NODE_H

#include <sys/types.h>

#include "common/transfer/transfer.h"

enum { NODE_WAIT_S = 60, NODE_PUTS_MAX = 64, NODE_WRITERS_MAX = 64 };

struct node {
    pid_t pid;
    int fd;
};

/* What a put or a verification ended with, as the node's callback saw it. */
struct node_result {
    struct status status;
    uint64_t bytes;
    uint32_t n_groups;
    uint32_t calls; /* how often the callback came */
    uint32_t nth;   /* this was the node's nth put or verification to end, from 1 */
};

/** Forks. The process dies with the test. */
struct node node_fork(void);

/** Forks inside the network namespace of that name. */
struct node node_fork_in(const char *netns);

/** SIGSTOP; returns when all of its threads stand still, which one of them must first be told. */
void node_freeze(struct node *n);
void node_thaw(struct node *n);

/** kill -9 and reap; takes one already dead. */
void node_kill(struct node *n);

/** Tells it to end and asserts that it did so cleanly (a leak or a sanitizer report is not clean).
 */
void node_end(struct node *n);

void node_setenv(struct node *n, const char *name, const char *value);
enum status_code node_start(struct node *n, const struct transfer_options *opt, struct status *st);
void node_stop(struct node *n);

/** Allocates slab `index`; register: from the heap instead of shared memory. */
void node_slab(struct node *n, int index, size_t bytes, bool from_heap);

/** Fills a slab with bytes of a seed, or with one value (seed 0..255 and same). */
void node_fill(struct node *n, int slab, uint64_t seed, bool same);
void node_fill_range(struct node *n, int slab, uint64_t off, uint64_t bytes, uint8_t value);
void node_read(struct node *n, int slab, uint64_t off, size_t bytes, void *out);

/** Counts bytes of a slab that differ from value. */
uint64_t node_count_other(struct node *n, int slab, uint8_t value);

/** @return length of the descriptor */
size_t node_describe(struct node *n, void *out, size_t cap);
size_t node_describe_to(struct node *n, uint64_t *writer, void *out, size_t cap);
bool node_revoke(struct node *n, uint64_t writer);
/** Waits until the node was told that the writer has ended, or (proven) writes nothing any more. */
void node_writer_wait(struct node *n, uint64_t writer, bool proven);
/** Has it been told the latter? */
bool node_writer_gone(struct node *n, uint64_t writer);
enum status_code node_open(struct node *n, const void *desc, size_t len, struct status *st);

/** Closes the open peer and waits for on_closed. */
void node_close(struct node *n);

/** Closes without waiting; node_closed_wait() follows. */
void node_close_begin(struct node *n);
void node_close_wait(struct node *n);

/** Starts a put; id < NODE_PUTS_MAX, each used once per node_open(). */
enum status_code node_put(struct node *n, uint64_t id, const struct transfer_piece *pieces,
                          size_t n_pieces, uint32_t n_groups, struct status *st);
/** The same for a handoff whose name is not the put's own. */
enum status_code node_put_of(struct node *n, uint64_t id, uint64_t handoff,
                             const struct transfer_piece *pieces, size_t n_pieces,
                             uint32_t n_groups, struct status *st);
void node_hurry(struct node *n, uint64_t handoff);
void node_cancel(struct node *n, uint64_t id);

/** @param crc  out, [n_groups]; may be NULL */
struct node_result node_wait(struct node *n, uint64_t id, uint32_t *crc);

/** What is known of a put now; calls is 0 while it is under way. */
struct node_result node_peek(struct node *n, uint64_t id);
struct node_result node_verify(struct node *n, const struct transfer_piece *pieces, size_t n_pieces,
                               const uint32_t *expected, uint32_t n_groups);
void node_transport(struct node *n, char *out, size_t cap);
/** @return whether the way to the open peer has been probed */
bool node_link(struct node *n, struct transfer_link *out);
void node_flips(struct node *n, int count);
int node_count_fds(struct node *n);
/** Mappings of shared memory, its own and of its peers. */
int node_count_segments(struct node *n);

/** The byte that node_fill(seed) puts at off. */
uint8_t node_byte(uint64_t seed, uint64_t off);

#endif
