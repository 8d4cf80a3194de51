#include "prefill/prefill_loop.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/worker/orders.h"
#include "common/worker/worker.h"
#include "prefill/handoff_state.h"
#include "prefill/kv_sender.h"
#include "prefill/messages.h"
#include "prefill/peers.h"
#include "prefill/prefill_metrics.h"
#include "prefill/replies.h"

/* The loop wakes at least this often: gauges are of now, pins end, drain bounds are looked at. */
enum { IDLE_WAIT_MS = 1000, DRAIN_WAIT_MS = 50 };

struct prefill_loop {
    struct worker *w;
    struct engine *engine;
    struct handoff *handoffs; /* oldest first */
    struct peer_list *peers;
    struct prefill_metrics metrics;
    bool draining;
    uint64_t drain_end_us;
};

/* ---- the life of a handoff ---- */

static void append(struct prefill_loop *l, struct handoff *h)
{
    struct handoff **p = &l->handoffs;

    while (*p != NULL)
        p = &(*p)->next;
    *p = h;
}

static struct handoff *find(struct prefill_loop *l, const struct prefill_peer *peer, uint64_t id)
{
    for (struct handoff *h = l->handoffs; h != NULL; h = h->next)
        if (h->peer == peer && h->id == id && h->state != HANDOFF_GONE)
            return h;
    return NULL;
}

/* Nothing reads the pages any more: frees them, and tells the peer if it has not been told. */
static void end(struct prefill_loop *l, struct handoff *h, const char *why)
{
    assert(h->n_puts == 0);
    if (h->state == HANDOFF_SENT && h->error.code == ST_CANCELLED) {
        reply_stopped(h->peer, h->id, NULL); /* its cancel and our done crossed */
        prefill_metrics_end(&l->metrics, ST_OK);
    } else if (h->state == HANDOFF_STOPPING || h->state == HANDOFF_WAITING) {
        reply_stopped(h->peer, h->id, h->error.code == ST_CANCELLED ? NULL : &h->error);
        prefill_metrics_end(&l->metrics, h->error.code);
    } else {
        prefill_metrics_end(&l->metrics, ST_OK);
    }
    handoff_enter(h, HANDOFF_GONE, why);
    engine_remove(l->engine, &h->seq);
}

/* Ends a handoff early, whatever its state; pages stay until the running transfers have ended. */
static void stop(struct prefill_loop *l, struct handoff *h, const struct status *why)
{
    enum handoff_action action =
        handoff_action(h->state, why->code == ST_CANCELLED ? HANDOFF_CANCEL : HANDOFF_FAILED);

    if (action == HANDOFF_IGNORE)
        return;
    h->error = *why;
    if (why->code != ST_CANCELLED)
        log_warn("%s: prefill for %s stops: %s", h->rid, h->peer->name, why->msg);
    if (action == HANDOFF_STOP) {
        handoff_enter(h, HANDOFF_STOPPING, why->msg);
        kv_sender_cancel(h);
        if (h->seq.state == SEQ_RUNNING)
            engine_hold(l->engine, &h->seq);
        if (h->n_puts > 0)
            return;
    }
    end(l, h, why->msg);
}

static void tell_done(struct prefill_loop *l, struct handoff *h)
{
    struct status st;

    handoff_enter(h, HANDOFF_SENT, "all bytes flushed");
    if (reply_done(h, l->w, &st) != ST_OK) {
        log_warn("%s: cannot tell %s that its pages are there: %s", h->rid, h->peer->name, st.msg);
        end(l, h, st.msg);
    }
}

static void drop_gone(struct prefill_loop *l)
{
    for (struct handoff **p = &l->handoffs; *p != NULL;) {
        struct handoff *h = *p;

        if (h->state != HANDOFF_GONE) {
            p = &h->next;
            continue;
        }
        *p = h->next;
        handoff_free(h);
    }
    peer_list_collect(l->peers);
}

/* ---- messages ---- */

