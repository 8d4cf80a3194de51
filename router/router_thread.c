#include "router/router_thread.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "router/intake.h"
#include "router/job.h"
#include "router/routes.h"
#include "router/tls.h"
#include "common/text/text_budget.h"

enum { MAIL_PER_TURN = 256, MAIL_TURN_US = 1000, GAUGES_MS = 500 };

static void begin_drain(struct router_thread *t)
{
    struct timeval limit = {t->router->options->drain_timeout_s, 0};

    if (t->draining) {
        event_base_loopbreak(t->base);
        return;
    }
    t->draining = true;
    log_info("draining: %zu requests are running", generations_running(t->generations));
    evtimer_add(t->force_stop, &limit);
    http_server_drain(t->http);
}

static void on_mail(evutil_socket_t fd, short what, void *arg)
{
    struct router_thread *t = arg;
    uint64_t start = clock_now_us();
    struct msg *m;

    (void)fd, (void)what;
    /* Bounded in number and time, so that clients get their turn; the mailbox stays readable. */
    for (int i = 0; i < MAIL_PER_TURN && clock_now_us() - start < MAIL_TURN_US &&
                    (m = mailbox_pop(t->mailbox)) != NULL;
         i++) {
        if (m->type == RM_TEXT_DONE) {
            intake_done(t, m);
            continue;
        }
        if (m->type == RM_FLUSHED) {
            api_flush_arrived(t, m);
            continue;
        }
        if (m->type == RM_STOP)
            begin_drain(t);
        else if (m->type == RM_ABORT)
            api_abort_arrived(t, m);
        else
            workers_handle(t->workers, m);
        router_msg_free(m);
    }
}

static void on_drained(void *arg)
{
    struct router_thread *t = arg;

    event_base_loopexit(t->base, NULL);
}

static void on_force_stop(evutil_socket_t fd, short what, void *arg)
{
    struct router_thread *t = arg;

    (void)fd, (void)what;
    log_warn("drain timeout: %zu requests are cut off", generations_running(t->generations));
    event_base_loopbreak(t->base);
}

static void on_gauges(evutil_socket_t fd, short what, void *arg)
{
    struct router_thread *t = arg;
    const struct router_metrics *m = t->router->metrics;
    const struct http_server_stats *s = http_server_stats(t->http);

    (void)fd, (void)what;
    access_log_flush(&t->access);
    jobs_tick(t);
    keys_refresh(t->router->keys, clock_now_us());
    tls_refresh(t->router->tls, clock_now_us());
    metric_add(m->connections, (double)s->connections - (double)t->connections_told);
    metric_add(m->bad_requests, (double)(s->bad_requests_total - t->bad_requests_told));
    t->connections_told = s->connections;
    t->bad_requests_told = s->bad_requests_total;
}

static void on_request(void *arg, struct http_exchange *x)
{
    routes_dispatch(arg, x);
}

static void on_end(void *arg, struct http_exchange *x, int status, uint64_t bytes, uint64_t us)
{
    routes_ended(arg, x, status, bytes, us);
}

static void *run(void *arg)
{
    struct router_thread *t = arg;

    event_base_dispatch(t->base);
    /* Clients first: their requests are cancelled while the sessions still stand. */
    http_server_free(t->http);
    t->http = NULL;
    generations_free(t->generations);
    t->generations = NULL;
    workers_stop(t->workers);
    return NULL;
}

/* What is added and taken out again within a turn, as a TLS connection's wish to write, costs no
 * system call then. (Not for descriptors that are duplicates of each other: there are none.) */
static struct event_base *new_base(void)
{
    struct event_config *config = event_config_new();
    struct event_base *base = NULL;

    if (config != NULL && event_config_set_flag(config, EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST) == 0)
        base = event_base_new_with_config(config);
    if (config != NULL)
        event_config_free(config);
    return base;
}

static enum status_code open_events(struct router_thread *t, struct status *st)
{
    struct timeval every = {0, GAUGES_MS * 1000};

    t->base = new_base();
    if (t->base == NULL)
        return status_set(st, ST_EXHAUSTED, "no event loop: raise the limit of open files");
    if (mailbox_new(&t->mailbox, st) != ST_OK)
        return st->code;
    t->mail = event_new(t->base, mailbox_fd(t->mailbox), EV_READ | EV_PERSIST, on_mail, t);
    t->force_stop = evtimer_new(t->base, on_force_stop, t);
    t->gauges = event_new(t->base, -1, EV_PERSIST, on_gauges, t);
    if (t->mail == NULL || t->force_stop == NULL || t->gauges == NULL ||
        event_add(t->mail, NULL) != 0 || event_add(t->gauges, &every) != 0)
        return status_set(st, ST_EXHAUSTED, "no memory for the event loop");
    return status_ok(st);
}

/* Of the role, else of both. */
static enum policy_kind policy_of(const char *own, const char *both)
{
    return policy_kind_of(strcmp(own, "default") == 0 ? both : own);
}

