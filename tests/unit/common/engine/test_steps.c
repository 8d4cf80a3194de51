/*
 * What a step is like besides its bits: it allocates nothing, it answers for a device that fails,
 * drafts leave nothing behind, 200 prompts give the same tokens with and without them, and nobody
 * waits for ever.
 *
 * usage: test_steps LEVEL
 */
#include "tests/unit/common/engine/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/engine/engine_internal.h"

static const char *checkpoint, *level;

/* ---- allocations: the linker sends those of our libraries through here ---- */

static bool counting;
static unsigned n_allocations;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);

void *__wrap_malloc(size_t n)
{
    n_allocations += counting;
    return __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    n_allocations += counting;
    return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    n_allocations += counting;
    return __real_realloc(p, n);
}

/* ---- requests ---- */

enum { PROMPTS = 200 };

static struct answer answers[PROMPTS];
static int32_t *prompts;

static int setup(void **state)
{
    struct rig chance = {.random = 23};

    (void)state;
    prompts = calloc(PROMPTS, 400 * sizeof(*prompts));
    for (int i = 0; i < PROMPTS; i++) {
        struct answer *a = &answers[i];
        int32_t *p = prompts + (size_t)i * 400;

        a->prompt = p;
        a->n_prompt = 1 + rig_below(&chance, i % 20 == 0 ? 399 : 40);
        for (uint32_t t = 0; t < a->n_prompt; t++)
            p[t] = 2 + (int32_t)rig_below(&chance, 500);
        a->max_new = 24;
        a->sampling = (struct sampling_params){.temperature = i % 2 == 0 ? 0 : 1,
                                               .top_p = i % 4 == 1 ? 0.95f : 1,
                                               .seed = (uint64_t)i + 1};
    }
    rig_answer(checkpoint, level, answers, PROMPTS);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(prompts);
    return 0;
}

static struct rig_options options(void)
{
    return (struct rig_options){.checkpoint = checkpoint,
                                .isa = level,
                                .threads = 2,
                                .n_pages = 96,
                                .n_slots = 72,
                                .engine = rig_engine_options()};
}

static void run_all(struct rig *r, uint32_t n)
{
    struct run *runs = calloc(n, sizeof(*runs));

    for (uint32_t i = 0; i < n; i++)
        rig_submit(r, &runs[i], &answers[i]);
    rig_drain(r);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(runs[i].ended);
        rig_free(&runs[i]);
    }
    free(runs);
}

static void prompts_give_the_same_tokens_with_drafts_and_without(void **state)
{
    struct rig_options o = options();
    struct engine_stats stats;
    struct rig r;

    (void)state;
    rig_open(&r, &o); /* the answers were made without drafts */
    for (int own = 0; own < 2; own++) {
        struct engine_options e = rig_engine_options();

        e.draft_tokens = 3;
        rig_reopen(&r, &e);
        r.guess_right = own ? -1 : 0.7;
        run_all(&r, PROMPTS);
        engine_get_stats(r.engine, &stats);
        print_message("drafts %s:", own ? "of the model's MTP block" : "made right 7 times in 10");
        for (int i = 0; i < 3; i++)
            print_message(" place %d: %llu of %llu accepted%s", i + 1,
                          (unsigned long long)stats.accepted[i],
                          (unsigned long long)stats.drafted[i], i == 2 ? "\n" : ",");
        if (!own)
            assert_true(stats.accepted[2] > 100);
    }
    rig_close(&r);
}

/* All live bytes of a sequence: its pages as far as they are filled, and its slot but the MTP
 * block's window, which only drafting fills. */
static uint64_t hash_kv(const struct rig *r, const struct sequence *s)
{
    const struct kv_geometry *g = model_get_geometry(r->model);
    static struct kv_run runs[6 * KV_LAYERS_MAX];
    uint64_t h = 0xCBF29CE484222325u;

    for (uint32_t i = 0; i <= s->n_computed / KV_PAGE_TOKENS && i < s->n_pages; i++) {
        uint32_t left = s->n_computed - i * KV_PAGE_TOKENS;
        size_t n = kv_page_runs(g, left < KV_PAGE_TOKENS ? left : KV_PAGE_TOKENS, runs,
                                sizeof(runs) / sizeof(runs[0]));
        const uint8_t *page =
            (const uint8_t *)(uintptr_t)r->kv.pages.addr + s->pages[i] * g->page_bytes;

        for (size_t k = 0; k < n; k++)
            for (uint32_t b = 0; b < runs[k].bytes; b++)
                h = (h ^ page[runs[k].offset + b]) * 0x100000001B3u;
    }
    size_t n = kv_slot_runs(g, s->n_computed, runs, sizeof(runs) / sizeof(runs[0]));
    const uint8_t *slot = (const uint8_t *)(uintptr_t)r->kv.slots.addr + s->slot * g->slot_bytes;
    uint32_t mtp = g->layers[g->n_layers - 1].window_off;
    uint32_t mtp_end = mtp + g->window_rows * g->row_bytes;

    for (size_t k = 0; k < n; k++)
        for (uint32_t b = 0; b < runs[k].bytes; b++)
            if (runs[k].offset + b < mtp || runs[k].offset + b >= mtp_end)
                h = (h ^ slot[runs[k].offset + b]) * 0x100000001B3u;
    return h;
}

