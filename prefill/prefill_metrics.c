#include "prefill/prefill_metrics.h"

#include <stdio.h>

enum status_code prefill_metrics_init(struct prefill_metrics *m, struct metrics *r,
                                      const struct kv_geometry *g, struct status *st)
{
    char label[48];

    m->requests = metrics_counter(r, "baton_prefill_requests_total", "Handoffs asked for.", NULL);
    for (int i = 0; i < ST_N_CODES; i++) {
        snprintf(label, sizeof(label), "code=\"%s\"", status_name((enum status_code)i));
        m->ended[i] =
            metrics_counter(r, "baton_prefill_ended_total", "Handoffs ended, by how.", label);
    }
    m->prompt_tokens =
        metrics_counter(r, "baton_prefill_prompt_tokens_total", "Prompt tokens computed.", NULL);
    m->chunk_seconds = metrics_histogram(r, "baton_prefill_chunk_seconds", "Time of one step.",
                                         NULL, metrics_step_bounds, METRICS_N_STEP);
    m->kv_bytes =
        metrics_counter(r, "baton_kv_sent_bytes_total", "KV bytes written to peers.", NULL);
    m->kv_hidden_bytes =
        metrics_counter(r, "baton_kv_hidden_bytes_total",
                        "KV bytes written while their prompt was still computed.", NULL);
    m->put_seconds = metrics_histogram(r, "baton_kv_put_seconds", "Time of one transfer to a peer.",
                                       NULL, metrics_step_bounds, METRICS_N_STEP);
    for (int i = TRANSFER_RDMA; i <= TRANSFER_TCP; i++) {
        static const char *const kinds[] = {[TRANSFER_RDMA] = "transport=\"rdma\"",
                                            [TRANSFER_NVLINK] = "transport=\"nvlink\"",
                                            [TRANSFER_SHM] = "transport=\"shm\"",
                                            [TRANSFER_TCP] = "transport=\"tcp\""};

        m->link_rate[i] = metrics_gauge(
            r, "baton_kv_link_bytes_per_second",
            "Rate of the slowest way to a peer, probed when it was opened; 0: no peer.", kinds[i]);
    }
    m->links_slow = metrics_gauge(r, "baton_kv_slow_links",
                                  "Ways to peers that gave far less than they ought to.", NULL);
    m->pages_free = metrics_gauge(r, "baton_kv_pages_free", "Free KV pages.", NULL);
    m->slots_free = metrics_gauge(r, "baton_kv_slots_free", "Free state slots.", NULL);
    engine_metrics_init(&m->engine, r, g);
    return status_ok(st);
}

void prefill_metrics_request(struct prefill_metrics *m)
{
    metric_add(m->requests, 1);
}

void prefill_metrics_end(struct prefill_metrics *m, enum status_code how)
{
    metric_add(m->ended[how], 1);
}

void prefill_metrics_step(struct prefill_metrics *m, const struct engine_stats *s)
{
    uint64_t us = s->schedule_us + s->forward_us + s->sample_us + s->draft_us;

    metric_add(m->prompt_tokens, s->batch_tokens);
    metric_observe(m->chunk_seconds, (double)us * 1e-6);
}

void prefill_metrics_put(struct prefill_metrics *m, uint64_t bytes, uint64_t hidden_bytes,
                         uint64_t elapsed_us)
{
    metric_add(m->kv_bytes, (double)bytes);
    metric_add(m->kv_hidden_bytes, (double)hidden_bytes);
    metric_observe(m->put_seconds, (double)elapsed_us * 1e-6);
}

void prefill_metrics_gauges(struct prefill_metrics *m, const struct slab *pages,
                            const struct slab *slots, const struct engine_stats *s,
                            const struct peer_links *links)
{
    for (int k = TRANSFER_RDMA; k <= TRANSFER_TCP; k++)
        metric_set(m->link_rate[k], (double)links->slowest[k]);
    metric_set(m->links_slow, links->n_slow);
    engine_metrics_set(&m->engine, s);
    metric_set(m->pages_free, slab_n_free(pages));
    metric_set(m->slots_free, slab_n_free(slots));
}
