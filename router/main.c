/*
 * baton-router: faces the clients. Flags, parts, run, tear down.
 */
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "common/base/log.h"
#include "router/router.h"
#include "router/router_thread.h"

/* With SO_REUSEPORT a second router on the same port would share it in silence: look first. */
static enum status_code check_port_is_free(const struct router *r, struct status *st)
{
    struct http_server_config c = {.host = r->options->host, .port = (int)r->options->port};
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
    r->port = (int)r->options->port;
    if (n > 1 && r->port != 0 && check_port_is_free(r, st) != ST_OK)
        return st->code;
    for (size_t i = 0; i < n; i++) {
        if (router_thread_start(r, r->port, n > 1, &threads[i], st) != ST_OK)
            return st->code;
        if (i == 0)
            r->port = http_server_port(threads[0]->http);
    }
    log_info("listening on %s port %d, %zu thread%s, model %s", r->options->host, r->port, n,
             n == 1 ? "" : "s", r->model_name);
    return status_ok(st);
}

static enum status_code run(struct router *r, const sigset_t *signals, struct status *st)
{
    size_t n = (size_t)r->options->threads;
    struct router_thread *threads[ROUTER_THREADS_MAX] = {NULL};
    int sig;

    if (start_threads(r, n, threads, st) == ST_OK) {
        sigwait(signals, &sig);
        log_info("%s: draining, at most %lld s", strsignal(sig),
                 (long long)r->options->drain_timeout_s);
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
    router_close_producers(r);
    for (size_t i = 0; i < n; i++)
        router_thread_free(threads[i]);
    return st->code;
}

int main(int argc, char **argv)
{
    struct router_options options;
    struct router r = {0};
    struct status st;
    sigset_t signals;

    if (router_options_parse(argc, argv, &options, &st) == ST_CANCELLED)
        return 0;
    log_init("router", (enum log_level)log_level_parse(options.log_level));
    if (st.code == ST_OK) {
        signal(SIGPIPE, SIG_IGN);
        /* Before any thread starts, so that all of them leave these to main. */
        sigemptyset(&signals);
        sigaddset(&signals, SIGTERM);
        sigaddset(&signals, SIGINT);
        pthread_sigmask(SIG_BLOCK, &signals, NULL);
        if (router_open(&r, &options, &st) == ST_OK)
            run(&r, &signals, &st);
        else
            router_close_producers(&r);
        router_close(&r);
    }
    if (st.code != ST_OK) {
        log_error("%s", st.msg);
        return 1;
    }
    log_info("bye");
    return 0;
}
