/*
 * api_workers: the workers, and changes of who they are.
 *
 *   GET    /workers                       all of them, as this router thread sees them
 *   POST   /workers                       {"url": "HOST:PORT", "worker_type": "prefill"|"decode"}
 *   GET    /workers/HOST:PORT             one
 *   DELETE /workers/HOST:PORT             drains it, then forgets it
 *   POST   /workers/HOST:PORT/drain       no new requests; what runs there finishes
 *   POST   /workers/HOST:PORT/undrain
 *   GET    /v1/loads                      how busy they say they are, in SGLang's words
 *
 * Changes reach every thread; they last as long as the router.
 */
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/json.h"
#include "common/kv/block_hash.h"
#include "router/routes.h"

enum { ADDRESS_MAX = 256 };

static void put_string(struct buf *out, const char *s)
{
    json_write_string(out, s, strlen(s));
}

/* ---- as JSON --------------------------------------------------------------------------------- */

static void put_report(struct buf *out, const struct worker *w)
{
    const struct worker_report *r = &w->report;

    buf_printf(out, ",\"load_seconds\":%.6f",
               policy_load_seconds(workers_policy(w->workers, w->role), w->idx));
    if (!r->known)
        return;
    buf_printf(out,
               ",\"reported\":{\"running\":%u,\"waiting\":%u,\"queued_tokens\":%llu,"
               "\"free_pages\":%u,\"total_pages\":%u,\"max_running\":%u,\"steps\":%llu,"
               "\"age_seconds\":%.3f,\"page_events\":%llu,\"resyncs\":%llu}",
               r->running, r->waiting, (unsigned long long)r->queued_tokens, r->free_pages,
               r->total_pages, r->max_running, (unsigned long long)r->steps,
               (double)(clock_now_us() - r->at_us) / 1e6, (unsigned long long)w->pages_told,
               (unsigned long long)w->resyncs);
}

static void put_hello(struct buf *out, const struct worker *w)
{
    if (w->role != WORKER_DECODE || w->incarnation == 0)
        return;
    buf_printf(out, ",\"incarnation\":\"%016llx\",\"context_length\":%llu,\"model\":\"%016llx\"",
               (unsigned long long)w->incarnation, (unsigned long long)w->context_length,
               (unsigned long long)w->model_fingerprint);
    buf_puts(out, ",\"backend\":");
    put_string(out, w->backend);
}

static void put_worker(struct buf *out, const struct worker *w)
{
    buf_puts(out, "{\"address\":");
    put_string(out, w->address);
    buf_printf(out,
               ",\"role\":\"%s\",\"state\":\"%s\",\"since_seconds\":%.3f,\"usable\":%s,"
               "\"draining\":%s,\"breaker\":\"%s\",\"running\":%u,\"submitted\":%llu,"
               "\"failed\":%llu,\"lost\":%llu",
               worker_role_name(w->role), worker_state_name(w->state),
               (double)(clock_now_us() - w->since_us) / 1e6, worker_usable(w) ? "true" : "false",
               w->draining ? "true" : "false", breaker_state_name(w->breaker.state), w->n_running,
               (unsigned long long)w->n_submitted, (unsigned long long)w->n_failed,
               (unsigned long long)w->n_lost);
    put_report(out, w);
    put_hello(out, w);
    if (w->transport[0] != '\0') {
        buf_puts(out, ",\"kv_transport\":");
        put_string(out, w->transport);
    }
    buf_puts(out, ",\"last_error\":");
    if (!worker_usable(w) && w->last_error.code != ST_OK)
        put_string(out, w->last_error.msg);
    else
        buf_puts(out, "null");
    buf_puts(out, "}");
}

static void put_policy(struct buf *out, struct router_thread *t, enum worker_role role)
{
    const struct policy *p = workers_policy(t->workers, role);
    struct policy_stats s;

    policy_stats(p, &s);
    buf_printf(out,
               "\"%s\":{\"policy\":\"%s\",\"index_pages\":%zu,\"index_bytes\":%zu,"
               "\"index_dropped\":%llu}",
               worker_role_name(role), policy_kind_name(policy_kind(p)), s.index_pages,
               s.index_bytes + s.tree_bytes, (unsigned long long)s.index_dropped_total);
}

