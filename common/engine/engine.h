/*
 * engine: continuous batching over the six KV pools: admission, prefix cache, ragged steps of
 * prompt chunks and running requests together, sampling, speculation, retraction. Serves prefill
 * and decode workers; they differ in what they let it do and in what they do with a token.
 *
 *   submit ─▶ waiting ─▶ admitted(): hold (KV comes from elsewhere) or run
 *                            step:  chunks + one row per running sequence (+ drafts)
 *                                   ─▶ forward ─▶ draw ─▶ draft ─▶ stepped()
 *
 * Promises  the tokens of a sequence depend on its tokens, sampling parameters and seed alone:
 *           never on its company, chunks, cached prefix, drafts or retractions. All pages and slots
 *           are free or in the prefix cache when no sequence is in. A step allocates nothing.
 *           Admission is in order of the policy and never overtakes for ever: an admitted sequence
 *           fits, and what does not fit now waits in front. The oldest prompt that computes has
 *           half of every step's chunk; a much shorter one does not wait for it.
 * Threads   one: the engine thread.
 */
#ifndef BATON_COMMON_ENGINE_ENGINE_H
#define BATON_COMMON_ENGINE_ENGINE_H

#include "common/engine/sequence.h"
#include "common/kv/prefix_cache.h"
#include "common/kv/slab.h"
#include "common/model/model.h"

struct engine;

enum schedule_policy { SCHEDULE_FCFS, SCHEDULE_PRIORITY, SCHEDULE_LPM };

struct engine_options {
    int max_running;        /* sequences HELD or RUNNING at once */
    int chunk_tokens;       /* prompt tokens of one step, all sequences together */
    int64_t context_length; /* tokens of one sequence, at most */
    enum schedule_policy policy;
    bool prefix_cache;     /* off: nothing is kept */
    uint32_t n_snapshots;  /* units for states at page boundaries; 0: none are kept */
    bool snapshot_prompts; /* at the ends of prompts and along long ones */
    bool snapshot_turns;   /* at the last page boundary of what is generated */
    uint32_t pin_percent;  /* of pages, and of snapshots, that requests may pin together */
    int draft_tokens;      /* MTP drafts per step, 0: no speculation; <= SEQ_DRAFTS_MAX */
    int draft_max_batch;   /* no drafts while more sequences than this run */
    bool keep_mtp;         /* advance the MTP block's window even without drafts (prefill) */
    uint32_t local_tokens; /* prompts whose uncached tail is no longer are computed here; the others
                              get their KV from elsewhere. UINT32_MAX: all */
    void (*cache_event)(void *arg, const struct prefix_event *e); /* NULL: nobody listens */
    void *cache_event_arg;
    bool grow; /* sequences outgrow their prompt: a margin is kept, the youngest is
                  retracted when pages run out */
};

/* Called from within engine calls, on the engine thread. A callback may end its own sequence
 * (engine_remove) and submit others; nothing else. */
struct engine_events {
    /* WAITING -> HELD: units are taken. s->local: engine_run(e, s, s->n_cached) computes the rest
     * here; else the KV of all pages after the first s->n_hit_pages, and the slot's, must come from
     * elsewhere before engine_run(). */
    void (*admitted)(void *arg, struct sequence *s);
    /* After a step that s took part in: n_computed moved, n_new tokens were drawn, finish says
     * whether it is over (the callee removes it then). */
    void (*stepped)(void *arg, struct sequence *s);
    /* How probable the next token of the prompt was, from its second on, in order; only of
     * sequences with prompt_logprobs. May be NULL. */
    void (*scored)(void *arg, struct sequence *s, const struct sampler_logprobs *one);
    /* RUNNING -> WAITING: pages ran out. */
    void (*retracted)(void *arg, struct sequence *s);
    /* The device failed; the callee removes s. */
    void (*failed)(void *arg, struct sequence *s, const struct status *error);
    void *arg;
};

/* Rows and logits that a model must be opened with for these options. */
void engine_batch_bounds(const struct engine_options *o, int *tokens, int *seqs, int *logit_rows);

/**
 * @param m, kv, pages, slots  borrowed; the engine alone uses them from now on
 * @return ST_OK; ST_EXHAUSTED; ST_INVALID
 */
enum status_code engine_new(const struct engine_options *o, struct model *m,
                            const struct kv_memory *kv, struct slab *pages, struct slab *slots,
                            const struct engine_events *events, struct engine **out,
                            struct status *st);
void engine_free(struct engine *e);

/**
 * OUT -> WAITING. Refuses what can never fit.
 * @return ST_OK; ST_INVALID with the numbers
 */
enum status_code engine_submit(struct engine *e, struct sequence *s, struct status *st);

/** HELD -> RUNNING: its KV holds n_computed positions. */
void engine_run(struct engine *e, struct sequence *s, uint32_t n_computed);

/** RUNNING -> HELD: it is not stepped any more, its units stay. */
void engine_hold(struct engine *e, struct sequence *s);

/** HELD -> WAITING: its KV was lost. Its units are given back unless they were taken from it
 * (engine_disown). */
void engine_requeue(struct engine *e, struct sequence *s);

/** Any state -> OUT. Full computed pages stay in the prefix cache; units are given back. */
void engine_remove(struct engine *e, struct sequence *s);

/** The caller takes over the references of s's pages and slot (to quarantine them). */
void engine_disown(struct sequence *s);

/** Admits what fits. */
void engine_admit(struct engine *e);

/** Runs one step. @return whether there was anything to do */
bool engine_step(struct engine *e);

/** Drops every cached page that no sequence uses. @return pages dropped */
uint32_t engine_flush_cache(struct engine *e);

struct engine_stats {
    uint32_t n_waiting, n_held, n_running;
    uint32_t pages_free, pages_cached, snapshots;
    uint32_t pages_used, slots_used; /* taken, for whatever */
    uint32_t pages_busy; /* of sequences, pinned or in quarantine: neither free nor evictable */
    uint32_t pages_pinned;
    uint64_t pins, pins_refused;
    uint64_t waiting_tokens; /* not yet computed, of those waiting and of prompts that run */
    uint64_t steps, retractions;
    uint64_t hit_tokens, prompt_tokens;
    uint64_t drafted[SEQ_DRAFTS_MAX], accepted[SEQ_DRAFTS_MAX]; /* by place in the chain */
    /* The last step. */
    uint32_t batch_seqs, batch_tokens;
    uint64_t schedule_us, forward_us, sample_us, draft_us;
};
void engine_get_stats(const struct engine *e, struct engine_stats *out);

#endif
