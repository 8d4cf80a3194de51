/*
 * worker_watch: what a worker tells of its pages and its load, on the Admin service's Watch.
 */
#include <stdlib.h>

#include "baton/v1/admin.pb-c.h"
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/kv/block_hash.h"
#include "common/rpc/rpc_message.h"
#include "router/workers_internal.h"

enum {
    CONNECT_TIMEOUT_MS = 2000,
    REOPEN_MS = 1000,
    REOPEN_REFUSED_MS = 30000 /* it has no Watch: perhaps after an update */
};

static void send_request(struct worker *w, bool hello)
{
    Baton__V1__WatchRequest request = BATON__V1__WATCH_REQUEST__INIT;
    Baton__V1__Identity me;
    struct status st;

    if (hello) {
        workers_introduce(w->workers, &me);
        request.hello = &me;
    } else {
        request.has_snapshot = request.snapshot = 1;
    }
    rpc_session_send_message(w->watch->session, &request.base,
                             &st); /* else its end is on its way */
}

void worker_watch_open(struct worker *w)
{
    struct status st;

    if (w->watch != NULL || w->workers->stopping)
        return;
    w->watch_seq = 0;
    w->watch_stale = false;
    if (worker_open_link(w, "/baton.v1.Admin/Watch", CONNECT_TIMEOUT_MS, true, &w->watch, &st) ==
        ST_OK)
        send_request(w, true);
    else
        worker_arm(w->watch_timer, REOPEN_MS);
}

/* What it told is of no use any more. */
static void forget(struct worker *w)
{
    static const struct policy_load none;

    policy_pages_reset(w->workers->policy[w->role], w->idx, false);
    policy_report(w->workers->policy[w->role], w->idx, &none);
    w->report = (struct worker_report){0};
}

void worker_watch_close(struct worker *w)
{
    static const struct status why = {ST_CANCELLED, "not wanted any more"};

    event_del(w->watch_timer);
    worker_forget(&w->watch, &why);
    forget(w);
}

void worker_watch_closed(struct worker *w, const struct status *why)
{
    log_debug("%s %s tells nothing of its pages and load: %s", worker_role_name(w->role),
              w->address, why->msg);
    forget(w);
    if (w->state == WORKER_READY)
        worker_arm(w->watch_timer, why->code == ST_UNAVAILABLE ? REOPEN_MS : REOPEN_REFUSED_MS);
}

void worker_on_watch_timer(evutil_socket_t fd, short what, void *arg)
{
    struct worker *w = arg;

    (void)fd, (void)what;
    if (w->state == WORKER_READY)
        worker_watch_open(w);
}

/* ---- pages ----------------------------------------------------------------------------------- */

static void on_run(struct worker *w, const Baton__V1__CacheRun *run)
{
    static const enum policy_page_event events[] = {
        [BATON__V1__CACHE_EVENT_KIND__PAGE_IN] = POLICY_PAGE_IN,
        [BATON__V1__CACHE_EVENT_KIND__PAGE_OUT] = POLICY_PAGE_OUT,
        [BATON__V1__CACHE_EVENT_KIND__STATE_IN] = POLICY_STATE_IN,
        [BATON__V1__CACHE_EVENT_KIND__STATE_OUT] = POLICY_STATE_OUT,
    };
    struct policy *p = w->workers->policy[w->role];

    if ((size_t)run->kind >= sizeof(events) / sizeof(events[0]))
        return; /* of a later version: pages are a hint */
    for (size_t i = 0; i < run->n_page; i++) {
        policy_page(p, w->idx, events[run->kind], run->page[i]);
        if (run->kind == BATON__V1__CACHE_EVENT_KIND__PAGE_OUT)
            policy_page(p, w->idx, POLICY_STATE_OUT, run->page[i]);
    }
    w->pages_told += run->n_page;
}

static void on_cache(struct worker *w, const Baton__V1__CacheEvents *e)
{
    if (e->seq != w->watch_seq + 1 && !e->reset && !w->watch_stale) {
        log_info("%s %s: page message %llu after %llu: asking for all pages",
                 worker_role_name(w->role), w->address, (unsigned long long)e->seq,
                 (unsigned long long)w->watch_seq);
        w->resyncs++;
        w->watch_stale = true;
        policy_pages_reset(w->workers->policy[w->role], w->idx, false);
        send_request(w, false);
    }
    w->watch_seq = e->seq;
    if (e->reset) {
        w->watch_stale = false;
        policy_pages_reset(w->workers->policy[w->role], w->idx, e->needs_state);
    }
    for (size_t i = 0; i < e->n_run && !w->watch_stale; i++)
        on_run(w, e->run[i]);
}

/* ---- load ------------------------------------------------------------------------------------ */

static void on_load(struct worker *w, const Baton__V1__WorkerLoad *l)
{
    struct worker_report *r = &w->report;
    struct policy_load load = {
        .running = l->running,
        .waiting = l->waiting,
        .queued_tokens = l->queued_tokens,
        .free_tokens = (uint64_t)l->free_pages * PREFIX_BLOCK_TOKENS,
        .total_tokens = (uint64_t)l->total_pages * PREFIX_BLOCK_TOKENS,
    };
    uint64_t now = clock_now_us();
    bool moved = !r->known || l->steps != r->steps || l->running == 0;

    *r = (struct worker_report){
        true,           l->running,       l->waiting, l->free_pages, l->total_pages,
        l->max_running, l->queued_tokens, l->steps,   now,           moved ? now : r->moved_us};
    policy_report(w->workers->policy[w->role], w->idx, &load);
}

bool worker_stalled(const struct worker *w, uint64_t now_us, struct status *st)
{
    const struct worker_report *r = &w->report;
    uint64_t limit_us = (uint64_t)w->workers->config.stall_ms * 1000;

    if (limit_us == 0 || w->state != WORKER_READY || !r->known || r->running + r->waiting == 0 ||
        now_us - r->moved_us < limit_us)
        return false;
    status_set(st, ST_UNAVAILABLE, "%u requests run and no step was done for %.1f s", r->running,
               (double)(now_us - r->moved_us) / 1e6);
    return true;
}

void worker_watch_data(struct worker *w, const void *data, size_t len)
{
    Baton__V1__WatchReply *reply = baton__v1__watch_reply__unpack(NULL, len, data);
    struct status st;

    if (reply == NULL) {
        status_set(&st, ST_CORRUPT, "a watch reply of %zu bytes cannot be read", len);
        worker_watch_close(w);
        worker_watch_closed(w, &st);
        return;
    }
    if (reply->cache != NULL)
        on_cache(w, reply->cache);
    if (reply->load != NULL)
        on_load(w, reply->load);
    baton__v1__watch_reply__free_unpacked(reply, NULL);
}
