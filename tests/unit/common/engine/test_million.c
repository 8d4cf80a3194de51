/*
 * At the end of a context of a million tokens. Computing them all takes half an hour; here the KV
 * of the first million comes from elsewhere: 4,096 real positions, again and again. So there are
 * many equal index scores, and what is chosen hangs on their order. The last tokens of the prompt
 * and the answer are computed in several ways, and must have the same bits; the memory is what was
 * planned.
 *
 * With BATON_TEST_FULL set the whole million is computed, in chunks, cached, and gone on from.
 * Through real workers: tests/integration/test_long_context.py --full.
 *
 * usage: test_million LEVEL
 */
#include "tests/unit/common/engine/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <cmocka.h>

#include "common/engine/engine_internal.h"

enum {
    CONTEXT = 1 << 20,
    PROMPT = CONTEXT - 50,
    FAR = PROMPT - 300, /* positions from elsewhere */
    REAL = 4096,
    REAL_PAGES = REAL / KV_PAGE_TOKENS,
    PAGES = CONTEXT / KV_PAGE_TOKENS + 8,
    SLOTS = 8,
    COMPANY = 3,
    MAX_NEW = 40,
    PROCESS_BYTES = 64 << 20 /* code, libraries, the prompt, the pages that are repeated */
};

static const char *checkpoint, *level;
static int32_t *prompt;
static uint8_t *real_pages, *real_slot;
static struct answer answer, company[COMPANY];

static struct rig_options options(void)
{
    struct rig_options o = {.checkpoint = checkpoint,
                            .isa = level,
                            .threads = 1,
                            .n_pages = PAGES,
                            .n_slots = SLOTS,
                            .engine = rig_engine_options()};

    o.engine.context_length = CONTEXT;
    o.engine.prefix_cache = false;
    o.engine.n_snapshots = 0;
    return o;
}

static uint8_t *page_of(const struct rig *r, uint32_t page)
{
    return (uint8_t *)(uintptr_t)r->kv.pages.addr + page * model_get_geometry(r->model)->page_bytes;
}

static uint8_t *slot_of(const struct rig *r, uint32_t slot)
{
    return (uint8_t *)(uintptr_t)r->kv.slots.addr + slot * model_get_geometry(r->model)->slot_bytes;
}

/* The KV of FAR positions, as it would arrive from another worker. */
static void arrive(const struct rig *r, const uint32_t *pages, uint32_t slot)
{
    const struct kv_geometry *g = model_get_geometry(r->model);

    for (uint32_t i = 0; i < kv_pages_for(FAR); i++)
        memcpy(page_of(r, pages[i]), real_pages + i % REAL_PAGES * g->page_bytes, g->page_bytes);
    memcpy(slot_of(r, slot), real_slot, g->slot_bytes);
}

static void compute_real_pages(struct rig *r, const uint32_t *pages)
{
    const struct kv_geometry *g = model_get_geometry(r->model);
    enum { PART = REAL - 100 }; /* two parts: each leaves fewer rows than a ring has */
    struct model_span spans[] = {{prompt, PART, 0, 0, pages, MODEL_LOGITS_NONE},
                                 {prompt + PART, REAL - PART, PART, 0, pages, MODEL_LOGITS_NONE}};
    const float *logits;
    struct status st;

    memset(slot_of(r, 0), 0, g->slot_bytes); /* the MTP block's window */
    for (int i = 0; i < 2; i++)
        assert_int_equal(model_forward(r->model, &r->kv, &spans[i], 1, &logits, &st), ST_OK);
    real_pages = malloc(REAL_PAGES * g->page_bytes);
    real_slot = malloc(g->slot_bytes);
    for (uint32_t i = 0; i < REAL_PAGES; i++)
        memcpy(real_pages + i * g->page_bytes, page_of(r, pages[i]), g->page_bytes);
    memcpy(real_slot, slot_of(r, 0), g->slot_bytes);
}

static int setup(void **state)
{
    struct rig chance = {.random = 31};
    struct rig_options o = options();
    uint32_t *pages = malloc(PAGES * sizeof(*pages));
    struct rig r;

    (void)state;
    prompt = malloc(PROMPT * sizeof(*prompt));
    for (uint32_t i = 0; i < PROMPT; i++)
        prompt[i] = 2 + (int32_t)rig_below(&chance, 500);
    for (uint32_t i = 0; i < PAGES; i++)
        pages[i] = i;
    answer =
        (struct answer){.prompt = prompt,
                        .n_prompt = PROMPT,
                        .max_new = MAX_NEW,
                        .sampling = {.temperature = 1, .top_p = 1, .seed = 9, .min_new = MAX_NEW}};
    for (int i = 0; i < COMPANY; i++)
        company[i] = (struct answer){.prompt = prompt + 100 * i,
                                     .n_prompt = 20 + 90 * (uint32_t)i,
                                     .max_new = MAX_NEW,
                                     .sampling = {.top_p = 1}};
    rig_answer(checkpoint, level, company, COMPANY);
    rig_open(&r, &o);
    compute_real_pages(&r, pages);
    arrive(&r, pages, 0);
    rig_answer_from(r.model, &r.kv, pages, FAR, CONTEXT, &answer);
    assert_int_equal(answer.n_output, MAX_NEW);
    rig_close(&r);
    free(pages);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(prompt);
    free(real_pages);
    free(real_slot);
    return 0;
}

