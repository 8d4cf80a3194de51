/*
 * decode_metrics: what a decode worker counts.
 *
 * Threads   written by the engine, read by /metrics and Admin.Stats (see common/base/metrics.h).
 */
#ifndef BATON_DECODE_DECODE_METRICS_H
#define BATON_DECODE_DECODE_METRICS_H

#include "common/base/metrics.h"
#include "common/engine/engine_metrics.h"
#include "common/kv/slab.h"

struct decode_metrics {
    struct metric *requests, *ended[ST_N_CODES];
    struct metric *tokens, *step_seconds, *retractions;
    struct metric *checksums, *mismatches;
    struct metric *running, *waiting;
    struct metric *pages_free, *pages_quarantined, *slots_free;
    struct engine_metrics engine;
};

enum status_code decode_metrics_init(struct decode_metrics *m, struct metrics *registry,
                                     const struct kv_geometry *g, struct status *st);
void decode_metrics_request(struct decode_metrics *m);
void decode_metrics_end(struct decode_metrics *m, enum status_code how);
void decode_metrics_tokens(struct decode_metrics *m, uint32_t n);
void decode_metrics_step(struct decode_metrics *m, const struct engine_stats *s);
void decode_metrics_retract(struct decode_metrics *m);
/** One handoff's checksums were compared. */
void decode_metrics_verified(struct decode_metrics *m, enum status_code how, uint32_t n_groups);
void decode_metrics_gauges(struct decode_metrics *m, const struct slab *pages,
                           const struct slab *slots, const struct engine_stats *s);

#endif
