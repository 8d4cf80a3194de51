#include "router/router.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/text/chat_profile.h"
#include "common/text/chat_tokens.h"
#include "router/access_log.h"
#include "router/text_pool.h"
#include "router/tls.h"
#include "common/text/text_budget.h"

enum { TEXT_QUEUE_MAX = 1024 }; /* large requests that may wait for a text thread */

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
    const char *path = r->options->tokenizer_path, *why;

    if (chat_profile_find(r->options->effort_profile, path, &r->chat.profile, &why, st) != ST_OK ||
        tokenizer_open(path, &r->tokenizer, st) != ST_OK ||
        prefix_tokens_new(r->tokenizer, 0, &r->prefixes, st) != ST_OK ||
        chat_tokens_check(r->tokenizer, st) != ST_OK)
        return st->code;
    log_info("effort profile %s: %s", chat_profile_name(r->chat.profile), why);
    r->chat.default_thinking = r->options->default_thinking;
    r->eos_id = chat_tokens[CHAT_EOS].id;
    return status_ok(st);
}

static enum status_code add_workers(struct registry *r, enum worker_role role,
                                    const struct flag_list *list, struct status *st)
{
    for (size_t i = 0; i < list->n; i++)
        if (registry_add(r, role, list->items[i], st) != ST_OK)
            return st->code;
    return status_ok(st);
}

/* Keys, certificates, logs: what can be wrong is told before anything else starts. */
static enum status_code open_front(struct router *r, struct status *st)
{
    const struct router_options *o = r->options;

    if (keys_new(o->api_key, o->admin_api_key, o->api_key_file, &r->keys, st) != ST_OK ||
        access_log_open(o->access_log, &r->access_fd, st) != ST_OK ||
        tls_new(o->ssl_certfile, o->ssl_keyfile, &r->tls, st) != ST_OK)
        return st->code;
    if (o->otlp_endpoint != NULL)
        return trace_exporter_start(o->otlp_endpoint, &r->traces, st);
    return ST_OK;
}

enum status_code router_open(struct router *r, const struct router_options *options,
                             struct status *st)
{
    r->options = options;
    r->started_unix_s = clock_unix_s();
    if (getrandom(&r->incarnation, sizeof(r->incarnation), 0) != sizeof(r->incarnation))
        return status_set(st, ST_INTERNAL, "no random numbers from the kernel");
    r->access_fd = -1;
    if (open_front(r, st) != ST_OK || open_text(r, st) != ST_OK)
        return st->code;
    r->model_name = options->served_model_name != NULL ? strdup(options->served_model_name)
                                                       : name_of_folder(options->tokenizer_path);
    r->metrics = calloc(1, sizeof(*r->metrics));
    if (r->model_name == NULL || r->metrics == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory");
    router_metrics_init(r->metrics);
    if (text_pool_start((int)options->text_threads, TEXT_QUEUE_MAX,
                        text_budget_words((size_t)(options->threads + options->text_threads)),
                        &r->text_pool, st) != ST_OK ||
        rpc_start(&r->rpc, st) != ST_OK ||
        rpc_use_tls(r->rpc, options->worker_tls_ca, options->worker_tls_cert,
                    options->worker_tls_key, st) != ST_OK ||
        registry_new(r->rpc, &r->registry, st) != ST_OK ||
        add_workers(r->registry, WORKER_PREFILL, &options->prefill, st) != ST_OK ||
        add_workers(r->registry, WORKER_DECODE, &options->decode, st) != ST_OK)
        return st->code;
    return ST_OK;
}

void router_close_producers(struct router *r)
{
    text_pool_stop(r->text_pool);
    r->text_pool = NULL;
    registry_close(r->registry);
    if (r->rpc != NULL)
        rpc_stop(r->rpc);
}

void router_close(struct router *r)
{
    registry_free(r->registry);
    trace_exporter_stop(r->traces);
    keys_free(r->keys);
    tls_free(r->tls);
    access_log_close(r->access_fd);
    prefix_tokens_free(r->prefixes);
    tokenizer_free(r->tokenizer);
    if (r->metrics != NULL)
        router_metrics_deinit(r->metrics);
    free(r->metrics);
    free((char *)r->model_name);
}
