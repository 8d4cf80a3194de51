/*
 * bench_kv: the parts of `baton bench-kv`. Two processes, or two hosts, move page sets of
 * DeepSeek-V4 from slab to slab, as a handoff does, and the same bytes as plainly as the machine
 * can.
 */
#ifndef BATON_DEPLOY_BATON_BENCH_KV_H
#define BATON_DEPLOY_BATON_BENCH_KV_H

#include <stdbool.h>

#include "common/transfer/transfer.h"

/* ---- bench_kv_sets.c: which bytes ---- */

struct kv_set {
    struct transfer_piece *pieces; /* slab 0 on both sides */
    size_t n_pieces;
    uint32_t n_groups; /* one per logical page */
    uint64_t bytes;
};

enum kv_layout {
    KV_LAYOUT_PAGES, /* a logical page is one run of bytes, as in our pools */
    KV_LAYOUT_LAYERS /* a piece for every layer and kind, as pools by layer need */
};

/** Bytes that the set of so many tokens needs in a slab. */
uint64_t kv_set_bytes(bool pro, uint32_t tokens, enum kv_layout layout);

/**
 * Lays the set out at [base, base + kv_set_bytes()) of both slabs, shuffled on either side.
 * @return false without memory
 */
bool kv_set_init(struct kv_set *set, bool pro, uint32_t tokens, enum kv_layout layout,
                 uint64_t base, uint64_t seed);
void kv_set_deinit(struct kv_set *set);

/* ---- bench_kv_raw.c: as plainly as the machine can ---- */

/** Copies the pieces from one slab to another: memcpy, or past the caches. @return seconds */
double kv_raw_copy(const struct kv_set *set, uint8_t *to, const uint8_t *from, bool past_caches);

/** Writes the pieces into a connected socket in order; waits for one byte back. @return seconds, <
 * 0: the connection broke */
double kv_raw_send(int fd, const struct kv_set *set, const uint8_t *slab);

/** Reads them into the slab; answers with one byte. */
bool kv_raw_receive(int fd, const struct kv_set *set, uint8_t *slab);

/** @return a listening socket and its port; < 0 on failure */
int kv_raw_listen(uint16_t *port);

/* ---- bench_kv_node.c: the receiving process ---- */

enum kv_op { KV_OP_START, KV_OP_VERIFY, KV_OP_RAW, KV_OP_CPU };

/* A request over the control connection; len bytes follow: the pieces, then for VERIFY the sums. */
struct kv_request {
    uint32_t op;
    int32_t transport;
    uint64_t slab_bytes;
    uint32_t n_groups;
    uint32_t n_pieces;
    char devices[128];
};

/* The answer; len bytes follow: a descriptor. */
struct kv_reply {
    struct status st;
    double value; /* VERIFY: seconds; RAW: port; CPU: seconds used so far */
    uint64_t len;
};

/** Serves requests on fd until the other side hangs up. @return the process's exit status */
int kv_node_serve(int fd);

/** Asks; payload of the reply is appended to out (may be NULL: none is expected). */
enum status_code kv_node_ask(int fd, const struct kv_request *q, const struct kv_set *set,
                             const uint32_t *crc, double *value, struct buf *out,
                             struct status *st);

/** The two halves of kv_node_ask(): requests may be sent ahead, they are answered in order. */
bool kv_node_send(int fd, const struct kv_request *q, const struct kv_set *set,
                  const uint32_t *crc);
enum status_code kv_node_reply(int fd, double *value, struct buf *out, struct status *st);

/** Processor seconds of this process. */
double kv_cpu_seconds(void);

#endif
