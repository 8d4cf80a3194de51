/*
 * baton-router: faces the clients. Flags, parts, run, tear down.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/text/chat_profile.h"
#include "common/text/chat_tokens.h"
#include "router/router.h"
#include "router/router_thread.h"

enum { THREADS_MAX = 256 };

static const char heading[] =
    "baton-router: OpenAI-compatible HTTP front of a disaggregated DeepSeek-V4 deployment.\n"
    "\n"
    "  baton-router --prefill HOST:PORT --decode HOST:PORT --tokenizer-path DIR\n"
    "\n"
    "Serves /v1/chat/completions, /v1/models, /health, /ready, /metrics and /workers.\n";

static struct router_options options = {
    .host = "0.0.0.0",
    .effort_profile = "auto",
    .log_level = "info",
    .port = 8000,
    .threads = 1,
    .default_thinking = true,
    .max_body_bytes = 64 << 20,
    .max_connections = 65536,
    .max_running_requests = 65536,
    .idle_timeout_s = 75,
    .head_timeout_ms = 10000,
    .body_timeout_ms = 15000,
    .write_timeout_ms = 60000,
    .drain_timeout_s = 30,
    .retries = 3,
    .worker_wait_ms = 2000,
};

static const struct flag flags[] = {
    {"prefill", FLAG_LIST, &options.prefill, .arg = "HOST:PORT",
     .help = "gRPC address of a prefill worker, as the decode workers reach it too"},
    {"decode", FLAG_LIST, &options.decode, .arg = "HOST:PORT",
     .help = "gRPC address of a decode worker"},
    {"tokenizer-path", FLAG_STRING, &options.tokenizer_path, .arg = "DIR|FILE",
     .help = "tokenizer.json, or the checkpoint folder that holds it"},
    {"host", FLAG_STRING, &options.host, .arg = "ADDRESS", .help = "listen on this address"},
    {"port", FLAG_INT, &options.port, 0, 65535, .arg = "N",
     .help = "listen on this port; 0 picks one and logs it"},
    {"router-threads", FLAG_INT, &options.threads, 0, THREADS_MAX, .arg = "N",
     .help = "event loops, each with its own connections; 0: one per CPU"},
    {"served-model-name", FLAG_STRING, &options.served_model_name, .arg = "NAME",
     .help = "name in /v1/models and in answers; default: the name of the tokenizer's folder"},
    {"default-thinking", FLAG_BOOL, &options.default_thinking, .arg = "on|off",
     .help = "whether a request that says nothing about thinking thinks"},
    {"effort-profile", FLAG_CHOICE, &options.effort_profile, .choices = "auto|preview|ga",
     .help = "reasoning-effort prefixes of which release; auto: read from the tokenizer's folder"},
    {"max-body-bytes", FLAG_INT, &options.max_body_bytes, 1024, 1 << 30, .arg = "N",
     .help = "larger request bodies are refused with 413"},
    {"max-connections", FLAG_INT, &options.max_connections, 1, 1 << 24, .arg = "N",
     .help = "open client connections of one router thread; more are refused with 503"},
    {"max-running-requests", FLAG_INT, &options.max_running_requests, 1, 1 << 24, .arg = "N",
     .help = "generations in progress of one router thread; more are refused with 429"},
    {"request-timeout-secs", FLAG_INT, &options.request_timeout_s, 0, 1 << 20, .arg = "N",
     .help = "end a request that takes longer; 0: no limit"},
    {"idle-timeout-secs", FLAG_INT, &options.idle_timeout_s, 1, 86400, .arg = "N",
     .help = "close a connection without a request for so long"},
    {"head-timeout-ms", FLAG_INT, &options.head_timeout_ms, 10, 3600000, .arg = "N",
     .help = "a request's head must be complete so long after its first byte"},
    {"body-timeout-ms", FLAG_INT, &options.body_timeout_ms, 10, 3600000, .arg = "N",
     .help = "so long for a body, plus a second for every 16 KiB of it"},
    {"write-timeout-ms", FLAG_INT, &options.write_timeout_ms, 10, 3600000, .arg = "N",
     .help = "cut off a client that takes nothing of its answer for so long"},
    {"drain-timeout-secs", FLAG_INT, &options.drain_timeout_s, 0, 86400, .arg = "N",
     .help = "after SIGTERM running requests may take so long; a second signal ends at once"},
    {"retries", FLAG_INT, &options.retries, 0, 16, .arg = "N",
     .help = "how often a request that its worker failed is tried on another"},
    {"worker-wait-ms", FLAG_INT, &options.worker_wait_ms, 0, 60000, .arg = "N",
     .help = "how long a request whose decode worker was lost waits for one to come back"},
    {"log-level", FLAG_CHOICE, &options.log_level, .choices = "error|warn|info|debug|trace",
     .help = "how much is logged"},
    {NULL},
};

/* ---- parts ----------------------------------------------------------------------------------- */

