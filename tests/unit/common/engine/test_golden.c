/*
 * Golden prompts of the oracle, many at once: through the model in ragged batches, and through the
 * engine with chunks, cached prefixes and drafts. What one of them gives alone is held to the same
 * vectors by tests/integration/test_golden.py.
 *
 * usage: test_golden LEVEL PRESET VECTORS_DIR
 *
 * Level ref: logits within 1e-5, the golden tokens. Other levels: the limits of vectors/INDEX.json
 * (`prompts`), a greedy token may differ where the margin is small. The reference takes the prompts
 * that are quick; with BATON_TEST_FULL set all of them.
 */
#include "tests/unit/common/engine/rig.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/engine/engine_internal.h"
#include "common/model/safetensors.h"

enum { GREEDY = 16, LENGTHS = 7, PAGES_EACH = 5, TOKENS_MAX = 1100 + GREEDY };

static const int lengths[LENGTHS] = {1, 5, 127, 128, 129, 300, 1100};
static const char *checkpoint, *level, *preset;
static bool is_ref;
static struct safetensors *vectors;
static int32_t vocab;
static uint32_t n_compared;

/* The releases' own heads: quick with vector instructions only. */
static bool has_all_heads(void)
{
    return strstr(preset, "heads") != NULL;
}

/* One golden prompt with its 16 tokens. */
struct golden {
    int length, n_rows, n_mtp;
    int32_t tokens[TOKENS_MAX];
    const int32_t *positions, *mtp_positions;
    const float *logits, *noise, *mtp_logits, *mtp_noise;
    const float *greedy_logits, *greedy_noise, *greedy_margin;
    double error_sum, noise_sum; /* of the rows compared */
};

static struct golden goldens[LENGTHS];
static int n_goldens;

static const void *part(const char *name, int length, int *n)
{
    const struct tensor *t;
    char full[64];

    snprintf(full, sizeof(full), "%s.%d", name, length);
    t = safetensors_find(vectors, full);
    if (t == NULL)
        fail_msg("no %s in the vectors", full);
    if (n != NULL)
        *n = (int)t->shape[0];
    return t->data;
}

/* The reference takes those that are quick, unless all are asked for. */
static bool is_wanted(int length)
{
    bool all = !is_ref || getenv("BATON_TEST_FULL") != NULL;

    if (has_all_heads()) /* their vectors have two lengths */
        return length == 5 || (all && length == 129);
    return all || (strcmp(preset, "tiny") == 0 ? length <= 300 : length == 5 || length == 129);
}

static int setup(void **state)
{
    (void)state;
    for (int i = 0; i < LENGTHS; i++) {
        struct golden *g = &goldens[n_goldens];
        int n = lengths[i];

        if (!is_wanted(n))
            continue;
        n_goldens++;
        g->length = n;
        memcpy(g->tokens, part("tokens", n, NULL), (size_t)n * 4);
        memcpy(g->tokens + n, part("greedy", n, NULL), GREEDY * 4);
        g->positions = part("positions", n, &g->n_rows);
        g->logits = part("logits", n, NULL);
        g->noise = part("noise", n, NULL);
        g->mtp_positions = part("mtp_positions", n, &g->n_mtp);
        g->mtp_logits = part("mtp_logits", n, NULL);
        g->mtp_noise = part("mtp_noise", n, NULL);
        g->greedy_logits = part("greedy_logits", n, NULL);
        g->greedy_noise = part("greedy_noise", n, NULL);
        g->greedy_margin = part("greedy_margin", n, NULL);
    }
    return 0;
}

static void begin(void)
{
    n_compared = 0;
    for (int i = 0; i < n_goldens; i++)
        goldens[i].error_sum = goldens[i].noise_sum = 0;
}

/* The mean limit holds for the rows of a prompt together. */
static void end(const char *what)
{
    for (int i = 0; i < n_goldens; i++)
        if (!is_ref && goldens[i].error_sum > 2 * goldens[i].noise_sum + 1e-4 * n_compared)
            fail_msg("%s, %d tokens: mean error %.2f times the noise", what, goldens[i].length,
                     goldens[i].error_sum / goldens[i].noise_sum);
    print_message("%s: %u rows of logits compared\n", what, n_compared);
    assert_true(n_compared > 0);
}

