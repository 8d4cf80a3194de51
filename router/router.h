/*
 * router: what all router threads share, read-only after start.
 *
 * Lifetime  filled by main.c before the threads start, torn down after they have joined.
 */
#ifndef BATON_ROUTER_ROUTER_H
#define BATON_ROUTER_ROUTER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/flags.h"
#include "common/rpc/rpc.h"
#include "common/text/chat.h"
#include "common/text/tokenizer.h"
#include "router/router_metrics.h"

/* The command line. */
struct router_options {
    struct flag_list prefill, decode; /* HOST:PORT */
    const char *tokenizer_path, *host, *served_model_name, *effort_profile, *log_level;
    int64_t port, threads;
    bool default_thinking;
    int64_t max_body_bytes, max_connections, max_running_requests;
    int64_t request_timeout_s, idle_timeout_s, drain_timeout_s;
    int64_t head_timeout_ms, body_timeout_ms, write_timeout_ms;
    int64_t retries, worker_wait_ms;
};

struct router {
    const struct router_options *options;
    struct tokenizer *tokenizer;
    int32_t eos_id;       /* never part of the text */
    int32_t think_end_id; /* </think>: reasoning tokens are counted up to it */
    struct chat_options chat;
    const char *model_name; /* what /v1/models and answers say */
    int64_t started_unix_s;
    uint64_t incarnation;
    int port; /* of all threads */
    struct router_metrics *metrics;
    struct rpc *rpc;
    size_t n_prefill, n_decode;
    struct rpc_client **prefill, **decode;
};

#endif
