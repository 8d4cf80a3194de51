/*
 * options: the command line of baton-router.
 *
 * Threads   start-up only; read-only afterwards.
 */
#ifndef BATON_ROUTER_OPTIONS_H
#define BATON_ROUTER_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/flags.h"

enum { ROUTER_THREADS_MAX = 256 };

struct router_options {
    struct flag_list prefill, decode; /* HOST:PORT */
    const char *tokenizer_path, *host, *served_model_name, *effort_profile, *log_level;
    int64_t port, threads, text_threads;
    bool default_thinking, allow_think_max;
    int64_t keep_alive_s;
    int64_t max_body_bytes, max_connections, max_running_requests;
    int64_t request_timeout_s, idle_timeout_s, drain_timeout_s;
    int64_t head_timeout_ms, body_timeout_ms, write_timeout_ms;
    int64_t retries, worker_wait_ms, stall_s;
    const char *policy, *prefill_policy, *decode_policy;
    int64_t policy_index_mb;
    const char *api_key, *admin_api_key, *api_key_file, *access_log, *otlp_endpoint;
    const char *ssl_certfile, *ssl_keyfile, *worker_tls_ca, *worker_tls_cert, *worker_tls_key;
    int64_t max_output_bytes;
    int64_t max_queued_requests, max_queued_tokens, max_queue_wait_ms, max_queue_ttft_percent;
};

/**
 * Fills *o from the defaults and the command line; prints --help.
 * @return ST_OK; ST_CANCELLED after --help; ST_INVALID naming the flag and what it wants. log_level
 * is set in any case.
 */
enum status_code router_options_parse(int argc, char **argv, struct router_options *o,
                                      struct status *st);

#endif