static void compare(struct golden *g, const char *what, int at, const float *got, const float *want,
                    float noise)
{
    double sum = 0, worst = 0;

    for (int32_t i = 0; i < vocab; i++) {
        double d = (double)got[i] - (double)want[i];

        sum += d * d;
        worst = fabs(d) > worst ? fabs(d) : worst;
    }
    sum = sqrt(sum / vocab);
    if (is_ref ? worst > 1e-5 : sum > 5 * (double)noise + 1e-4)
        fail_msg("%s, prompt of %d tokens, position %d: RMS %g, worst %g, noise %g", what,
                 g->length, at, sum, worst, (double)noise);
    g->error_sum += sum;
    g->noise_sum += (double)noise;
    n_compared++;
}

static struct rig_options options(void)
{
    struct rig_options o = {.checkpoint = checkpoint,
                            .isa = level,
                            .threads = 2,
                            .n_pages = 2 * LENGTHS * PAGES_EACH,
                            .n_slots = 2 * LENGTHS,
                            .engine = rig_engine_options()};

    o.engine.keep_mtp = true;
    return o;
}

/* ---- the model ---- */

/* One step of the batch: sequence i takes n[i] tokens after at[i]. */
struct ragged {
    int at[LENGTHS], n[LENGTHS], row[LENGTHS], n_rows, n_spans;
    struct model_span spans[LENGTHS];
    int32_t next[LENGTHS * TOKENS_MAX], all[LENGTHS * TOKENS_MAX];
    uint32_t pages[LENGTHS][PAGES_EACH];
};

/* Chunks of other sizes for each sequence and each step; after the prompt token by token. */
static void fill_batch(struct ragged *b)
{
    b->n_rows = b->n_spans = 0;
    for (int i = 0; i < n_goldens; i++) {
        const struct golden *g = &goldens[i];
        int chunk = 31 + (i * 59 + b->at[i] * 7) % 130;
        int left = b->at[i] < g->length ? g->length - b->at[i] : 1;

        b->n[i] = b->at[i] >= g->length + GREEDY - 1 ? 0 : left < chunk ? left : chunk;
        b->row[i] = b->n_rows;
        if (b->n[i] == 0)
            continue;
        b->spans[b->n_spans++] = (struct model_span){.tokens = g->tokens + b->at[i],
                                                     .n_tokens = b->n[i],
                                                     .start = b->at[i],
                                                     .slot = (uint32_t)i,
                                                     .pages = b->pages[i],
                                                     .logits = MODEL_LOGITS_ALL};
        for (int t = 0; t < b->n[i]; t++, b->n_rows++) {
            b->next[b->n_rows] = g->tokens[b->at[i] + t + 1];
            b->all[b->n_rows] = b->n_rows;
        }
    }
}

static void compare_kept(struct golden *g, const char *what, int first, int n, const float *rows,
                         const int32_t *positions, int n_kept, const float *want,
                         const float *noise)
{
    for (int k = 0; k < n_kept; k++)
        if (positions[k] >= first && positions[k] < first + n)
            compare(g, what, positions[k], rows + (size_t)(positions[k] - first) * (size_t)vocab,
                    want + (size_t)k * (size_t)vocab, noise[k]);
}

static void compare_batch(const struct ragged *b, const float *logits, bool mtp)
{
    for (int i = 0; i < n_goldens; i++) {
        const float *rows = logits + (size_t)b->row[i] * (size_t)vocab;
        struct golden *g = &goldens[i];
        int last = b->at[i] + b->n[i] - 1;

        if (b->n[i] == 0)
            continue;
        if (mtp) {
            compare_kept(g, "MTP", b->at[i], b->n[i], rows, g->mtp_positions, g->n_mtp,
                         g->mtp_logits, g->mtp_noise);
            continue;
        }
        compare_kept(g, "prompt", b->at[i], b->n[i], rows, g->positions, g->n_rows, g->logits,
                     g->noise);
        if (last >= g->length - 1) /* the golden tokens are fed */
            compare(g, "greedy", last, rows + (size_t)(b->n[i] - 1) * (size_t)vocab,
                    g->greedy_logits + (size_t)(last - g->length + 1) * (size_t)vocab,
                    g->greedy_noise[last - g->length + 1]);
    }
}

static void ragged_batches_give_the_golden_logits(void **state)
{
    static struct ragged b;
    struct rig_options o = options();
    const float *logits;
    struct status st;
    struct rig r;

    (void)state;
    begin();
    memset(&b, 0, sizeof(b));
    rig_open(&r, &o);
    vocab = r.engine->vocab;
    for (uint32_t i = 0; i < LENGTHS * PAGES_EACH; i++) /* pages in no order */
        b.pages[i / PAGES_EACH][i % PAGES_EACH] = (i * 11 + 5) % (LENGTHS * PAGES_EACH);
    for (;;) {
        fill_batch(&b);
        if (b.n_spans == 0)
            break;
        assert_int_equal(model_forward(r.model, &r.kv, b.spans, b.n_spans, &logits, &st), ST_OK);
        compare_batch(&b, logits, false);
        assert_int_equal(model_mtp(r.model, &r.kv, b.next, b.all, b.n_rows, &logits, &st), ST_OK);
        compare_batch(&b, logits, true);
        for (int i = 0; i < n_goldens; i++)
            b.at[i] += b.n[i];
    }
    end("model");
    rig_close(&r);
}

