#include "decode/handoffs.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/engine/engine.h"
#include "common/worker/handoff.h"
#include "common/worker/sampling.h"
#include "common/worker/worker.h"
#include "decode/receive_table.h"
#include "decode/messages.h"

struct handoffs {
    struct worker *w;
    struct engine *engine;
    struct handoff_events events;
    struct prefill_workers *workers;
    struct request *requests; /* the loop's list, borrowed while a session event is handled */
    uint32_t n_verifying;     /* comparisons under way; each comes back as DM_VERIFIED */
};

/* ---- to the prefill worker ---- */

static enum status_code submit(struct request *r, struct status *st)
{
    Baton__V1__PrefillRequest m = BATON__V1__PREFILL_REQUEST__INIT;
    Baton__V1__PrefillSubmit s = BATON__V1__PREFILL_SUBMIT__INIT;
    Baton__V1__Sampling sampling;

    sampling_params_write(&r->sampling, r->seq.max_new, &sampling);
    sampling.prompt_logprobs &= r->seq.n_scored == 0;
    s.request_id = r->name;
    s.n_token_ids = r->seq.n_tokens;
    s.token_ids = r->seq.tokens;
    s.sampling = &sampling;
    s.has_n_emitted = true;
    s.n_emitted = sequence_n_output(&r->seq);
    s.n_pages = r->seq.n_pages;
    s.pages = r->seq.pages;
    s.has_n_pages_present = true;
    s.n_pages_present = r->seq.n_hit_pages;
    s.slot = r->seq.slot;
    s.has_cache_salt = s.has_priority = s.has_cache_pin_s = true;
    s.cache_salt = r->seq.salt;
    s.cache_pin_s = r->seq.pin_s;
    s.priority = r->seq.priority;
    s.rid = r->rid;
    m.submit = &s;
    return prefill_worker_send(r->prefill, &m, st);
}

/* One of the three messages that name nothing but the request. */
static void tell(struct request *r, const char *what)
{
    Baton__V1__PrefillRequest m = BATON__V1__PREFILL_REQUEST__INIT;
    Baton__V1__PrefillCancel cancel = BATON__V1__PREFILL_CANCEL__INIT;
    Baton__V1__PrefillResend resend = BATON__V1__PREFILL_RESEND__INIT;
    Baton__V1__PrefillRelease release = BATON__V1__PREFILL_RELEASE__INIT;
    struct status st;

    cancel.request_id = resend.request_id = release.request_id = r->name;
    if (what[0] == 'c')
        m.cancel = &cancel;
    else if (what[2] == 's')
        m.resend = &resend;
    else
        m.release = &release;
    /* When it cannot be sent the session is over, and its closed message settles the request. */
    if (prefill_worker_send(r->prefill, &m, &st) != ST_OK)
        log_debug("%s: %s not sent: %s", r->rid, what, st.msg);
}

static void try_next(struct handoffs *h, struct request *r, const struct status *why);

/* Everything is to be written again. */
static void forget_told(struct request *r)
{
    r->n_told = r->n_verifying = 0;
    status_ok(&r->differs);
}

static void submit_now(struct handoffs *h, struct request *r)
{
    struct status st;

    r->attempt++;
    forget_told(r);
    if (submit(r, &st) != ST_OK) {
        try_next(h, r, &st);
        return;
    }
    request_enter(r, REQ_RECEIVING, prefill_worker_address(r->prefill));
}

void handoffs_start(struct handoffs *h, struct request *r)
{
    struct status st;

    r->prefill = NULL;
    if (r->prefill_idx >= r->n_prefills)
        h->events.failed(h->events.arg, r, &r->last_error);
    else if (prefill_workers_get(h->workers, r->prefills[r->prefill_idx], &r->prefill, &st) !=
             ST_OK)
        try_next(h, r, &st);
    else if (prefill_worker_state(r->prefill) == PREFILL_READY)
        submit_now(h, r);
}

/* r is ASKING: its present prefill worker will not do. */
static void try_next(struct handoffs *h, struct request *r, const struct status *why)
{
    r->last_error = *why;
    r->prefill_idx++;
    if (r->prefill_idx < r->n_prefills)
        log_warn("%s: trying the next prefill worker: %s", r->rid, why->msg);
    handoffs_start(h, r);
}

