#include "decode/decode_loop.h"

#include <assert.h>
#include <stdlib.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/worker/orders.h"
#include "common/worker/worker.h"
#include "decode/decode_metrics.h"
#include "decode/handoffs.h"
#include "decode/messages.h"
#include "decode/prefill_workers.h"
#include "decode/request.h"
#include "decode/routers.h"

/* The loop wakes at least this often: drain bounds are looked at. */
enum { IDLE_WAIT_MS = 1000, DRAIN_WAIT_MS = 50 };

struct decode_loop {
    struct worker *w;
    struct engine *engine;
    struct router_list *routers;
    struct handoffs *handoffs;
    struct request *requests; /* oldest first */
    uint64_t next_name;
    struct decode_metrics metrics;
    int32_t vocab, eos;
    bool draining;
    uint64_t drain_end_us;
};

/* ---- the end of a request ---- */

static void finish(struct decode_loop *l, struct request *r, const char *why)
{
    engine_remove(l->engine, &r->seq);
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

/* The prefill worker that the router chose, when it was the prompt that could not be computed. */
static const char *request_blames(const struct request *r)
{
    return r->state != REQ_RUNNING && r->n_prefills > 0 && r->last_error.code != ST_OK
               ? r->prefills[0]
               : NULL;
}

static void fail(struct decode_loop *l, struct request *r, const struct status *error)
{
    log_warn("%s: failed: %s", r->rid, error->msg);
    if (r->router != NULL)
        router_fail(r->router, r->id, error, request_blames(r));
    decode_metrics_end(&l->metrics, error->code);
    drop(l, r, error->msg);
}

/* Its last n tokens are new. */
static void emit(struct decode_loop *l, struct request *r, uint32_t n)
{
    router_emit(r->router, r, n);
    decode_metrics_tokens(&l->metrics, n);
    if (r->seq.finish != SEQ_GOES_ON) {
        decode_metrics_end(&l->metrics, ST_OK);
        finish(l, r, "finished");
    }
}

/* ---- what the engine reports ---- */

static void on_admitted(void *arg, struct sequence *s)
{
    struct decode_loop *l = arg;
    struct request *r = s->owner;

    if (s->local) {
        request_note_local(r);
        request_enter(r, REQ_RUNNING, "the prefix cache has nearly all of it");
        engine_run(l->engine, s, s->n_cached);
        return;
    }
    request_enter(r, REQ_ASKING, "pages taken");
    handoffs_start(l->handoffs, r);
}

static void on_scored(void *arg, struct sequence *s, const struct sampler_logprobs *one)
{
    struct request *r = s->owner;
    struct status st;

    (void)arg;
    if (logprobs_add(&r->prompt_logprobs, one, &st) != ST_OK)
        abort(); /* a few bytes: the process is beyond help */
}

static void on_stepped(void *arg, struct sequence *s)
{
    struct request *r = s->owner;
    struct status st;

    if (s->n_new == 0)
        return;
    logprobs_clear(&r->news);
    for (uint32_t i = 0; s->logprobs != NULL && i < s->n_new; i++)
        if (logprobs_add(&r->news, &s->logprobs[i], &st) != ST_OK)
            abort();
    emit(arg, r, s->n_new);
}

static void on_retracted(void *arg, struct sequence *s)
{
    struct decode_loop *l = arg;
    struct request *r = s->owner;

    decode_metrics_retract(&l->metrics);
    r->resent = false;
    request_enter(r, REQ_WAITING, "retracted");
}

static void on_step_failed(void *arg, struct sequence *s, const struct status *error)
{
    fail(arg, s->owner, error);
}

/* ---- what the handoffs report ---- */

static void on_arrived(void *arg, struct request *r)
{
    struct decode_loop *l = arg;

    request_enter(r, REQ_RUNNING, "all pages verified");
    sequence_append(&r->seq, r->first_token, l->w->context_length);
    engine_run(l->engine, &r->seq, r->seq.n_tokens - 1);
    emit(l, r, 1);
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
        request_new(m, ++l->next_name, l->w->context_length, l->vocab, l->eos, &r, &st);
    if (r != NULL && engine_submit(l->engine, &r->seq, &st) != ST_OK) {
        request_free(r);
        r = NULL;
    }
    if (r == NULL) {
        router_fail(router, m->request_id, &st, NULL);
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
    for (size_t i = 0; i < m->n_submit; i++)
        on_submit(l, router, m->submit[i]);
    for (size_t i = 0; i < m->n_cancel; i++)
        on_cancel(l, router, m->cancel[i]->request_id);
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

    if (orders_obey(l->w, l->engine, m))
        return;
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
        handoffs_verified(l->handoffs, mv, l->requests);
        break;
    case DM_WRITER_ENDED:
        handoffs_writer_ended(l->handoffs, (struct msg_writer_ended *)m);
        break;
    case DM_DRAIN:
        l->draining = true;
        l->drain_end_us = clock_now_us() + (uint64_t)l->w->opt.drain_timeout_s * 1000000;
        break;
    }
    decode_msg_free(m);
}

/* ---- the loop ---- */

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
    struct engine_stats stats;
    bool idle = false;

    while (!finished(l)) {
        struct msg *m;

        if (idle)
            mailbox_wait(l->w->engine, l->draining ? DRAIN_WAIT_MS : IDLE_WAIT_MS);
        while ((m = mailbox_pop(l->w->engine)) != NULL)
            handle(l, m);
        engine_admit(l->engine);
        idle = !engine_step(l->engine);
        router_list_flush(l->routers);
        free_done(l);
        engine_get_stats(l->engine, &stats);
        worker_load(l->w, &stats);
        if (!idle) {
            decode_metrics_step(&l->metrics, &stats);
            step_trace_add(l->w->trace, &stats);
        }
        decode_metrics_gauges(&l->metrics, l->w->pages, l->w->slots, &stats);
    }
}

/* ---- start and end ---- */

enum status_code decode_loop_new(struct worker *w, struct decode_loop **out, struct status *st)
{
    struct decode_loop *l = calloc(1, sizeof(*l));
    struct handoff_events arrivals = {on_arrived, on_failed, on_drained, l};
    struct engine_events steps = {on_admitted,  on_stepped,     on_scored,
                                  on_retracted, on_step_failed, l};

    if (l == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the decode loop");
    l->w = w;
    l->vocab = model_get_config(w->model)->vocab_size;
    l->eos = model_get_config(w->model)->eos_token;
    if (worker_engine_new(w, &steps, &l->engine, st) != ST_OK ||
        router_list_new(w, &l->routers, st) != ST_OK ||
        handoffs_new(w, l->engine, &arrivals, &l->handoffs, st) != ST_OK ||
        decode_metrics_init(&l->metrics, w->metrics, w->geometry, st) != ST_OK) {
        handoffs_free(l->handoffs);
        router_list_free(l->routers);
        engine_free(l->engine);
        free(l);
        return st->code;
    }
    *out = l;
    return status_ok(st);
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
        if (l->requests == NULL && router_list_empty(l->routers) && handoffs_ended(l->handoffs))
            break;
        mailbox_wait(l->w->engine, IDLE_WAIT_MS);
    }
    handoffs_free(l->handoffs);
    router_list_free(l->routers);
    engine_free(l->engine);
    free(l);
}