/* After every step, the KV of a sequence whose drafts were mostly wrong is, byte for byte, that of
 * one that never drafted. */
static void rejected_drafts_leave_the_pools_as_if_they_never_were(void **state)
{
    enum { STEPS = RIG_OUTPUT_MAX };
    static uint64_t plain[STEPS + 500];
    struct rig_options o = options();
    uint32_t compared = 0;
    struct rig r;

    (void)state;
    rig_open(&r, &o);
    for (int drafts = 0; drafts <= SEQ_DRAFTS_MAX; drafts += SEQ_DRAFTS_MAX) {
        struct engine_options e = rig_engine_options();
        struct run run;

        e.draft_tokens = drafts;
        rig_reopen(&r, &e);
        r.guess_right = 0.4;
        rig_submit(&r, &run, &answers[0]);
        for (;;) {
            engine_admit(r.engine);
            engine_step(r.engine);
            if (run.ended)
                break;
            if (drafts == 0)
                plain[run.seq.n_computed] = hash_kv(&r, &run.seq);
            else if (plain[run.seq.n_computed] != 0) {
                assert_true(hash_kv(&r, &run.seq) == plain[run.seq.n_computed]);
                compared++;
            }
        }
        rig_free(&run);
    }
    assert_true(compared > 5);
    rig_close(&r);
}

static void a_step_allocates_nothing(void **state)
{
    struct rig_options o = options();
    struct run *runs = calloc(64, sizeof(*runs));
    struct rig r;

    (void)state;
    o.engine.draft_tokens = 2;
    rig_open(&r, &o);
    r.guess_right = 0.5;
    counting = true;
    for (uint32_t i = 0; i < 64; i++)
        rig_submit(&r, &runs[i], &answers[i]);
    assert_true(n_allocations >= 128); /* requests do: the count sees our libraries */
    n_allocations = 0;
    rig_drain(&r);
    counting = false;
    assert_int_equal(n_allocations, 0);
    assert_int_equal(r.n_ended, 64);
    for (uint32_t i = 0; i < 64; i++)
        rig_free(&runs[i]);
    free(runs);
    rig_close(&r);
}

static void what_can_never_fit_is_refused_with_the_numbers(void **state)
{
    struct rig_options o = options();
    struct sampling_params greedy = {.top_p = 1, .eos = -1};
    int32_t *tokens = calloc(5000, sizeof(*tokens));
    struct sequence s;
    struct status st;
    struct rig r;

    (void)state;
    o.n_pages = 4;
    rig_open(&r, &o);
    assert_int_equal(sequence_init(&s, tokens, 1025, 0, 8, &greedy, 512, &st), ST_OK);
    assert_int_equal(engine_submit(r.engine, &s, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "need 5 KV pages, this worker has 4"));
    sequence_deinit(&s);
    assert_int_equal(sequence_init(&s, tokens, 5000, 0, 8, &greedy, 512, &st), ST_OK);
    assert_int_equal(engine_submit(r.engine, &s, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "context length is 4096"));
    sequence_deinit(&s);
    tokens[7] = 512;
    assert_int_equal(sequence_init(&s, tokens, 10, 0, 8, &greedy, 512, &st), ST_OK);
    assert_int_equal(engine_submit(r.engine, &s, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "token 7 is 512"));
    sequence_deinit(&s);
    free(tokens);
    rig_close(&r);
}

/* A flow of requests of a higher priority that never ends: the low one has its turn all the same.
 */