static void list(struct router_thread *t, struct http_exchange *x)
{
    struct buf body = {0};
    bool first = true;

    buf_puts(&body, "{\"workers\":[");
    for (int role = 0; role < 2; role++)
        for (size_t i = 0; i < workers_count(t->workers, role); i++) {
            if (!first)
                buf_puts(&body, ",");
            first = false;
            put_worker(&body, workers_at(t->workers, role, i));
        }
    buf_puts(&body, "],\"policies\":{");
    put_policy(&body, t, WORKER_PREFILL);
    buf_puts(&body, ",");
    put_policy(&body, t, WORKER_DECODE);
    buf_puts(&body, "}}");
    reply_json(t, x, 200, &body);
    buf_deinit(&body);
}

struct load_sum {
    uint64_t running, waiting, used, total;
};

static void put_load(struct buf *out, const struct worker *w, struct load_sum *sum)
{
    const struct worker_report *r = &w->report;
    uint64_t total = (uint64_t)r->total_pages * PREFIX_BLOCK_TOKENS,
             used = (uint64_t)(r->total_pages - r->free_pages) * PREFIX_BLOCK_TOKENS;

    buf_puts(out, "{\"worker\":");
    put_string(out, w->address);
    buf_printf(out,
               ",\"role\":\"%s\",\"num_running_reqs\":%u,\"num_waiting_reqs\":%u,"
               "\"num_total_reqs\":%u,\"num_waiting_uncached_tokens\":%llu,"
               "\"num_used_tokens\":%llu,\"max_total_num_tokens\":%llu,\"token_usage\":%.4f,"
               "\"max_running_requests\":%u,\"load_seconds\":%.6f}",
               worker_role_name(w->role), r->running, r->waiting, r->running + r->waiting,
               (unsigned long long)r->queued_tokens, (unsigned long long)used,
               (unsigned long long)total, total > 0 ? (double)used / (double)total : 0.0,
               r->max_running, policy_load_seconds(workers_policy(w->workers, w->role), w->idx));
    sum->running += r->running;
    sum->waiting += r->waiting;
    sum->used += used;
    sum->total += total;
}

void api_loads(struct router_thread *t, struct http_exchange *x)
{
    struct load_sum sum = {0};
    struct buf body = {0};
    size_t n = 0;

    buf_puts(&body, "{\"loads\":[");
    for (int role = 0; role < 2; role++)
        for (size_t i = 0; i < workers_count(t->workers, role); i++) {
            const struct worker *w = workers_at(t->workers, role, i);

            if (!w->report.known) /* it is away, or tells nothing */
                continue;
            if (n++ > 0)
                buf_puts(&body, ",");
            put_load(&body, w, &sum);
        }
    buf_printf(&body,
               "],\"aggregate\":{\"workers\":%zu,\"total_running_reqs\":%llu,"
               "\"total_waiting_reqs\":%llu,\"total_used_tokens\":%llu,\"total_tokens\":%llu,"
               "\"avg_token_usage\":%.4f}}",
               n, (unsigned long long)sum.running, (unsigned long long)sum.waiting,
               (unsigned long long)sum.used, (unsigned long long)sum.total,
               sum.total > 0 ? (double)sum.used / (double)sum.total : 0.0);
    reply_json(t, x, 200, &body);
    buf_deinit(&body);
}

/* Appends one metric of both roles' policies. */
static void put_index(struct router_thread *t, struct buf *out, const char *name, const char *help,
                      const char *type, double (*value)(const struct policy_stats *))
{
    buf_printf(out, "# HELP baton_router_%s %s\n# TYPE baton_router_%s %s\n", name, help, name,
               type);
    for (int role = 0; role < 2; role++) {
        struct policy_stats s;

        policy_stats(workers_policy(t->workers, role), &s);
        buf_printf(out, "baton_router_%s{role=\"%s\"} %.9g\n", name, worker_role_name(role),
                   value(&s));
    }
}

static double index_pages(const struct policy_stats *s)
{
    return (double)s->index_pages;
}

