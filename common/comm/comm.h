/*
 * comm: a group of ranks that run one model together, each with its shard of the weights, and the
 * collectives by which they meet.
 *
 *   rank 0 ── all_gather / all_reduce / ... ── rank 1 ── ... ── rank n - 1
 *
 * Backends  cpu: the ranks are threads of this process, buffers are host memory. nccl: one rank per
 *           GPU, several in a process and several processes in a group (comm_nccl.h).
 * Promises  what a collective gives has the same bits on every rank and in every run: moves move
 *           bytes, and sums add in the order of the ranks, in f32 (cpu). NCCL chooses its own
 * order: there only sums with one non-zero term keep their bits, and the model asks for no others.
 * Errors    as in kernels.h: a collective returns nothing, the first failure is kept. From then on
 *           every collective of every rank returns at once, its output undefined; comm_check()
 *           tells the reason. A group that failed stays so.
 * Watchdog  a rank that has not come to a collective where another waits, within the timeout, fails
 *           the group and is named. cpu: the time begins again while its thread burns CPU and its
 *           heart beats (comm_beat(), between operations); so one that is stopped, blocked or ended
 *           is lost, and so is one that runs in circles. The slow reference kernels, which may take
 *           minutes for one operation, have a longer time between beats (beat_ms).
 * Order     all ranks call the same collectives with the same sizes in the same order; a mismatch
 *           that is seen (cpu) fails the group.
 * Threads   each handle: one thread, the rank's. comm_fail() and comm_check(): any.
 */
#ifndef BATON_COMMON_COMM_COMM_H
#define BATON_COMMON_COMM_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "kernels/kernels.h"

enum { COMM_RANKS_MAX = 64, COMM_TIMEOUT_MS = 8000 };

struct comm; /* one rank's handle */

enum comm_type { COMM_BF16, COMM_F32 };

struct comm_options {
    int n_ranks;
    int timeout_ms; /* 0: COMM_TIMEOUT_MS */
    int init_ms;    /* nccl: how long the ranks may take to meet; 0: COMM_NCCL_INIT_MS */
    int beat_ms;    /* cpu: how long a rank that computes may take for one beat; 0: timeout_ms */
    /* Called once, by the thread that found the group failed, without locks; may end the process.
     * NULL: nobody. */
    void (*on_failure)(void *arg, const char *reason);
    void *arg;
};

/**
 * A group of threads of this process.
 * @param out  out, [n_ranks] handles, by rank; each to be freed
 * @return ST_OK; ST_INVALID for a number of ranks outside 1 .. COMM_RANKS_MAX; ST_EXHAUSTED
 */
enum status_code comm_cpu_new(const struct comm_options *opt, struct comm **out, struct status *st);

/** The last handle of the group frees it. Takes NULL. No thread is inside a collective. */
void comm_free(struct comm *c);

int comm_rank(const struct comm *c);
int comm_n_ranks(const struct comm *c);
const char *comm_name(const struct comm *c); /* "cpu", "nccl" */

/** Says that the calling thread is the rank's from now on: the one the watchdog looks at. */
void comm_attach(struct comm *c);

/** The rank's thread gets on: for the watchdog. Any thread of the rank's, as often as it likes. */
void comm_beat(struct comm *c);

/** Fails the group with a reason; the first one stays. */
void comm_fail(struct comm *c, const char *reason);

/** @return ST_OK; ST_UNAVAILABLE with the reason of the group's failure */
enum status_code comm_check(struct comm *c, struct status *st);

/** Waits for all ranks. */
void comm_barrier(struct comm *c);

/** buf[i] = the sum of all ranks' buf[i], added in the order of the ranks in f32, rounded once. */
void comm_all_reduce(struct comm *c, struct dev_ptr buf, size_t n, enum comm_type type);

/** out[r] = rank r's in; in: `bytes`; out: n_ranks * bytes; no overlap. */
void comm_all_gather(struct comm *c, struct dev_ptr out, struct dev_ptr in, size_t bytes);

/** The same by columns: row t of out is row t of every rank's in, side by side.
 * in [n_rows][row_bytes]; out [n_rows][n_ranks * row_bytes]; no overlap. */
void comm_all_gather_columns(struct comm *c, struct dev_ptr out, struct dev_ptr in, size_t n_rows,
                             size_t row_bytes);

/** out = block `rank` of the sum of all ranks' in; in [n_ranks][n], out [n]; no overlap. */
void comm_reduce_scatter(struct comm *c, struct dev_ptr out, struct dev_ptr in, size_t n,
                         enum comm_type type);

/** out[r] = block `rank` of rank r's in; in, out [n_ranks][bytes]; no overlap. */
void comm_all_to_all(struct comm *c, struct dev_ptr out, struct dev_ptr in, size_t bytes);

#endif
