#include "common/worker/worker.h"

#include <dirent.h>
#include <event2/event.h>
#include <event2/thread.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/log.h"
#include "common/comm/comm.h"
#include "common/worker/admin.h"
#include "common/worker/handoff.h"
#include "common/worker/orders.h"

/* State slots beyond the running requests: those whose old slot a lost peer may still write. */
enum { SPARE_SLOTS = 8 };

/* ---- flags ---- */

void worker_flags(struct worker_options *o, struct flag *rows, int default_port)
{
    *o = (struct worker_options){
        .host = "0.0.0.0",
        .port = default_port,
        .device = "cpu",
        .cpu_isa = "auto",
        .log_level = "info",
        .kv_transport = "auto",
        .kv_require = "none",
        .tp_size = 1,
        .cuda_graph_max_bs = 32,
        .max_running_requests = 64,
        .chunked_prefill_size = 2048,
        .schedule_policy = "fcfs",
        .prefix_snapshots = -1,
        .prefix_pin_percent = 25,
        .speculative_algorithm = "none",
        .speculative_num_steps = 3,
        .speculative_eagle_topk = 1,
        .speculative_max_batch = 32,
        .drain_timeout_s = 30,
    };
    const struct flag table[WORKER_FLAGS] = {
        {"model-path", FLAG_STRING, &o->model_path, .arg = "DIR", .help = "checkpoint directory"},
        {"host", FLAG_STRING, &o->host, .arg = "ADDR", .help = "address to listen on"},
        {"port", FLAG_INT, &o->port, 1, 65535, .arg = "PORT", .help = "gRPC port"},
        {"admin-port", FLAG_INT, &o->admin_port, 0, 65535, .arg = "PORT",
         .help = "HTTP port of /health, /ready and /metrics; 0: port + 1000"},
        {"device", FLAG_STRING, &o->device, .arg = "cpu|cuda:N", .help = "where the model runs"},
        {"cuda-graph-max-bs", FLAG_INT, &o->cuda_graph_max_bs, 0, 512, .arg = "N",
         .help =
             "GPU: decode steps of up to N sequences, with their drafts, are recorded at start and "
             "cost one launch"},
        {"cpu-isa", FLAG_CHOICE, &o->cpu_isa, .choices = "auto|ref|avx2|avx512|amx",
         .help = "highest instruction set used; ref is the exact, slow reference"},
        {"threads", FLAG_INT, &o->threads, 0, 1024, .arg = "N",
         .help = "kernel threads; 0: one per CPU"},
        {"pin-threads", FLAG_BOOL, &o->pin_threads,
         .help = "keep each kernel thread on one CPU: for a worker that has its CPUs to itself; "
                 "threads stay on their NUMA node in any case"},
        {"no-repack", FLAG_BOOL, &o->no_repack,
         .help = "leave weights as the checkpoint has them: starts at once and takes no memory "
                 "beside the page cache, but runs slower; the tokens are the same"},
        {"tp-size", FLAG_INT, &o->tp_size, 1, COMM_RANKS_MAX, .arg = "N",
         .help = "ranks that share the model, threads of this process, on GPUs one each; the "
                 "tokens are "
                 "the same, and prefill and decode workers may differ"},
        {"context-length", FLAG_INT, &o->context_length, 0, 1048576, .arg = "TOKENS",
         .help = "longest request, prompt and answer; 0: what model and KV pool allow"},
        {"max-total-tokens", FLAG_INT, &o->max_total_tokens, 0, 1u << 30, .arg = "TOKENS",
         .help = "size of the KV page pool; 0: what the next two leave, or else 65536"},
        {"kv-cache-bytes", FLAG_INT, &o->kv_cache_bytes, 0, 9e15, .arg = "BYTES",
         .help = "memory of all KV, pages, slots and snapshots, at most"},
        {"mem-fraction-static", FLAG_FLOAT, &o->mem_fraction_static, 0, 1, .arg = "SHARE",
         .help = "of the memory, for weights and KV together, at most"},
        {"max-running-requests", FLAG_INT, &o->max_running_requests, 1, 4096, .arg = "N",
         .help = "requests at once"},
        {"chunked-prefill-size", FLAG_INT, &o->chunked_prefill_size, 1, 65536, .arg = "TOKENS",
         .help = "prompt tokens of one prefill step"},
        {"schedule-policy", FLAG_CHOICE, &o->schedule_policy, .choices = "fcfs|priority|lpm",
         .help = "who is admitted first: order of arrival, priority, longest cached prefix"},
        {"disable-radix-cache", FLAG_BOOL, &o->disable_radix_cache,
         .help = "keep no prefixes: every prompt is computed whole"},
        {"prefix-snapshots", FLAG_INT, &o->prefix_snapshots, -1, 1 << 20, .arg = "N",
         .help = "states kept at page boundaries, where cached prefixes can be taken up; -1: a "
                 "share of the KV memory"},
        {"prefix-pin-percent", FLAG_INT, &o->prefix_pin_percent, 0, 90, .arg = "N",
         .help = "of KV pages and states that requests may pin in the prefix cache (cache_pin_s)"},
        {"local-prefill-max-tokens", FLAG_INT, &o->local_prefill_max_tokens, 0, 65536,
         .arg = "TOKENS",
         .help = "decode: compute uncached prompt tails up to this long here, without a handoff"},
        {"speculative-algorithm", FLAG_CHOICE, &o->speculative_algorithm, .choices = "none|EAGLE",
         .help = "EAGLE: draft with the model's MTP block; the tokens stay the same"},
        {"speculative-num-steps", FLAG_INT, &o->speculative_num_steps, 1, SEQ_DRAFTS_MAX,
         .arg = "N", .help = "drafts of one step, at most"},
        {"speculative-num-draft-tokens", FLAG_INT, &o->speculative_num_draft_tokens, 0,
         SEQ_DRAFTS_MAX + 1, .arg = "N", .help = "rows verified at once: steps + 1; 0: that"},
        {"speculative-eagle-topk", FLAG_INT, &o->speculative_eagle_topk, 1, 1, .arg = "1",
         .help = "drafts are a chain"},
        {"speculative-max-batch-size", FLAG_INT, &o->speculative_max_batch, 1, 4096, .arg = "N",
         .help = "no drafts while more requests run"},
        {"step-trace", FLAG_STRING, &o->step_trace, .arg = "FILE",
         .help =
             "write every step's phases as a Chrome trace; SIGUSR1 ends it, and begins another"},
        {"kv-transport", FLAG_CHOICE, &o->kv_transport, .choices = "auto|rdma|nvlink|shm|tcp",
         .help = "how KV pages travel between workers"},
        {"kv-require", FLAG_CHOICE, &o->kv_require, .choices = "none|rdma|nvlink|shm|tcp",
         .help = "refuse to start unless this transport is there"},
        {"kv-devices", FLAG_STRING, &o->kv_devices, .arg = "LIST",
         .help = "network devices for KV, such as mlx5_0:1,eth0; absent: all"},
        {"kv-port", FLAG_INT, &o->kv_port, 0, 65535, .arg = "PORT",
         .help = "TCP port of a decode worker for KV and, whatever carries that, for its senders' "
                 "lifelines; 0: any free one"},
        {"kv-rate-limit", FLAG_INT, &o->kv_rate_limit, 0, 1e15, .arg = "BYTES",
         .help = "KV bytes per second sent to all peers together, at most; 0: no limit"},
        {"tls-ca", FLAG_STRING, &o->tls_ca, .arg = "FILE",
         .help =
             "gRPC speaks TLS, and only with peers whose certificate this one (PEM) has signed"},
        {"tls-cert", FLAG_STRING, &o->tls_cert, .arg = "FILE",
         .help = "our certificate (PEM); it names the host by which peers reach us"},
        {"tls-key", FLAG_STRING, &o->tls_key, .arg = "FILE", .help = "its key (PEM)"},
        {"drain-timeout-s", FLAG_INT, &o->drain_timeout_s, 0, 3600, .arg = "SECONDS",
         .help = "after SIGTERM, how long running requests may take to finish"},
        {"log-level", FLAG_CHOICE, &o->log_level, .choices = "error|warn|info|debug|trace",
         .help = "how much is logged"},
        {"inject-kv-flips", FLAG_INT, &o->inject_kv_flips, 0, 1 << 20, .arg = "N",
         .help = "for tests: flip a bit in each of the first N transfers"},
        {"inject-stall-rank", FLAG_INT, &o->inject_stall_rank, 0, COMM_RANKS_MAX - 1, .arg = "RANK",
         .help = "for tests: this rank, not 0, stops for good at its third step"},
        {0},
    };
    memcpy(rows, table, sizeof(table));
}

