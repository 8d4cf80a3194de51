/*
 * router_thread: one event loop with its own listener, its own sessions with the workers and its
 * own requests. Threads share nothing that changes.
 *
 *   run: HTTP requests ─▶ routes ─▶ an API; the mailbox ─▶ workers ─▶ generations ─▶ an API
 *
 * Threads   everything but router_thread_stop() belongs to the thread.
 * Lifetime  router_thread_start, router_thread_stop, router_thread_join (the loop has ended), then,
 *           after the rpc clients are gone, router_thread_free.
 */
#ifndef BATON_ROUTER_ROUTER_THREAD_H
#define BATON_ROUTER_ROUTER_THREAD_H

#include <pthread.h>

#include "router/access_log.h"
#include "router/chat_answer.h"
#include "router/generations.h"
#include "router/http_server.h"
#include "router/router.h"
#include "router/workers.h"

struct router_thread {
    const struct router *router;
    struct event_base *base;
    struct mailbox *mailbox;
    struct event *mail, *force_stop, *gauges;
    struct http_server *http;
    struct workers *workers;
    struct generations *generations;
    struct text_scratch scratch;
    struct chat_answer_scratch answer_scratch;
    struct job *jobs;  /* running */
    struct buf events; /* scratch: of one turn and one client; empty between them */
    struct access_writer access;
    bool draining;
    size_t connections_told; /* to the gauge */
    uint64_t bad_requests_told;
    pthread_t thread;
    bool running;
};

/**
 * Opens the listener and the sessions and starts the thread.
 * @param port        to listen on; 0 picks one
 * @param reuse_port  the port is shared by several threads
 */
enum status_code router_thread_start(const struct router *router, int port, bool reuse_port,
                                     struct router_thread **out, struct status *st);

/** From any thread: stop accepting, let streams finish within the drain timeout, then end. Twice:
 * end at once. */
void router_thread_stop(struct router_thread *t);
void router_thread_join(struct router_thread *t);
void router_thread_free(struct router_thread *t);

#endif
