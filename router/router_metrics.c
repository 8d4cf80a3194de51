#include "router/router_metrics.h"

#include <stdlib.h>

void router_metrics_init(struct router_metrics *m)
{
    static const char replies[] = "baton_router_replies_total",
                      replies_help[] = "Answers by class of their HTTP status.";
    struct metrics *r = metrics_new();

    if (r == NULL)
        abort();
    m->registry = r;
    m->replies_2xx = metrics_counter(r, replies, replies_help, "code=\"2xx\"");
    m->replies_4xx = metrics_counter(r, replies, replies_help, "code=\"4xx\"");
    m->replies_5xx = metrics_counter(r, replies, replies_help, "code=\"5xx\"");
    m->stream_errors = metrics_counter(r, "baton_router_stream_errors_total",
                                       "Streams that ended with an error event.", NULL);
    m->client_gone = metrics_counter(r, "baton_router_client_gone_total",
                                     "Requests whose client went away before the end.", NULL);
    m->retries = metrics_counter(r, "baton_router_retries_total",
                                 "Requests sent to another worker before their first token.", NULL);
    m->resumes = metrics_counter(r, "baton_router_resumes_total",
                                 "Requests continued on another worker after some tokens.", NULL);
    m->prompt_tokens =
        metrics_counter(r, "baton_router_prompt_tokens_total", "Prompt tokens of requests.", NULL);
    m->cached_tokens = metrics_counter(r, "baton_router_cached_tokens_total",
                                       "Prompt tokens that a prefix cache held.", NULL);
    m->completion_tokens =
        metrics_counter(r, "baton_router_completion_tokens_total", "Tokens generated.", NULL);
    m->kv_bytes = metrics_counter(r, "baton_router_kv_transfer_bytes_total",
                                  "KV bytes that workers handed over for our requests.", NULL);
    m->running =
        metrics_gauge(r, "baton_router_running_requests", "Generations in progress.", NULL);
    m->queued = metrics_gauge(r, "baton_router_queued_requests",
                              "Requests that wait for room on the workers.", NULL);
    m->refused = metrics_counter(r, "baton_router_refused_total",
                                 "Requests refused because of overload or a key's limit.", NULL);
    m->queue_s = metrics_histogram(r, "baton_router_queue_seconds",
                                   "How long requests waited for room on the workers.", NULL,
                                   metrics_ttft_bounds, METRICS_N_TTFT);
    m->connections = metrics_gauge(r, "baton_router_connections", "Open client connections.", NULL);
    m->bad_requests = metrics_counter(r, "baton_router_malformed_requests_total",
                                      "Requests that the HTTP parser refused.", NULL);
    m->ttft_s = metrics_histogram(r, "baton_router_time_to_first_token_seconds",
                                  "From the complete request to its first token.", NULL,
                                  metrics_ttft_bounds, METRICS_N_TTFT);
    m->itl_s = metrics_histogram(r, "baton_router_inter_token_latency_seconds",
                                 "Between two messages with tokens of one request, per token.",
                                 NULL, metrics_step_bounds, METRICS_N_STEP);
    m->tpot_s = metrics_histogram(
        r, "baton_router_time_per_output_token_seconds",
        "Of requests with two tokens or more: from the first to the last, per token.", NULL,
        metrics_step_bounds, METRICS_N_STEP);
    m->kv_s = metrics_histogram(r, "baton_router_kv_transfer_seconds",
                                "KV of a prompt on its way, from its first byte to its last.", NULL,
                                metrics_step_bounds, METRICS_N_STEP);
    m->e2e_s = metrics_histogram(r, "baton_router_request_seconds",
                                 "From the complete request to its end.", NULL, metrics_ttft_bounds,
                                 METRICS_N_TTFT);
}

void router_metrics_deinit(struct router_metrics *m)
{
    metrics_free(m->registry);
    m->registry = NULL;
}

void router_metrics_count_reply(struct router_metrics *m, int http_status)
{
    metric_add(http_status < 400   ? m->replies_2xx
               : http_status < 500 ? m->replies_4xx
                                   : m->replies_5xx,
               1);
}