static enum status_code open_requests(struct router_thread *t, struct status *st)
{
    const struct router *r = t->router;
    const struct router_options *o = r->options;
    struct generations_config generations = {
        .retries_max = (int)o->retries,
        .worker_wait_ms = (int)o->worker_wait_ms,
        .request_timeout_ms = (int)o->request_timeout_s * 1000,
        .running_max = (size_t)o->max_running_requests,
        .queue_ttft_percent = (unsigned)o->max_queue_ttft_percent,
        .admission = {.requests_max = (size_t)o->max_queued_requests,
                      .tokens_max = (uint64_t)o->max_queued_tokens,
                      .wait_us_max = (uint64_t)o->max_queue_wait_ms * 1000},
    };
    struct workers_config workers = {
        .registry = r->registry,
        .incarnation = r->incarnation,
        .policy = {policy_of(o->prefill_policy, o->policy), policy_of(o->decode_policy, o->policy)},
        .index_bytes_max = (size_t)o->policy_index_mb << 20,
        .seed = r->incarnation,
        .stall_ms = (int)o->stall_s * 1000,
    };
    struct workers_callbacks callbacks;

    if (tokenizer_cache_new(text_budget_words((size_t)(o->threads + o->text_threads)),
                            &t->scratch.cache, st) != ST_OK ||
        generations_new(t->base, &generations, r->metrics, &t->generations, st) != ST_OK)
        return st->code;
    callbacks = generations_worker_callbacks(t->generations);
    if (workers_new(t->base, t->mailbox, &workers, &callbacks, &t->workers, st) != ST_OK)
        return st->code;
    generations_set_workers(t->generations, t->workers);
    if (registry_attach(r->registry, t->mailbox, st) != ST_OK)
        return st->code;
    on_mail(-1, 0, t); /* know the workers before the first request comes */
    return ST_OK;
}

static enum status_code open_http(struct router_thread *t, int port, bool reuse_port,
                                  struct status *st)
{
    const struct router_options *o = t->router->options;
    struct http_server_callbacks callbacks = {on_request, on_end, on_drained, t};
    struct http_server_config c;

    http_server_config_default(&c);
    c.host = o->host;
    c.port = port;
    c.reuse_port = reuse_port;
    c.tls = t->router->tls;
    c.output_bytes_max = (size_t)o->max_output_bytes;
    c.limits.body_bytes_max = (size_t)o->max_body_bytes;
    c.idle_timeout_ms = (int)o->idle_timeout_s * 1000;
    c.head_timeout_ms = (int)o->head_timeout_ms;
    c.body_timeout_ms = (int)o->body_timeout_ms;
    c.write_timeout_ms = (int)o->write_timeout_ms;
    c.connections_max = (size_t)o->max_connections;
    return http_server_new(t->base, &c, &callbacks, &t->http, st);
}

enum status_code router_thread_start(const struct router *router, int port, bool reuse_port,
                                     struct router_thread **out, struct status *st)
{
    struct router_thread *t = calloc(1, sizeof(*t));

    if (t == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a router thread");
    t->router = router;
    t->access.fd = router->access_fd;
    if (open_events(t, st) != ST_OK || open_http(t, port, reuse_port, st) != ST_OK ||
        open_requests(t, st) != ST_OK) {
        workers_stop(t->workers);
        router_thread_free(t);
        return st->code;
    }
    if (pthread_create(&t->thread, NULL, run, t) != 0) {
        workers_stop(t->workers);
        router_thread_free(t);
        return status_set(st, ST_EXHAUSTED, "cannot start a router thread");
    }
    t->running = true;
    *out = t;
    return status_ok(st);
}

void router_thread_stop(struct router_thread *t)
{
    struct msg *m = calloc(1, sizeof(*m));

    if (m == NULL)
        abort();
    m->type = RM_STOP;
    mailbox_push(t->mailbox, m);
}

void router_thread_join(struct router_thread *t)
{
    if (t != NULL && t->running)
        pthread_join(t->thread, NULL);
    if (t != NULL)
        t->running = false;
}

void router_thread_free(struct router_thread *t)
{
    if (t == NULL)
        return;
    http_server_free(t->http);
    generations_free(t->generations);
    workers_free(t->workers);
    mailbox_free(t->mailbox, router_msg_free);
    if (t->mail != NULL)
        event_free(t->mail);
    if (t->force_stop != NULL)
        event_free(t->force_stop);
    if (t->gauges != NULL)
        event_free(t->gauges);
    if (t->base != NULL)
        event_base_free(t->base);
    access_log_deinit(&t->access);
    tokenizer_cache_free(t->scratch.cache);
    text_scratch_deinit(&t->scratch);
    buf_deinit(&t->answer_scratch.text);
    buf_deinit(&t->answer_scratch.pending);
    buf_deinit(&t->events);
    free(t);
}
