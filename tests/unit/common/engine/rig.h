/*
 * rig: an engine over a small checkpoint, requests with known answers, and a check of every row of
 * logits that a token is drawn from.
 *
 * The answers come from the plainest run there is: one sequence alone, its prompt in one chunk, no
 * cache, no drafts, one thread.
 */
#ifndef BATON_TESTS_ENGINE_RIG_H
#define BATON_TESTS_ENGINE_RIG_H

#include "common/engine/engine.h"

enum { RIG_OUTPUT_MAX = 96 };

/* What one request must give. */
struct answer {
    const int32_t *prompt;
    uint32_t n_prompt;
    uint32_t max_new;
    struct sampling_params sampling;
    uint64_t salt;
    uint32_t n_output;
    int32_t output[RIG_OUTPUT_MAX];
    uint64_t rows[RIG_OUTPUT_MAX]; /* hashes of the logits that output[i] was drawn from */
};

/* A sequence under test. */
struct run {
    struct sequence seq;
    const struct answer *answer;
    bool ended, remote;
    uint32_t held_for; /* steps that a remote one has waited */
};

struct rig {
    struct model *model;
    struct kv_memory kv;
    struct slab *pages, *slots;
    struct engine *engine;
    struct engine_options opt;
    /* Set: it is given every row that a token is drawn from, and no answers are looked at. */
    void (*row)(void *arg, const struct sequence *s, const float *logits);
    void *row_arg;
    double guess_right; /* share of drafts that are made right; < 0: the model's own */
    uint64_t random;
    uint64_t now_s; /* a step takes a second */
    uint32_t n_ended, n_retracted, rows_checked;
};

struct rig_options {
    const char *checkpoint, *isa;
    int threads;
    uint32_t n_pages, n_slots;
    struct engine_options engine;
    /* As in model_options; NULL: the CPU. */
    int (*open_kernels)(struct kernels *k, int ordinal, const struct kernel_dims *dims,
                        const struct kernel_env *env);
};

/* Whether this processor has the level "ref", "avx2", "avx512" or "amx"; says so when not. */
bool rig_level_runs(const char *level);

/* A random checkpoint (see checkpoint_make.h) in a fresh folder, and its end. */
const char *rig_make_checkpoint(const char *preset);
void rig_remove_checkpoint(const char *dir);

/* Sensible engine options to start from: prefix cache and snapshots on, prompts computed here. */
struct engine_options rig_engine_options(void);

void rig_open(struct rig *r, const struct rig_options *o);
/* Flushes the cache and asserts that every page, slot and snapshot is free. */
void rig_close(struct rig *r);

/* Changes the engine over the same model and pools; the options must fit what rig_open() sized. */
void rig_reopen(struct rig *r, const struct engine_options *o);

uint64_t rig_random(struct rig *r);
uint32_t rig_below(struct rig *r, uint32_t n);

/* Fills a->output and a->rows by the plain run. */
void rig_answer(const char *checkpoint, const char *isa, struct answer *answers, size_t n);

/* The same for one, on a model and KV of the caller's that hold its first n_computed positions
 * (slot 0, pages in order). */
void rig_answer_from(struct model *m, const struct kv_memory *kv, const uint32_t *pages,
                     uint32_t n_computed, int64_t context, struct answer *a);

/* A sequence for an answer; submitted. */
void rig_submit(struct rig *r, struct run *run, const struct answer *a);
void rig_free(struct run *run);

/* Admits and steps until nothing is left to do. */
void rig_drain(struct rig *r);
void rig_step(struct rig *r);

#endif
