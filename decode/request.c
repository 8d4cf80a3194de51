#include "decode/request.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/kv/geometry.h"
#include "common/kv/pins.h"
#include "common/worker/handoff.h"
#include "common/worker/sampling.h"

static const char *const names[REQ_N_STATES] = {"waiting", "asking",   "receiving", "verifying",
                                                "running", "draining", "done"};

#define TO(s) (1u << (s))
static const uint32_t next_states[REQ_N_STATES] = {
    [REQ_WAITING] = TO(REQ_ASKING) | TO(REQ_RUNNING) | TO(REQ_DONE),
    [REQ_ASKING] = TO(REQ_RECEIVING) | TO(REQ_WAITING) | TO(REQ_DONE),
    [REQ_RECEIVING] = TO(REQ_VERIFYING) | TO(REQ_WAITING) | TO(REQ_DRAINING) | TO(REQ_DONE),
    [REQ_VERIFYING] = TO(REQ_RUNNING) | TO(REQ_RECEIVING) | TO(REQ_DONE),
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
    if (m->has_cache_pin_s && m->cache_pin_s > PINS_SECONDS_MAX)
        return status_set(st, ST_INVALID, "cache_pin_s is %u, at most %d seconds are possible",
                          m->cache_pin_s, PINS_SECONDS_MAX);
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

static enum status_code take_sequence(struct request *r, const Baton__V1__DecodeSubmit *m,
                                      int64_t context_length, int32_t vocab, int32_t eos,
                                      struct status *st)
{
    if (sampling_params_read(m->sampling, vocab, eos, &r->sampling, st) != ST_OK ||
        sequence_init(&r->seq, m->token_ids, (uint32_t)m->n_token_ids, m->n_emitted,
                      bound_new(m, context_length), &r->sampling, vocab, st) != ST_OK)
        return st->code;
    r->seq.ignore_eos =
        m->sampling != NULL && m->sampling->has_ignore_eos && m->sampling->ignore_eos;
    r->seq.rid = r->rid;
    r->seq.owner = r;
    r->seq.salt = m->has_cache_salt ? m->cache_salt : 0;
    r->seq.priority = m->has_priority ? m->priority : 0;
    r->seq.pin_s = m->has_cache_pin_s ? m->cache_pin_s : 0;
    r->crc = malloc((r->seq.cap_pages + HANDOFF_SLOT_GROUPS_MAX) * sizeof(*r->crc));
    if (r->crc == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the checksums of a request");
    return status_ok(st);
}

static enum status_code take_prefills(struct request *r, const Baton__V1__DecodeSubmit *m,
                                      struct status *st)
{
    for (size_t i = 0; i < m->n_prefill; i++) {
        r->prefills[i] = strdup(m->prefill[i]);
        if (r->prefills[i] == NULL)
            return status_set(st, ST_EXHAUSTED, "no memory for a request");
        r->n_prefills++;
    }
    return status_ok(st);
}

enum status_code request_new(const Baton__V1__DecodeSubmit *m, uint64_t name,
                             int64_t context_length, int32_t vocab, int32_t eos,
                             struct request **out, struct status *st)
{
    struct request *r;

    if (check(m, context_length, vocab, st) != ST_OK)
        return st->code;
    r = calloc(1, sizeof(*r));
    if (r == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a request");
    r->id = m->request_id;
    r->name = name;
    snprintf(r->rid, sizeof(r->rid), "%s", m->rid != NULL ? m->rid : "-");
    baton__v1__handoff_stats__init(&r->stats);
    if (take_sequence(r, m, context_length, vocab, eos, st) != ST_OK ||
        take_prefills(r, m, st) != ST_OK)
        request_free(r);
    else
        *out = r;
    return st->code;
}

void request_free(struct request *r)
{
    if (r == NULL)
        return;
    for (uint32_t i = 0; i < r->n_prefills; i++)
        free(r->prefills[i]);
    sequence_deinit(&r->seq);
    sampling_params_deinit(&r->sampling);
    logprobs_deinit(&r->news);
    logprobs_deinit(&r->prompt_logprobs);
    free(r->crc);
    free(r);
}

void request_note_local(struct request *r)
{
    static char here[] = "none: the decode worker computed the prompt's tail itself";

    r->stats.has_cached_tokens = true;
    r->stats.cached_tokens = r->seq.n_cached;
    r->stats.transport = here;
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

/* What the prefill worker drew and scored for us. A resend tells the same again. */
static enum status_code keep_logprobs(struct request *r, const Baton__V1__PrefillDone *m,
                                      struct status *st)
{
    struct sequence *s = &r->seq;

    logprobs_clear(&r->news);
    if (s->sampling.logprobs && m->logprobs == NULL)
        return status_set(st, ST_CORRUPT, "the log probability of the first token is missing");
    if (s->sampling.logprobs && logprobs_add_message(&r->news, m->logprobs, 1, st) != ST_OK)
        return st->code;
    if (m->prompt_logprobs == NULL || s->n_scored > 0)
        return status_ok(st);
    logprobs_clear(&r->prompt_logprobs);
    if (logprobs_add_message(&r->prompt_logprobs, m->prompt_logprobs, s->n_prompt - 1, st) == ST_OK)
        s->n_scored = s->n_prompt - 1;
    return st->code;
}

enum status_code request_keep_written(struct request *r, const Baton__V1__PrefillWritten *m,
                                      uint32_t n_crc, struct status *st)
{
    if (m->first != r->n_told || m->n_checksums == 0 || m->n_checksums > n_crc - r->n_told)
        return status_set(st, ST_CORRUPT, "%zu checksums from %u on, of %u with %u told",
                          m->n_checksums, m->first, n_crc, r->n_told);
    memcpy(r->crc + r->n_told, m->checksums, m->n_checksums * sizeof(*r->crc));
    return status_ok(st);
}

enum status_code request_keep_done(struct request *r, const Baton__V1__PrefillDone *m,
                                   uint32_t n_crc, struct status *st)
{
    if (m->n_checksums != n_crc)
        return status_set(st, ST_CORRUPT, "%zu checksums came for %u pages and a slot: %u expected",
                          m->n_checksums, r->seq.n_pages - r->seq.n_hit_pages, n_crc);
    if (memcmp(r->crc, m->checksums, r->n_told * sizeof(*r->crc)) != 0)
        return status_set(st, ST_CORRUPT, "the first %u checksums were told differently",
                          r->n_told);
    r->first_token = m->first_token;
    memcpy(r->crc, m->checksums, m->n_checksums * sizeof(*r->crc));
    keep_stats(r, m->stats);
    return keep_logprobs(r, m, st);
}
