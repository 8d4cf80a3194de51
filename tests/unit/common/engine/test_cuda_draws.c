/*
 * Tokens drawn on the device (cuda_place.h: emulated): an engine whose logits stay there gives the
 * tokens of one that reads them and draws on the host, drafts or not; and logits come to the host
 * only for what the device does not draw.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

#include "common/engine/engine_internal.h"
#include "common/model/model_debug.h"
#include "tests/unit/common/engine/rig.h"
#include "tests/unit/kernels/cuda_place.h"

enum { SEQS = 4, PROMPT = 5, NEW = 5, DRAFTS = 2 };

static const char *checkpoint;
static int32_t prompts[SEQS][PROMPT];

static int open_place(struct kernels *k, int ordinal, const struct kernel_dims *dims,
                      const struct kernel_env *env)
{
    (void)ordinal;
    return cuda_place_open(k, CUDA_PLACE_HIDDEN, dims, env);
}

/* Another way of drawing each. The last needs the host when `penalties`. */
static struct answer answer_of(int i, bool penalties)
{
    static const struct sampling_params ways[SEQS] = {
        {.temperature = 0, .top_p = 1, .eos = -1},
        {.temperature = 1, .top_p = 1, .seed = 7, .eos = -1},
        {.temperature = 1.5f, .top_p = 0.8f, .top_k = 20, .seed = 8, .eos = -1},
        {.temperature = 0.7f, .top_p = 1, .min_p = 0.01f, .seed = 9, .eos = -1},
    };
    struct answer a = {
        .prompt = prompts[i], .n_prompt = PROMPT, .max_new = NEW, .sampling = ways[i]};

    if (penalties && i == SEQS - 1)
        a.sampling.frequency_penalty = 1;
    return a;
}

static void look(void *arg, const struct sequence *s, const float *logits)
{
    (void)arg;
    (void)s;
    (void)logits;
}

/* @return how many rows of logits came to the host */
static uint64_t run_all(struct rig *r, bool on_device, bool penalties, int32_t out[SEQS][NEW])
{
    uint64_t before = model_debug_rows_read(r->model);
    struct answer answers[SEQS];
    struct run runs[SEQS];

    rig_reopen(r, &r->opt);
    r->row = look; /* no answers are looked at */
    if (on_device)
        r->engine->probe.row = NULL;
    for (int i = 0; i < SEQS; i++) {
        answers[i] = answer_of(i, penalties);
        rig_submit(r, &runs[i], &answers[i]);
    }
    rig_drain(r);
    for (int i = 0; i < SEQS; i++) {
        assert_true(runs[i].ended);
        assert_int_equal(runs[i].seq.n_tokens, PROMPT + NEW);
        memcpy(out[i], runs[i].seq.tokens + PROMPT, sizeof(out[i]));
        rig_free(&runs[i]);
    }
    return model_debug_rows_read(r->model) - before;
}

static void the_device_draws_what_the_host_does(void **state)
{
    struct rig_options o = {.checkpoint = checkpoint,
                            .threads = 1,
                            .n_pages = 8,
                            .n_slots = SEQS + 1,
                            .engine = rig_engine_options(),
                            .open_kernels = open_place};
    static int32_t want[SEQS][NEW], got[SEQS][NEW];
    struct rig r;

    (void)state;
    o.engine.context_length = 256;
    o.engine.prefix_cache = false;
    rig_open(&r, &o);
    for (int drafts = 0; drafts <= DRAFTS; drafts += DRAFTS) {
        r.opt.draft_tokens = drafts;
        r.opt.keep_mtp = drafts > 0;
        assert_true(run_all(&r, false, false, want) > 0);
        assert_int_equal(run_all(&r, true, false, got), 0);
        assert_memory_equal(got, want, sizeof(got));
        if (drafts == 0)
            continue;
        run_all(&r, false, true, want);
        assert_true(run_all(&r, true, true, got) > 0); /* one of them is drawn here */
        assert_memory_equal(got, want, sizeof(got));
    }
    rig_close(&r);
}

static int setup(void **state)
{
    (void)state;
    checkpoint = rig_make_checkpoint("slim");
    for (int i = 0; i < SEQS; i++)
        for (int t = 0; t < PROMPT; t++)
            prompts[i][t] = (t * 37 + i * 101) % 500;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    rig_remove_checkpoint(checkpoint);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_device_draws_what_the_host_does),
    };

    return cuda_place_ready() ? cmocka_run_group_tests(tests, setup, teardown) : CUDA_PLACE_SKIPPED;
}