/* ---- opening ---- */

static enum transfer_kind transport_kind(const char *name)
{
    static const char *const names[] = {[TRANSFER_RDMA] = "rdma",
                                        [TRANSFER_NVLINK] = "nvlink",
                                        [TRANSFER_SHM] = "shm",
                                        [TRANSFER_TCP] = "tcp"};

    for (int i = TRANSFER_RDMA; i <= TRANSFER_TCP; i++)
        if (strcmp(name, names[i]) == 0)
            return (enum transfer_kind)i;
    return TRANSFER_AUTO; /* "auto", "none" */
}

static enum status_code open_transfer(struct worker *w, struct status *st)
{
    struct transfer_options t = {
        .transport = transport_kind(w->opt.kv_transport),
        .require = transport_kind(w->opt.kv_require),
        .devices = w->opt.kv_devices,
        .tcp_port = (uint16_t)w->opt.kv_port,
        .rate_limit = (uint64_t)w->opt.kv_rate_limit,
    };

    if (transfer_start(&t, &w->transfer, st) != ST_OK)
        return status_wrap(st, "KV transfer");
    if (w->opt.inject_kv_flips > 0)
        transfer_inject_flips(w->transfer, (int)w->opt.inject_kv_flips);
    return ST_OK;
}

/* Bytes of the checkpoint's shards; what is wrong with them is told when they are opened. */
static uint64_t shard_bytes(const char *path)
{
    uint64_t sum = 0;
    DIR *d = opendir(path);

    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        const char *dot = strrchr(e->d_name, '.');
        struct stat info;

        if (dot != NULL && strcmp(dot, ".safetensors") == 0 &&
            fstatat(dirfd(d), e->d_name, &info, 0) == 0)
            sum += (uint64_t)info.st_size;
    }
    if (d != NULL)
        closedir(d);
    return sum;
}