static enum status_code check_addresses(const char *flag, const struct flag_list *list,
                                        struct status *st)
{
    if (list->n == 0)
        return status_set(st, ST_INVALID, "--%s HOST:PORT is needed, once for each worker", flag);
    for (size_t i = 0; i < list->n; i++) {
        const char *colon = strrchr(list->items[i], ':');
        char *end = NULL;
        long port = colon == NULL ? 0 : strtol(colon + 1, &end, 10);

        if (colon == NULL || colon == list->items[i] || port < 1 || port > 65535 || *end != '\0')
            return status_set(st, ST_INVALID, "--%s %s: expected HOST:PORT", flag, list->items[i]);
        for (size_t k = 0; k < i; k++)
            if (strcmp(list->items[k], list->items[i]) == 0)
                return status_set(st, ST_INVALID, "--%s %s is given twice", flag, list->items[i]);
    }
    return status_ok(st);
}

/* The last part of the folder's path; malloc. */
static char *name_of_folder(const char *path)
{
    char *full = realpath(path, NULL), *slash, *name;

    if (full == NULL)
        return strdup("model");
    slash = strrchr(full, '/');
    if (slash != NULL && strcmp(slash, "/tokenizer.json") == 0) {
        *slash = '\0';
        slash = strrchr(full, '/');
    }
    name = strdup(slash == NULL || slash[1] == '\0' ? "model" : slash + 1);
    free(full);
    return name;
}

static enum status_code open_text(struct router *r, struct status *st)
{
    const char *why;

    if (options.tokenizer_path == NULL)
        return status_set(st, ST_INVALID, "--tokenizer-path is needed: the checkpoint folder");
    if (chat_profile_find(options.effort_profile, options.tokenizer_path, &r->chat.profile, &why,
                          st) != ST_OK ||
        tokenizer_open(options.tokenizer_path, &r->tokenizer, st) != ST_OK ||
        chat_tokens_check(r->tokenizer, st) != ST_OK)
        return st->code;
    log_info("effort profile %s: %s", chat_profile_name(r->chat.profile), why);
    r->chat.default_thinking = options.default_thinking;
    r->eos_id = chat_tokens[CHAT_EOS].id;
    return status_ok(st);
}

static enum status_code open_clients(struct rpc *rpc, const struct flag_list *list, size_t *n,
                                     struct rpc_client ***out, struct status *st)
{
    *out = calloc(list->n, sizeof(**out));
    if (*out == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for %zu workers", list->n);
    for (size_t i = 0; i < list->n; i++) {
        if (rpc_client_new(rpc, list->items[i], &(*out)[i], st) != ST_OK)
            return st->code;
        *n = i + 1;
    }
    return status_ok(st);
}

static void close_clients(size_t n, struct rpc_client **clients)
{
    for (size_t i = 0; i < n; i++)
        rpc_client_free(clients[i]);
    free(clients);
}

static enum status_code router_open(struct router *r, struct status *st)
{
    r->options = &options;
    r->started_unix_s = clock_unix_s();
    if (getrandom(&r->incarnation, sizeof(r->incarnation), 0) != sizeof(r->incarnation))
        return status_set(st, ST_INTERNAL, "no random numbers from the kernel");
    if (check_addresses("prefill", &options.prefill, st) != ST_OK ||
        check_addresses("decode", &options.decode, st) != ST_OK || open_text(r, st) != ST_OK)
        return st->code;
    r->model_name = options.served_model_name != NULL ? strdup(options.served_model_name)
                                                      : name_of_folder(options.tokenizer_path);
    r->metrics = calloc(1, sizeof(*r->metrics));
    if (r->model_name == NULL || r->metrics == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory");
    router_metrics_init(r->metrics);
    if (rpc_start(&r->rpc, st) != ST_OK ||
        open_clients(r->rpc, &options.prefill, &r->n_prefill, &r->prefill, st) != ST_OK ||
        open_clients(r->rpc, &options.decode, &r->n_decode, &r->decode, st) != ST_OK)
        return st->code;
    return ST_OK;
}

/* The threads have ended: their mailboxes take what the rpc thread still says. */
static void router_close_rpc(struct router *r)
{
    close_clients(r->n_prefill, r->prefill);
    close_clients(r->n_decode, r->decode);
    if (r->rpc != NULL)
        rpc_stop(r->rpc);
}

static void router_close(struct router *r)
{
    tokenizer_free(r->tokenizer);
    if (r->metrics != NULL)
        router_metrics_deinit(r->metrics);
    free(r->metrics);
    free((char *)r->model_name);
}

/* ---- run ------------------------------------------------------------------------------------- */

/* With SO_REUSEPORT a second router on the same port would share it in silence: look first. */
static enum status_code check_port_is_free(struct status *st)
{
    struct http_server_config c = {.host = options.host, .port = (int)options.port};
    struct http_server_callbacks none = {0};
    struct event_base *base = event_base_new();
    struct http_server *probe;

