#include "decode/decode_loop.h"

#include <assert.h>
#include <stdlib.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/worker/worker.h"
#include "decode/decode_metrics.h"
#include "decode/handoffs.h"
#include "decode/messages.h"
#include "decode/prefill_workers.h"
#include "decode/request.h"
#include "decode/routers.h"

/* The loop wakes at least this often: quarantine and drain bounds are looked at. */
enum { IDLE_WAIT_MS = 1000, DRAIN_WAIT_MS = 50 };

struct decode_loop {
    struct worker *w;
    struct router_list *routers;
    struct handoffs *handoffs;
    struct request *requests; /* oldest first: order of arrival, also for those retracted */
    uint64_t next_seq;
    struct decode_metrics metrics;
    struct model_span *spans; /* [max_running] of a step */
    struct request **running; /* [max_running] of a step */
    int max_running;
    int32_t vocab, eos;
    bool draining;
    uint64_t drain_end_us;
};

/* ---- the end of a request ---- */

static void give_units(struct decode_loop *l, struct request *r)
{
    if (!r->has_units)
        return;
    slab_give(l->w->pages, r->pages, r->n_pages);
    slab_give(l->w->slots, &r->slot, 1);
    r->has_units = false;
    r->n_pages = 0;
}

static void finish(struct decode_loop *l, struct request *r, const char *why)
{
    give_units(l, r);
    request_enter(r, REQ_DONE, why);
}

/* The client no longer wants it, or it cannot go on. Units go back as soon as nobody writes them.
 */
static void drop(struct decode_loop *l, struct request *r, const char *why)
{
    if (r->state == REQ_DRAINING || r->state == REQ_DONE)
        return;
    if (handoffs_abandon(l->handoffs, r, why))
        finish(l, r, why);
}

static void fail(struct decode_loop *l, struct request *r, const struct status *error)
{
    log_warn("%s: failed: %s", r->rid, error->msg);
    if (r->router != NULL)
        router_fail(r->router, r->id, error);
    decode_metrics_end(&l->metrics, error->code);
    drop(l, r, error->msg);
}

/* ---- what the handoffs report ---- */

static void on_arrived(void *arg, struct request *r)
{
    struct decode_loop *l = arg;
    Baton__V1__FinishReason how;

    request_enter(r, REQ_RUNNING, "all pages verified");
    request_append(r, r->first_token);
    how = request_finish(r, l->eos, l->w->context_length);
    router_emit(r->router, r, how);
    decode_metrics_token(&l->metrics);
    if (how != BATON__V1__FINISH_REASON__FINISH_NONE) {
        decode_metrics_end(&l->metrics, ST_OK);
        finish(l, r, "finished");
    }
}

static void on_failed(void *arg, struct request *r, const struct status *error)
{
    fail(arg, r, error);
}

static void on_drained(void *arg, struct request *r)
{
    finish(arg, r, "nobody writes its pages any more");
}

/* ---- messages ---- */

static struct request *find(struct decode_loop *l, const struct router *router, uint64_t id)
{
    for (struct request *r = l->requests; r != NULL; r = r->next)
        if (r->router == router && r->id == id && r->state != REQ_DONE && r->state != REQ_DRAINING)
            return r;
    return NULL;
}

static void append(struct decode_loop *l, struct request *r)
{
    struct request **p = &l->requests;

    while (*p != NULL)
        p = &(*p)->next;
    *p = r;
}

static void on_submit(struct decode_loop *l, struct router *router,
                      const Baton__V1__DecodeSubmit *m)
{
    struct request *r = NULL;
    struct status st;

    decode_metrics_request(&l->metrics);
    if (l->draining)
        status_set(&st, ST_UNAVAILABLE, "decode worker is shutting down");
    else if (find(l, router, m->request_id) != NULL)
        status_set(&st, ST_INVALID, "request id %llu is in use", (unsigned long long)m->request_id);
    else
        request_new(m, ++l->next_seq, l->w->context_length, l->vocab, &r, &st);
    if (r == NULL) {
        router_fail(router, m->request_id, &st);
        decode_metrics_end(&l->metrics, st.code);
        return;
    }
    r->router = router;
    append(l, r);
}

static void on_cancel(struct decode_loop *l, struct router *router, uint64_t id)
{
    struct request *r = find(l, router, id);

    if (r == NULL)
        return; /* it ended while the cancel was on its way */
    decode_metrics_end(&l->metrics, ST_CANCELLED);
    drop(l, r, "cancelled by the router");
}

static void on_router_request(struct decode_loop *l, struct router *router,
                              const Baton__V1__DecodeRequest *m)
{
    if (m->hello != NULL)
        router_list_hello(l->routers, router, m->hello);
    if (m->submit != NULL)
        on_submit(l, router, m->submit);
    if (m->cancel != NULL)
        on_cancel(l, router, m->cancel->request_id);
}