static enum status_code settle_memory(struct worker *w, const struct model_config *c,
                                      struct status *st)
{
    const struct worker_options *o = &w->opt;
    struct memory_limits limits;
    uint64_t taken;
    bool device = w->model != NULL && memory_limits_of_device(w->model, &limits, &taken);
    struct memory_ask ask = {
        .max_total_tokens = o->max_total_tokens,
        .kv_cache_bytes = o->kv_cache_bytes,
        .mem_fraction_static = o->mem_fraction_static,
        .weight_bytes = device ? taken : shard_bytes(o->model_path),
        .n_slots = (uint32_t)o->max_running_requests + SPARE_SLOTS,
        .n_snapshots = o->prefix_snapshots,
        .keep_snapshots = !o->disable_radix_cache &&
                          (strcmp(w->role, "prefill") == 0 || o->local_prefill_max_tokens > 0),
    };
    struct kv_geometry g;

    if (!device)
        limits = memory_limits_read();
    if (model_geometry_of(c, &g, st) != ST_OK)
        return st->code;
    if (device) { /* model_kv_alloc() takes one more of each */
        ask.weight_bytes += g.page_bytes + g.slot_bytes;
        limits.available -= limits.available < g.page_bytes + g.slot_bytes
                                ? limits.available
                                : g.page_bytes + g.slot_bytes;
    }
    if (memory_plan_make(&ask, &limits, &g, &w->memory, st) != ST_OK)
        return st->code;
    return device ? memory_plan_check(&w->memory, &limits, st) : status_ok(st);
}

/* Longest request: what was asked for, or what the model allows; never more than the pool holds. */
static enum status_code settle_context(struct worker *w, int64_t pool_tokens, int64_t model_max,
                                       struct status *st)
{
    int64_t asked = w->opt.context_length;