    if (base == NULL)
        return status_set(st, ST_EXHAUSTED, "no event loop: raise the limit of open files");
    if (http_server_new(base, &c, &none, &probe, st) == ST_OK)
        http_server_free(probe);
    event_base_free(base);
    return st->code;
}

static enum status_code start_threads(struct router *r, size_t n, struct router_thread **threads,
                                      struct status *st)
{
    r->port = (int)options.port;
    if (n > 1 && r->port != 0 && check_port_is_free(st) != ST_OK)
        return st->code;
    for (size_t i = 0; i < n; i++) {
        if (router_thread_start(r, r->port, n > 1, &threads[i], st) != ST_OK)
            return st->code;
        if (i == 0)
            r->port = http_server_port(threads[0]->http);
    }
    log_info("listening on %s port %d, %zu thread%s, model %s", options.host, r->port, n,
             n == 1 ? "" : "s", r->model_name);
    return status_ok(st);
}

static enum status_code run(struct router *r, const sigset_t *signals, struct status *st)
{
    size_t n =
        options.threads > 0 ? (size_t)options.threads : (size_t)sysconf(_SC_NPROCESSORS_ONLN);
    struct router_thread *threads[THREADS_MAX] = {NULL};
    int sig;

    n = n > THREADS_MAX ? THREADS_MAX : n;
    if (start_threads(r, n, threads, st) == ST_OK) {
        sigwait(signals, &sig);
        log_info("%s: draining, at most %lld s", strsignal(sig),
                 (long long)options.drain_timeout_s);
        for (size_t i = 0; i < n; i++)
            router_thread_stop(threads[i]);
        /* A second signal ends the process the usual way. */
        pthread_sigmask(SIG_UNBLOCK, signals, NULL);
    } else {
        for (size_t i = 0; i < n && threads[i] != NULL; i++)
            router_thread_stop(threads[i]);
    }
    for (size_t i = 0; i < n; i++)
        router_thread_join(threads[i]);
    router_close_rpc(r);
    for (size_t i = 0; i < n; i++)
        router_thread_free(threads[i]);
    return st->code;
}

int main(int argc, char **argv)
{
    struct router r = {0};
    struct status st;
    sigset_t signals;

    if (flags_parse(flags, argc, argv, NULL, NULL, &st) == ST_CANCELLED) {
        flags_help(flags, heading);
        return 0;
    }
    log_init("router", (enum log_level)log_level_parse(options.log_level));
    if (st.code == ST_OK) {
        signal(SIGPIPE, SIG_IGN);
        /* Before any thread starts, so that all of them leave these to main. */
        sigemptyset(&signals);
        sigaddset(&signals, SIGTERM);
        sigaddset(&signals, SIGINT);
        pthread_sigmask(SIG_BLOCK, &signals, NULL);
        if (router_open(&r, &st) == ST_OK)
            run(&r, &signals, &st);
        else
            router_close_rpc(&r);
        router_close(&r);
    }
    if (st.code != ST_OK) {
        log_error("%s", st.msg);
        return 1;
    }
    log_info("bye");
    return 0;
}