static double index_bytes(const struct policy_stats *s)
{
    return (double)(s->index_bytes + s->tree_bytes);
}

static double index_dropped(const struct policy_stats *s)
{
    return (double)s->index_dropped_total;
}

/* As an info metric: the value says nothing, the label does. */
static void put_transports(struct router_thread *t, struct buf *out)
{
    buf_puts(out, "# HELP baton_router_worker_kv_transport How KV came to the worker last.\n"
                  "# TYPE baton_router_worker_kv_transport gauge\n");
    for (size_t i = 0; i < workers_count(t->workers, WORKER_DECODE); i++) {
        const struct worker *w = workers_at(t->workers, WORKER_DECODE, i);

        if (w->transport[0] == '\0')
            continue;
        buf_printf(out, "baton_router_worker_kv_transport{address=\"%s\",transport=", w->address);
        put_string(out, w->transport);
        buf_puts(out, "} 1\n");
    }
}

void api_workers_metrics(struct router_thread *t, struct buf *out)
{
    static const struct {
        const char *name, *help;
    } gauges[] = {
        {"worker_ready", "1 while the worker serves this router."},
        {"worker_usable", "1 while the worker gets requests: ready, not draining, breaker closed."},
        {"worker_running_requests", "Requests of this router on the worker."},
        {"worker_load_seconds", "What the worker is believed to need for what it has."},
        {"worker_free_pages", "KV pages that are free or can be made so, as it says."},
        {"worker_breaker_open", "1 while the worker gets no requests because it failed some."},
    };

    for (size_t g = 0; g < sizeof(gauges) / sizeof(gauges[0]); g++) {
        buf_printf(out, "# HELP baton_router_%s %s\n# TYPE baton_router_%s gauge\n", gauges[g].name,
                   gauges[g].help, gauges[g].name);
        for (int role = 0; role < 2; role++)
            for (size_t i = 0; i < workers_count(t->workers, role); i++) {
                const struct worker *w = workers_at(t->workers, role, i);
                double v[] = {w->state == WORKER_READY,
                              worker_usable(w),
                              w->n_running,
                              policy_load_seconds(workers_policy(t->workers, role), w->idx),
                              w->report.free_pages,
                              !breaker_allows(&w->breaker)};

                buf_printf(out, "baton_router_%s{role=\"%s\",address=\"%s\"} %.9g\n",
                           gauges[g].name, worker_role_name(role), w->address, v[g]);
            }
    }
    put_transports(t, out);
    put_index(t, out, "index_pages", "Pages of workers that the router knows of.", "gauge",
              index_pages);
    put_index(t, out, "index_bytes", "Memory of that knowledge.", "gauge", index_bytes);
    put_index(t, out, "index_dropped_total", "Pages forgotten because of its limit.", "counter",
              index_dropped);
}

/* ---- changes --------------------------------------------------------------------------------- */

/* "grpc://h:1/" and "h:1" are the same. @return false when it does not fit */
static bool plain_address(const char *given, char *out)
{
    static const char *const schemes[] = {"grpc://", "grpcs://", "http://", "https://"};
    size_t n;

    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++)
        if (strncmp(given, schemes[i], strlen(schemes[i])) == 0)
            given += strlen(schemes[i]);
    n = strlen(given);
    while (n > 0 && given[n - 1] == '/')
        n--;
    if (n == 0 || n >= ADDRESS_MAX)
        return false;
    memcpy(out, given, n);
    out[n] = '\0';
    return true;
}

static const char *text_of(const struct json *root, const char *key, const char *other)
{
    const struct json *v = json_get(root, key);

    if (v == NULL)
        v = json_get(root, other);
    return v != NULL && v->type == JSON_STRING ? v->text : NULL;
}

static void answer_change(struct router_thread *t, struct http_exchange *x, const char *address,
                          const char *what, const struct status *st)
{
    struct buf body = {0};

    if (st->code != ST_OK) {
        bool unknown = st->code == ST_INVALID && strncmp(st->msg, "no worker", 9) == 0;

        reply_error(t, x, unknown ? 404 : status_http(st->code), NULL, NULL, st->msg);
        return;
    }
    buf_puts(&body, "{\"address\":");
    put_string(&body, address);
    buf_printf(&body, ",\"status\":\"%s\"}", what);
    reply_json(t, x, 202, &body);
    buf_deinit(&body);
}