    if (asked > model_max)
        return status_set(st, ST_INVALID,
                          "--context-length %" PRId64 " is beyond the model's %" PRId64, asked,
                          model_max);
    if (asked > pool_tokens)
        return status_set(st, ST_INVALID,
                          "--context-length %" PRId64 " does not fit the KV pool of %" PRId64
                          " tokens: raise --max-total-tokens",
                          asked, pool_tokens);
    w->context_length = asked > 0 ? asked : model_max < pool_tokens ? model_max : pool_tokens;
    return status_ok(st);
}

/* The pool, and the longest request that it holds. */
static enum status_code settle_pool(struct worker *w, const struct model_config *c,
                                    struct status *st)
{
    if (settle_memory(w, c, st) != ST_OK)
        return st->code;
    return settle_context(w, (int64_t)w->memory.n_pages * KV_PAGE_TOKENS, c->max_position, st);
}

static void on_cache_event(void *arg, const struct prefix_event *e)
{
    static const enum publisher_event kinds[] = {
        [PREFIX_PAGE_IN] = PUBLISH_PAGE_IN,
        [PREFIX_PAGE_OUT] = PUBLISH_PAGE_OUT,
        [PREFIX_STATE_IN] = PUBLISH_STATE_IN,
        [PREFIX_STATE_OUT] = PUBLISH_STATE_OUT,
    };

    worker_cache_event(arg, kinds[e->kind], PUBLISH_DEVICE, e->block);
}

/* What the flags mean for the engine. Both roles need the MTP window kept when drafts are made. */
static enum status_code settle_engine(struct worker *w, struct status *st)
{
    const struct worker_options *o = &w->opt;
    bool prefill = strcmp(w->role, "prefill") == 0, local = o->local_prefill_max_tokens > 0;
    bool mtp = strcmp(o->speculative_algorithm, "none") != 0;
    int64_t tail = local ? o->local_prefill_max_tokens : 1;

    if (o->speculative_num_draft_tokens > 0 &&
        o->speculative_num_draft_tokens != o->speculative_num_steps + 1)
        return status_set(st, ST_INVALID,
                          "--speculative-num-draft-tokens %" PRId64 " with %" PRId64
                          " steps: a chain has steps + 1",
                          o->speculative_num_draft_tokens, o->speculative_num_steps);
    w->engine_options = (struct engine_options){
        .cache_event = on_cache_event,
        .cache_event_arg = w,
        .max_running = (int)o->max_running_requests,
        .chunk_tokens =
            (int)(prefill || tail > o->chunked_prefill_size ? o->chunked_prefill_size : tail),
        .context_length = w->context_length,
        .policy = o->schedule_policy[0] == 'f'   ? SCHEDULE_FCFS
                  : o->schedule_policy[0] == 'p' ? SCHEDULE_PRIORITY
                                                 : SCHEDULE_LPM,
        .prefix_cache = !o->disable_radix_cache,
        .n_snapshots = w->memory.n_snapshots,
        .snapshot_prompts = prefill || local,
        .snapshot_turns = local,
        .pin_percent = (uint32_t)o->prefix_pin_percent,
        .draft_tokens = mtp && !prefill ? (int)o->speculative_num_steps : 0,
        .draft_max_batch = (int)o->speculative_max_batch,
        .keep_mtp = mtp,
        .local_tokens = prefill ? UINT32_MAX : (uint32_t)o->local_prefill_max_tokens,
        .grow = !prefill,
    };
    return status_ok(st);
}

/* A rank that is stuck holds memory that nobody can take back: the worker ends, so that routers see
 * it gone and send its requests to another. On whichever thread found out. */
static void on_group_failure(void *arg, const char *reason)
{
    const struct worker *w = arg;

    log_error("rank group of %" PRId64 " failed: %s; the worker ends", w->opt.tp_size, reason);
    _exit(EXIT_FAILURE);
}

static enum status_code open_model(struct worker *w, struct status *st)
{
    struct model_options m = {
        .path = w->opt.model_path,
        .device = w->opt.device,
        .cpu_isa = w->opt.cpu_isa,
        .n_threads = (int)w->opt.threads,
        .no_repack = w->opt.no_repack,
        .pin_threads = w->opt.pin_threads,
        .tp_size = (int)w->opt.tp_size,
        .on_group_failure = on_group_failure,
        .on_group_failure_arg = w,
        .inject_stall_rank = (int)w->opt.inject_stall_rank,
        .max_context = (int)w->context_length,
    };

