/*
 * worker: what a prefill and a decode worker have in common: flags, start-up in the right order
 * with errors before the port opens, identity, the Admin service, admin HTTP, signals, tear-down.
 *
 * Owns      the model, the KV memory with its page and slot accounts, transfer, rpc, the event
 * loop. Threads   main runs the event loop (signals, admin HTTP); the engine thread is the binary's
 * own and alone touches model, pages and slots once worker_run() has started it. Lifetime
 * worker_open, worker_run (returns after SIGTERM and the engine's end), worker_close.
 */
#ifndef BATON_COMMON_WORKER_WORKER_H
#define BATON_COMMON_WORKER_WORKER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "baton/v1/common.pb-c.h"
#include "common/base/flags.h"
#include "common/base/mailbox.h"
#include "common/base/metrics.h"
#include "common/engine/engine.h"
#include "common/engine/step_trace.h"
#include "common/kv/slab.h"
#include "common/model/model.h"
#include "common/rpc/rpc.h"
#include "common/transfer/transfer.h"
#include "common/worker/kv_mirror.h"
#include "common/worker/memory_plan.h"
#include "common/worker/publisher.h"

enum { WORKER_ADMIN_PORT_OFFSET = 1000 };

/* Values of the flags that both binaries have; names follow SGLang's where the meaning is the same.
 */
struct worker_options {
    const char *model_path, *host, *device, *cpu_isa, *log_level;
    const char *kv_transport, *kv_require, *kv_devices;
    int64_t kv_rate_limit, kv_port;
    const char *tls_ca, *tls_cert, *tls_key; /* NULL: plain gRPC */
    int64_t port, admin_port;                /* admin_port 0: port + WORKER_ADMIN_PORT_OFFSET */
    int64_t threads;                         /* 0: one per CPU */
    int64_t cuda_graph_max_bs;               /* sequences of a step that is recorded; 0: none */
    int64_t tp_size;                         /* ranks that share the model */
    int64_t context_length;                  /* 0: what the model and the pool allow */
    int64_t max_total_tokens; /* size of the page pool; 0: by the memory, or a default */
    int64_t kv_cache_bytes;   /* 0: not given */
    double mem_fraction_static;
    int64_t max_running_requests;
    int64_t chunked_prefill_size; /* tokens of one prefill step */
    int64_t
        local_prefill_max_tokens; /* decode: uncached tails up to that many it computes itself */
    const char *schedule_policy, *step_trace;
    bool disable_radix_cache;
    bool no_repack, pin_threads;
    int64_t prefix_pin_percent;
    int64_t prefix_snapshots; /* states kept at page boundaries; -1: a share of the KV memory */
    const char *speculative_algorithm;
    int64_t speculative_num_steps, speculative_num_draft_tokens, speculative_eagle_topk;
    int64_t speculative_max_batch;
    int64_t drain_timeout_s;
    int64_t inject_kv_flips;   /* tests: flip a bit in that many transfers */
    int64_t inject_stall_rank; /* tests: this rank stops for good */
};

struct worker {
    const char *role; /* "prefill", "decode" */
    struct worker_options opt;
    int64_t context_length; /* in force */
    uint64_t incarnation;
    struct model *model;
    const struct kv_geometry *geometry;
    struct kv_memory kv;
    struct kv_mirror *mirror; /* NULL: transports reach the KV itself */
    struct slab *pages, *slots;
    struct memory_plan memory;
    struct step_trace *trace; /* NULL: none is written now */
    uint32_t n_traces;
    struct engine_options engine_options; /* what the flags mean for the engine */
    struct transfer *transfer;
    struct rpc *rpc;
    struct rpc_server *server;
    struct publisher *publisher; /* tells routers of pages and load */
    struct metrics *metrics;
    struct mailbox *engine;  /* where the binary's messages go */
    struct event_base *base; /* libevent */
    struct evhttp *http;
    int admin_port;     /* bound */
    _Atomic bool ready; /* written by main, read by probes */
};

/** Fills defaults and the shared rows of a flag table (ends with a NULL row).
 * @param rows  out, [cap]; cap >= WORKER_FLAGS */
enum { WORKER_FLAGS = 48 }; /* room for all rows and the empty one at their end */
void worker_flags(struct worker_options *opt, struct flag *rows, int default_port);

/**
 * Opens everything but the port: checkpoint, KV memory, transfer, rpc. Logs the memory plan.
 * @param w  zeroed, with role and opt set
 * @return ST_OK; else what is wrong and what to change
 */
enum status_code worker_open(struct worker *w, struct status *st);

/** The engine over the worker's model and KV, for its loop; freed with engine_free() before
 * worker_close(). */
enum status_code worker_engine_new(struct worker *w, const struct engine_events *events,
                                   struct engine **out, struct status *st);

/**
 * Opens the ports, serves `methods` (and Admin, health), runs the event loop until a signal asks
 * for the end. Two signals end at once.
 * @param stop  called once on main when the first signal comes: tells the engine to drain
 */
enum status_code worker_serve(struct worker *w, const struct rpc_method *methods, size_t n,
                              void (*stop)(void *arg), void *arg, struct status *st);

/**
 * Tells routers that a page, by its name (common/kv/block_hash.h), is held or no longer; see
 * publisher.h. Engine thread, also before worker_serve().
 */
void worker_cache_event(struct worker *w, enum publisher_event what, enum publisher_tier tier,
                        uint64_t block);

/** Tells routers how busy the engine is; once per step. Engine thread. */
void worker_load(struct worker *w, const struct engine_stats *s);

/** Ends the event loop from any thread: the engine has drained. */
void worker_quit(struct worker *w);

/** Closes the server and its sessions (their on_close messages land in the engine's mailbox). */
void worker_stop_serving(struct worker *w);

/** Frees all. The engine thread has ended. */
void worker_close(struct worker *w);

/** Fills a protobuf Identity; strings are borrowed from w. */
void worker_identity(const struct worker *w, Baton__V1__Identity *out);

/**
 * Compares a peer's identity with ours: protocol, model and geometry fingerprints.
 * @return ST_OK; ST_INVALID naming both fingerprints and both model paths
 */
enum status_code worker_check_peer(const struct worker *w, const Baton__V1__Identity *peer,
                                   struct status *st);

#endif