static enum status_code add(struct router_thread *t, const struct json *root, char *address,
                            struct status *st)
{
    const char *url = text_of(root, "url", "address"), *type = text_of(root, "worker_type", "role");
    enum worker_role role = WORKER_DECODE;

    if (url == NULL || !plain_address(url, address))
        return status_set(st, ST_INVALID, "url: the worker's HOST:PORT is needed");
    if (type != NULL && strcmp(type, "prefill") == 0)
        role = WORKER_PREFILL;
    else if (type == NULL || strcmp(type, "decode") != 0)
        return status_set(st, ST_INVALID, "worker_type: \"prefill\" or \"decode\" is needed");
    return registry_add(t->router->registry, role, address, st);
}

void api_workers(struct router_thread *t, struct http_exchange *x)
{
    const struct http_request *r = http_exchange_request(x);
    struct json_doc *doc = NULL;
    char address[ADDRESS_MAX] = "";
    struct status st;

    if (r->method != HTTP_POST) {
        list(t, x);
        return;
    }
    if (json_parse(buf_cstr((struct buf *)&r->body), r->body.len, 0, &doc, &st) == ST_OK) {
        if (json_root(doc)->type != JSON_OBJECT)
            status_set(&st, ST_INVALID, "the body is not a JSON object");
        else
            add(t, json_root(doc), address, &st);
    }
    answer_change(t, x, address, "adding", &st);
    json_free(doc);
}

static struct worker *find(struct router_thread *t, const char *address)
{
    for (int role = 0; role < 2; role++)
        for (size_t i = 0; i < workers_count(t->workers, role); i++)
            if (strcmp(workers_at(t->workers, role, i)->address, address) == 0)
                return workers_at(t->workers, role, i);
    return NULL;
}

/* Cuts a suffix off. @return whether it was there */
static bool cut(char *s, const char *suffix)
{
    size_t n = strlen(s), k = strlen(suffix);

    if (n < k || strcmp(s + n - k, suffix) != 0)
        return false;
    s[n - k] = '\0';
    return true;
}

/* "%3A" to ":". */
static void decode_percent(char *s)
{
    char *out = s;
    unsigned c;

    for (; *s != '\0'; s++) {
        if (*s == '%' && sscanf(s + 1, "%2x", &c) == 1 && c != 0) {
            *out++ = (char)c;
            s += 2;
        } else {
            *out++ = *s;
        }
    }
    *out = '\0';
}

void api_worker(struct router_thread *t, struct http_exchange *x)
{
    const struct http_request *r = http_exchange_request(x);
    char given[3 * ADDRESS_MAX], address[ADDRESS_MAX];
    bool undrain, drain;
    struct buf body = {0};
    struct status st;

    snprintf(given, sizeof(given), "%s", r->path.data + strlen("/workers/"));
    undrain = cut(given, "/undrain");
    drain = !undrain && cut(given, "/drain");
    decode_percent(given);
    if (!plain_address(given, address)) {
        reply_error(t, x, 404, NULL, NULL, "no worker has that address");
    } else if (r->method == HTTP_DELETE && !drain && !undrain) {
        registry_change(t->router->registry, address, WORKER_REMOVE, &st);
        answer_change(t, x, address, "removing", &st);
    } else if (r->method == HTTP_POST && (drain || undrain)) {
        registry_change(t->router->registry, address, drain ? WORKER_DRAIN : WORKER_UNDRAIN, &st);
        answer_change(t, x, address, drain ? "draining" : "undraining", &st);
    } else if (r->method == HTTP_GET && !drain && !undrain && find(t, address) != NULL) {
        put_worker(&body, find(t, address));
        reply_json(t, x, 200, &body);
        buf_deinit(&body);
    } else {
        reply_error(t, x, r->method == HTTP_GET ? 404 : 405, NULL, NULL,
                    r->method == HTTP_GET
                        ? "no worker has that address"
                        : "there are DELETE /workers/ADDRESS and POST /workers/ADDRESS/drain");
    }
}