    engine_batch_bounds(&w->engine_options, &m.max_batch_tokens, &m.max_batch_seqs,
                        &m.max_logit_rows);
    return model_open(&m, &w->model, st);
}

/* The KV of a GPU; the host's memory, so far taken for it, becomes its mirror. */
static enum status_code open_device_kv(struct worker *w, struct status *st)
{
    struct kv_memory host = w->kv;

    if (kv_mirror_new(w->model, &host, &w->kv, &w->mirror, st) != ST_OK)
        return st->code;
    return model_record(w->model, &w->kv, (int)w->opt.cuda_graph_max_bs,
                        1 + w->engine_options.draft_tokens, st);
}

/* KV memory that every transport can reach; the CPU backend takes any host memory. */
static enum status_code open_kv(struct worker *w, struct status *st)
{
    uint32_t n_pages = w->memory.n_pages, n_slots = w->memory.n_slots;
    struct memory_limits limits = memory_limits_read(); /* the weights are in by now */
    struct memory_plan host = w->memory;
    void *pages, *slots;

    if (!model_kv_is_host(w->model)) /* the mirror: states stay on the device */
        host.n_snapshots = 0;
    if (memory_plan_check(&host, &limits, st) != ST_OK)
        return st->code;
    w->geometry = model_get_geometry(w->model);
    if (transfer_slab_alloc(w->transfer, HANDOFF_SLAB_PAGES, n_pages * w->geometry->page_bytes,
                            &pages, st) != ST_OK ||
        transfer_slab_alloc(w->transfer, HANDOFF_SLAB_SLOTS, n_slots * w->geometry->slot_bytes,
                            &slots, st) != ST_OK)
        return status_wrap(st,
                           "KV memory of %u pages and %u slots (lower --max-total-tokens or "
                           "--max-running-requests)",
                           n_pages, n_slots);
    w->kv = (struct kv_memory){
        .pages = {(uint64_t)(uintptr_t)pages},
        .slots = {(uint64_t)(uintptr_t)slots},
        .n_pages = n_pages,
        .n_slots = n_slots,
    };
    if (!model_kv_is_host(w->model) && open_device_kv(w, st) != ST_OK)
        return st->code;
    if (slab_new("KV page", n_pages, &w->pages, st) != ST_OK ||
        slab_new("state slot", n_slots, &w->slots, st) != ST_OK)
        return st->code;
    return status_ok(st);
}

enum status_code worker_engine_new(struct worker *w, const struct engine_events *events,
                                   struct engine **out, struct status *st)
{
    if (engine_new(&w->engine_options, w->model, &w->kv, w->pages, w->slots, events, out, st) !=
        ST_OK)
        return status_wrap(st, "engine");
    return ST_OK;
}

static void log_plan(const struct worker *w)
{
    log_info("model %s on %s, fingerprint %016" PRIx64 ", KV layout %016" PRIx64, w->opt.model_path,
             model_backend_name(w->model), model_fingerprint(w->model),
             kv_geometry_fingerprint(w->geometry));
    memory_plan_log(&w->memory, w->model);
    log_info(
        "limits: context %" PRId64 " tokens, %" PRId64 " requests at once, pool %" PRIu64 " tokens",
        w->context_length, w->opt.max_running_requests, (uint64_t)w->kv.n_pages * KV_PAGE_TOKENS);
}

static void identify(void *arg, Baton__V1__Identity *out)
{
    worker_identity(arg, out);
}

enum status_code worker_open(struct worker *w, struct status *st)
{
    bool device = strcmp(w->opt.device, "cpu") != 0;
    struct model_config config;

