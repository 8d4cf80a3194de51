/*
 * engine_internal: what the engine's parts share. Private to common/engine.
 *
 *   engine.c      lists, admission, retraction        units.c   pages, slots, prefix cache, states
 *   batch.c       a step's rows, forward, draws       draft.c   MTP: guesses and what became of
 * them
 */
#ifndef BATON_COMMON_ENGINE_ENGINE_INTERNAL_H
#define BATON_COMMON_ENGINE_ENGINE_INTERNAL_H

#include "common/engine/engine.h"

/* Sequences in order of arrival. */
struct sequence_list {
    struct sequence *first, *last;
    uint32_t n;
};

/* Prompt tokens that are scored in one step, at most: each takes a row of logits. */
enum { SCORE_ROWS = 32 };

/* One sequence's part of a step. */
struct part {
    struct sequence *seq;
    uint32_t n_rows;   /* tokens computed, drafts included */
    uint32_t n_drafts; /* of the rows, the last ones */
    int first_row;     /* in the batch */
    int logit_row;     /* of the first logits that are drawn from; -1: none */
    int score_row;     /* of its first row, when its tokens are scored; -1: they are not */
    bool failed;
};

/* What a prompt gets of a step's chunk. */
struct share {
    struct sequence *seq;
    uint32_t left; /* tokens of it to be computed */
    uint32_t most; /* of those, that it may take in this step */
    uint32_t n;    /* that it gets */
};

/* For tests: what they see and bend. */
struct engine_probe {
    /* The row that s's next token is drawn from. */
    void (*row)(void *arg, const struct sequence *s, const float *logits);
    /* Replaces a guess, so that acceptance is what they want. */
    int32_t (*guess)(void *arg, const struct sequence *s, uint32_t place, int32_t draft);
    /* Replaces the clock of the pins. */
    uint64_t (*now_s)(void *arg);
    void *arg;
};

struct engine {
    struct engine_options opt;
    struct engine_events events;
    struct model *model;
    struct kv_memory kv;
    const struct kv_geometry *geometry;
    int32_t vocab;
    struct sampler *sampler;

    struct slab *pages, *slots;
    struct prefix_cache *cache; /* NULL: off */
    struct slab *snapshots;     /* NULL: none are kept */
    struct dev_ptr snapshot_memory;
    uint64_t snapshot_bytes;
    struct kv_run *runs; /* scratch of state copies */

    struct sequence_list waiting, active; /* HELD and RUNNING */
    uint32_t n_running;
    uint64_t next_order;

    /* A step, sized at start. */
    int max_rows, max_seqs, max_logit_rows;
    struct part *parts;       /* [max_seqs] */
    struct model_span *spans; /* [max_seqs] */
    int32_t *next_tokens;     /* [max_rows] for MTP */
    int32_t *rows;            /* [max_seqs] for MTP */
    int n_parts;
    struct sequence **drafting; /* [max_seqs] */
    struct share *shares;       /* [max_seqs] of the chunk */
    /* Where the device draws: what it is asked, what it gave; by row of logits. [max_logit_rows] */
    struct kernel_draw *draws;
    int32_t *ids, *drawn;
    int n_draws;
    struct engine_probe probe;

    struct engine_stats stats;
};

/* ---- units.c ---- */

enum status_code units_init(struct engine *e, struct status *st);
void units_deinit(struct engine *e);

/* Ends pins whose time is over. */
void units_advance(struct engine *e);

/* Pages (hits first) and a slot for s's tokens, its state as far as the cache has it; false: they
 * do not fit now. `margin` pages stay free beside them. */
bool units_take(struct engine *e, struct sequence *s, uint32_t margin);

/* One more page for s; evicts cached ones for it. */
bool units_grow(struct engine *e, struct sequence *s);

/* Gives all back; full computed pages stay in the cache. */
void units_give(struct engine *e, struct sequence *s);

/* After n_computed moved from `before`: keeps pages and states that the cache should have. */
void units_computed(struct engine *e, struct sequence *s, uint32_t before);

/* KV came from elsewhere: its full pages serve others from now on. */
void units_arrived(struct engine *e, struct sequence *s);

/* The position that a chunk from n_computed must not run past, so that a state can be kept there:
 * UINT32_MAX when there is none. */
uint32_t units_next_cut(const struct engine *e, const struct sequence *s);

/* ---- batch.c ---- */

enum status_code batch_init(struct engine *e, struct status *st);
void batch_deinit(struct engine *e);

/*
 * Where the device draws, logits come to the host only for what it does not cover (penalties,
 * biases, log probabilities, tokens that must not come yet). The order of a step:
 *   forward with batch_logits_at()   NULL: the device keeps the logits
 *   batch_ask() for each row that a token is drawn from, rows ascending
 *   batch_ask_end()                  *logits: NULL when none is needed
 *   batch_take()                     the token of a row
 */
const float **batch_logits_at(const struct engine *e, const float **logits);
/* @return whether the device draws it. ahead: tokens beyond s's that are taken for granted */
bool batch_ask(struct engine *e, const struct sequence *s, int row, uint32_t ahead);
enum status_code batch_ask_end(struct engine *e, bool need_logits, const float **logits,
                               struct status *st);

/* The next token of s from a row of logits: the device's, or drawn here; -1: there is none. Tokens
 * that were taken for granted when it was asked count in s by now. logprobs: out, or NULL. */
int32_t batch_take(struct engine *e, struct sequence *s, const float *logits, int row,
                   struct sampler_logprobs *logprobs);

/* Draws the next token of s from a row of logits; -1: there is none. logprobs: out, or NULL. */
int32_t batch_draw(struct engine *e, struct sequence *s, const float *logits,
                   struct sampler_logprobs *logprobs);

/* ---- draft.c ---- */

/* Whether tokens of s's prompt are still to be scored. */
static inline bool batch_scores(const struct sequence *s)
{
    return s->sampling.prompt_logprobs && s->n_emitted == 0 && s->n_scored + 1 < s->n_prompt;
}

/* Whether sequences draft in this step, by the size of its batch. */
bool draft_wanted(const struct engine *e);

/* After the draws of a step: advances the MTP window, makes drafts for those that go on. */
enum status_code draft_make(struct engine *e, struct status *st);

/* Counts what became of s's drafts. */
void draft_settle(struct engine *e, struct sequence *s, uint32_t n_made, uint32_t n_accepted);

/* ---- engine.c ---- */

/* Retracts the youngest running sequence. */
void engine_retract_youngest(struct engine *e);

#endif
