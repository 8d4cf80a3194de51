/*
 * workers: the prefill and decode workers that one router thread knows, and its sessions with them.
 *
 *   DOWN ─▶ OPENING ─▶ READY ─▶ DOWN (lost: reopened after a back-off of 0.1 .. 1 s)
 *              └──────────────▶ DOWN (refused, unreachable)
 *
 * With a decode worker: one Decode session that carries all requests of this thread. With a prefill
 * worker: a grpc.health.v1 Watch, which tells when it serves and, by its end, when it is gone.
 *
 * Promises  on_lost comes once for each on_ready; replies come between the two only.
 * Threads   the router thread; the rpc thread only pushes messages.
 * Lifetime  workers_new, workers_handle for each session message, workers_stop, then (after the rpc
 *           thread has ended) workers_free.
 */
#ifndef BATON_ROUTER_WORKERS_H
#define BATON_ROUTER_WORKERS_H

#include <event2/event.h>
#include <stdbool.h>
#include <stdint.h>

#include "baton/v1/decode.pb-c.h"
#include "router/messages.h"

enum { WORKERS_MAX = 64 }; /* of each role: a bit set names them */

enum worker_role { WORKER_PREFILL, WORKER_DECODE };
enum worker_state { WORKER_DOWN, WORKER_OPENING, WORKER_READY };

struct workers;

/* Read by all of the router thread, written by workers.c; n_running by its user. */
struct worker {
    struct workers *workers;
    enum worker_role role;
    unsigned idx; /* among those of its role */
    const char *address;
    enum worker_state state;
    uint64_t since_us;    /* of the state */
    uint32_t n_running;   /* requests of this thread on it */
    uint64_t n_submitted; /* so far */
    uint64_t n_lost;      /* sessions lost after being ready */
    struct status last_error;

    /* From its hello (decode); zero or empty while unknown. */
    uint64_t incarnation, context_length, model_fingerprint;
    uint32_t vocab_size;
    char backend[64];
    char transport[64]; /* of the last handoff that it reported */

    struct rpc_client *client;
    struct session_link *link; /* NULL while DOWN */
    struct event *timer;       /* DOWN: reopen; OPENING: the hello is late */
    unsigned backoff_ms;
    bool outage_told; /* logged */
};

struct workers_callbacks {
    void (*on_ready)(void *arg, struct worker *w);
    void (*on_reply)(void *arg, struct worker *w, const Baton__V1__DecodeReply *reply);
    void (*on_lost)(void *arg, struct worker *w, const struct status *why);
    void *arg;
};

struct workers_config {
    size_t n_prefill, n_decode;                        /* at most WORKERS_MAX each */
    struct rpc_client *const *prefill, *const *decode; /* borrowed */
    uint64_t incarnation;                              /* of this router */
};

/** Begins to connect. @param mailbox  where the sessions' messages go (borrowed) */
enum status_code workers_new(struct event_base *base, struct mailbox *mailbox,
                             const struct workers_config *config,
                             const struct workers_callbacks *callbacks, struct workers **out,
                             struct status *st);

/** Handles RM_SESSION_*; the caller frees m afterwards with router_msg_free(). */
void workers_handle(struct workers *ws, struct msg *m);

/** Ends all sessions, reopens none. Their last messages still arrive in the mailbox. */
void workers_stop(struct workers *ws);
void workers_free(struct workers *ws);

size_t workers_count(const struct workers *ws, enum worker_role role);
size_t workers_ready(const struct workers *ws, enum worker_role role);
struct worker *workers_at(struct workers *ws, enum worker_role role, size_t idx);

/** The least context length of the ready decode workers; 0 while none is ready. */
uint64_t workers_context_length(const struct workers *ws);

/**
 * The decode worker for a request: least running requests, round robin among equals.
 * @param avoid  bit i: not the one with idx i
 * @return NULL when none that is ready is left
 */
struct worker *workers_pick_decode(struct workers *ws, uint64_t avoid);

/**
 * Prefill addresses for a request, the chosen one first: the ready ones round robin, then those
 * that are not (the decode worker tries them last).
 * @param out  [WORKERS_MAX], borrowed strings
 */
size_t workers_pick_prefill(struct workers *ws, char **out);

/** Sends to a ready decode worker. @return ST_OK; ST_UNAVAILABLE, ST_EXHAUSTED: nothing was sent */
enum status_code workers_send(struct worker *w, const Baton__V1__DecodeRequest *request,
                              struct status *st);

const char *worker_state_name(enum worker_state state);

#endif