static enum status_code submit(struct prefill_loop *l, struct handoff *h, struct status *st)
{
    if (h->n_prompt >= l->w->context_length)
        return status_set(st, ST_INVALID, "%u prompt tokens, the context length is %lld",
                          h->n_prompt, (long long)l->w->context_length);
    return engine_submit(l->engine, &h->seq, st);
}

static void on_submit(struct prefill_loop *l, struct prefill_peer *peer,
                      const Baton__V1__PrefillSubmit *m)
{
    const struct model_config *c = model_get_config(l->w->model);
    struct handoff *h = NULL;
    struct status st;

    if (peer->transfer == NULL)
        status_set(&st, ST_INVALID, "submit before hello");
    else if (find(l, peer, m->request_id) != NULL)
        status_set(&st, ST_INVALID, "request id %llu is in use", (unsigned long long)m->request_id);
    else if (l->draining)
        status_set(&st, ST_UNAVAILABLE, "prefill worker is shutting down");
    else
        handoff_new(m, peer, c->vocab_size, c->eos_token, &h, &st);
    prefill_metrics_request(&l->metrics);
    if (h == NULL) {
        reply_stopped(peer, m->request_id, &st);
        prefill_metrics_end(&l->metrics, st.code);
        return;
    }
    append(l, h);
    if (submit(l, h, &st) != ST_OK)
        stop(l, h, &st);
}

static void on_cancel(struct prefill_loop *l, struct prefill_peer *peer, uint64_t id)
{
    struct handoff *h = find(l, peer, id);
    struct status why;

    status_set(&why, ST_CANCELLED, "cancelled by %s", peer->name);
    if (h == NULL)
        reply_stopped(peer, id, NULL); /* already over: say so, the peer waits for it */
    else
        stop(l, h, &why);
}

static void on_resend(struct prefill_loop *l, struct prefill_peer *peer, uint64_t id)
{
    struct handoff *h = find(l, peer, id);
    struct status st;

    if (h == NULL) { /* nothing of it is written any more, and another worker may do it */
        status_set(&st, ST_UNAVAILABLE, "resend of a handoff that is not there");
        reply_stopped(peer, id, &st);
        return;
    }
    if (handoff_action(h->state, HANDOFF_RESEND) != HANDOFF_SEND_AGAIN) {
        log_warn("%s: %s asks for a resend of what was not sent yet", h->rid, peer->name);
        return; /* not "stopped": transfers may run */
    }
    log_error("%s: %s found wrong checksums in what we wrote: writing %u pages again", h->rid,
              peer->name, h->n_pages - h->n_present);
    handoff_enter(h, HANDOFF_FLUSHING, "checksum mismatch at the peer");
    h->n_resends++;
    h->n_groups_sent = h->n_present;
    if (kv_sender_post(h, l->w->geometry, h->n_pages, true, l->w->mirror, l->w->engine, &st) !=
        ST_OK)
        stop(l, h, &st);
}

static void on_release(struct prefill_loop *l, struct prefill_peer *peer, uint64_t id)
{
    struct handoff *h = find(l, peer, id);

    if (h != NULL && handoff_action(h->state, HANDOFF_RELEASE) == HANDOFF_END)
        end(l, h, "released");
}

static void on_request(struct prefill_loop *l, struct prefill_link *link,
                       const Baton__V1__PrefillRequest *m)
{
    struct prefill_peer *peer = link->peer;

    if (m->hello != NULL)
        peer_list_hello(l->peers, peer, m->hello);
    if (m->submit != NULL)
        on_submit(l, peer, m->submit);
    if (m->cancel != NULL)
        on_cancel(l, peer, m->cancel->request_id);
    if (m->resend != NULL)
        on_resend(l, peer, m->resend->request_id);
    if (m->release != NULL)
        on_release(l, peer, m->release->request_id);
}

/* The peer compares while later chunks are computed. Transfers end in their order but for faults;
 * what is out of order is told with done. */
static void tell_written(struct handoff *h, uint32_t first, uint32_t n)
{
    if (h->n_resends > 0 || first != h->n_told || n == 0)
        return;
    reply_written(h->peer, h->id, first, n, h->crc + first);
    h->n_told += n;
}