static void a_low_priority_has_its_turn(void **state)
{
    enum { FLOW = 400 };
    static struct answer one = {.max_new = 1, .sampling = {.top_p = 1}};
    struct run *runs = calloc(FLOW, sizeof(*runs)), low;
    struct rig_options o = options();
    uint32_t n = 0;
    struct rig r;

    (void)state;
    one.prompt = prompts;
    one.n_prompt = 1;
    if (one.n_output == 0)
        rig_answer(checkpoint, level, &one, 1);
    o.engine.max_running = 1;
    o.engine.policy = SCHEDULE_PRIORITY;
    rig_open(&r, &o);
    rig_submit(&r, &low, &one);
    for (; n < FLOW && !low.ended; n++) { /* one always waits beside it */
        rig_submit(&r, &runs[n], &one);
        runs[n].seq.priority = 1;
        if (n > 0)
            rig_step(&r);
    }
    assert_true(low.ended);
    assert_true(n > 100); /* but not at once */
    rig_drain(&r);
    rig_free(&low);
    while (n > 0)
        rig_free(&runs[--n]);
    free(runs);
    rig_close(&r);
}

/* A prompt is pinned; then others need all the room. Asked again it is a hit; and once its time is
 * over it goes like any other. */
static void a_pinned_prompt_is_hit_after_any_pressure(void **state)
{
    enum { LONG = 3 * KV_PAGE_TOKENS + 5, OTHER = 4 * KV_PAGE_TOKENS + 100 };
    static int32_t tokens[2 * LONG + OTHER];
    static struct answer pinned = {
        .prompt = tokens, .n_prompt = LONG, .max_new = 2, .sampling = {.top_p = 1}};
    static struct answer others[2] = {
        {.prompt = tokens + 300, .n_prompt = OTHER, .max_new = 2, .sampling = {.top_p = 1}},
        {.prompt = tokens + 400, .n_prompt = OTHER, .max_new = 2, .sampling = {.top_p = 1}}};
    struct rig_options o = options();
    struct engine_stats stats;
    struct run run, other;
    struct rig r;

    (void)state;
    for (int i = 0; i < 2 * LONG + OTHER; i++)
        tokens[i] = 3 + i * 37 % 499;
    rig_answer(checkpoint, level, &pinned, 1);
    rig_answer(checkpoint, level, others, 2);
    o.n_pages = 8;
    rig_open(&r, &o);
    for (int round = 0; round < 3; round++) {
        uint64_t hits;

        engine_get_stats(r.engine, &stats);
        hits = stats.hit_tokens;
        rig_submit(&r, &run, &pinned);
        run.seq.pin_s = round == 0 ? 2000 : 0;
        rig_drain(&r);
        rig_free(&run);
        engine_get_stats(r.engine, &stats);
        assert_int_equal(stats.hit_tokens - hits, round == 1 ? 3 * KV_PAGE_TOKENS : 0);
        assert_int_equal(stats.pages_pinned, round < 2 ? 3 : 0);
        for (int i = 0; i < 2; i++) { /* five pages each */
            rig_submit(&r, &other, &others[i]);
            rig_drain(&r);
            rig_free(&other);
        }
        if (round == 1) { /* its time is over, and it is older than what comes now */
            r.now_s += 2000;
            rig_submit(&r, &other, &others[0]);
            rig_drain(&r);
            rig_free(&other);
        }
    }
    assert_int_equal(stats.pins, 1);
    rig_close(&r);
}

/* A prompt that fits only without the pinned pages is computed all the same, when there is nobody
 * whose end it could wait for. */
static void pins_keep_nobody_out_for_ever(void **state)
{
    enum { LONG = 5 * KV_PAGE_TOKENS };
    static int32_t tokens[LONG];
    static struct answer many[2] = {
        {.prompt = tokens + 200, .n_prompt = 600, .max_new = 2, .sampling = {.top_p = 1}},
        {.prompt = tokens, .n_prompt = LONG, .max_new = 2, .sampling = {.top_p = 1}}};
    struct rig_options o = options();
    struct engine_stats stats;
    struct run run;
    struct rig r;

    (void)state;
    for (int i = 0; i < LONG; i++)
        tokens[i] = 3 + i * 41 % 499;
    rig_answer(checkpoint, level, many, 2);
    o.n_pages = 6;
    rig_open(&r, &o);
    for (int i = 0; i < 2; i++) {
        rig_submit(&r, &run, &many[i]);
        run.seq.pin_s = 3600;
        rig_drain(&r);
        assert_true(run.ended);
        rig_free(&run);
        engine_get_stats(r.engine, &stats);
        assert_int_equal(stats.pages_pinned, i == 0 ? 2 : 0);
    }
    assert_int_equal(stats.pins_refused, 1); /* five pages of three */
    rig_close(&r);
}

/* ---- how prompts share a chunk ---- */

enum { BOOK = 3000, LINE = 20, SHARE_CHUNK = 256 };

static struct answer book, line;

