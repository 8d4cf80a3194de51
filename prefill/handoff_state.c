#include "prefill/handoff_state.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/kv/geometry.h"
#include "common/worker/handoff.h"
#include "common/worker/sampling.h"

static const char *const names[HANDOFF_N_STATES] = {"waiting", "computing", "flushing",
                                                    "sent",    "stopping",  "gone"};

#define TO(s) (1u << (s))
static const uint32_t next_states[HANDOFF_N_STATES] = {
    [HANDOFF_WAITING] = TO(HANDOFF_COMPUTING) | TO(HANDOFF_GONE),
    [HANDOFF_COMPUTING] = TO(HANDOFF_FLUSHING) | TO(HANDOFF_STOPPING),
    [HANDOFF_FLUSHING] = TO(HANDOFF_SENT) | TO(HANDOFF_STOPPING),
    [HANDOFF_SENT] = TO(HANDOFF_FLUSHING) | TO(HANDOFF_GONE),
    [HANDOFF_STOPPING] = TO(HANDOFF_GONE),
};

/* Columns: ADMITTED, COMPUTED, PUT_ENDED, PUTS_ENDED, CANCEL, RESEND, RELEASE, FAILED. */
#define I HANDOFF_IGNORE
#define BUG HANDOFF_BUG
/* clang-format off */
static const uint8_t table[HANDOFF_N_STATES][HANDOFF_N_EVENTS] = {
    [HANDOFF_WAITING]   = {HANDOFF_COMPUTE, BUG, BUG, BUG, HANDOFF_TELL_STOPPED, I, I, HANDOFF_TELL_STOPPED},
    [HANDOFF_COMPUTING] = {BUG, HANDOFF_FLUSH, HANDOFF_TELL_WRITTEN, HANDOFF_TELL_WRITTEN, HANDOFF_STOP, I, I, HANDOFF_STOP},
    [HANDOFF_FLUSHING]  = {BUG, BUG, HANDOFF_TELL_WRITTEN, HANDOFF_TELL_DONE, HANDOFF_STOP, I, I, HANDOFF_STOP},
    [HANDOFF_SENT]      = {BUG, BUG, BUG, BUG, HANDOFF_TELL_STOPPED, HANDOFF_SEND_AGAIN, HANDOFF_END, HANDOFF_END},
    [HANDOFF_STOPPING]  = {BUG, BUG, I, HANDOFF_TELL_STOPPED, I, I, I, I},
    [HANDOFF_GONE]      = {BUG, BUG, BUG, BUG, I, I, I, I},
};
/* clang-format on */
#undef I
#undef BUG

enum handoff_action handoff_action(enum handoff_state state, enum handoff_event event)
{
    return (enum handoff_action)table[state][event];
}

void handoff_enter(struct handoff *h, enum handoff_state next, const char *why)
{
    assert(next_states[h->state] & TO(next));
    log_debug("%s: handoff %s -> %s, %s", h->rid, names[h->state], names[next], why);
    h->state = next;
}

static enum status_code check(const Baton__V1__PrefillSubmit *m, struct status *st)
{
    size_t pages = kv_pages_for(m->n_token_ids);

    if (m->n_token_ids == 0)
        return status_set(st, ST_INVALID, "a prompt without tokens");
    if (m->n_token_ids > INT32_MAX)
        return status_set(st, ST_INVALID, "a prompt of %zu tokens", m->n_token_ids);
    if (m->n_pages != pages)
        return status_set(st, ST_INVALID, "%zu pages were named for %zu tokens, which need %zu",
                          m->n_pages, m->n_token_ids, pages);
    if (m->n_pages_present > m->n_token_ids / KV_PAGE_TOKENS)
        return status_set(st, ST_INVALID, "%u pages present of %zu full ones", m->n_pages_present,
                          m->n_token_ids / KV_PAGE_TOKENS);
    if (m->has_n_emitted && m->n_emitted > m->n_token_ids)
        return status_set(st, ST_INVALID, "%u output tokens of %zu", m->n_emitted, m->n_token_ids);
    return status_ok(st);
}

enum status_code handoff_new(const Baton__V1__PrefillSubmit *m, struct prefill_peer *peer,
                             int32_t vocab, int32_t eos, struct handoff **out, struct status *st)
{
    uint32_t n_output = m->has_n_emitted ? m->n_emitted : 0;
    struct handoff *h;

    if (check(m, st) != ST_OK)
        return st->code;
    h = calloc(1, sizeof(*h));
    if (h == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a handoff");
    h->peer = peer;
    peer->n_handoffs++;
    h->n_prompt = (uint32_t)m->n_token_ids;
    h->n_pages = (uint32_t)m->n_pages;
    h->n_present = m->n_pages_present;
    h->n_groups_sent = h->n_present;
    h->remote_pages = malloc(h->n_pages * sizeof(*h->remote_pages));
    h->crc = calloc(h->n_pages + HANDOFF_SLOT_GROUPS_MAX, sizeof(*h->crc));
    if (h->remote_pages == NULL || h->crc == NULL) {
        handoff_free(h);
        return status_set(st, ST_EXHAUSTED, "no memory for a prompt of %zu tokens", m->n_token_ids);
    }
    if (sampling_params_read(m->sampling, vocab, eos, &h->sampling, st) != ST_OK ||
        sequence_init(&h->seq, m->token_ids, h->n_prompt, n_output, n_output + 1, &h->sampling,
                      vocab, st) != ST_OK) {
        handoff_free(h);
        return st->code;
    }
    memcpy(h->remote_pages, m->pages, h->n_pages * sizeof(*h->remote_pages));
    h->id = m->request_id;
    h->remote_slot = m->slot;
    h->queued_us = clock_now_us();
    snprintf(h->rid, sizeof(h->rid), "%s", m->rid != NULL ? m->rid : "-");
    h->seq.rid = h->rid;
    h->seq.owner = h;
    h->seq.salt = m->has_cache_salt ? m->cache_salt : 0;
    h->seq.pin_s = m->has_cache_pin_s ? m->cache_pin_s : 0;
    h->seq.priority = m->has_priority ? m->priority : 0;
    *out = h;
    return status_ok(st);
}

void handoff_free(struct handoff *h)
{
    if (h == NULL)
        return;
    h->peer->n_handoffs--;
    sequence_deinit(&h->seq);
    sampling_params_deinit(&h->sampling);
    logprobs_deinit(&h->prompt_logprobs);
    free(h->remote_pages);
    free(h->crc);
    free(h);
}
