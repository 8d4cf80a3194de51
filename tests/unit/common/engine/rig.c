#include "tests/unit/common/engine/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <dirent.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/engine/engine_internal.h"
#include "common/model/checkpoint_make.h"
#include "kernels/kernels.h"

enum { CONTEXT = 4096, CHUNK_MAX = 4096, SEQS_MAX = 72, LOGIT_ROWS_MAX = 1200 };

/* ---- chance ---- */

uint64_t rig_random(struct rig *r)
{
    uint64_t z = r->random += 0x9E3779B97F4A7C15u;

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

uint32_t rig_below(struct rig *r, uint32_t n)
{
    return (uint32_t)(rig_random(r) % n);
}

/* ---- what is checked ---- */

static uint64_t hash_row(const float *row, int32_t vocab)
{
    const uint32_t *bits = (const uint32_t *)(const void *)row;
    uint64_t h = 0xCBF29CE484222325u;

    for (int32_t i = 0; i < vocab; i++)
        h = (h ^ bits[i]) * 0x100000001B3u;
    return h;
}

static void check_row(void *arg, const struct sequence *s, const float *logits)
{
    struct rig *r = arg;
    const struct run *run = s->owner;
    uint32_t i = sequence_n_output(s);

    r->rows_checked++;
    if (r->row != NULL) {
        r->row(r->row_arg, s, logits);
        return;
    }
    assert_true(i < run->answer->n_output);
    if (hash_row(logits, r->engine->vocab) != run->answer->rows[i])
        fail_msg("other logits for output %u after %u prompt tokens", i, s->n_prompt);
}

static int32_t bend_guess(void *arg, const struct sequence *s, uint32_t place, int32_t draft)
{
    struct rig *r = arg;
    const struct run *run = s->owner;
    uint32_t i = s->n_tokens - s->n_prompt + s->n_emitted;

    (void)place;
    if (r->guess_right < 0 || i >= run->answer->n_output)
        return draft;
    if ((double)rig_below(r, 1000) < 1000 * r->guess_right)
        return run->answer->output[i];
    return (int32_t)rig_below(r, (uint32_t)r->engine->vocab);
}

static uint64_t now_s(void *arg)
{
    return ((const struct rig *)arg)->now_s;
}

/* ---- what the engine reports ---- */

static void on_admitted(void *arg, struct sequence *s)
{
    struct rig *r = arg;
    struct run *run = s->owner;

    assert_true(s->local);
    if (!run->remote)
        engine_run(r->engine, s, s->n_cached);
}

static void on_stepped(void *arg, struct sequence *s)
{
    struct rig *r = arg;
    struct run *run = s->owner;
    const struct answer *a = run->answer;
    uint32_t n = s->n_tokens - a->n_prompt;

    if (r->row == NULL)
        assert_memory_equal(s->tokens + a->n_prompt, a->output, n * sizeof(int32_t));
    if (s->n_new == 0 || s->finish == SEQ_GOES_ON)
        return;
    if (r->row == NULL)
        assert_int_equal(n, a->n_output);
    engine_remove(r->engine, s);
    run->ended = true;
    r->n_ended++;
}

static void on_retracted(void *arg, struct sequence *s)
{
    (void)s;
    ((struct rig *)arg)->n_retracted++;
}

static void on_failed(void *arg, struct sequence *s, const struct status *error)
{
    (void)arg;
    (void)s;
    fail_msg("a step failed: %s", error->msg);
}

/* ---- checkpoints ---- */

bool rig_level_runs(const char *level)
{
    enum cpu_isa isa;

    if (!kernels_cpu_named(level, &isa) || isa <= kernels_cpu_best())
        return true;
    print_message("skipped: this processor has no %s\n", level);
    return false;
}

const char *rig_make_checkpoint(const char *preset)
{
    static char dir[] = "/tmp/baton-engine-XXXXXX";
    struct checkpoint_options o = {.preset = preset, .seed = -1};
    struct status st;

    if (mkdtemp(dir) == NULL || checkpoint_make(dir, &o, &st) != ST_OK) {
        print_error("no checkpoint in %s\n", dir);
        exit(1);
    }
    return dir;
}

void rig_remove_checkpoint(const char *dir)
{
    DIR *d = opendir(dir);

    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;)
        if (e->d_name[0] != '.')
            unlinkat(dirfd(d), e->d_name, 0);
    if (d != NULL)
        closedir(d);
    rmdir(dir);
}

/* ---- opening ---- */

struct engine_options rig_engine_options(void)
{
    return (struct engine_options){
        .max_running = SEQS_MAX,
        .chunk_tokens = 1000,
        .context_length = CONTEXT,
        .prefix_cache = true,
        .n_snapshots = 16,
        .snapshot_prompts = true,
        .snapshot_turns = true,
        .local_tokens = UINT32_MAX,
        .pin_percent = 50,
        .draft_max_batch = SEQS_MAX,
        .grow = true,
    };
}

static void open_engine(struct rig *r, const struct engine_options *o)
{
    struct engine_events events = {on_admitted, on_stepped, NULL, on_retracted, on_failed, r};
    struct status st;

    r->opt = *o;
    if (engine_new(o, r->model, &r->kv, r->pages, r->slots, &events, &r->engine, &st) != ST_OK)
        fail_msg("%s", st.msg);
    r->engine->probe = (struct engine_probe){check_row, bend_guess, now_s, r};
}