static void on_router_closed(struct decode_loop *l, struct session_link *link)
{
    const struct router *router = link->owner;

    for (struct request *r = l->requests; r != NULL; r = r->next) {
        if (r->router != router)
            continue;
        r->router = NULL;
        drop(l, r, "the router's session has ended");
    }
    router_list_closed(l->routers, link);
}

static void handle(struct decode_loop *l, struct msg *m)
{
    struct msg_link *ml = (struct msg_link *)m;
    struct msg_unpacked *mu = (struct msg_unpacked *)m;
    struct msg_verified *mv = (struct msg_verified *)m;

    switch ((enum decode_msg_type)m->type) {
    case DM_ROUTER_OPENED:
        router_list_open(l->routers, ml->link);
        break;
    case DM_ROUTER_REQUEST:
        on_router_request(l, mu->link->owner, mu->request);
        break;
    case DM_ROUTER_CLOSED:
        on_router_closed(l, ml->link);
        break;
    case DM_PREFILL_REPLY:
        handoffs_reply(l->handoffs, mu->link->owner, mu->reply, l->requests);
        break;
    case DM_PREFILL_CLOSED:
        handoffs_closed(l->handoffs, ml->link, &ml->why, l->requests);
        break;
    case DM_VERIFIED:
        decode_metrics_verified(&l->metrics, mv->status.code, mv->n_groups);
        handoffs_verified(l->handoffs, mv->request, &mv->status, mv->n_groups);
        break;
    case DM_DRAIN:
        l->draining = true;
        l->drain_end_us = clock_now_us() + (uint64_t)l->w->opt.drain_timeout_s * 1000000;
        break;
    }
    decode_msg_free(m);
}

/* ---- admission ---- */

static uint32_t count(const struct decode_loop *l, enum request_state state)
{
    uint32_t n = 0;

    for (const struct request *r = l->requests; r != NULL; r = r->next)
        n += r->state == state;
    return n;
}

static bool take_units(struct decode_loop *l, struct request *r, uint32_t n_pages)
{
    struct status st;

    if (slab_take(l->w->slots, 1, &r->slot, &st) != ST_OK)
        return false;
    if (slab_take(l->w->pages, n_pages, r->pages, &st) != ST_OK) {
        slab_give(l->w->slots, &r->slot, 1);
        return false;
    }
    r->n_pages = n_pages;
    r->has_units = true;
    return true;
}

/*
 * First come first served, while the pages of a prompt fit and one page stays for each running
 * request to grow into: without that margin an admission would retract somebody a few steps later.
 */
static void admit(struct decode_loop *l)
{
    uint32_t margin = count(l, REQ_RUNNING);
    uint32_t n_active =
        margin + count(l, REQ_ASKING) + count(l, REQ_RECEIVING) + count(l, REQ_VERIFYING);

    for (struct request *r = l->requests; r != NULL; r = r->next) {
        uint32_t n_pages;

        if (r->state != REQ_WAITING)
            continue;
        n_pages = kv_pages_for(r->n_tokens);
        if (n_active >= (uint32_t)l->max_running || slab_n_free(l->w->pages) < n_pages + margin ||
            !take_units(l, r, n_pages))
            return; /* younger ones must not starve it */
        n_active++;
        request_enter(r, REQ_ASKING, "pages taken");
        handoffs_start(l->handoffs, r);
    }
}

/* ---- the step ---- */

static void retract(struct decode_loop *l, struct request *r)
{
    log_info("%s: retracted at %u tokens: no free KV page", r->rid, r->n_tokens);
    decode_metrics_retract(&l->metrics);
    give_units(l, r);
    r->resent = false;
    request_enter(r, REQ_WAITING, "retracted");
}

static struct request *youngest_running(struct decode_loop *l)
{
    struct request *youngest = NULL;

    for (struct request *r = l->requests; r != NULL; r = r->next)
        if (r->state == REQ_RUNNING)
            youngest = r;
    return youngest;
}

/* Room for the KV of r's last token; retracts the youngest until there is. False: r itself went. */
static bool grow(struct decode_loop *l, struct request *r)
{
    struct status st;

    while (r->n_pages < kv_pages_for(r->n_tokens)) {
        if (slab_take(l->w->pages, 1, &r->pages[r->n_pages], &st) == ST_OK) {
            r->n_pages++;
            continue;
        }
        retract(l, youngest_running(l));
        if (r->state != REQ_RUNNING)
            return false;
    }
    return true;
}

