/*
 * memory_plan: what a worker's memory goes to, settled before anything is allocated, told at start,
 * and refused when it cannot be had.
 *
 *   weights by class | workspace of a step | KV pages (six pools, by pool) | state slots | states
 * at page boundaries
 *
 * On a GPU all of that is its memory: the plan is made when the model is there, from what is left;
 * what recorded steps take of the driver's share is told, too. The KV's mirror (kv_mirror.h) is of
 * the machine's memory.
 *
 * How many pages: --max-total-tokens, or what --kv-cache-bytes or --mem-fraction-static leave for
 * them; the least of those that are given.
 *
 * Threads   at start, one.
 */
#ifndef BATON_COMMON_WORKER_MEMORY_PLAN_H
#define BATON_COMMON_WORKER_MEMORY_PLAN_H

#include "common/base/status.h"
#include "common/kv/geometry.h"
#include "common/model/config.h"
#include "common/model/model.h"

struct memory_limits {
    const char *of;     /* "this machine", "the GPU" */
    uint64_t total;     /* bytes of it, or of the cgroup that we are in */
    uint64_t available; /* now */
};

/** Reads /proc/meminfo and the cgroup's files. Where they tell nothing the figures are UINT64_MAX.
 */
struct memory_limits memory_limits_read(void);

/** Those of the device that the model is on. @return false: it is on none */
bool memory_limits_of_device(const struct model *m, struct memory_limits *out,
                             uint64_t *used_bytes);

struct memory_ask {
    int64_t max_total_tokens;   /* 0: not given */
    int64_t kv_cache_bytes;     /* 0: not given */
    double mem_fraction_static; /* 0: not given: of the total, for weights and KV */
    /* Of the checkpoint's files; on a device, where the model is by now: all that it took. */
    uint64_t weight_bytes;
    uint32_t n_slots;
    int64_t n_snapshots; /* -1: a share of the pages' bytes */
    bool keep_snapshots; /* false: none at all */
};

struct memory_plan {
    uint32_t n_pages, n_slots, n_snapshots;
    uint64_t page_bytes, slot_bytes, snapshot_bytes; /* each */
};

/**
 * @return ST_OK; ST_INVALID when what is asked for leaves no room for one page and its slots, with
 *         the numbers
 */
enum status_code memory_plan_make(const struct memory_ask *ask, const struct memory_limits *limits,
                                  const struct kv_geometry *g, struct memory_plan *out,
                                  struct status *st);

/** Bytes of KV: pages, slots and snapshots. */
uint64_t memory_plan_kv_bytes(const struct memory_plan *p);

/** Whether that can be had now. @return ST_OK; ST_EXHAUSTED with the numbers and what to lower */
enum status_code memory_plan_check(const struct memory_plan *p, const struct memory_limits *limits,
                                   struct status *st);

/** Tells it, in log lines. */
void memory_plan_log(const struct memory_plan *p, const struct model *m);

#endif
