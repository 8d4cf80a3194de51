/*
 * workers: the prefill and decode workers that one router thread knows, its sessions with them, and
 * the choice among them.
 *
 *   DOWN ─▶ OPENING ─▶ READY ─▶ DOWN (lost: reopened after a back-off of 0.1 .. 1 s)
 *              └──────────────▶ DOWN (refused, unreachable)
 *
 * With a decode worker: one Decode session that carries all requests of this thread. With a prefill
 * worker: a grpc.health.v1 Watch, which tells when it serves and, by its end, when it is gone. With
 * both, while READY: the Admin service's Watch, which tells of pages and load; a worker without it
 * is used by what the router knows itself.
 *
 * A worker gets requests while it is READY, not draining, its breaker allows it, and it moves: one
 * whose steps stand still while requests run is given up as if it were lost.
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
#include "common/base/buf.h"
#include "router/breaker.h"
#include "router/messages.h"
#include "router/policy/policy.h"
#include "router/registry.h"

enum { WORKERS_PREFILL_CHOICES = 4 }; /* prefill workers named in one request */

enum worker_state { WORKER_DOWN, WORKER_OPENING, WORKER_READY };

struct workers;

/* What a worker says of itself. */
struct worker_report {
    bool known;
    uint32_t running, waiting, free_pages, total_pages, max_running;
    uint64_t queued_tokens, steps;
    uint64_t at_us, moved_us; /* when it was told, when steps last changed (or nothing ran) */
};

/* Read by all of the router thread, written by workers*.c; n_running by its user. */
struct worker {
    struct workers *workers;
    struct registry_entry *entry;
    enum worker_role role;
    uint32_t idx; /* its number among those of its role, until it is removed */
    const char *address;
    enum worker_state state;
    uint64_t since_us;    /* of the state */
    uint32_t n_running;   /* requests of this thread on it; prefill: until their first token */
    uint64_t n_submitted; /* so far */
    uint64_t n_lost;      /* sessions lost after being ready */
    uint64_t n_failed;    /* requests that it failed */
    struct status last_error;
    struct breaker breaker;
    bool draining, removed;
    bool not_serving; /* prefill: it says so itself */
    struct worker_report report;
    uint64_t pages_told, resyncs; /* page events, and gaps among them */

    /* From its hello (decode); zero or empty while unknown. */
    uint64_t incarnation, context_length, model_fingerprint;
    uint32_t vocab_size;
    char backend[64];
    char transport[64]; /* of the last handoff that it reported */

    struct rpc_client *client;
    struct session_link *link; /* NULL while DOWN */
    struct buf unsent;         /* to it, of this turn of the loop: DecodeRequests, packed */
    bool is_unsent;            /* in the list of those that have some */
    struct status send_failed; /* some of it was lost: given up at the turn's end */
    struct worker *next_unsent;
    struct session_link *watch; /* NULL: none */
    uint64_t watch_seq;         /* of its last page message */
    bool watch_stale;           /* a message was missed: all pages were asked for */
    struct event *timer;        /* DOWN: reopen; OPENING: the hello is late */
    struct event *watch_timer;  /* reopen */
    unsigned backoff_ms;
    bool outage_told; /* logged */
    struct worker *next_removed;
};

struct workers_callbacks {
    void (*on_ready)(void *arg, struct worker *w);
    void (*on_reply)(void *arg, struct worker *w, const Baton__V1__DecodeReply *reply);
    void (*on_lost)(void *arg, struct worker *w, const struct status *why);
    void *arg;
};

struct workers_config {
    struct registry *registry;
    uint64_t incarnation;       /* of this router */
    enum policy_kind policy[2]; /* by role */
    size_t index_bytes_max;     /* of each role */
    uint64_t seed;
    int stall_ms; /* requests run and no step: lost; 0: never */
};

/** Knows nobody yet. @param mailbox  where the sessions' messages go (borrowed) */
enum status_code workers_new(struct event_base *base, struct mailbox *mailbox,
                             const struct workers_config *config,
                             const struct workers_callbacks *callbacks, struct workers **out,
                             struct status *st);

/** Handles RM_SESSION_* and RM_WORKER; the caller frees m afterwards with router_msg_free(). */
void workers_handle(struct workers *ws, struct msg *m);

/** Ends all sessions, reopens none. Their last messages still arrive in the mailbox. */
void workers_stop(struct workers *ws);
void workers_free(struct workers *ws);

/** Those that are not removed, in no order: positions change when one is removed. */
size_t workers_count(const struct workers *ws, enum worker_role role);
size_t workers_ready(const struct workers *ws, enum worker_role role);
struct worker *workers_at(struct workers *ws, enum worker_role role, size_t at);

/** Whether it gets requests now. */
bool worker_usable(const struct worker *w);

/** The least context length of the ready decode workers; 0 while none is ready. */
uint64_t workers_context_length(const struct workers *ws);

/** Requests of this thread that the decode workers have room for, as they say; UINT64_MAX: some
 * does not say. */
uint64_t workers_room(const struct workers *ws);

/* ---- choosing -------------------------------------------------------------------------------- */

struct workers_request {
    size_t n_ids;
    const int32_t *ids;
    size_t key_len;
    const char *key; /* routing key */
    uint64_t salt;   /* of the prefixes; 0: none */
    uint32_t n_avoid;
    const uint32_t *avoid; /* decode workers that failed it, by idx */
    uint32_t n_avoid_prefill;
    const uint32_t
        *avoid_prefill; /* prefill workers that failed it: used when there are no others */
};

/* What a request takes of the workers that it was given to. Zero: nothing. */
struct workers_ticket {
    struct worker *decode, *prefill; /* NULL: given back */
    uint32_t n_ids;
    bool probe; /* of the decode worker's breaker */
    struct policy_ticket on_decode, on_prefill;
};

struct workers_choice {
    struct worker *decode;
    struct policy_choice decode_choice, prefill_choice;
    struct worker *prefill_worker; /* NULL: nobody is usable; the addresses are still worth a try */
    size_t n_prefill;
    char *prefill[WORKERS_PREFILL_CHOICES]; /* borrowed; the chosen one first */
};

/** @return false when no decode worker is left */
bool workers_choose(struct workers *ws, const struct workers_request *r,
                    struct workers_choice *out);

/** The request, the last that was chosen for, was sent. @param out  zero */
void workers_began(struct workers *ws, const struct workers_request *r,
                   const struct workers_choice *c, struct workers_ticket *out);

/**
 * Its first tokens came.
 * @param stats  as reported, may be NULL: measured
 */
void workers_served(struct workers *ws, struct workers_ticket *t,
                    const Baton__V1__HandoffStats *stats);

/** It is over, or goes elsewhere. @param why  ST_OK when the worker did well or nobody can tell;
 * else how it failed. blame: the prefill worker that the failure is put down to, or NULL */
void workers_ended(struct workers *ws, struct workers_ticket *t, const struct status *why,
                   const char *blame);

/** Sends to a ready decode worker. What one turn of the loop has for it leaves in one message, at
 * the turn's end. @return ST_OK; ST_INVALID: larger than messages may be; ST_UNAVAILABLE: nothing
 * will be sent */
enum status_code workers_send(struct worker *w, const Baton__V1__DecodeRequest *request,
                              struct status *st);

/** For metrics and /workers. */
const struct policy *workers_policy(const struct workers *ws, enum worker_role role);
const char *worker_state_name(enum worker_state state);
const char *worker_role_name(enum worker_role role);

#endif