static void share_setup(void)
{
    static int32_t tokens[BOOK];

    for (int i = 0; i < BOOK; i++)
        tokens[i] = 3 + i * 31 % 503;
    if (book.n_output > 0)
        return;
    book =
        (struct answer){.prompt = tokens, .n_prompt = BOOK, .max_new = 1, .sampling = {.top_p = 1}};
    line = (struct answer){
        .prompt = tokens + 100, .n_prompt = LINE, .max_new = 1, .sampling = {.top_p = 1}};
    rig_answer(checkpoint, level, &book, 1);
    rig_answer(checkpoint, level, &line, 1);
}

static struct rig_options share_options(void)
{
    struct rig_options o = options();

    o.engine.prefix_cache = false; /* the same prompt again is computed again */
    o.engine.n_snapshots = 0;
    o.engine.chunk_tokens = SHARE_CHUNK;
    return o;
}

static uint32_t steps_until_ended(struct rig *r, const struct run *run)
{
    uint32_t n = 0;

    for (; !run->ended; n++)
        rig_step(r);
    return n;
}

/* Steps of a prompt that has the whole chunk, or half of it. */
static uint32_t steps_of(uint32_t n_tokens, uint32_t chunk)
{
    return (n_tokens + chunk - 1) / chunk;
}

static void a_line_does_not_wait_for_a_book(void **state)
{
    struct rig_options o = share_options();
    struct run long_one, short_one;
    struct rig r;

    (void)state;
    share_setup();
    rig_open(&r, &o);
    rig_submit(&r, &long_one, &book);
    rig_step(&r);
    rig_submit(&r, &short_one, &line);
    assert_int_equal(steps_until_ended(&r, &short_one), 1);
    assert_int_equal(2 + steps_until_ended(&r, &long_one), steps_of(BOOK + LINE, SHARE_CHUNK));
    rig_free(&long_one);
    rig_free(&short_one);
    rig_close(&r);
}

/* Short prompts come for ever, more than the chunk can take: the book is read all the same. */
static void no_flow_of_lines_stops_a_book(void **state)
{
    enum { FLOW = 400, A_STEP = 16 };
    struct run *runs = calloc(FLOW, sizeof(*runs)), long_one;
    struct rig_options o = share_options();
    uint32_t n = 0, steps = 0;
    struct rig r;

    (void)state;
    share_setup();
    rig_open(&r, &o);
    rig_submit(&r, &long_one, &book);
    for (; !long_one.ended; steps++) {
        for (int i = 0; i < A_STEP && n < FLOW; i++)
            rig_submit(&r, &runs[n++], &line);
        rig_step(&r);
    }
    assert_int_equal(steps, steps_of(BOOK, SHARE_CHUNK / 2));
    assert_true(n > steps * (SHARE_CHUNK / 2) / LINE); /* there were always enough of them */
    rig_drain(&r);
    while (n > 0)
        rig_free(&runs[--n]);
    rig_free(&long_one);
    free(runs);
    rig_close(&r);
}

/* Sharing would only make the first one later. */
static void books_are_read_one_after_the_other(void **state)
{
    struct rig_options o = share_options();
    struct run runs[3];
    struct rig r;

    (void)state;
    share_setup();
    rig_open(&r, &o);
    for (int i = 0; i < 3; i++)
        rig_submit(&r, &runs[i], &book);
    for (uint32_t i = 0, steps = 0; i < 3; i++) {
        steps += steps_until_ended(&r, &runs[i]);
        assert_int_equal(steps, steps_of((i + 1) * BOOK, SHARE_CHUNK));
        rig_free(&runs[i]);
    }
    rig_close(&r);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_give_the_same_tokens_with_drafts_and_without),
        cmocka_unit_test(rejected_drafts_leave_the_pools_as_if_they_never_were),
        cmocka_unit_test(a_step_allocates_nothing),
        cmocka_unit_test(a_low_priority_has_its_turn),
        cmocka_unit_test(a_line_does_not_wait_for_a_book),
        cmocka_unit_test(no_flow_of_lines_stops_a_book),
        cmocka_unit_test(books_are_read_one_after_the_other),
        cmocka_unit_test(a_pinned_prompt_is_hit_after_any_pressure),
        cmocka_unit_test(pins_keep_nobody_out_for_ever),
        cmocka_unit_test(what_can_never_fit_is_refused_with_the_numbers),
    };
    int result;

    if (argc != 2)
        return 2;
    level = argv[1];
    if (!rig_level_runs(level))
        return 77;
    checkpoint = rig_make_checkpoint("tiny");
    result = cmocka_run_group_tests_name("steps", tests, setup, teardown);
    rig_remove_checkpoint(checkpoint);
    return result;
}
