/*
 * worker_main: the life of a worker process: flags, parts, engine thread, event loop, tear-down.
 */
#ifndef BATON_COMMON_WORKER_WORKER_MAIN_H
#define BATON_COMMON_WORKER_WORKER_MAIN_H

#include "common/worker/worker.h"

/* What a role brings: its loop, and the service whose sessions feed it. */
struct worker_role {
    const char *name;    /* "prefill" */
    const char *heading; /* of --help */
    int default_port;
    enum status_code (*loop_new)(struct worker *w, void **loop, struct status *st);
    void (*loop_run)(void *loop);   /* on the engine thread, until the drain is over */
    void (*loop_drain)(void *loop); /* any thread */
    void (*loop_free)(void *loop);  /* after the engine thread and the server have ended */
    struct rpc_method (*method)(struct mailbox *engine);
};

/** main() of a worker binary; returns the exit status: 0, 1 (failed), 2 (flags). */
int worker_main(const struct worker_role *role, int argc, char **argv);

#endif
