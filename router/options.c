#include "router/options.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "router/policy/policy.h"

static const char heading[] =
    "baton-router: OpenAI-compatible HTTP front of a disaggregated DeepSeek-V4 deployment.\n"
    "\n"
    "  baton-router --prefill HOST:PORT --decode HOST:PORT --tokenizer-path DIR\n"
    "\n"
    "Serves /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /detokenize, /health,\n"
    "/health_generate, /ready, /metrics, /workers, /v1/loads and /model_info.\n";

static const struct router_options defaults = {
    .host = "0.0.0.0",
    .effort_profile = "auto",
    .log_level = "info",
    .port = 8000,
    .threads = 1,
    .text_threads = 2,
    .default_thinking = true,
    .keep_alive_s = 15,
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
    .stall_s = 60,
    .policy = "kv_exact",
    .prefill_policy = "default",
    .decode_policy = "default",
    .policy_index_mb = 256,
    .max_queued_requests = 1024,
    .max_output_bytes = 1 << 20,
};

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

static enum status_code check(const struct router_options *o, struct status *st)
{
    if (check_addresses("prefill", &o->prefill, st) != ST_OK ||
        check_addresses("decode", &o->decode, st) != ST_OK)
        return st->code;
    if (o->tokenizer_path == NULL)
        return status_set(st, ST_INVALID, "--tokenizer-path is needed: the checkpoint folder");
    return status_ok(st);
}

