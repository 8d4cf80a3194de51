/*
 * comm_nccl: ranks that each have a GPU, in one process or in several, through NCCL.
 *
 * NCCL is looked for when a group is made; no binary is linked with it. One rank makes the group's
 * id, which reaches the others by whatever they talk over; then all make their handles, each on its
 * own thread, and meet.
 *
 * Order     collectives are queued on the rank's stream like its kernels, and return at once.
 * Watchdog  a thread of each handle. A collective that is queued and does not end within the
 *           timeout fails the group, whether the rank that it waits for hangs, runs in circles or
 *           has died; so does what NCCL itself reports. Kernels between two collectives count as
 *           waiting: on a GPU they take a fraction of a second. A failed group is torn down, so
 *           that its stream goes on.
 * Sums      in NCCL's order: see comm.h.
 * Threads   as comm.h; comm_nccl_new() blocks until all ranks have called it.
 */
#ifndef BATON_COMMON_COMM_COMM_NCCL_H
#define BATON_COMMON_COMM_COMM_NCCL_H

#include "common/comm/comm.h"

enum { COMM_NCCL_ID_BYTES = 128, COMM_NCCL_INIT_MS = 120000 };

/* What the rank's GPU does for the group; arg is the first argument of each. */
struct comm_nccl_device {
    void *stream;           /* cudaStream_t of the rank's kernels */
    struct dev_ptr scratch; /* device memory of the group's alone */
    size_t scratch_bytes;   /* >= n_ranks * the longest row that is gathered by columns */
    /* The calling thread is about to call NCCL for this GPU, or to queue on its stream. */
    void (*enter)(void *arg);
    /* Queued: out[t][r] = in[r][t]; rows of row_bytes. */
    void (*columns)(void *arg, struct dev_ptr out, struct dev_ptr in, int n_ranks, size_t n_rows,
                    size_t row_bytes);
    /* Queued: from then on reached() gives n. */
    void (*mark)(void *arg, uint64_t n);
    uint64_t (*reached)(void *arg); /* any thread */
    void *arg;
};

/**
 * A new group's id.
 * @param library  NULL: libnccl.so.2. @param id  out, [COMM_NCCL_ID_BYTES]
 * @return ST_OK; ST_UNAVAILABLE: there is no NCCL, with the loader's reason
 */
enum status_code comm_nccl_id(const char *library, uint8_t *id, struct status *st);

/**
 * Joins the group as one rank. The device's functions outlive the handle.
 * @return ST_OK; ST_INVALID: rank or size; ST_UNAVAILABLE: no NCCL, what it reported, or not all
 *         ranks came within opt->init_ms
 */
enum status_code comm_nccl_new(const struct comm_options *opt, const char *library,
                               const uint8_t *id, int rank, const struct comm_nccl_device *device,
                               struct comm **out, struct status *st);

#endif
