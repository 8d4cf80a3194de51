/*
 * messages: everything that reaches a router thread's mailbox.
 *
 *   rpc thread ──RM_SESSION_DATA, RM_SESSION_CLOSED──▶ router thread    sessions with workers
 *   text pool  ──RM_TEXT_DONE────────────────────────▶ router thread    a struct text_work
 * (intake.c) main       ──RM_STOP─────────────────────────────▶ router thread any thread
 * ──RM_WORKER───────────────────────────▶ router threads   registry.h router thread
 * ──RM_ABORT─────────────────────────▶ router threads   api_abort.c rpc thread
 * ──RM_FLUSHED──────────────────────────▶ router thread    api_flush.c
 *
 * The mailbox owns a message in flight, the router thread frees it (router_msg_free) after
 * handling. Messages of one session arrive in order; its closed message is the last and carries the
 * link away.
 */
#ifndef BATON_ROUTER_MESSAGES_H
#define BATON_ROUTER_MESSAGES_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/mailbox.h"
#include "common/rpc/rpc.h"

enum router_msg_type {
    RM_SESSION_DATA,
    RM_SESSION_CLOSED,
    RM_TEXT_DONE,
    RM_STOP,
    RM_WORKER,
    RM_ABORT,
    RM_FLUSHED
};

struct worker;

/* One session with a worker (RM_WORKER's message is in registry.h), as the rpc thread knows it.
 * Made by the router thread, freed with the session's closed message. */
struct session_link {
    struct mailbox *mailbox;
    struct worker *worker;       /* router thread only; NULL: given up */
    struct rpc_session *session; /* router thread only; a reference */
    bool watch;                  /* the Admin service's Watch, beside the main session */
};

struct msg_session_data {
    struct msg base;
    struct session_link *link; /* borrowed */
    size_t len;
    unsigned char data[];
};

struct msg_session_closed {
    struct msg base;
    struct session_link *link; /* owned */
    struct status why;
};

enum { MSG_REQUEST_ID_MAX = 63 };

/* Requests are to be aborted. */
struct msg_abort {
    struct msg base;
    bool all;
    char request_id[MSG_REQUEST_ID_MAX + 1];
};

void session_link_free(struct session_link *link);
void router_msg_free(struct msg *m);

#endif
