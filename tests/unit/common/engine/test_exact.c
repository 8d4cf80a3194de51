/*
 * The engine's promise, bit by bit: the logits that a token is drawn from do not depend on company,
 * chunks, threads, cached prefixes, drafts, retractions or the worker that computed the prompt.
 * Every row of every run here is compared with that of one sequence alone.
 *
 * usage: test_exact LEVEL [PRESET]
 *
 * The default preset is tiny. Those with the releases' head shapes (flashlike, prolike) are slower:
 * fewer and shorter requests, in batches, from cached prefixes and with drafts. What one of their
 * sequences gives alone is held to the oracle by tests/integration/test_golden.py.
 */
#include "tests/unit/common/engine/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { N = 64, SUBJECT = 0, MAX_NEW = 24 };

static const char *checkpoint, *level;
static uint32_t n_answers = N, subject_tokens = 1100;
static struct answer answers[N];
static int32_t *prompts;

/* Request 0 is the subject, of some pages. The others have all lengths, some share its beginning.
 */
static int setup(void **state)
{
    struct rig chance = {.random = 11};

    (void)state;
    prompts = calloc(N, 1200 * sizeof(*prompts));
    for (uint32_t i = 0; i < n_answers; i++) {
        struct answer *a = &answers[i];
        int32_t *p = prompts + (size_t)i * 1200;
        uint32_t shared = 0;

        a->prompt = p;
        a->n_prompt = i == SUBJECT ? subject_tokens : 1 + rig_below(&chance, i % 8 == 0 ? 700 : 60);
        for (uint32_t t = 0; t < a->n_prompt; t++)
            p[t] = 2 + (int32_t)rig_below(&chance, 500);
        if (i % 16 == 8)
            shared = a->n_prompt < 600 ? a->n_prompt : 600;
        memcpy(p, prompts, shared * sizeof(*p));
        a->max_new = MAX_NEW;
        a->sampling = (struct sampling_params){
            .temperature = i % 2 == 0 ? 0 : 1, .top_p = 1, .seed = (uint64_t)i};
    }
    rig_answer(checkpoint, level, answers, n_answers);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(prompts);
    return 0;
}

/* One thread, where it is not threads that are tested: two that wait for each other are slow on a
 * busy machine. */
static struct rig_options options(void)
{
    return (struct rig_options){.checkpoint = checkpoint,
                                .isa = level,
                                .threads = 1,
                                .n_pages = 128,
                                .n_slots = 72,
                                .engine = rig_engine_options()};
}

/* Runs answers [first, first + n) together. */
static void run_together(struct rig *r, uint32_t first, uint32_t n)
{
    struct run *runs = calloc(n, sizeof(*runs));

    for (uint32_t i = 0; i < n; i++)
        rig_submit(r, &runs[i], &answers[first + i]);
    rig_drain(r);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(runs[i].ended);
        rig_free(&runs[i]);
    }
    free(runs);
}

static void company_changes_nothing(void **state)
{
    static const uint32_t sizes[] = {1, 2, 3, 5, 8, 13, 31, 64};
    struct rig_options o = options();
    struct rig r;

    (void)state;
    o.threads = 2;
    o.engine.prefix_cache = false;
    o.engine.n_snapshots = 0;
    rig_open(&r, &o);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        if (sizes[i] <= n_answers)
            run_together(&r, SUBJECT, sizes[i]);
    rig_close(&r);
}

static void chunks_and_threads_change_nothing(void **state)
{
    static const int chunks[] = {1, 7, 128, 256, 1000, 4096};
    struct rig_options o = options();

    (void)state;
    for (int threads = 1; threads <= 2; threads++) {
        struct rig r;

        o.threads = threads;
        rig_open(&r, &o);
        for (size_t i = 0; i < sizeof(chunks) / sizeof(chunks[0]); i++) {
            struct engine_options e = rig_engine_options();

            e.prefix_cache = false;
            e.n_snapshots = 0;
            e.chunk_tokens = chunks[i];
            rig_reopen(&r, &e);
            run_together(&r, SUBJECT, chunks[i] == 1 ? 1 : 4);
        }
        rig_close(&r);
    }
}

/* A prompt that ends just after each boundary leaves a state there; the subject goes on from it. */
static void a_hit_at_any_page_boundary_changes_nothing(void **state)
{
    struct rig_options o = options();
    struct rig r;

    (void)state;
    rig_open(&r, &o);
    for (uint32_t pages = 1; pages <= answers[SUBJECT].n_prompt / KV_PAGE_TOKENS; pages++) {
        struct answer part = {.prompt = answers[SUBJECT].prompt,
                              .n_prompt = pages * KV_PAGE_TOKENS + 3,
                              .max_new = 1,
                              .sampling = {.top_p = 1}};
        struct engine_stats before, after;
        struct run run;

        rig_answer(checkpoint, level, &part, 1);
        engine_flush_cache(r.engine);
        rig_submit(&r, &run, &part);
        rig_drain(&r);
        rig_free(&run);
        engine_get_stats(r.engine, &before);
        run_together(&r, SUBJECT, 1);
        engine_get_stats(r.engine, &after);
        assert_int_equal(after.hit_tokens - before.hit_tokens, pages * KV_PAGE_TOKENS);
    }
    rig_close(&r);
}

