/*
 * team: the threads of ranks 1 .. n - 1 of a process; rank 0 runs on the caller's.
 *
 * Promises  a step that returns ST_OK has ended on every rank. One whose group has failed returns
 *           although ranks may be stuck in it: no other step is started then.
 * Threads   one caller.
 */
#ifndef BATON_COMMON_MODEL_TEAM_H
#define BATON_COMMON_MODEL_TEAM_H

#include <stdbool.h>

#include "common/base/status.h"
#include "common/comm/comm.h"

struct team;

typedef void (*team_fn)(void *arg, int rank);

/** @param comms  [n] handles of the group by rank, borrowed until team_free() */
enum status_code team_new(struct comm *const *comms, int n, struct team **out, struct status *st);

/** Runs fn(arg, rank) on every rank and waits until all have ended, or the group has failed.
 * @return ST_OK; ST_UNAVAILABLE with the reason */
enum status_code team_run(struct team *t, team_fn fn, void *arg, struct status *st);

/** Ends the threads. Takes NULL.
 * @return false when a rank is stuck: it may still use what it was given, which must be left alone
 */
bool team_free(struct team *t);

#endif
