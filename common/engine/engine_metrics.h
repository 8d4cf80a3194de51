/*
 * engine_metrics: the engine's figures as Prometheus metrics, the same on both workers.
 *
 * Threads   set by the engine thread, read by any (see common/base/metrics.h).
 */
#ifndef BATON_COMMON_ENGINE_ENGINE_METRICS_H
#define BATON_COMMON_ENGINE_ENGINE_METRICS_H

#include "common/base/metrics.h"
#include "common/engine/engine.h"

struct engine_metrics {
    struct metric *pool_bytes[KV_N_POOLS];
    struct metric *pages_cached, *pages_busy, *pages_pinned, *snapshots, *waiting_tokens;
    struct metric *pins, *pins_refused;
    struct metric *batch_seqs, *batch_tokens;
    struct metric *hit_tokens, *prompt_tokens;
    struct metric *drafted[SEQ_DRAFTS_MAX], *accepted[SEQ_DRAFTS_MAX];
    const struct kv_geometry *geometry;
    struct engine_stats last; /* counters already added */
};

/** @param g  borrowed */
void engine_metrics_init(struct engine_metrics *m, struct metrics *registry,
                         const struct kv_geometry *g);
void engine_metrics_set(struct engine_metrics *m, const struct engine_stats *s);

#endif