    if (w->opt.model_path == NULL)
        return status_set(st, ST_INVALID, "--model-path is needed: the checkpoint directory");
    if (getrandom(&w->incarnation, sizeof(w->incarnation), 0) != sizeof(w->incarnation))
        return status_set(st, ST_INTERNAL, "the system gives no random numbers");
    w->incarnation |= 1; /* never 0: absent */
    if (model_config_read(w->opt.model_path, &config, st) != ST_OK ||
        /* What a GPU has left for a pool is known when the model is on it. */
        (device ? settle_context(w, INT64_MAX, config.max_position, st)
                : settle_pool(w, &config, st)) != ST_OK ||
        settle_engine(w, st) != ST_OK)
        return st->code;
    if (mailbox_new(&w->engine, st) != ST_OK || open_transfer(w, st) != ST_OK ||
        open_model(w, st) != ST_OK)
        return st->code;
    if (device && (settle_pool(w, &config, st) != ST_OK || settle_engine(w, st) != ST_OK))
        return st->code;
    if (open_kv(w, st) != ST_OK)
        return st->code;
    log_plan(w);
    if (orders_start(w, st) != ST_OK)
        return st->code;
    evthread_use_pthreads(); /* worker_quit() wakes the loop from the engine thread */
    w->metrics = metrics_new();
    w->base = event_base_new();
    if (w->base == NULL || w->metrics == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the event loop");
    if (publisher_start(
            &(struct publisher_config){
                .identity = identify, .arg = w, .needs_state = w->engine_options.snapshot_prompts},
            &w->publisher, st) != ST_OK)
        return st->code;
    if (rpc_start(&w->rpc, st) != ST_OK)
        return st->code;
    return rpc_use_tls(w->rpc, w->opt.tls_ca, w->opt.tls_cert, w->opt.tls_key, st);
}

/* ---- serving ---- */

struct stop_hook {
    struct worker *w;
    void (*stop)(void *arg);
    void *arg;
    bool asked;
};

static void on_signal(evutil_socket_t sig, short what, void *arg)
{
    struct stop_hook *hook = arg;

    (void)what;
    if (hook->asked) {
        log_warn("second signal: ending at once");
        _exit(128 + (int)sig);
    }
    hook->asked = true;
    log_info("signal %d: finishing what runs (at most %" PRId64 " s), taking nothing new", (int)sig,
             hook->w->opt.drain_timeout_s);
    atomic_store(&hook->w->ready, false);
    rpc_server_set_serving(hook->w->server, 0);
    hook->stop(hook->arg);
}

static void on_trace_signal(evutil_socket_t sig, short what, void *arg)
{
    (void)sig;
    (void)what;
    orders_toggle_trace(arg);
}

static enum status_code open_port(struct worker *w, const struct rpc_method *methods, size_t n,
                                  struct status *st)
{
    struct rpc_method all[8];
    char address[300];

