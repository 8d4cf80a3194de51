/*
 * device_group: the ranks of one process, each on its own GPU, meet in a NCCL group.
 *
 * Collectives run on the streams of the ranks' kernels, between them, and nobody waits: a step of a
 * group is queued like one of a single GPU.
 *
 * Threads   one, at start and at the end.
 */
#ifndef BATON_COMMON_MODEL_DEVICE_GROUP_H
#define BATON_COMMON_MODEL_DEVICE_GROUP_H

#include "common/comm/comm.h"
#include "common/model/rank.h"

/**
 * @param ranks    open, without comm; they outlive the group
 * @param library  NCCL's; NULL: libnccl.so.2
 * @param comms    out, [opt->n_ranks] by rank; each to be freed. Untouched on failure
 * @return ST_OK; ST_UNAVAILABLE: no NCCL, or what it reported; ST_EXHAUSTED
 */
enum status_code device_group_new(struct rank *ranks, const struct comm_options *opt,
                                  const char *library, struct comm **comms, struct status *st);

#endif
