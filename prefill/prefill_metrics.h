/*
 * prefill_metrics: what a prefill worker counts.
 *
 * Threads   written by the engine, read by /metrics and Admin.Stats (see common/base/metrics.h).
 */
#ifndef BATON_PREFILL_PREFILL_METRICS_H
#define BATON_PREFILL_PREFILL_METRICS_H

#include "common/base/metrics.h"
#include "common/engine/engine_metrics.h"
#include "common/kv/slab.h"
#include "prefill/peers.h"

struct prefill_metrics {
    struct metric *requests, *ended[ST_N_CODES];
    struct metric *prompt_tokens, *chunk_seconds;
    struct metric *kv_bytes, *kv_hidden_bytes, *put_seconds;
    struct metric *pages_free, *slots_free;
    struct metric *link_rate[TRANSFER_TCP + 1], *links_slow; /* by kind */
    struct engine_metrics engine;
};

enum status_code prefill_metrics_init(struct prefill_metrics *m, struct metrics *registry,
                                      const struct kv_geometry *g, struct status *st);
void prefill_metrics_request(struct prefill_metrics *m);
void prefill_metrics_end(struct prefill_metrics *m, enum status_code how);
void prefill_metrics_step(struct prefill_metrics *m, const struct engine_stats *s);
void prefill_metrics_put(struct prefill_metrics *m, uint64_t bytes, uint64_t hidden_bytes,
                         uint64_t elapsed_us);
void prefill_metrics_gauges(struct prefill_metrics *m, const struct slab *pages,
                            const struct slab *slots, const struct engine_stats *s,
                            const struct peer_links *links);

#endif
