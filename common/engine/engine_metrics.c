#include "common/engine/engine_metrics.h"

#include <stdio.h>

void engine_metrics_init(struct engine_metrics *m, struct metrics *r, const struct kv_geometry *g)
{
    char label[32];

    m->geometry = g;
    for (int i = 0; i < KV_N_POOLS; i++) {
        snprintf(label, sizeof(label), "pool=\"%s\"", kv_pool_name((enum kv_pool)i));
        m->pool_bytes[i] = metrics_gauge(r, "baton_kv_pool_used_bytes",
                                         "KV memory in use, cached prefixes too, by pool.", label);
    }
    m->pages_cached = metrics_gauge(r, "baton_kv_pages_cached",
                                    "KV pages in the prefix cache, those in use too.", NULL);
    m->pages_busy =
        metrics_gauge(r, "baton_kv_pages_busy", "KV pages of live requests or in doubt.", NULL);
    m->pages_pinned =
        metrics_gauge(r, "baton_kv_pages_pinned",
                      "KV pages that requests have pinned in the prefix cache.", NULL);
    m->pins = metrics_counter(r, "baton_prefix_cache_pins_total", "Prompts pinned.", NULL);
    m->pins_refused =
        metrics_counter(r, "baton_prefix_cache_pins_refused_total",
                        "Prompts not pinned: the pins would be more than their share.", NULL);
    m->snapshots = metrics_gauge(r, "baton_kv_snapshots", "States kept at page boundaries.", NULL);
    m->waiting_tokens =
        metrics_gauge(r, "baton_engine_waiting_tokens", "Prompt tokens to be computed.", NULL);
    m->batch_seqs =
        metrics_gauge(r, "baton_engine_batch_requests", "Requests of the last step.", NULL);
    m->batch_tokens =
        metrics_gauge(r, "baton_engine_batch_tokens", "Tokens of the last step.", NULL);
    m->prompt_tokens =
        metrics_counter(r, "baton_prefix_cache_query_tokens_total", "Tokens looked up.", NULL);
    m->hit_tokens = metrics_counter(r, "baton_prefix_cache_hit_tokens_total",
                                    "Tokens not computed thanks to the prefix cache.", NULL);
    for (int i = 0; i < SEQ_DRAFTS_MAX; i++) {
        snprintf(label, sizeof(label), "place=\"%d\"", i + 1);
        m->drafted[i] = metrics_counter(r, "baton_speculation_drafted_total",
                                        "Draft tokens verified, by place in the chain.", label);
    }
    for (int i = 0; i < SEQ_DRAFTS_MAX; i++) {
        snprintf(label, sizeof(label), "place=\"%d\"", i + 1);
        m->accepted[i] = metrics_counter(r, "baton_speculation_accepted_total",
                                         "Draft tokens that held, by place.", label);
    }
}

static void count(struct metric *m, uint64_t now, uint64_t *last)
{
    if (now != *last)
        metric_add(m, (double)(now - *last));
    *last = now;
}

void engine_metrics_set(struct engine_metrics *m, const struct engine_stats *s)
{
    for (int i = 0; i < KV_N_POOLS; i++)
        metric_set(m->pool_bytes[i],
                   (double)m->geometry->pool_bytes[i] *
                       (kv_pool_in_slot((enum kv_pool)i) ? s->slots_used : s->pages_used));
    metric_set(m->pages_cached, s->pages_cached);
    metric_set(m->pages_busy, s->pages_busy);
    metric_set(m->pages_pinned, s->pages_pinned);
    count(m->pins, s->pins, &m->last.pins);
    count(m->pins_refused, s->pins_refused, &m->last.pins_refused);
    metric_set(m->snapshots, s->snapshots);
    metric_set(m->waiting_tokens, (double)s->waiting_tokens);
    metric_set(m->batch_seqs, s->batch_seqs);
    metric_set(m->batch_tokens, s->batch_tokens);
    count(m->prompt_tokens, s->prompt_tokens, &m->last.prompt_tokens);
    count(m->hit_tokens, s->hit_tokens, &m->last.hit_tokens);
    for (int i = 0; i < SEQ_DRAFTS_MAX; i++) {
        count(m->drafted[i], s->drafted[i], &m->last.drafted[i]);
        count(m->accepted[i], s->accepted[i], &m->last.accepted[i]);
    }
}
