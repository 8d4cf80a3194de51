/*
 * registry: which workers there are, for all threads of a router: those of the command line, those
 * added and removed while it runs.
 *
 *   any thread: registry_add, _drain, _remove ──RM_WORKER──▶ every router thread: workers_change()
 *
 * Owns      a channel to each worker, until the last thread has let go of it.
 * Threads   any; a lock guards the list.
 * Lifetime  registry_new, registry_attach by each router thread, registry_close when they have
 *           joined, registry_free after their mailboxes are freed.
 */
#ifndef BATON_ROUTER_REGISTRY_H
#define BATON_ROUTER_REGISTRY_H

#include <stdbool.h>

#include "common/base/mailbox.h"
#include "common/rpc/rpc.h"

struct registry;

enum worker_role { WORKER_PREFILL, WORKER_DECODE };

enum { REGISTRY_WORKERS_MAX = 16384, REGISTRY_THREADS_MAX = 256 };

/* One worker; const but for refs and all_next, which are the registry's. */
struct registry_entry {
    enum worker_role role;
    char *address; /* "host:port" */
    struct rpc_client *client;
    unsigned refs;
    struct registry_entry *all_next;
};

enum worker_change { WORKER_ADD, WORKER_DRAIN, WORKER_UNDRAIN, WORKER_REMOVE };

/* registry -> router thread. */
struct msg_worker {
    struct msg base;
    enum worker_change change;
    struct registry *registry;
    struct registry_entry *entry; /* a reference of the message's */
};

enum status_code registry_new(struct rpc *rpc, struct registry **out, struct status *st);
/** Closes the channels; their sessions end. */
void registry_close(struct registry *r);
void registry_free(struct registry *r);

/** "host:port" with a port of 1..65535? */
bool registry_address_ok(const char *address);

/** This mailbox gets a WORKER_ADD for all there are and every change from now on. */
enum status_code registry_attach(struct registry *r, struct mailbox *mailbox, struct status *st);

/** @return ST_OK; ST_INVALID for a malformed or known address; ST_EXHAUSTED */
enum status_code registry_add(struct registry *r, enum worker_role role, const char *address,
                              struct status *st);

/**
 * Drains (no new requests), undrains, or removes (drains, then lets go).
 * @return ST_OK; ST_INVALID when nobody has this address; ST_EXHAUSTED
 */
enum status_code registry_change(struct registry *r, const char *address, enum worker_change change,
                                 struct status *st);

/**
 * Sends every thread a message of its own.
 * @param make  NULL from it: no memory
 * @return ST_OK; ST_EXHAUSTED: not all were told
 */
enum status_code registry_broadcast(struct registry *r, struct msg *(*make)(const void *arg),
                                    const void *arg, struct status *st);

void registry_ref(struct registry *r, struct registry_entry *e);
void registry_unref(struct registry *r, struct registry_entry *e);

#endif
