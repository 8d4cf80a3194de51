#include "decode/decode_metrics.h"

#include <stdio.h>

enum status_code decode_metrics_init(struct decode_metrics *m, struct metrics *r,
                                     const struct kv_geometry *g, struct status *st)
{
    char label[48];

    m->requests = metrics_counter(r, "baton_decode_requests_total", "Requests submitted.", NULL);
    for (int i = 0; i < ST_N_CODES; i++) {
        snprintf(label, sizeof(label), "code=\"%s\"", status_name((enum status_code)i));
        m->ended[i] =
            metrics_counter(r, "baton_decode_ended_total", "Requests ended, by how.", label);
    }
    m->tokens = metrics_counter(r, "baton_decode_tokens_total", "Tokens sent to routers.", NULL);
    m->step_seconds = metrics_histogram(r, "baton_decode_step_seconds", "Time of one decode step.",
                                        NULL, metrics_step_bounds, METRICS_N_STEP);
    m->retractions = metrics_counter(r, "baton_decode_retractions_total",
                                     "Requests put back for want of KV pages.", NULL);
    m->checksums =
        metrics_counter(r, "baton_kv_checksums_total", "Checksums of arrived KV compared.", NULL);
    m->mismatches = metrics_counter(r, "baton_kv_checksum_mismatches_total",
                                    "Handoffs whose KV did not match its checksums.", NULL);
    m->running = metrics_gauge(r, "baton_decode_running_requests", "Requests in the batch.", NULL);
    m->waiting =
        metrics_gauge(r, "baton_decode_waiting_requests", "Requests that wait for pages.", NULL);
    m->pages_free = metrics_gauge(r, "baton_kv_pages_free", "Free KV pages.", NULL);
    m->pages_quarantined = metrics_gauge(r, "baton_kv_pages_quarantined",
                                         "KV pages that a lost peer may still write.", NULL);
    m->slots_free = metrics_gauge(r, "baton_kv_slots_free", "Free state slots.", NULL);
    engine_metrics_init(&m->engine, r, g);
    return status_ok(st);
}

void decode_metrics_request(struct decode_metrics *m)
{
    metric_add(m->requests, 1);
}

void decode_metrics_end(struct decode_metrics *m, enum status_code how)
{
    metric_add(m->ended[how], 1);
}

void decode_metrics_tokens(struct decode_metrics *m, uint32_t n)
{
    metric_add(m->tokens, n);
}

void decode_metrics_step(struct decode_metrics *m, const struct engine_stats *s)
{
    uint64_t us = s->schedule_us + s->forward_us + s->sample_us + s->draft_us;

    metric_observe(m->step_seconds, (double)us * 1e-6);
}

void decode_metrics_retract(struct decode_metrics *m)
{
    metric_add(m->retractions, 1);
}

void decode_metrics_verified(struct decode_metrics *m, enum status_code how, uint32_t n_groups)
{
    metric_add(m->checksums, n_groups);
    if (how != ST_OK)
        metric_add(m->mismatches, 1);
}

void decode_metrics_gauges(struct decode_metrics *m, const struct slab *pages,
                           const struct slab *slots, const struct engine_stats *s)
{
    metric_set(m->running, s->n_running);
    metric_set(m->waiting, s->n_waiting);
    engine_metrics_set(&m->engine, s);
    metric_set(m->pages_free, slab_n_free(pages));
    metric_set(m->pages_quarantined, slab_n_quarantined(pages));
    metric_set(m->slots_free, slab_n_free(slots));
}