/* ---- the engine ---- */

/* The row for a position is compared as long as the tokens before it are the golden ones. */
static void on_row(void *arg, const struct sequence *s, const float *logits)
{
    const struct run *runs = arg, *run = s->owner;
    struct golden *g = &goldens[(run - runs) % n_goldens];
    int i = (int)s->n_tokens - g->length, best = 0;

    if (i >= GREEDY || memcmp(s->tokens, g->tokens, s->n_tokens * 4) != 0)
        return;
    compare(g, "engine", (int)s->n_tokens - 1, logits, g->greedy_logits + (size_t)i * (size_t)vocab,
            g->greedy_noise[i]);
    for (int32_t t = 1; t < vocab; t++)
        best = logits[t] > logits[best] ? t : best;
    if (best != g->tokens[g->length + i] &&
        (is_ref || g->greedy_margin[i] > 5 * g->greedy_noise[i]))
        fail_msg("prompt of %d tokens, greedy token %d is %d, golden %d, margin %g, noise %g",
                 g->length, i, best, g->tokens[g->length + i], (double)g->greedy_margin[i],
                 (double)g->greedy_noise[i]);
}

static void run_engine(const struct engine_options *e, const char *what)
{
    static struct answer answers[2 * LENGTHS];
    static struct run runs[2 * LENGTHS];
    struct rig_options o = options();
    struct engine_stats stats;
    struct rig r;

    begin();
    rig_open(&r, &o);
    vocab = r.engine->vocab;
    rig_reopen(&r, e);
    r.row = on_row;
    r.row_arg = runs;
    /* All prompts; then, with what is cached of them, all with their first half of the answer. */
    for (int i = 0; i < 2 * n_goldens; i++) {
        const struct golden *g = &goldens[i % n_goldens];
        uint32_t given = i < n_goldens ? 0 : GREEDY / 2;

        answers[i] = (struct answer){.prompt = g->tokens,
                                     .n_prompt = (uint32_t)g->length + given,
                                     .max_new = GREEDY - given,
                                     .sampling = {.top_p = 1}};
        if (i == n_goldens)
            rig_drain(&r);
        rig_submit(&r, &runs[i], &answers[i]);
        runs[i].seq.ignore_eos = true;
    }
    rig_drain(&r);
    engine_get_stats(r.engine, &stats);
    assert_int_equal(r.n_ended, 2 * n_goldens);
    for (int i = 0; i < 2 * n_goldens; i++) {
        if (is_ref)
            assert_memory_equal(runs[i].seq.tokens, goldens[i % n_goldens].tokens,
                                runs[i].seq.n_tokens * 4);
        rig_free(&runs[i]);
    }
    if (e->prefix_cache && goldens[n_goldens - 1].length > KV_PAGE_TOKENS)
        assert_true(stats.hit_tokens > 0);
    end(what);
    rig_close(&r);
}

static void the_engine_gives_the_golden_tokens(void **state)
{
    struct engine_options e = rig_engine_options();

    (void)state;
    if (!is_ref || getenv("BATON_TEST_FULL") != NULL)
        run_engine(&e, "engine, cache");
    e.draft_tokens = 3;
    e.chunk_tokens = 100;
    run_engine(&e, "engine, cache, chunks of 100, drafts");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ragged_batches_give_the_golden_logits),
        cmocka_unit_test(the_engine_gives_the_golden_tokens),
    };
    char path[4096];
    struct status st;
    int result;

    if (argc != 4)
        return 2;
    level = argv[1];
    preset = argv[2];
    is_ref = strcmp(level, "ref") == 0;
    if (!rig_level_runs(level))
        return 77;
    snprintf(path, sizeof(path), "%s/%s/prompts.safetensors", argv[3], preset);
    if (safetensors_open_file(path, &vectors, &st) != ST_OK) {
        fprintf(stderr, "%s\n", st.msg);
        return 1;
    }
    checkpoint = rig_make_checkpoint(preset);
    result = cmocka_run_group_tests_name("golden prompts", tests, setup, NULL);
    rig_remove_checkpoint(checkpoint);
    safetensors_close(vectors);
    return result;
}
