/*
 * workers_internal: what workers.c (who there is, choosing), worker_session.c (connecting, hello,
 * health) and worker_watch.c (pages and load) share.
 */
#ifndef BATON_ROUTER_WORKERS_INTERNAL_H
#define BATON_ROUTER_WORKERS_INTERNAL_H

#include "common/rpc/rpc_message.h"
#include "router/workers.h"

struct workers {
    struct event_base *base;
    struct mailbox *mailbox;
    struct event *tick;
    struct workers_config config;
    struct workers_callbacks callbacks;
    size_t n[2], cap[2];
    struct worker **list[2];   /* [n], by role */
    struct worker **by_idx[2]; /* [n_idx]: by number; NULL: free */
    uint32_t n_idx[2];
    struct worker *removed; /* requests still run on them */
    struct worker *unsent;  /* those with something to send at the end of this turn */
    struct event *flush;
    struct policy *policy[2];
    uint64_t model_fingerprint; /* of the decode workers that are ready */
    /* [n_pages] of [cap_pages]: names of the pages of the prompt that was chosen for last */
    uint64_t *pages;
    size_t n_pages, cap_pages;
    uint64_t room, context_length; /* requests; tokens: see workers_settle() */
    uint32_t turn;                 /* among those whose breaker is open */
    struct rpc_arena replies;      /* one decode worker's reply at a time */
    bool stopping;
};

/* ---- workers.c ---- */

/** Tells the policy whether w gets requests. After every change of what that depends on. */
void worker_refresh(struct worker *w);

/** Works out what is asked of all workers together, so that a request need not look at each. Every
 * tick, and when a worker comes or goes. */
void workers_settle(struct workers *ws);

/* ---- worker_session.c ---- */

void worker_open(struct worker *w);
void worker_down(struct worker *w, const struct status *why);
void worker_arm(struct event *timer, unsigned ms);
/** Closes a link whose messages nobody wants any more. */
void worker_forget(struct session_link **link, const struct status *why);
enum status_code worker_open_link(struct worker *w, const char *path, int timeout_ms, bool watch,
                                  struct session_link **out, struct status *st);
/** Says who we are, in a hello. */
void workers_introduce(const struct workers *ws, Baton__V1__Identity *me);
void worker_on_timer(evutil_socket_t fd, short what, void *arg);

/** Sends what this turn has gathered for the workers. */
void workers_flush(struct workers *ws);

/** RM_SESSION_*. */
void worker_session_message(struct workers *ws, struct msg *m);

/* ---- worker_watch.c ---- */

void worker_watch_open(struct worker *w);
void worker_watch_close(struct worker *w);
void worker_watch_data(struct worker *w, const void *data, size_t len);
void worker_watch_closed(struct worker *w, const struct status *why);
void worker_on_watch_timer(evutil_socket_t fd, short what, void *arg);
/** Whether requests run and no step has been done for longer than allowed; st says so. */
bool worker_stalled(const struct worker *w, uint64_t now_us, struct status *st);

#endif