/* A transfer, of n groups, has ended: was it the last? */
static void puts_ended(struct prefill_loop *l, struct handoff *h, uint32_t first, uint32_t n)
{
    switch (handoff_action(h->state, h->n_puts == 0 ? HANDOFF_PUTS_ENDED : HANDOFF_PUT_ENDED)) {
    case HANDOFF_TELL_WRITTEN:
        tell_written(h, first, n);
        break;
    case HANDOFF_TELL_DONE:
        tell_done(l, h);
        break;
    case HANDOFF_TELL_STOPPED:
        end(l, h, "transfers ended");
        break;
    default:
        break;
    }
}

/* stop() ends it when no other transfer runs, unless it was STOPPING already. */
static void stop_put_failed(struct prefill_loop *l, struct handoff *h, const struct status *why)
{
    stop(l, h, why);
    if (h->state == HANDOFF_STOPPING)
        puts_ended(l, h, 0, 0);
}

/* What of a transfer was done by the time that the prompt was computed: by its share of the time.
 */
static uint64_t hidden(const struct handoff *h, const struct msg_put_done *m)
{
    uint64_t start_us = m->ended_us - m->elapsed_us;

    if (h->computed_us == 0 || m->ended_us <= h->computed_us)
        return m->bytes;
    if (start_us >= h->computed_us)
        return 0;
    return (uint64_t)((double)m->bytes * (double)(h->computed_us - start_us) /
                      (double)m->elapsed_us);
}

static void on_put_done(struct prefill_loop *l, const struct msg_put_done *m)
{
    struct handoff *h = m->handoff;

    h->n_puts--;
    h->transfer_us += m->elapsed_us;
    h->kv_bytes += m->bytes;
    h->hidden_bytes += hidden(h, m);
    if (h->computed_us > 0 && h->n_resends == 0)
        h->tail_us = m->ended_us - h->computed_us;
    for (uint32_t i = 0; i < m->n_groups; i++)
        h->crc[m->first_group + i] = m->crc[i];
    prefill_metrics_put(&l->metrics, m->bytes, hidden(h, m), m->elapsed_us);
    if (m->status.code != ST_OK)
        stop_put_failed(l, h, &m->status);
    else
        puts_ended(l, h, m->first_group, m->n_groups);
}

static void peer_lost(void *arg, struct prefill_peer *peer)
{
    struct prefill_loop *l = arg;
    struct status why;

    status_set(&why, ST_UNAVAILABLE, "decode worker %s is gone", peer->name);
    for (struct handoff *h = l->handoffs; h != NULL; h = h->next) {
        if (h->peer == peer)
            stop(l, h, &why);
    }
}

static void handle(struct prefill_loop *l, struct msg *m)
{
    if (orders_obey(l->w, l->engine, m))
        return;
    switch ((enum prefill_msg_type)m->type) {
    case PM_OPENED:
        peer_list_open(l->peers, ((struct msg_link *)m)->link);
        break;
    case PM_REQUEST:
        on_request(l, ((struct msg_request *)m)->link, ((struct msg_request *)m)->request);
        break;
    case PM_CLOSED:
        peer_list_closed(l->peers, ((struct msg_link *)m)->link);
        break;
    case PM_PUT_DONE:
        on_put_done(l, (struct msg_put_done *)m);
        break;
    case PM_PEER_GONE:
        peer_list_transfer_gone(l->peers, ((struct msg_peer_gone *)m)->peer);
        break;
    case PM_DRAIN:
        l->draining = true;
        l->drain_end_us = clock_now_us() + (uint64_t)l->w->opt.drain_timeout_s * 1000000;
        break;
    }
    prefill_msg_free(m);
}

/* ---- what the engine reports ---- */

static void on_admitted(void *arg, struct sequence *s)
{
    struct prefill_loop *l = arg;
    struct handoff *h = s->owner;

    handoff_enter(h, HANDOFF_COMPUTING, "pages taken");
    h->start_us = clock_now_us();
    h->n_cached = s->n_cached;
    engine_run(l->engine, s, s->n_cached);
}