/* What was generated is cached too: the next turn takes it up where it ended. */
static void the_next_turn_goes_on_from_what_was_generated(void **state)
{
    struct rig_options o = options();
    int32_t turn[600];
    struct answer first = {
        .prompt = turn, .n_prompt = 500, .max_new = 40, .sampling = {.top_p = 1}};
    struct answer next;
    struct engine_stats stats;
    struct run run;
    struct rig r;

    (void)state;
    memcpy(turn, answers[SUBJECT].prompt, 500 * sizeof(*turn));
    rig_answer(checkpoint, level, &first, 1);
    next = first;
    if (first.n_output < 20)
        skip(); /* it met its end early: no boundary is crossed */
    memcpy(turn + 500, first.output, first.n_output * sizeof(*turn));
    next.n_prompt = 500 + first.n_output;
    next.n_output = 0;
    turn[next.n_prompt++] = 77;
    rig_answer(checkpoint, level, &next, 1);
    rig_open(&r, &o);
    rig_submit(&r, &run, &first);
    rig_drain(&r);
    rig_free(&run);
    rig_submit(&r, &run, &next);
    rig_drain(&r);
    rig_free(&run);
    engine_get_stats(r.engine, &stats);
    assert_int_equal(stats.hit_tokens, 512);
    rig_close(&r);
}

static void a_retracted_request_goes_on_with_the_same_bits(void **state)
{
    struct rig_options o = options();
    struct run runs[6];
    struct rig r;

    (void)state;
    o.n_pages = 7; /* the subject takes 5; each of the others outgrows its page */
    rig_open(&r, &o);
    static struct answer grow[6];
    static int32_t tokens[250];
    if (grow[0].n_output == 0) {
        memcpy(tokens, answers[SUBJECT].prompt, sizeof(tokens));
        for (int i = 0; i < 6; i++)
            grow[i] =
                (struct answer){.prompt = tokens,
                                .n_prompt = 240 + (uint32_t)i,
                                .max_new = 60,
                                .sampling = {.temperature = 1, .top_p = 1, .seed = (uint64_t)i}};
        for (int i = 0; i < 6; i++)
            grow[i].sampling.seed = (uint64_t)i + 100;
        rig_answer(checkpoint, level, grow, 6);
    }
    for (int i = 0; i < 6; i++)
        rig_submit(&r, &runs[i], &grow[i]);
    rig_drain(&r);
    assert_int_equal(r.n_ended, 6);
    assert_true(r.n_retracted > 0);
    for (int i = 0; i < 6; i++)
        rig_free(&runs[i]);
    rig_close(&r);
}

/* ---- computed by one worker, gone on from by another ---- */

static uint8_t *page_of(const struct rig *r, uint32_t page)
{
    return (uint8_t *)(uintptr_t)r->kv.pages.addr + page * model_get_geometry(r->model)->page_bytes;
}

static uint8_t *slot_of(const struct rig *r, uint32_t slot)
{
    return (uint8_t *)(uintptr_t)r->kv.slots.addr + slot * model_get_geometry(r->model)->slot_bytes;
}

static void copy_runs(uint8_t *to, const uint8_t *from, const struct kv_run *runs, size_t n)
{
    for (size_t i = 0; i < n; i++)
        memcpy(to + runs[i].offset, from + runs[i].offset, runs[i].bytes);
}

/* What a handoff moves, and nothing else: the rest of d's memory is garbage. */
static void hand_over(const struct rig *p, const uint32_t *pages, const struct rig *d,
                      const struct sequence *s)
{
    const struct kv_geometry *g = model_get_geometry(d->model);
    static struct kv_run runs[6 * KV_LAYERS_MAX];
    size_t n, cap = sizeof(runs) / sizeof(runs[0]);

    memset(page_of(d, 0), 0xA5, d->kv.n_pages * g->page_bytes);
    memset(slot_of(d, 0), 0xA5, d->kv.n_slots * g->slot_bytes);
    for (uint32_t i = 0; i < kv_pages_for(s->n_prompt); i++) {
        uint32_t left = s->n_prompt - i * KV_PAGE_TOKENS;

        n = kv_page_runs(g, left < KV_PAGE_TOKENS ? left : KV_PAGE_TOKENS, runs, cap);
        copy_runs(page_of(d, s->pages[i]), page_of(p, pages[i]), runs, n);
    }
    n = kv_slot_runs(g, s->n_prompt, runs, cap);
    copy_runs(slot_of(d, s->slot), slot_of(p, 0), runs, n);
}