enum status_code router_options_parse(int argc, char **argv, struct router_options *o,
                                      struct status *st)
{
    const struct flag flags[] = {
        {"prefill", FLAG_LIST, &o->prefill, .arg = "HOST:PORT",
         .help = "gRPC address of a prefill worker, as the decode workers reach it too"},
        {"decode", FLAG_LIST, &o->decode, .arg = "HOST:PORT",
         .help = "gRPC address of a decode worker"},
        {"tokenizer-path", FLAG_STRING, &o->tokenizer_path, .arg = "DIR|FILE",
         .help = "tokenizer.json, or the checkpoint folder that holds it"},
        {"host", FLAG_STRING, &o->host, .arg = "ADDRESS", .help = "listen on this address"},
        {"port", FLAG_INT, &o->port, 0, 65535, .arg = "N",
         .help = "listen on this port; 0 picks one and logs it"},
        {"router-threads", FLAG_INT, &o->threads, 0, ROUTER_THREADS_MAX, .arg = "N",
         .help = "event loops, each with its own connections; 0: one per CPU"},
        {"text-threads", FLAG_INT, &o->text_threads, 1, 64, .arg = "N",
         .help = "threads that read large requests, so that they do not stall others"},
        {"served-model-name", FLAG_STRING, &o->served_model_name, .arg = "NAME",
         .help = "name in /v1/models and in answers; default: the name of the tokenizer's folder"},
        {"default-thinking", FLAG_BOOL, &o->default_thinking, .arg = "on|off",
         .help = "whether a request that says nothing about thinking thinks"},
        {"allow-think-max", FLAG_BOOL, &o->allow_think_max,
         .help = "let reasoning_effort max through where the context is below the 384K tokens that "
                 "the release asks for"},
        {"effort-profile", FLAG_CHOICE, &o->effort_profile, .choices = "auto|preview|ga",
         .help =
             "reasoning-effort prefixes of which release; auto: read from the tokenizer's folder"},
        {"max-body-bytes", FLAG_INT, &o->max_body_bytes, 1024, 1 << 30, .arg = "N",
         .help = "larger request bodies are refused with 413"},
        {"max-connections", FLAG_INT, &o->max_connections, 1, 1 << 24, .arg = "N",
         .help = "open client connections of one router thread; more are refused with 503"},
        {"max-running-requests", FLAG_INT, &o->max_running_requests, 1, 1 << 24, .arg = "N",
         .help = "generations in progress of one router thread; more are refused with 429"},
        {"request-timeout-secs", FLAG_INT, &o->request_timeout_s, 0, 1 << 20, .arg = "N",
         .help = "end a request that takes longer; 0: no limit"},
        {"idle-timeout-secs", FLAG_INT, &o->idle_timeout_s, 1, 86400, .arg = "N",
         .help = "close a connection without a request for so long"},
        {"keep-alive-secs", FLAG_INT, &o->keep_alive_s, 0, 86400, .arg = "N",
         .help = "a stream that was silent for so long gets a comment (Anthropic's: a ping); below "
                 "15 some clients stumble over it; 0: never"},
        {"head-timeout-ms", FLAG_INT, &o->head_timeout_ms, 10, 3600000, .arg = "N",
         .help = "a request's head must be complete so long after its first byte"},
        {"body-timeout-ms", FLAG_INT, &o->body_timeout_ms, 10, 3600000, .arg = "N",
         .help = "so long for a body, plus a second for every 16 KiB of it"},
        {"write-timeout-ms", FLAG_INT, &o->write_timeout_ms, 10, 3600000, .arg = "N",
         .help = "cut off a client that takes nothing of its answer for so long"},
        {"drain-timeout-secs", FLAG_INT, &o->drain_timeout_s, 0, 86400, .arg = "N",
         .help = "after SIGTERM running requests may take so long; a second signal ends at once"},
        {"retries", FLAG_INT, &o->retries, 0, 16, .arg = "N",
         .help = "how often a request that its worker failed is tried on another"},
        {"worker-wait-ms", FLAG_INT, &o->worker_wait_ms, 0, 60000, .arg = "N",
         .help = "how long a request whose decode worker was lost waits for one to come back"},
        {"stall-secs", FLAG_INT, &o->stall_s, 0, 86400, .arg = "N",
         .help = "a worker with running requests that does no step for so long counts as lost; 0: "
                 "never"},
        {"policy", FLAG_CHOICE, &o->policy, .choices = POLICY_NAMES,
         .help =
             "which worker gets a request; kv_exact weighs what workers hold against their wait"},
        {"prefill-policy", FLAG_CHOICE, &o->prefill_policy, .choices = "default|" POLICY_NAMES,
         .help = "the same for prefill workers alone; default: as --policy"},
        {"decode-policy", FLAG_CHOICE, &o->decode_policy, .choices = "default|" POLICY_NAMES,
         .help = "the same for decode workers alone"},
        {"policy-index-mb", FLAG_INT, &o->policy_index_mb, 1, 1 << 20, .arg = "N",
         .help = "memory of a router thread for what it knows of one role's pages"},
        {"max-queued-requests", FLAG_INT, &o->max_queued_requests, 0, 1 << 24, .arg = "N",
         .help = "requests of one router thread that wait while the workers are full; more are "
                 "refused with 429"},
        {"max-queued-tokens", FLAG_INT, &o->max_queued_tokens, 0, 1e15, .arg = "N",
         .help = "prompt tokens of those requests; 0: no limit"},
        {"max-queue-wait-ms", FLAG_INT, &o->max_queue_wait_ms, 0, 86400000, .arg = "N",
         .help = "refuse a request that would wait longer, as far as can be told; 0: never"},
        {"max-queue-ttft-percent", FLAG_INT, &o->max_queue_ttft_percent, 0, 100000, .arg = "N",
         .help =
             "refuse a request that would wait longer than so much of the time to first token that "
             "the workers have when they are not full; 50 keeps it within twice; 0: never"},
        {"max-output-bytes", FLAG_INT, &o->max_output_bytes, 4096, 1 << 30, .arg = "N",
         .help = "output that may wait for one slow reader; past it the stream is ended"},
        {"api-key", FLAG_STRING, &o->api_key, .arg = "KEY",
         .help = "requests need this key (or one of --api-key-file)"},
        {"admin-api-key", FLAG_STRING, &o->admin_api_key, .arg = "KEY",
         .help = "changes of the workers need this key"},
        {"api-key-file", FLAG_STRING, &o->api_key_file, .arg = "FILE",
         .help = "keys with their limits, one a line: KEY|sha256:HEX [name=W] [rps=N] [burst=N] "
                 "[tpm=N] [weight=N] [priority=N] [admin]; read again when it changes"},
        {"ssl-certfile", FLAG_STRING, &o->ssl_certfile, .arg = "FILE",
         .help =
             "certificate chain (PEM): clients speak TLS. Read again when it or its key changes"},
        {"ssl-keyfile", FLAG_STRING, &o->ssl_keyfile, .arg = "FILE", .help = "its key (PEM)"},
        {"worker-tls-ca", FLAG_STRING, &o->worker_tls_ca, .arg = "FILE",
         .help = "speak TLS with the workers; their certificates are signed by this (PEM)"},
        {"worker-tls-cert", FLAG_STRING, &o->worker_tls_cert, .arg = "FILE",
         .help = "our certificate for them (PEM)"},
        {"worker-tls-key", FLAG_STRING, &o->worker_tls_key, .arg = "FILE", .help = "its key (PEM)"},
        {"access-log", FLAG_STRING, &o->access_log, .arg = "FILE|-",
         .help = "one JSON object a line for each request; without text of prompts or answers"},
        {"otlp-traces-endpoint", FLAG_STRING, &o->otlp_endpoint, .arg = "http://HOST:PORT[/PATH]",
         .help = "send a span of each request there (OTLP/HTTP, JSON); default: off"},
        {"log-level", FLAG_CHOICE, &o->log_level, .choices = "error|warn|info|debug|trace",
         .help = "how much is logged"},
        {NULL},
    };

    *o = defaults;
    if (flags_parse(flags, argc, argv, NULL, NULL, st) == ST_CANCELLED)
        flags_help(flags, heading);
    if (o->threads == 0) {
        long cpus = sysconf(_SC_NPROCESSORS_ONLN);

        o->threads = cpus < 1 ? 1 : cpus < ROUTER_THREADS_MAX ? cpus : ROUTER_THREADS_MAX;
    }
    return st->code == ST_OK ? check(o, st) : st->code;
}