/* ---- the end of a request that is under way ---- */

bool handoffs_abandon(struct handoffs *h, struct request *r, const char *why)
{
    (void)h;
    switch (receive_action(r->state, HE_UNWANTED)) {
    case HA_CANCEL:
        request_enter(r, REQ_DRAINING, why);
        tell(r, "cancel");
        return false;
    case HA_RELEASE:
        tell(r, "release");
        return true;
    default:
        return true;
    }
}

/* ---- from the prefill worker ---- */

/* Our own thread reads the units no more. */
static void verify_ended(struct handoffs *h, const struct msg_verified *m)
{
    slab_give(h->w->pages, m->pages, m->n_pages);
    slab_give(h->w->slots, &m->slot, m->with_slot);
    h->n_verifying--;
}

static void on_verified(void *arg, const struct transfer_result *result)
{
    struct msg_verified *m = arg;

    m->status = result->status;
    mailbox_push(m->engine, &m->base);
}

/* Checksums of r's handoff in all. */
static uint32_t n_crc(const struct handoffs *h, const struct request *r)
{
    return r->seq.n_pages - r->seq.n_hit_pages +
           handoff_slot_groups(h->w->geometry, r->seq.n_tokens);
}

/* Compares what r's next n checksums are of. */
static enum status_code start_verify(struct handoffs *h, struct request *r, uint32_t n,
                                     struct status *st)
{
    const struct sequence *s = &r->seq;
    struct handoff_units units = {s->pages, s->pages, s->slot, s->slot};
    uint32_t first = s->n_hit_pages + r->n_told, end = first + n;
    uint32_t n_pages = first < s->n_pages ? (end < s->n_pages ? end : s->n_pages) - first : 0;
    struct msg_verified *m = malloc(sizeof(*m) + n_pages * sizeof(*m->pages));
    struct handoff_list list = {0};

    if (m == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory to verify checksums");
    *m = (struct msg_verified){.base.type = DM_VERIFIED,
                               .engine = h->w->engine,
                               .name = r->name,
                               .attempt = r->attempt,
                               .with_slot = end > s->n_pages,
                               .slot = s->slot,
                               .n_groups = n,
                               .n_pages = n_pages};
    if (n_pages > 0)
        memcpy(m->pages, s->pages + first, n_pages * sizeof(*m->pages));
    if (handoff_list_init(&list, h->w->geometry, &units, s->n_tokens, first, end, st) != ST_OK)
        goto done;
    slab_ref(h->w->pages, m->pages, n_pages);
    slab_ref(h->w->slots, &m->slot, m->with_slot);
    h->n_verifying++;
    if (transfer_verify(h->w->transfer, list.pieces, list.n_pieces, r->crc + r->n_told,
                        list.n_groups, on_verified, m, st) != ST_OK) {
        verify_ended(h, m);
        goto done;
    }
    m = NULL; /* the mailbox's, with the units */
    r->n_verifying++;
    r->n_told += n;
done:
    free(m);
    handoff_list_deinit(&list);
    return st->code;
}

/* A hint: what goes wrong here is done with the rest. */
static void on_written(struct handoffs *h, struct request *r, const Baton__V1__PrefillWritten *m)
{
    struct status st;

    if (receive_action(r->state, HE_WRITTEN) != HA_VERIFY_PART)
        return;
    if (request_keep_written(r, m, n_crc(h, r), &st) != ST_OK ||
        start_verify(h, r, (uint32_t)m->n_checksums, &st) != ST_OK)
        log_warn("%s: %s: %s: compared later", r->rid, prefill_worker_address(r->prefill), st.msg);
}

static void on_done(struct handoffs *h, struct request *r, const Baton__V1__PrefillDone *m)
{
    struct status st;

    if (receive_action(r->state, HE_DONE) != HA_VERIFY) {
        /* Draining: done and our cancel crossed, stopped still follows. */
        log_debug("%s: %s sent done again or late", r->rid, prefill_worker_address(r->prefill));
        return;
    }
    if (request_keep_done(r, m, n_crc(h, r), &st) != ST_OK ||
        start_verify(h, r, n_crc(h, r) - r->n_told, &st) != ST_OK) {
        h->events.failed(h->events.arg, r, &st);
        return;
    }
    r->done_us = clock_now_us();
    request_enter(r, REQ_VERIFYING, "all bytes written");
}

static bool worth_another(enum status_code code)
{
    return code != ST_INVALID; /* the request itself is wrong: no other worker would take it */
}

static void on_stopped(struct handoffs *h, struct request *r, const Baton__V1__PrefillStopped *m)
{
    struct status why;

    status_set(&why, m->error != NULL ? (enum status_code)m->error->code : ST_CANCELLED,
               "prefill worker %s: %s", prefill_worker_address(r->prefill),
               m->error != NULL ? m->error->message : "stopped");
    if (why.code == ST_OK || why.code >= ST_N_CODES)
        why.code = ST_INTERNAL;
    switch (receive_action(r->state, worth_another(why.code) ? HE_STOPPED : HE_REFUSED)) {
    case HA_STOPPED:
        h->events.drained(h->events.arg, r);
        break;
    case HA_NEXT: /* it stopped, so the units stay ours: the next one may write them */
        request_enter(r, REQ_WAITING, why.msg);
        request_enter(r, REQ_ASKING, "units kept");
        try_next(h, r, &why);
        break;
    case HA_FAIL:
        request_enter(r, REQ_WAITING, why.msg); /* nothing is written: no draining */
        h->events.failed(h->events.arg, r, &why);
        break;
    default:
        log_debug("%s: stopped late: %s", r->rid, why.msg);
    }
}

static struct request *find(struct request *requests, const struct prefill_worker *p, uint64_t name)
{
    for (struct request *r = requests; r != NULL; r = r->next)
        if (r->name == name && r->prefill == p && r->state != REQ_DONE)
            return r;
    return NULL;
}

void handoffs_reply(struct handoffs *h, struct prefill_worker *p, const Baton__V1__PrefillReply *m,
                    struct request *requests)
{
    struct request *r;