    if (n + ADMIN_METHODS > sizeof(all) / sizeof(all[0]))
        return status_set(st, ST_INTERNAL, "more rpc methods than room");
    memcpy(all, methods, n * sizeof(*methods));
    admin_methods(w, all + n);
    snprintf(address, sizeof(address), "%s:%" PRId64, w->opt.host, w->opt.port);
    if (rpc_server_start(w->rpc, address, all, n + ADMIN_METHODS, &w->server, st) != ST_OK)
        return st->code;
    return admin_http_open(w, st);
}

enum status_code worker_serve(struct worker *w, const struct rpc_method *methods, size_t n,
                              void (*stop)(void *arg), void *arg, struct status *st)
{
    struct stop_hook hook = {.w = w, .stop = stop, .arg = arg};
    struct event *term = evsignal_new(w->base, SIGTERM, on_signal, &hook);
    struct event *intr = evsignal_new(w->base, SIGINT, on_signal, &hook);
    struct event *usr1 = evsignal_new(w->base, SIGUSR1, on_trace_signal, w);

    signal(SIGPIPE, SIG_IGN);
    if (term == NULL || intr == NULL || usr1 == NULL || event_add(term, NULL) != 0 ||
        event_add(intr, NULL) != 0 || event_add(usr1, NULL) != 0) {
        status_set(st, ST_EXHAUSTED, "cannot watch signals");
    } else if (open_port(w, methods, n, st) == ST_OK) {
        atomic_store(&w->ready, true);
        rpc_server_set_serving(w->server, 1);
        log_info("%s worker ready: gRPC %s:%" PRId64 ", admin http port %d", w->role, w->opt.host,
                 w->opt.port, w->admin_port);
        event_base_loop(w->base, EVLOOP_NO_EXIT_ON_EMPTY);
        status_ok(st);
    }
    if (term != NULL)
        event_free(term);
    if (intr != NULL)
        event_free(intr);
    if (usr1 != NULL)
        event_free(usr1);
    return st->code;
}

void worker_cache_event(struct worker *w, enum publisher_event what, enum publisher_tier tier,
                        uint64_t block)
{
    publisher_page(w->publisher, what, tier, block);
}

void worker_load(struct worker *w, const struct engine_stats *s)
{
    struct publisher_figures f = {
        .running = s->n_running,
        .waiting = s->n_waiting + s->n_held,
        .queued_tokens = s->waiting_tokens,
        .free_pages = slab_units(w->pages) - s->pages_busy,
        .total_pages = slab_units(w->pages),
        .steps = s->steps,
        .max_running = (uint32_t)w->opt.max_running_requests,
    };

    publisher_load(w->publisher, &f);
}

void worker_quit(struct worker *w)
{
    event_base_loopbreak(w->base);
}

void worker_stop_serving(struct worker *w)
{
    atomic_store(&w->ready, false);
    admin_http_close(w);
    rpc_server_free(w->server);
    w->server = NULL;
}

/* Other threads may tell of a peer's end after the loop has ended; such messages own nothing. */
static void drop_late(struct msg *m)
{
    free(m);
}

void worker_close(struct worker *w)
{
    worker_stop_serving(w);
    if (w->rpc != NULL)
        rpc_stop(w->rpc);
    publisher_stop(w->publisher);
    step_trace_close(w->trace);
    kv_mirror_free(w->mirror); /* before the slabs it mirrors to */
    if (w->transfer != NULL)
        transfer_stop(w->transfer);
    model_free(w->model);
    slab_free(w->pages);
    slab_free(w->slots);
    mailbox_free(w->engine, drop_late);
    if (w->base != NULL)
        event_base_free(w->base);
    metrics_free(w->metrics);
}

/* ---- identity ---- */

void worker_identity(const struct worker *w, Baton__V1__Identity *out)
{
    baton__v1__identity__init(out);
    out->role = (char *)w->role;
    out->incarnation = w->incarnation;
    out->protocol = BATON__V1__PROTOCOL__PROTOCOL_NOW;
    out->has_model_fingerprint = out->has_geometry_fingerprint = true;
    out->model_fingerprint = model_fingerprint(w->model);
    out->geometry_fingerprint = kv_geometry_fingerprint(w->geometry);
    out->model_path = (char *)w->opt.model_path;
    out->has_vocab_size = out->has_context_length = true;
    out->vocab_size = (uint32_t)model_get_config(w->model)->vocab_size;
    out->context_length = (uint64_t)w->context_length;
    out->backend = (char *)model_backend_name(w->model);
}

enum status_code worker_check_peer(const struct worker *w, const Baton__V1__Identity *peer,
                                   struct status *st)
{
    uint64_t model = model_fingerprint(w->model), kv = kv_geometry_fingerprint(w->geometry);
    const char *path = peer->model_path != NULL ? peer->model_path : "?";

    if (peer->protocol != BATON__V1__PROTOCOL__PROTOCOL_NOW)
        return status_set(st, ST_INVALID,
                          "%s worker speaks protocol %u, this %s worker %d: run the "
                          "same version on both",
                          peer->role, peer->protocol, w->role, BATON__V1__PROTOCOL__PROTOCOL_NOW);
    if (peer->geometry_fingerprint != kv)
        return status_set(
            st, ST_INVALID,
            "KV layouts differ: %s worker has %016" PRIx64 " (%s), this %s worker %016" PRIx64
            " (%s); run the same checkpoint and version on both",
            peer->role, peer->geometry_fingerprint, path, w->role, kv, w->opt.model_path);
    if (peer->model_fingerprint != model)
        return status_set(
            st, ST_INVALID,
            "checkpoints differ: %s worker has fingerprint %016" PRIx64
            " (%s), this %s worker %016" PRIx64 " (%s); run the same checkpoint on both",
            peer->role, peer->model_fingerprint, path, w->role, model, w->opt.model_path);
    if (peer->backend != NULL && strcmp(peer->backend, model_backend_name(w->model)) != 0)
        log_warn("%s worker computes with %s, this one with %s: answers are valid, but their bits "
                 "are not "
                 "reproducible from one process",
                 peer->role, peer->backend, model_backend_name(w->model));
    return status_ok(st);
}
