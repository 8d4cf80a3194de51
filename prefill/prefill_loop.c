#include "prefill/prefill_loop.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/worker/worker.h"
#include "prefill/handoff_state.h"
#include "prefill/kv_sender.h"
#include "prefill/messages.h"
#include "prefill/peers.h"
#include "prefill/prefill_metrics.h"
#include "prefill/replies.h"

struct prefill_loop {
    struct worker *w;
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

static void give_units(struct prefill_loop *l, struct handoff *h)
{
    if (!h->has_units)
        return;
    slab_give(l->w->pages, h->pages, h->n_pages);
    slab_give(l->w->slots, &h->slot, 1);
    h->has_units = false;
}

/* Nothing reads the pages any more: frees them, and tells the peer if it has not been told. */
static void end(struct prefill_loop *l, struct handoff *h, const char *why)
{
    assert(h->n_puts == 0);
    if (h->state == HANDOFF_STOPPING || h->state == HANDOFF_WAITING) {
        reply_stopped(h->peer, h->id, h->error.code == ST_CANCELLED ? NULL : &h->error);
        prefill_metrics_end(&l->metrics, h->error.code);
    } else {
        prefill_metrics_end(&l->metrics, ST_OK);
    }
    handoff_enter(h, HANDOFF_GONE, why);
    give_units(l, h);
}

/* Ends a handoff early, whatever its state; pages stay until the running transfers have ended. */
static void stop(struct prefill_loop *l, struct handoff *h, const struct status *why)
{
    if (h->state == HANDOFF_STOPPING || h->state == HANDOFF_GONE)
        return;
    h->error = *why;
    if (why->code != ST_CANCELLED)
        log_warn("%s: prefill for %s stops: %s", h->rid, h->peer->name, why->msg);
    if (h->state == HANDOFF_COMPUTING || h->state == HANDOFF_FLUSHING) {
        handoff_enter(h, HANDOFF_STOPPING, why->msg);
        kv_sender_cancel(h);
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

static enum status_code check_fits(const struct prefill_loop *l, const struct handoff *h,
                                   struct status *st)
{
    int32_t vocab = model_get_config(l->w->model)->vocab_size;

    if (h->n_tokens >= l->w->context_length)
        return status_set(st, ST_INVALID, "%u prompt tokens, the context length is %lld",
                          h->n_tokens, (long long)l->w->context_length);
    if (h->n_pages > slab_units(l->w->pages))
        return status_set(st, ST_INVALID,
                          "%u prompt tokens need %u KV pages, prefill worker has %u: raise "
                          "--max-total-tokens",
                          h->n_tokens, h->n_pages, slab_units(l->w->pages));
    for (uint32_t i = 0; i < h->n_tokens; i++)
        if (h->tokens[i] < 0 || h->tokens[i] >= vocab)
            return status_set(st, ST_INVALID, "token %u is %d, outside the vocabulary of %d", i,
                              h->tokens[i], vocab);
    return status_ok(st);
}

static void on_submit(struct prefill_loop *l, struct prefill_peer *peer,
                      const Baton__V1__PrefillSubmit *m)
{
    struct handoff *h = NULL;
    struct status st;

    if (peer->transfer == NULL)
        status_set(&st, ST_INVALID, "submit before hello");
    else if (find(l, peer, m->request_id) != NULL)
        status_set(&st, ST_INVALID, "request id %llu is in use", (unsigned long long)m->request_id);
    else if (l->draining)
        status_set(&st, ST_UNAVAILABLE, "prefill worker is shutting down");
    else
        handoff_new(m, peer, &h, &st);
    prefill_metrics_request(&l->metrics);
    if (h == NULL) {
        reply_stopped(peer, m->request_id, &st);
        prefill_metrics_end(&l->metrics, st.code);
        return;
    }
    append(l, h);
    if (check_fits(l, h, &st) != ST_OK)
        stop(l, h, &st);
}

static void on_cancel(struct prefill_loop *l, struct prefill_peer *peer, uint64_t id)
{
    struct handoff *h = find(l, peer, id);
    struct status why;

    status_set(&why, ST_CANCELLED, "cancelled by %s", peer->name);
    if (h == NULL)
        reply_stopped(peer, id, NULL); /* already over: say so, the peer waits for it */
    else if (h->state == HANDOFF_SENT) {
        reply_stopped(peer, id, NULL);
        end(l, h, why.msg);
    } else
        stop(l, h, &why);
}

static void on_resend(struct prefill_loop *l, struct prefill_peer *peer, uint64_t id)
{
    struct handoff *h = find(l, peer, id);
    struct status st;

    if (h == NULL || h->state != HANDOFF_SENT) {
        status_set(&st, ST_INVALID, "resend of a handoff that is not there");
        reply_stopped(peer, id, &st);
        return;
    }
    log_error("%s: %s found wrong checksums in what we wrote: writing %u pages again", h->rid,
              peer->name, h->n_pages - h->n_present);
    handoff_enter(h, HANDOFF_FLUSHING, "checksum mismatch at the peer");
    h->n_resends++;
    h->n_pages_sent = h->n_present;
    if (kv_sender_post(h, l->w->geometry, h->n_pages, true, l->w->engine, &st) != ST_OK)
        stop(l, h, &st);
}

static void on_release(struct prefill_loop *l, struct prefill_peer *peer, uint64_t id)
{
    struct handoff *h = find(l, peer, id);

    if (h != NULL && h->state == HANDOFF_SENT)
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

static void on_put_done(struct prefill_loop *l, const struct msg_put_done *m)
{
    struct handoff *h = m->handoff;

    h->n_puts--;
    h->transfer_us += m->elapsed_us;
    h->kv_bytes += m->bytes;
    for (uint32_t i = 0; i < m->n_groups; i++)
        h->crc[m->first_group + i] = m->crc[i];
    prefill_metrics_put(&l->metrics, m->bytes, m->elapsed_us);
    if (m->status.code != ST_OK)
        stop(l, h, &m->status);
    else if (h->state == HANDOFF_FLUSHING && h->n_puts == 0)
        tell_done(l, h);
    if (h->state == HANDOFF_STOPPING && h->n_puts == 0)
        end(l, h, "transfers ended");
}

static void peer_lost(void *arg, struct prefill_peer *peer)
{
    struct prefill_loop *l = arg;
    struct status why;

    status_set(&why, ST_UNAVAILABLE, "decode worker %s is gone", peer->name);
    for (struct handoff *h = l->handoffs; h != NULL; h = h->next) {
        if (h->peer != peer || h->state == HANDOFF_GONE)
            continue;
        if (h->state == HANDOFF_SENT)
            end(l, h, why.msg);
        else
            stop(l, h, &why);
    }
}

static void handle(struct prefill_loop *l, struct msg *m)
{
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

/* ---- the step ---- */

static bool take_units(struct prefill_loop *l, struct handoff *h)
{
    struct status st;

    if (slab_take(l->w->pages, h->n_pages, h->pages, &st) != ST_OK)
        return false;
    if (slab_take(l->w->slots, 1, &h->slot, &st) != ST_OK) {
        slab_give(l->w->pages, h->pages, h->n_pages);
        return false;
    }
    h->has_units = true;
    return true;
}

/* First come first served: the oldest that computes, else the oldest that waits, if it fits now. */
static struct handoff *pick(struct prefill_loop *l)
{
    for (struct handoff *h = l->handoffs; h != NULL; h = h->next)
        if (h->state == HANDOFF_COMPUTING)
            return h;
    for (struct handoff *h = l->handoffs; h != NULL; h = h->next) {
        if (h->state != HANDOFF_WAITING)
            continue;
        if (!take_units(l, h))
            return NULL; /* later ones must not starve it */
        handoff_enter(h, HANDOFF_COMPUTING, "pages taken");
        h->start_us = clock_now_us();
        return h;
    }
    return NULL;
}

static enum status_code compute_chunk(struct prefill_loop *l, struct handoff *h, struct status *st)
{
    uint32_t left = h->n_tokens - h->n_computed;
    uint32_t n =
        left < l->w->opt.chunked_prefill_size ? left : (uint32_t)l->w->opt.chunked_prefill_size;
    bool last = n == left;
    struct model_span span = {
        .tokens = h->tokens + h->n_computed,
        .n_tokens = (int)n,
        .start = h->n_computed,
        .slot = h->slot,
        .pages = h->pages,
        .logits = last ? MODEL_LOGITS_LAST : MODEL_LOGITS_NONE,
    };
    const float *logits;
    uint64_t t0 = clock_now_us();

    if (model_forward(l->w->model, &l->w->kv, &span, 1, &logits, st) != ST_OK)
        return status_wrap(st, "prefill of tokens %u..%u", h->n_computed, h->n_computed + n);
    h->n_computed += n;
    h->compute_us += clock_now_us() - t0;
    prefill_metrics_chunk(&l->metrics, n, clock_now_us() - t0);
    if (last)
        h->first_token = sampler_draw(logits, model_get_config(l->w->model)->vocab_size,
                                      &h->sampling, h->n_tokens);
    return ST_OK;
}

static void step(struct prefill_loop *l, struct handoff *h)
{
    bool last;
    struct status st;

    if (compute_chunk(l, h, &st) != ST_OK) {
        stop(l, h, &st);
        return;
    }
    last = h->n_computed == h->n_tokens;
    if (last)
        handoff_enter(h, HANDOFF_FLUSHING, "prompt computed");
    if (kv_sender_post(h, l->w->geometry, last ? h->n_pages : h->n_computed / KV_PAGE_TOKENS, last,
                       l->w->engine, &st) != ST_OK)
        stop(l, h, &st);
}

static bool finished(const struct prefill_loop *l)
{
    return l->draining && (l->handoffs == NULL || clock_now_us() > l->drain_end_us);
}

void prefill_loop_run(struct prefill_loop *l)
{
    bool idle = false;

    while (!finished(l)) {
        struct handoff *h;
        struct msg *m;

        if (idle)
            mailbox_wait(l->w->engine, l->draining ? 50 : -1);
        while ((m = mailbox_pop(l->w->engine)) != NULL)
            handle(l, m);
        h = pick(l);
        if (h != NULL)
            step(l, h);
        idle = h == NULL;
        drop_gone(l);
        prefill_metrics_gauges(&l->metrics, l->w->pages, l->w->slots);
    }
}

/* ---- start and end ---- */

enum status_code prefill_loop_new(struct worker *w, struct prefill_loop **out, struct status *st)
{
    struct prefill_loop *l = calloc(1, sizeof(*l));

    if (l == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the prefill loop");
    l->w = w;
    if (peer_list_new(w, peer_lost, l, &l->peers, st) != ST_OK ||
        prefill_metrics_init(&l->metrics, w->metrics, st) != ST_OK) {
        peer_list_free(l->peers);
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
        mailbox_wait(l->w->engine, 1000);
    }
    peer_list_free(l->peers);
    free(l);
}
