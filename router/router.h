/*
 * router: what all router threads share, read-only after start.
 *
 * Lifetime  router_open before the threads start, router_close_producers when they have joined,
 * router_close.
 */
#ifndef BATON_ROUTER_ROUTER_H
#define BATON_ROUTER_ROUTER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/rpc/rpc.h"
#include "common/text/chat.h"
#include "common/text/prefix_tokens.h"
#include "common/text/tokenizer.h"
#include "router/keys.h"
#include "router/options.h"
#include "router/registry.h"
#include "router/router_metrics.h"
#include "router/trace.h"

struct text_pool;

struct router {
    const struct router_options *options;
    struct tokenizer *tokenizer;
    struct prefix_tokens *prefixes; /* of prompts seen before; locks itself */
    int32_t eos_id;                 /* never part of the text */
    int32_t think_end_id;           /* </think>: reasoning tokens are counted up to it */
    struct chat_options chat;
    const char *model_name; /* what /v1/models and answers say */
    int64_t started_unix_s;
    uint64_t incarnation;
    int port; /* of all threads */
    struct router_metrics *metrics;
    struct text_pool *text_pool; /* for large requests */
    struct rpc *rpc;
    struct keys *keys;             /* who may ask; locks itself */
    struct trace_exporter *traces; /* NULL: off */
    struct tls *tls;               /* for clients; NULL: plain HTTP */
    int access_fd;                 /* of the access log; -1: off */
    struct registry *registry;     /* of the workers; locks itself */
};

/**
 * Opens all but the threads: tokenizer, metrics, rpc and a client for each worker.
 * @param r        zeroed
 * @param options  borrowed
 * @return ST_OK; else what is wrong and what to change; close what is open either way
 */
enum status_code router_open(struct router *r, const struct router_options *options,
                             struct status *st);

/** Ends rpc and the text pool, whose last messages go into the mailboxes of threads that have
 * joined. */
void router_close_producers(struct router *r);

/** Frees the rest, after the threads. */
void router_close(struct router *r);

#endif
