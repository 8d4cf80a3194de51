/*
 * pool: a team of threads that runs one function on all cores and waits.
 *
 * Kernels are handed pool_run() as a function pointer; they split work by index and never see a
 * thread. Workers spin briefly after a job, then sleep on a futex: an idle pool costs no CPU.
 *
 * Promises  pool_run() returns after every part has returned, with all their writes visible; parts
 *           0 .. n_parts - 1 run exactly once each; part 0 runs on the caller.
 * Threads   pool_run() from one thread at a time.
 */
#ifndef BATON_COMMON_BASE_POOL_H
#define BATON_COMMON_BASE_POOL_H

#include "common/base/status.h"

struct pool;

typedef void (*pool_fn)(void *arg, int part, int n_parts);

/** @param n_threads  >= 1, the caller included; 0: one per CPU this process may use */
enum status_code pool_new(int n_threads, struct pool **out, struct status *st);
void pool_free(struct pool *p);

/** CPUs that this process may use. */
int pool_usable_cpus(void);

/** How many parts pool_run() makes. */
int pool_threads(const struct pool *p);

/** Runs fn(arg, part, pool_threads) for every part and waits. */
void pool_run(struct pool *p, pool_fn fn, void *arg);

#endif