/* Finished pages leave at once; the last ones, and the state, with the first token. */
static void on_stepped(void *arg, struct sequence *s)
{
    struct prefill_loop *l = arg;
    struct handoff *h = s->owner;
    bool last = s->n_new > 0;
    struct status st;

    if (last) {
        engine_hold(l->engine, s);
        h->first_token = s->tokens[h->n_prompt];
        h->computed_us = clock_now_us();
        h->compute_us = h->computed_us - h->start_us;
        handoff_enter(h, HANDOFF_FLUSHING, "prompt computed");
    }
    if (kv_sender_post(h, l->w->geometry, last ? h->n_pages : s->n_computed / KV_PAGE_TOKENS, last,
                       l->w->mirror, l->w->engine, &st) != ST_OK)
        stop(l, h, &st);
}

static void on_scored(void *arg, struct sequence *s, const struct sampler_logprobs *one)
{
    struct handoff *h = s->owner;
    struct status st;

    (void)arg;
    if (logprobs_add(&h->prompt_logprobs, one, &st) != ST_OK)
        abort(); /* a few bytes: the process is beyond help */
}

static void on_retracted(void *arg, struct sequence *s)
{
    (void)arg;
    (void)s; /* prompts have all their pages from the start: it does not happen */
    assert(false);
}

static void on_step_failed(void *arg, struct sequence *s, const struct status *error)
{
    stop(arg, s->owner, error);
}

/* ---- the loop ---- */

static bool finished(const struct prefill_loop *l)
{
    return l->draining && (l->handoffs == NULL || clock_now_us() > l->drain_end_us);
}

void prefill_loop_run(struct prefill_loop *l)
{
    struct engine_stats stats;
    struct peer_links links;
    bool idle = false;

    while (!finished(l)) {
        struct msg *m;

        if (idle)
            mailbox_wait(l->w->engine, l->draining ? DRAIN_WAIT_MS : IDLE_WAIT_MS);
        while ((m = mailbox_pop(l->w->engine)) != NULL)
            handle(l, m);
        engine_admit(l->engine);
        idle = !engine_step(l->engine);
        drop_gone(l);
        engine_get_stats(l->engine, &stats);
        worker_load(l->w, &stats);
        if (!idle) {
            prefill_metrics_step(&l->metrics, &stats);
            step_trace_add(l->w->trace, &stats);
        }
        peer_list_links(l->peers, &links);
        prefill_metrics_gauges(&l->metrics, l->w->pages, l->w->slots, &stats, &links);
    }
}

/* ---- start and end ---- */

enum status_code prefill_loop_new(struct worker *w, struct prefill_loop **out, struct status *st)
{
    struct prefill_loop *l = calloc(1, sizeof(*l));
    struct engine_events steps = {on_admitted,  on_stepped,     on_scored,
                                  on_retracted, on_step_failed, l};

    if (l == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the prefill loop");
    l->w = w;
    if (worker_engine_new(w, &steps, &l->engine, st) != ST_OK ||
        peer_list_new(w, peer_lost, l, &l->peers, st) != ST_OK ||
        prefill_metrics_init(&l->metrics, w->metrics, w->geometry, st) != ST_OK) {
        peer_list_free(l->peers);
        engine_free(l->engine);
        free(l);
        return st->code;
    }
    *out = l;
    return status_ok(st);
}

void prefill_loop_drain(struct prefill_loop *l)
{
    struct msg_link *m = calloc(1, sizeof(*m));

    if (m == NULL)
        abort();
    m->base.type = PM_DRAIN;
    mailbox_push(l->w->engine, &m->base);
}

void prefill_loop_free(struct prefill_loop *l)
{
    if (l == NULL)
        return;
    /* The server is gone: every session's PM_CLOSED is in the box; peers then wait for
     * PM_PEER_GONE. */
    for (;;) {
        struct msg *m;

        while ((m = mailbox_pop(l->w->engine)) != NULL)
            handle(l, m);
        drop_gone(l);
        if (l->handoffs == NULL && peer_list_empty(l->peers))
            break;
        mailbox_wait(l->w->engine, IDLE_WAIT_MS);
    }
    peer_list_free(l->peers);
    engine_free(l->engine);
    free(l);
}