void rig_open(struct rig *r, const struct rig_options *o)
{
    struct model_options m = {
        .path = o->checkpoint,
        .device = o->open_kernels != NULL ? "cuda:0" : "cpu",
        .open_kernels = o->open_kernels,
        .cpu_isa = o->isa,
        .n_threads = o->threads,
        .max_batch_tokens = CHUNK_MAX + 2 * SEQS_MAX * KV_DRAFT_SLACK,
        .max_batch_seqs = SEQS_MAX,
        .max_context = (int)o->engine.context_length,
        .max_logit_rows = LOGIT_ROWS_MAX,
    };
    struct status st;

    *r = (struct rig){.guess_right = -1};
    if (model_open(&m, &r->model, &st) != ST_OK ||
        model_kv_alloc(r->model, o->n_pages, o->n_slots, &r->kv, &st) != ST_OK ||
        slab_new("page", o->n_pages, &r->pages, &st) != ST_OK ||
        slab_new("slot", o->n_slots, &r->slots, &st) != ST_OK)
        fail_msg("%s", st.msg);
    open_engine(r, &o->engine);
}

static void close_engine(struct rig *r)
{
    engine_flush_cache(r->engine);
    assert_int_equal(slab_n_free(r->pages), slab_units(r->pages));
    assert_int_equal(slab_n_free(r->slots), slab_units(r->slots));
    if (r->engine->snapshots != NULL)
        assert_int_equal(slab_n_free(r->engine->snapshots), slab_units(r->engine->snapshots));
    engine_free(r->engine);
}

void rig_reopen(struct rig *r, const struct engine_options *o)
{
    close_engine(r);
    open_engine(r, o);
}

void rig_close(struct rig *r)
{
    close_engine(r);
    slab_free(r->pages);
    slab_free(r->slots);
    model_kv_free(r->model, &r->kv);
    model_free(r->model);
}

/* ---- answers ---- */

void rig_answer_from(struct model *m, const struct kv_memory *kv, const uint32_t *pages,
                     uint32_t n_computed, int64_t context, struct answer *a)
{
    int32_t vocab = model_get_config(m)->vocab_size, eos = model_get_config(m)->eos_token;
    struct sampling_params params = a->sampling;
    struct sampler *sampler;
    struct sequence s;
    struct status st;

    params.eos = eos;
    assert_int_equal(sampler_new(vocab, CPU_ISA_AVX512, &sampler, &st), ST_OK);
    assert_true(a->max_new <= RIG_OUTPUT_MAX);
    assert_int_equal(sequence_init(&s, a->prompt, a->n_prompt, 0, a->max_new, &params, vocab, &st),
                     ST_OK);
    s.n_computed = n_computed;
    do {
        uint32_t n = s.n_tokens - s.n_computed;
        struct model_span span = {s.tokens + s.n_computed, (int)n, s.n_computed, 0, pages,
                                  MODEL_LOGITS_LAST};
        const float *logits;

        assert_int_equal(model_forward(m, kv, &span, 1, &logits, &st), ST_OK);
        a->rows[a->n_output] = hash_row(logits, vocab);
        s.n_computed += n;
        sequence_append(&s,
                        sampler_pick(sampler, (float *)logits, &params, s.history, s.n_tokens,
                                     sequence_n_output(&s), NULL),
                        context);
        a->output[a->n_output++] = s.tokens[s.n_tokens - 1];
    } while (s.finish == SEQ_GOES_ON);
    sequence_deinit(&s);
    sampler_free(sampler);
}

void rig_answer(const char *checkpoint, const char *isa, struct answer *answers, size_t n)
{
    struct model_options m = {
        .path = checkpoint,
        .device = "cpu",
        .cpu_isa = isa,
        .n_threads = 1,
        .max_batch_tokens = CONTEXT,
        .max_batch_seqs = 1,
        .max_context = CONTEXT,
        .max_logit_rows = 1,
    };
    uint32_t pages[CONTEXT / KV_PAGE_TOKENS];
    struct model *model;
    struct kv_memory kv;
    struct status st;

    for (uint32_t i = 0; i < CONTEXT / KV_PAGE_TOKENS; i++)
        pages[i] = i;
    if (model_open(&m, &model, &st) != ST_OK ||
        model_kv_alloc(model, CONTEXT / KV_PAGE_TOKENS, 1, &kv, &st) != ST_OK)
        fail_msg("%s", st.msg);
    for (size_t i = 0; i < n; i++)
        rig_answer_from(model, &kv, pages, 0, CONTEXT, &answers[i]);
    model_kv_free(model, &kv);
    model_free(model);
}

/* ---- running ---- */

void rig_submit(struct rig *r, struct run *run, const struct answer *a)
{
    struct sampling_params params = a->sampling;
    struct status st;

    *run = (struct run){.answer = a};
    params.eos = model_get_config(r->model)->eos_token;
    assert_int_equal(sequence_init(&run->seq, a->prompt, a->n_prompt, 0, a->max_new, &params,
                                   r->engine->vocab, &st),
                     ST_OK);
    run->seq.owner = run;
    run->seq.rid = "test";
    run->seq.salt = a->salt;
    if (engine_submit(r->engine, &run->seq, &st) != ST_OK)
        fail_msg("%s", st.msg);
}

void rig_free(struct run *run)
{
    sequence_deinit(&run->seq);
}

void rig_step(struct rig *r)
{
    r->now_s++;
    engine_admit(r->engine);
    engine_step(r->engine);
    if (r->engine->cache != NULL)
        prefix_cache_check(r->engine->cache);
}

void rig_drain(struct rig *r)
{
    do {
        r->now_s++;
        engine_admit(r->engine);
    } while (engine_step(r->engine));
    assert_int_equal(r->engine->waiting.n, 0);
}