static void compute(const struct rig *p, const uint32_t *pages, const struct answer *a, int chunk)
{
    const float *logits;
    struct status st;

    for (uint32_t at = 0; at < a->n_prompt; at += (uint32_t)chunk) {
        int n = a->n_prompt - at < (uint32_t)chunk ? (int)(a->n_prompt - at) : chunk;
        struct model_span span = {a->prompt + at, n, at, 0, pages, MODEL_LOGITS_LAST};

        assert_int_equal(model_forward(p->model, &p->kv, &span, 1, &logits, &st), ST_OK);
    }
}

static void kv_from_another_worker_changes_nothing(void **state)
{
    static const uint32_t all[] = {1, 3, 127, 128, 129, 255, 256, 257, 300, 512, 700, 1100};
    struct rig_options o = options();
    uint32_t pages[8], n_handed = 0;
    struct rig p, d;

    (void)state;
    for (uint32_t i = 0; i < 8; i++)
        pages[i] = 7 - i;
    rig_open(&p, &o);
    o.threads = 2;
    rig_open(&d, &o);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]) && all[i] <= subject_tokens; i++) {
        struct answer a = {.prompt = answers[SUBJECT].prompt,
                           .n_prompt = all[i],
                           .max_new = MAX_NEW,
                           .sampling = {.temperature = 1, .top_p = 1, .seed = i}};
        struct run run;

        rig_answer(checkpoint, level, &a, 1);
        if (a.n_output == 1) /* the first token was the last */
            continue;
        rig_submit(&d, &run, &a);
        run.remote = true;
        engine_flush_cache(d.engine);
        engine_admit(d.engine);
        compute(&p, pages, &a, 100);
        hand_over(&p, pages, &d, &run.seq);
        sequence_append(&run.seq, a.output[0], 4096);
        engine_run(d.engine, &run.seq, a.n_prompt);
        rig_drain(&d);
        assert_true(run.ended);
        rig_free(&run);
        n_handed++;
    }
    assert_true(n_handed > 1);
    rig_close(&p);
    rig_close(&d);
}

static void drafts_change_nothing(void **state)
{
    static const double right[] = {-1, 0, 0.5, 0.9, 1};
    struct rig_options o = options();
    struct rig r;

    (void)state;
    rig_open(&r, &o);
    for (int steps = 1; steps <= SEQ_DRAFTS_MAX; steps += 2)
        for (size_t i = 0; i < sizeof(right) / sizeof(right[0]); i++) {
            struct engine_options e = rig_engine_options();
            struct engine_stats stats;

            e.draft_tokens = steps;
            rig_reopen(&r, &e);
            r.guess_right = right[i];
            run_together(&r, SUBJECT, n_answers < 12 ? n_answers : 12);
            engine_get_stats(r.engine, &stats);
            if (right[i] == 1) {
                assert_true(stats.accepted[0] > 0);
                assert_int_equal(stats.accepted[0], stats.drafted[0]);
            }
            if (right[i] == 0)
                assert_true(stats.accepted[0] < stats.drafted[0] / 8 + 8);
        }
    rig_close(&r);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(chunks_and_threads_change_nothing),
        cmocka_unit_test(a_hit_at_any_page_boundary_changes_nothing),
        cmocka_unit_test(the_next_turn_goes_on_from_what_was_generated),
        cmocka_unit_test(a_retracted_request_goes_on_with_the_same_bits),
        cmocka_unit_test(kv_from_another_worker_changes_nothing),
        cmocka_unit_test(drafts_change_nothing),
    };
    const struct CMUnitTest of_a_release[] = {
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(a_hit_at_any_page_boundary_changes_nothing),
        cmocka_unit_test(kv_from_another_worker_changes_nothing),
        cmocka_unit_test(drafts_change_nothing),
    };
    int result;

    if (argc != 2 && argc != 3)
        return 2;
    level = argv[1];
    if (!rig_level_runs(level))
        return 77;
    checkpoint = rig_make_checkpoint(argc == 3 ? argv[2] : "tiny");
    if (argc == 3) {
        n_answers = 8;
        subject_tokens = 530;
        result = cmocka_run_group_tests_name("the same bits", of_a_release, setup, teardown);
    } else {
        result = cmocka_run_group_tests_name("the same bits", tests, setup, teardown);
    }
    rig_remove_checkpoint(checkpoint);
    return result;
}