    h->requests = requests;
    if (m->hello != NULL)
        prefill_worker_hello(h->workers, p, m->hello);
    if (m->written != NULL && (r = find(requests, p, m->written->request_id)) != NULL)
        on_written(h, r, m->written);
    if (m->done != NULL && (r = find(requests, p, m->done->request_id)) != NULL)
        on_done(h, r, m->done);
    if (m->stopped != NULL && (r = find(requests, p, m->stopped->request_id)) != NULL)
        on_stopped(h, r, m->stopped);
    h->requests = NULL;
}

/* Who waits for that comparison; NULL: nobody any more. */
static struct request *verifying(struct request *requests, const struct msg_verified *m)
{
    for (struct request *r = requests; r != NULL; r = r->next)
        if (r->name == m->name && r->attempt == m->attempt &&
            (r->state == REQ_RECEIVING || r->state == REQ_VERIFYING))
            return r;
    return NULL;
}

static void arrived(struct handoffs *h, struct request *r)
{
    r->stats.has_checksums_verified = true;
    r->stats.checksums_verified = r->n_told;
    r->stats.has_arrive_us = true;
    r->stats.arrive_us = clock_now_us() - r->done_us;
    tell(r, "release");
    h->events.arrived(h->events.arg, r);
}

/* All bytes are there, in host memory: the GPU gets them, and compares again. */
static void take_in(struct handoffs *h, struct request *r)
{
    const struct sequence *s = &r->seq;
    struct handoff_units units = {s->pages, s->pages, s->slot, s->slot};
    struct handoff_list list = {0};
    struct status st;

    if (handoff_list_init(&list, h->w->geometry, &units, s->n_tokens, s->n_hit_pages,
                          s->n_hit_pages + n_crc(h, r), &st) != ST_OK ||
        kv_mirror_in(h->w->mirror, &list, r->crc, &st) != ST_OK)
        r->differs = st;
    handoff_list_deinit(&list);
}

void handoffs_verified(struct handoffs *h, const struct msg_verified *m, struct request *requests)
{
    struct request *r = verifying(requests, m);
    enum receive_action action;

    verify_ended(h, m);
    if (r == NULL)
        return;
    r->n_verifying--;
    if (m->status.code != ST_OK)
        r->differs = m->status;
    if (r->state == REQ_RECEIVING || r->n_verifying > 0)
        return; /* what differs is sent again when all is there */
    if (r->differs.code == ST_OK && h->w->mirror != NULL)
        take_in(h, r);
    action = receive_action(r->state, r->differs.code == ST_OK ? HE_VERIFIED : HE_DIFFERS);
    assert(action == HA_RUN || action == HA_RESEND);
    if (action == HA_RUN) {
        arrived(h, r);
        return;
    }
    log_error("%s: KV from prefill worker %s over %s: %s", r->rid,
              prefill_worker_address(r->prefill), r->transport, r->differs.msg);
    if (r->resent || prefill_worker_state(r->prefill) != PREFILL_READY) {
        h->events.failed(h->events.arg, r, &r->differs);
        return;
    }
    r->resent = true;
    forget_told(r);
    request_enter(r, REQ_RECEIVING, "checksums differ");
    tell(r, "resend");
}

/* ---- sessions ---- */

static void on_ready(void *arg, struct prefill_worker *p)
{
    struct handoffs *h = arg;

    for (struct request *r = h->requests; r != NULL; r = r->next)
        if (r->prefill == p && receive_action(r->state, HE_READY) == HA_SUBMIT)
            submit_now(h, r);
}

/* Pages from our prefix cache were never named for writing: only the others are in doubt. */
static void quarantine(struct handoffs *h, struct request *r, struct prefill_worker *p)
{
    struct sequence *s = &r->seq;

    slab_give(h->w->pages, s->pages, s->n_hit_pages);
    prefill_worker_quarantine(h->workers, p, s->pages + s->n_hit_pages, s->n_pages - s->n_hit_pages,
                              s->slot);
    engine_disown(s);
}

/* The session is over while r was under way on it. */
static void lost_one(struct handoffs *h, struct request *r, struct prefill_worker *p,
                     const struct status *why)
{
    switch (receive_action(r->state, HE_LOST)) {
    case HA_NEXT:
        try_next(h, r, why);
        return;
    case HA_QUARANTINE:
        quarantine(h, r, p);
        h->events.drained(h->events.arg, r);
        return;
    case HA_REQUEUE:
        break;
    default:
        return; /* VERIFYING: everything is here already */
    }
    quarantine(h, r, p);
    engine_requeue(h->engine, &r->seq);
    request_enter(r, REQ_WAITING, why->msg);
    r->last_error = *why;
    if (++r->prefill_idx >= r->n_prefills)
        h->events.failed(h->events.arg, r, why);
}

static void on_lost(void *arg, struct prefill_worker *p, const struct status *why)
{
    struct handoffs *h = arg;

    for (struct request *r = h->requests; r != NULL; r = r->next)
        if (r->prefill == p)
            lost_one(h, r, p, why);
}

void handoffs_closed(struct handoffs *h, struct session_link *link, const struct status *why,
                     struct request *requests)
{
    h->requests = requests;
    prefill_worker_closed(h->workers, link, why);
    h->requests = NULL;
}

/* ---- start and end ---- */

enum status_code handoffs_new(struct worker *w, struct engine *engine,
                              const struct handoff_events *events, struct handoffs **out,
                              struct status *st)
{
    struct handoffs *h = calloc(1, sizeof(*h));
    struct prefill_worker_events mine = {on_ready, on_lost, h};

    if (h == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for handoffs");
    h->w = w;
    h->engine = engine;
    h->events = *events;
    if (prefill_workers_new(w, &mine, &h->workers, st) != ST_OK) {
        free(h);
        return st->code;
    }
    *out = h;
    return status_ok(st);
}

void handoffs_free(struct handoffs *h)
{
    if (h == NULL)
        return;
    prefill_workers_free(h->workers);
    free(h);
}

void handoffs_writer_ended(struct handoffs *h, const struct msg_writer_ended *m)
{
    prefill_workers_writer_ended(h->workers, m->writer, m->proven);
}

void handoffs_close(struct handoffs *h)
{
    prefill_workers_close(h->workers);
}

bool handoffs_ended(const struct handoffs *h)
{
    return h->n_verifying == 0 && prefill_workers_all_closed(h->workers);
}
