/*
 * pool: a team of threads that runs one function on all cores and waits.
 *
 * Kernels are handed pool_run() as a function pointer; they split work by index and never see a
 * thread. Workers spin briefly after a job, then sleep on a futex: an idle pool costs no CPU. They
 * report back in groups of 16, each to a line of its own, so that the end of a job on 128 threads
 * is not 127 turns at one line.
 *
 * On a machine of several NUMA nodes the threads are spread over the nodes and stay on theirs (any
 * CPU of it; or, if asked, one CPU each), and pool_node() says which that is, so that work can go
 * to where its memory is. The caller's thread is not moved: it counts as of node 0.
 *
 * Promises  pool_run() returns after every part has returned, with all their writes visible; parts
 *           0 .. n_parts - 1 run exactly once each; part 0 runs on the caller.
 * Threads   pool_run() from one thread at a time.
 */
#ifndef BATON_COMMON_BASE_POOL_H
#define BATON_COMMON_BASE_POOL_H

#include <stdbool.h>

#include "common/base/status.h"
#include "common/base/topology.h"

struct pool;

typedef void (*pool_fn)(void *arg, int part, int n_parts);

/** @param n_threads  >= 1, the caller included; 0: one per CPU this process may use
 * @param pin        one CPU for each thread: only when this process has them to itself */
enum status_code pool_new_pinned(int n_threads, bool pin, struct pool **out, struct status *st);
enum status_code pool_new(int n_threads, struct pool **out, struct status *st); /* pin false */
/** The same, on a machine that need not be this one (CPUs that are not there are not insisted on).
 * t: until return. @param n_threads  >= 1 */
enum status_code pool_new_on(const struct topology *t, int n_threads, bool pin, struct pool **out,
                             struct status *st);
void pool_free(struct pool *p);

/** CPUs that this process may use. */
int pool_usable_cpus(void);

/** How many parts pool_run() makes. */
int pool_threads(const struct pool *p);

/** NUMA nodes that its threads are on, and that of a part; parts of a node are neighbours. */
int pool_nodes(const struct pool *p);
int pool_node(const struct pool *p, int part);

/** Runs fn(arg, part, pool_threads) for every part and waits. */
void pool_run(struct pool *p, pool_fn fn, void *arg);

#endif
