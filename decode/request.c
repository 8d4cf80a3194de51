#include "decode/request.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/kv/geometry.h"
#include "common/worker/sampling.h"

static const char *const names[REQ_N_STATES] = {"waiting", "asking",   "receiving", "verifying",
                                                "running", "draining", "done"};

#define TO(s) (1u << (s))
static const uint32_t next_states[REQ_N_STATES] = {
    [REQ_WAITING] = TO(REQ_ASKING) | TO(REQ_DONE),
    [REQ_ASKING] = TO(REQ_RECEIVING) | TO(REQ_WAITING) | TO(REQ_DONE),
    [REQ_RECEIVING] = TO(REQ_VERIFYING) | TO(REQ_WAITING) | TO(REQ_DRAINING) | TO(REQ_DONE),
    [REQ_VERIFYING] = TO(REQ_RUNNING) | TO(REQ_RECEIVING) | TO(REQ_DRAINING) | TO(REQ_DONE),
    [REQ_RUNNING] = TO(REQ_WAITING) | TO(REQ_DONE),
    [REQ_DRAINING] = TO(REQ_DONE),
};

void request_enter(struct request *r, enum request_state next, const char *why)
{
    assert(next_states[r->state] & TO(next));
    log_debug("%s: %s -> %s, %s", r->rid, names[r->state], names[next], why);
    r->state = next;
}

static enum status_code check(const Baton__V1__DecodeSubmit *m, int64_t context_length,
                              int32_t vocab, struct status *st)
{
    if (m->n_token_ids == 0)
        return status_set(st, ST_INVALID, "the prompt has no tokens");
    if ((int64_t)m->n_token_ids >= context_length)
        return status_set(
            st, ST_INVALID,
            "the prompt has %zu tokens, the context length is %lld: no room for an answer",
            m->n_token_ids, (long long)context_length);
    for (size_t i = 0; i < m->n_token_ids; i++)
        if (m->token_ids[i] < 0 || m->token_ids[i] >= vocab)
            return status_set(st, ST_INVALID,
                              "token %zu is %d, outside the model's vocabulary of %d: router and "
                              "worker use different tokenizers",
                              i, m->token_ids[i], vocab);
    if (m->n_emitted > m->n_token_ids)
        return status_set(st, ST_INVALID, "%u tokens emitted of %zu", m->n_emitted, m->n_token_ids);
    if (m->n_prefill == 0 || m->n_prefill > REQUEST_PREFILLS_MAX)
        return status_set(st, ST_INVALID, "%zu prefill workers named, 1..%d are possible",
                          m->n_prefill, REQUEST_PREFILLS_MAX);
    if (m->sampling != NULL && m->sampling->n_stop_token_ids > REQUEST_STOP_IDS_MAX)
        return status_set(st, ST_INVALID, "%zu stop token ids, at most %d are possible",
                          m->sampling->n_stop_token_ids, REQUEST_STOP_IDS_MAX);
    return status_ok(st);
}

/* Output tokens that the request may have in all; the context length bounds it in any case. */
static uint32_t bound_new(const Baton__V1__DecodeSubmit *m, int64_t context_length)
{
    int64_t room = context_length - (int64_t)m->n_token_ids + m->n_emitted;

    if (m->sampling != NULL && m->sampling->has_max_new_tokens &&
        m->sampling->max_new_tokens < (uint64_t)room)
        return m->sampling->max_new_tokens;
    return (uint32_t)room;
}

static void take_sampling(struct request *r, const Baton__V1__Sampling *m)
{
    r->sampling = sampling_from_message(m);
    if (m == NULL)
        return;
    r->min_new = m->has_min_new_tokens ? m->min_new_tokens : 0;
    r->ignore_eos = m->has_ignore_eos && m->ignore_eos;
    r->n_stop_ids = (uint32_t)m->n_stop_token_ids;
    if (r->n_stop_ids > 0)
        memcpy(r->stop_ids, m->stop_token_ids, r->n_stop_ids * sizeof(*r->stop_ids));
}