static int build_batch(struct decode_loop *l)
{
    int n = 0;

    for (struct request *r = l->requests; r != NULL && n < l->max_running; r = r->next) {
        if (r->state != REQ_RUNNING || !grow(l, r))
            continue;
        l->running[n] = r;
        l->spans[n++] = (struct model_span){
            .tokens = r->tokens + r->n_tokens - 1,
            .n_tokens = 1,
            .start = r->n_tokens - 1,
            .slot = r->slot,
            .pages = r->pages,
            .logits = MODEL_LOGITS_LAST,
        };
    }
    return n; /* a retraction never hits one of these: it takes the youngest, the list's last */
}

static void sample_and_emit(struct decode_loop *l, struct request *r, const float *logits)
{
    Baton__V1__FinishReason how;

    request_append(r, sampler_draw(logits, l->vocab, &r->sampling, r->n_tokens));
    how = request_finish(r, l->eos, l->w->context_length);
    router_emit(r->router, r, how);
    decode_metrics_token(&l->metrics);
    if (how != BATON__V1__FINISH_REASON__FINISH_NONE) {
        decode_metrics_end(&l->metrics, ST_OK);
        finish(l, r, "finished");
    }
}

static bool step(struct decode_loop *l)
{
    int n = build_batch(l);
    uint64_t t0 = clock_now_us();
    const float *logits;
    struct status st;

    if (n == 0)
        return false;
    if (model_forward(l->w->model, &l->w->kv, l->spans, n, &logits, &st) != ST_OK) {
        for (int i = 0; i < n; i++)
            fail(l, l->running[i], &st);
        return true;
    }
    for (int i = 0; i < n; i++)
        sample_and_emit(l, l->running[i], logits + (size_t)i * (size_t)l->vocab);
    decode_metrics_step(&l->metrics, n, clock_now_us() - t0);
    return true;
}

static void free_done(struct decode_loop *l)
{
    for (struct request **p = &l->requests; *p != NULL;) {
        struct request *r = *p;

        if (r->state != REQ_DONE) {
            p = &r->next;
            continue;
        }
        *p = r->next;
        request_free(r);
    }
}

static bool finished(const struct decode_loop *l)
{
    return l->draining && (l->requests == NULL || clock_now_us() > l->drain_end_us);
}

void decode_loop_run(struct decode_loop *l)
{
    bool idle = false;

    while (!finished(l)) {
        struct msg *m;

        if (idle)
            mailbox_wait(l->w->engine, l->draining ? DRAIN_WAIT_MS : IDLE_WAIT_MS);
        while ((m = mailbox_pop(l->w->engine)) != NULL)
            handle(l, m);
        handoffs_tick(l->handoffs);
        admit(l);
        idle = !step(l);
        router_list_flush(l->routers);
        free_done(l);
        decode_metrics_gauges(&l->metrics, l->w->pages, l->w->slots, count(l, REQ_RUNNING),
                              count(l, REQ_WAITING));
    }
}

/* ---- start and end ---- */

enum status_code decode_loop_new(struct worker *w, struct decode_loop **out, struct status *st)
{
    struct decode_loop *l = calloc(1, sizeof(*l));
    struct handoff_events events = {on_arrived, on_failed, on_drained, l};

    if (l == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the decode loop");
    l->w = w;
    l->max_running = (int)w->opt.max_running_requests;
    l->vocab = model_get_config(w->model)->vocab_size;
    l->eos = model_get_config(w->model)->eos_token;
    l->spans = calloc((size_t)l->max_running, sizeof(*l->spans));
    l->running = calloc((size_t)l->max_running, sizeof(*l->running));
    if (l->spans == NULL || l->running == NULL) {
        status_set(st, ST_EXHAUSTED, "no memory for %d running requests", l->max_running);
        goto failed;
    }
    if (router_list_new(w, &l->routers, st) != ST_OK ||
        handoffs_new(w, &events, &l->handoffs, st) != ST_OK ||
        decode_metrics_init(&l->metrics, w->metrics, st) != ST_OK)
        goto failed;
    *out = l;
    return status_ok(st);
failed:
    handoffs_free(l->handoffs);
    router_list_free(l->routers);
    free(l->spans);
    free(l->running);
    free(l);
    return st->code;
}

void decode_loop_drain(struct decode_loop *l)
{
    struct msg_link *m = calloc(1, sizeof(*m));

    if (m == NULL)
        abort();
    m->base.type = DM_DRAIN;
    mailbox_push(l->w->engine, &m->base);
}

void decode_loop_free(struct decode_loop *l)
{
    if (l == NULL)
        return;
    handoffs_close(l->handoffs);
    for (;;) {
        struct msg *m;

        while ((m = mailbox_pop(l->w->engine)) != NULL)
            handle(l, m);
        free_done(l);
        if (l->requests == NULL && router_list_empty(l->routers) &&
            handoffs_closed_all(l->handoffs))
            break;
        mailbox_wait(l->w->engine, IDLE_WAIT_MS);
    }
    handoffs_free(l->handoffs);
    router_list_free(l->routers);
    free(l->spans);
    free(l->running);
    free(l);
}