static void run_far(const struct rig_options *o, uint32_t n_company, double guess_right)
{
    struct run far, others[COMPANY];
    struct rig r;

    rig_open(&r, o);
    r.guess_right = guess_right;
    rig_submit(&r, &far, &answer);
    far.remote = true;
    engine_admit(r.engine);
    arrive(&r, far.seq.pages, far.seq.slot);
    for (uint32_t i = 0; i < n_company; i++)
        rig_submit(&r, &others[i], &company[i]);
    engine_run(r.engine, &far.seq, FAR);
    rig_drain(&r);
    assert_true(far.ended);
    assert_int_equal(r.n_ended, 1 + n_company);
    assert_int_equal(r.n_retracted, 0);
    rig_free(&far);
    for (uint32_t i = 0; i < n_company; i++)
        rig_free(&others[i]);
    rig_close(&r);
}

static void chunks_threads_company_and_drafts_change_nothing(void **state)
{
    struct rig_options o = options();

    (void)state;
    run_far(&o, 0, -1);
    o.threads = 2;
    o.engine.chunk_tokens = 7;
    run_far(&o, COMPANY, -1);
    o.engine.chunk_tokens = 128;
    o.engine.draft_tokens = 3;
    run_far(&o, COMPANY, 0.6);
}

/* ---- all of it ---- */

enum { CHUNK = 4096, STATES = 64 };

struct rows {
    uint64_t hashes[MAX_NEW];
    uint32_t n_seen, n_first; /* n_first: rows of the run that the others are compared with */
};

static void on_row(void *arg, const struct sequence *s, const float *logits)
{
    const uint32_t *bits = (const uint32_t *)(const void *)logits;
    uint32_t at = sequence_n_output(s);
    struct rows *rows = arg;
    uint64_t h = 0xCBF29CE484222325u;

    assert_true(at < MAX_NEW);
    for (int32_t i = 0; i < 512; i++)
        h = (h ^ bits[i]) * 0x100000001B3u;
    if (rows->n_first < MAX_NEW)
        rows->hashes[rows->n_first++] = h;
    else
        assert_true(h == rows->hashes[at]);
    rows->n_seen++;
}

/* Steps until the answer is there, and says how far it is. */
static void drain(struct rig *r, const struct run *run)
{
    uint32_t told = 0;

    while (!run->ended) {
        rig_step(r);
        if (run->seq.n_computed / 65536 > told) {
            told = run->seq.n_computed / 65536;
            print_message("%u tokens computed\n", told * 65536);
            fflush(stdout);
        }
    }
}

static void a_million_tokens_are_computed_cached_and_gone_on_from(void **state)
{
    static struct rows rows;
    struct rig_options o = options();
    struct engine_stats stats;
    struct rusage usage;
    uint64_t planned;
    struct rig r;

    (void)state;
    if (getenv("BATON_TEST_FULL") == NULL)
        skip();
    o.threads = 2;
    o.engine.prefix_cache = true;
    o.engine.n_snapshots = STATES;
    o.engine.chunk_tokens = CHUNK;
    rig_open(&r, &o);
    r.row = on_row;
    r.row_arg = &rows;
    for (int turn = 0; turn < 3;
         turn++) { /* cold; from the cache; so, in small chunks, with drafts */
        struct run run;

        /* Less than it was opened for; a new engine would not have the cache. */
        r.engine->opt.chunk_tokens = turn == 2 ? 100 : CHUNK;
        r.engine->opt.draft_tokens = turn == 2 ? 3 : 0;
        rig_submit(&r, &run, &answer);
        drain(&r, &run);
        assert_int_equal(run.seq.n_tokens, PROMPT + MAX_NEW);
        rig_free(&run);
        engine_get_stats(r.engine, &stats);
        print_message("turn %d: %llu tokens hit\n", turn, (unsigned long long)stats.hit_tokens);
    }
    assert_int_equal(rows.n_seen, 3 * MAX_NEW);
    assert_int_equal(stats.hit_tokens, 2 * (PROMPT / KV_PAGE_TOKENS * KV_PAGE_TOKENS));
    planned = PAGES * r.engine->geometry->page_bytes + SLOTS * r.engine->geometry->slot_bytes +
              STATES * kv_snapshot_bytes(r.engine->geometry) + model_weight_bytes(r.model) +
              model_workspace_bytes(r.model);
    getrusage(RUSAGE_SELF, &usage);
    print_message("planned %.1f MiB, peak of the process %.1f MiB\n", (double)planned / (1 << 20),
                  (double)usage.ru_maxrss / 1024);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true((uint64_t)usage.ru_maxrss * 1024 <= planned + PROCESS_BYTES);
#endif
    rig_close(&r);
}

static void the_memory_is_what_was_planned(void **state)
{
    struct rig_options o = options();
    const struct kv_geometry *g;
    struct rusage usage;
    uint64_t planned;
    struct rig r;

    (void)state;
    rig_open(&r, &o);
    g = model_get_geometry(r.model);
    planned = PAGES * g->page_bytes + SLOTS * g->slot_bytes + model_weight_bytes(r.model) +
              model_workspace_bytes(r.model);
    getrusage(RUSAGE_SELF, &usage);
    print_message("planned %.1f MiB, peak of the process %.1f MiB\n", (double)planned / (1 << 20),
                  (double)usage.ru_maxrss / 1024);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true((uint64_t)usage.ru_maxrss * 1024 <= planned + PROCESS_BYTES);
#endif
    rig_close(&r);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_threads_company_and_drafts_change_nothing),
        cmocka_unit_test(the_memory_is_what_was_planned),
        cmocka_unit_test(a_million_tokens_are_computed_cached_and_gone_on_from),
    };
    int result;

    if (argc != 2)
        return 2;
    level = argv[1];
    if (!rig_level_runs(level))
        return 77;
    checkpoint = rig_make_checkpoint("slim");
    result = cmocka_run_group_tests_name("a million tokens", tests, setup, teardown);
    rig_remove_checkpoint(checkpoint);
    return result;
}
