/*
 * sequence: the tokens of one request and the KV that they have: what the engine steps.
 *
 *   OUT ─▶ WAITING ─▶ HELD ─▶ RUNNING ─▶ OUT        HELD: has units; somebody else fills its KV,
 *             ▲          │        │                       or reads it, and it is not stepped
 *             └──────────┴────────┘ retracted
 *
 * Owns      tokens, block table; pages and slot while has_units.
 * Threads   engine only.
 */
#ifndef BATON_COMMON_ENGINE_SEQUENCE_H
#define BATON_COMMON_ENGINE_SEQUENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/kv/geometry.h"
#include "common/model/sampler_history.h"

enum sequence_state { SEQ_OUT, SEQ_WAITING, SEQ_HELD, SEQ_RUNNING };

enum { SEQ_DRAFTS_MAX = KV_DRAFT_SLACK - 1 };

/* How a generation ends; numbers are those of the FinishReason message. */
enum seq_finish { SEQ_GOES_ON, SEQ_STOP, SEQ_LENGTH };

struct sequence {
    struct sequence *next, *prev; /* the engine's */
    enum sequence_state state;
    uint64_t order;   /* of arrival: given at engine_submit(), kept over retractions */
    int32_t priority; /* greater goes first, where the policy looks at it */
    uint64_t salt;    /* the tenant's: prefixes are shared within one salt only */
    uint32_t pin_s;   /* seconds that its prompt is pinned in the prefix cache; 0: it is not */
    void *owner;      /* the caller's */
    const char *rid;  /* for logs; borrowed */

    int32_t *tokens; /* [n_tokens] of [cap_tokens] */
    uint32_t n_tokens, cap_tokens;
    uint32_t n_prompt;  /* tokens that came with the request */
    uint32_t n_emitted; /* of those, output of an earlier worker */
    uint32_t max_new;   /* output tokens at most, n_emitted included */
    bool ignore_eos;
    struct sampling_params sampling; /* its arrays are borrowed and outlive the sequence */
    struct sampler_history *history; /* NULL: no penalties */
    uint32_t n_scored; /* prompt tokens whose probability was told, the first never is */
    struct sampler_logprobs *logprobs; /* of the last n_new tokens; NULL: not asked for */

    uint32_t *pages; /* block table, [n_pages] of [cap_pages] */
    uint32_t n_pages, cap_pages;
    uint32_t slot;
    bool has_units;
    uint32_t n_computed;    /* positions whose KV is in our pages and slot */
    bool local;             /* admitted to be computed here */
    uint32_t n_hit_pages;   /* leading pages that came from the prefix cache at admission */
    uint32_t n_cached;      /* positions whose KV the cache gave: n_computed began here */
    uint32_t branch;        /* boundary where this prompt leaves what others share: worth a state */
    uint32_t turn_snapshot; /* page boundary of our turn-end snapshot, 0: none */

    uint32_t n_drafts;   /* guesses of what follows: tokens[n_tokens ...] */
    uint32_t draft_len;  /* how many to make next */
    uint32_t draft_rest; /* tokens until drafting is tried again, while draft_len is 0 */
    float acceptance;    /* accepted drafts per step, a running mean */

    /* What the last step did. */
    uint32_t n_new; /* tokens drawn: the last n_new */
    enum seq_finish finish;
};

/**
 * Room for n tokens that are given now and max_new - n_emitted more.
 * @param vocab     token ids are below
 * @return ST_OK; ST_INVALID: a token outside the vocabulary; ST_EXHAUSTED
 */
enum status_code sequence_init(struct sequence *s, const int32_t *tokens, uint32_t n,
                               uint32_t n_emitted, uint32_t max_new,
                               const struct sampling_params *sampling, int32_t vocab,
                               struct status *st);
void sequence_deinit(struct sequence *s);

/** Output tokens so far, those of earlier workers included. */
static inline uint32_t sequence_n_output(const struct sequence *s)
{
    return s->n_tokens - s->n_prompt + s->n_emitted;
}

/** Appends a token that was drawn, here or by the prefill worker, and settles s->finish. */
void sequence_append(struct sequence *s, int32_t token, int64_t context_length);

#endif