static bool take_memory(struct request *r, const Baton__V1__DecodeSubmit *m)
{
    r->n_prompt = r->n_tokens = (uint32_t)m->n_token_ids;
    r->n_emitted = m->n_emitted;
    r->cap_tokens = r->n_tokens + (r->max_new > r->n_emitted ? r->max_new - r->n_emitted : 1);
    r->cap_pages = kv_pages_for(r->cap_tokens);
    r->n_crc = 0;
    r->tokens = malloc(r->cap_tokens * sizeof(*r->tokens));
    r->pages = malloc(r->cap_pages * sizeof(*r->pages));
    r->crc = malloc((r->cap_pages + 1) * sizeof(*r->crc));
    if (r->tokens == NULL || r->pages == NULL || r->crc == NULL)
        return false;
    memcpy(r->tokens, m->token_ids, r->n_tokens * sizeof(*r->tokens));
    for (size_t i = 0; i < m->n_prefill; i++) {
        r->prefills[i] = strdup(m->prefill[i]);
        if (r->prefills[i] == NULL)
            return false;
        r->n_prefills++;
    }
    return true;
}

enum status_code request_new(const Baton__V1__DecodeSubmit *m, uint64_t seq, int64_t context_length,
                             int32_t vocab, struct request **out, struct status *st)
{
    struct request *r;

    if (check(m, context_length, vocab, st) != ST_OK)
        return st->code;
    r = calloc(1, sizeof(*r));
    if (r == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a request");
    r->id = m->request_id;
    r->seq = seq;
    r->max_new = bound_new(m, context_length);
    take_sampling(r, m->sampling);
    snprintf(r->rid, sizeof(r->rid), "%s", m->rid != NULL ? m->rid : "-");
    baton__v1__handoff_stats__init(&r->stats);
    if (!take_memory(r, m)) {
        request_free(r);
        return status_set(st, ST_EXHAUSTED, "no memory for a request of %zu tokens",
                          m->n_token_ids);
    }
    *out = r;
    return status_ok(st);
}

void request_free(struct request *r)
{
    if (r == NULL)
        return;
    for (uint32_t i = 0; i < r->n_prefills; i++)
        free(r->prefills[i]);
    free(r->tokens);
    free(r->pages);
    free(r->crc);
    free(r);
}

void request_append(struct request *r, int32_t token)
{
    assert(r->n_tokens < r->cap_tokens);
    r->tokens[r->n_tokens++] = token;
}

static bool is_stop(const struct request *r, int32_t token, int32_t eos)
{
    if (token == eos && !r->ignore_eos)
        return true;
    for (uint32_t i = 0; i < r->n_stop_ids; i++)
        if (r->stop_ids[i] == token)
            return true;
    return false;
}

Baton__V1__FinishReason request_finish(const struct request *r, int32_t eos, int64_t context_length)
{
    uint32_t n_new = r->n_tokens - r->n_prompt + r->n_emitted;

    if (n_new >= r->min_new && is_stop(r, r->tokens[r->n_tokens - 1], eos))
        return BATON__V1__FINISH_REASON__FINISH_STOP;
    if (n_new >= r->max_new || r->n_tokens >= context_length)
        return BATON__V1__FINISH_REASON__FINISH_LENGTH;
    return BATON__V1__FINISH_REASON__FINISH_NONE;
}

/* Counts that add up over retractions; the rest is of the latest handoff. */
static void keep_stats(struct request *r, const Baton__V1__HandoffStats *m)
{
    char *prefill = r->prefill_name, *transport = r->transport;

    if (m == NULL)
        return;
    r->stats = *m;
    r->stats.base.n_unknown_fields = 0;
    r->stats.base.unknown_fields = NULL;
    r->stats.decode = NULL;
    snprintf(r->prefill_name, sizeof(r->prefill_name), "%s", r->prefills[r->prefill_idx]);
    snprintf(r->transport, sizeof(r->transport), "%s",
             m->transport != NULL ? m->transport : "unknown");
    r->stats.prefill = prefill;
    r->stats.transport = transport;
}

enum status_code request_keep_done(struct request *r, const Baton__V1__PrefillDone *m,
                                   struct status *st)
{
    size_t expected = kv_pages_for(r->n_tokens) + 1;

    if (m->n_checksums != expected)
        return status_set(st, ST_CORRUPT, "%zu checksums came for %zu pages and a slot",
                          m->n_checksums, expected - 1);
    r->first_token = m->first_token;
    r->n_crc = (uint32_t)m->n_checksums;
    memcpy(r->crc, m->checksums, m->n_checksums * sizeof(*r->crc));
    keep_stats(r, m->stats);
    return status_ok(st);
}
