#include "common/worker/memory_plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"

/* Without a word about memory the pool holds that many tokens. */
enum { DEFAULT_TOKENS = 65536 };

/* Snapshots get one part in that many of the pages' bytes, beside them: then the agent trace of
 * tests/bench/prefix hits 99 % of what it would with a state at every boundary. */
enum { SNAPSHOT_SHARE = 4, SNAPSHOTS_LEAST = 4 };

/* For which request the log says what a token takes all in all. */
enum { LONG_REQUEST = 32768 };

static const double MIB = 1 << 20;

/* ---- what there is ---- */

/* The number after a key at the beginning of a line, or of the whole file when key is "". */
static uint64_t read_figure(const char *path, const char *key, uint64_t unit)
{
    uint64_t value = UINT64_MAX;
    char line[256];
    FILE *f = fopen(path, "re");

    if (f == NULL)
        return UINT64_MAX;
    while (fgets(line, sizeof(line), f) != NULL) {
        char *end;
        unsigned long long v;

        if (strncmp(line, key, strlen(key)) != 0)
            continue;
        v = strtoull(line + strlen(key), &end, 10);
        if (end != line + strlen(key)) /* "max": no limit */
            value = v * unit;
        break;
    }
    fclose(f);
    return value;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

struct memory_limits memory_limits_read(void)
{
    struct memory_limits l = {
        .of = "this machine",
        .total = read_figure("/proc/meminfo", "MemTotal:", 1024),
        .available = read_figure("/proc/meminfo", "MemAvailable:", 1024),
    };
    uint64_t max = read_figure("/sys/fs/cgroup/memory.max", "", 1);
    uint64_t used = read_figure("/sys/fs/cgroup/memory.current", "", 1);
    uint64_t cached = read_figure("/sys/fs/cgroup/memory.stat", "file ", 1);

    if (max == UINT64_MAX || used == UINT64_MAX)
        return l;
    /* Cached file pages are given up when memory is asked for. */
    used -= cached != UINT64_MAX && cached < used ? cached : 0;
    l.total = least(l.total, max);
    l.available = least(l.available, max > used ? max - used : 0);
    return l;
}

bool memory_limits_of_device(const struct model *m, struct memory_limits *out, uint64_t *used_bytes)
{
    struct kernel_room room;

    if (!model_room(m, &room))
        return false;
    *out = (struct memory_limits){"the GPU", room.total, room.left};
    *used_bytes = room.used;
    return true;
}

/* ---- the plan ---- */

static uint64_t snapshots_for(const struct memory_ask *ask, uint64_t page_bytes, uint64_t each)
{
    if (!ask->keep_snapshots)
        return 0;
    return ask->n_snapshots >= 0 ? (uint64_t)ask->n_snapshots
                                 : page_bytes / SNAPSHOT_SHARE / each + SNAPSHOTS_LEAST;
}

/* Pages that fit into `bytes` with their slots and snapshots. */
static uint64_t pages_within(const struct memory_ask *ask, const struct memory_plan *p,
                             uint64_t bytes)
{
    uint64_t fixed = (uint64_t)p->n_slots * p->slot_bytes, n;

    if (ask->keep_snapshots)
        fixed += (ask->n_snapshots >= 0 ? (uint64_t)ask->n_snapshots : SNAPSHOTS_LEAST) *
                 p->snapshot_bytes;
    if (bytes <= fixed)
        return 0;
    n = (bytes - fixed) / p->page_bytes;
    return ask->keep_snapshots && ask->n_snapshots < 0 ? n * SNAPSHOT_SHARE / (SNAPSHOT_SHARE + 1)
                                                       : n;
}

enum status_code memory_plan_make(const struct memory_ask *ask, const struct memory_limits *limits,
                                  const struct kv_geometry *g, struct memory_plan *out,
                                  struct status *st)
{
    uint64_t pages = UINT64_MAX;

    *out = (struct memory_plan){
        .n_slots = ask->n_slots,
        .page_bytes = g->page_bytes,
        .slot_bytes = g->slot_bytes,
        .snapshot_bytes = kv_snapshot_bytes(g),
    };
    if (ask->max_total_tokens > 0)
        pages = kv_pages_for((uint64_t)ask->max_total_tokens);
    if (ask->kv_cache_bytes > 0)
        pages = least(pages, pages_within(ask, out, (uint64_t)ask->kv_cache_bytes));
    if (ask->mem_fraction_static > 0 && limits->total != UINT64_MAX) {
        double room = ask->mem_fraction_static * (double)limits->total - (double)ask->weight_bytes;

        pages = least(pages, pages_within(ask, out, room > 0 ? (uint64_t)room : 0));
    }
    if (pages == UINT64_MAX)
        pages = kv_pages_for(DEFAULT_TOKENS);
    if (pages == 0 || pages >= UINT32_MAX)
        return status_set(
            st, ST_INVALID,
            "%s KV pages of %.2f MiB beside %u state slots of %.2f MiB and %.1f MiB of weights on "
            "%s: "
            "raise --kv-cache-bytes or --mem-fraction-static, or lower --max-running-requests",
            pages == 0 ? "there is no room for" : "too many", (double)g->page_bytes / MIB,
            out->n_slots, (double)g->slot_bytes / MIB, (double)ask->weight_bytes / MIB, limits->of);
    out->n_pages = (uint32_t)pages;
    out->n_snapshots = (uint32_t)snapshots_for(ask, pages * out->page_bytes, out->snapshot_bytes);
    return status_ok(st);
}

uint64_t memory_plan_kv_bytes(const struct memory_plan *p)
{
    return p->n_pages * p->page_bytes + p->n_slots * p->slot_bytes +
           p->n_snapshots * p->snapshot_bytes;
}

enum status_code memory_plan_check(const struct memory_plan *p, const struct memory_limits *limits,
                                   struct status *st)
{
    uint64_t kv = memory_plan_kv_bytes(p);

    if (kv <= limits->available)
        return status_ok(st);
    return status_set(st, ST_EXHAUSTED,
                      "KV memory: %u pages of %.2f MiB, %u slots of %.2f MiB and %u snapshots of "
                      "%.2f MiB need %.1f MiB, %s has %.1f MiB left: lower --max-total-tokens, "
                      "--max-running-requests or --prefix-snapshots",
                      p->n_pages, (double)p->page_bytes / MIB, p->n_slots,
                      (double)p->slot_bytes / MIB, p->n_snapshots, (double)p->snapshot_bytes / MIB,
                      (double)kv / MIB, limits->of, (double)limits->available / MIB);
}

void memory_plan_log(const struct memory_plan *p, const struct model *m)
{
    const struct kv_geometry *g = model_get_geometry(m);
    uint64_t weights[WEIGHT_CLASSES], sum = memory_plan_kv_bytes(p) + model_workspace_bytes(m);
    struct kernel_room room;
    char line[512];
    size_t at = 0;

    model_weight_classes(m, weights);
    for (int i = 0; i < WEIGHT_CLASSES; i++) {
        at += (size_t)snprintf(line + at, sizeof(line) - at, "%s%s %.1f", at > 0 ? ", " : "",
                               weight_class_names[i], (double)weights[i] / MIB);
        sum += weights[i];
    }
    log_info("memory: weights %.1f MiB (%s), workspace %.1f MiB",
             (double)model_weight_bytes(m) / MIB, line, (double)model_workspace_bytes(m) / MIB);
    for (int i = 0; model_n_ranks(m) > 1 && i < model_n_ranks(m); i++) {
        uint64_t bytes, workspace;

        model_rank_bytes(m, i, &bytes, &workspace);
        log_info("memory: rank %d of %d: weights %.1f MiB, workspace %.1f MiB; KV is %s", i,
                 model_n_ranks(m), (double)bytes / MIB, (double)workspace / MIB,
                 model_kv_is_host(m) ? "shared" : "each one's own");
    }
    log_info("memory: KV pages %u x %.1f KiB = %.1f MiB, %" PRIu64 " bytes per token (%" PRIu64
             " with the slot of a request of %u); state slots %u x %.1f KiB = %.1f MiB; snapshots "
             "%u x %.1f KiB = "
             "%.1f MiB",
             p->n_pages, (double)p->page_bytes / 1024, p->n_pages * (double)p->page_bytes / MIB,
             p->page_bytes / KV_PAGE_TOKENS, kv_bytes_per_token(g, LONG_REQUEST), LONG_REQUEST,
             p->n_slots, (double)p->slot_bytes / 1024, p->n_slots * (double)p->slot_bytes / MIB,
             p->n_snapshots, (double)p->snapshot_bytes / 1024,
             p->n_snapshots * (double)p->snapshot_bytes / MIB);
    at = 0;
    for (int i = 0; i < KV_N_POOLS; i++) {
        uint32_t units = kv_pool_in_slot((enum kv_pool)i) ? p->n_slots : p->n_pages;

        at +=
            (size_t)snprintf(line + at, sizeof(line) - at, "%s%s %.1f", at > 0 ? ", " : "",
                             kv_pool_name((enum kv_pool)i), (double)g->pool_bytes[i] * units / MIB);
    }
    log_info("memory: pools in MiB: %s; all together %.1f MiB", line, (double)sum / MIB);
    if (model_room(m, &room))
        log_info("memory: of the GPU's %.1f MiB %.1f are taken, %.1f left; recorded steps took "
                 "%.1f MiB of the driver's share, which has %.1f left",
                 (double)room.total / MIB, (double)room.used / MIB, (double)room.left / MIB,
                 (double)model_recorded_bytes(m) / MIB, (double)room.outside / MIB);
}
