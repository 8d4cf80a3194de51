/*
 * Whole models through the CUDA backend (cuda_place.h: emulated, or on a GPU): the oracle's golden
 * logits within their noise; and the same bits whatever the chunks, the company and the recording.
 *
 * usage: test_cuda_model VECTORS_DIR    (the folder of tiny/prompts.safetensors)
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/model/checkpoint_make.h"
#include "common/model/model.h"
#include "common/model/model_debug.h"
#include "common/model/safetensors.h"
#include "tests/lib/checkpoint_folder.h"
#include "tests/unit/kernels/cuda_place.h"

enum { CONTEXT = 1280, PAGES = 8, SLOTS = 4, SEQS = 2, ROWS = 160, LOGITS = 160 };
enum { LENGTH = 144, MTP_ROWS = 12, STEPS = 6, VERIFIED = 3 };

static const char *vectors;
static char folder[CHECKPOINT_FOLDER_MAX];

/* tests/run --full: what takes minutes when it is emulated. */
static bool full(void)
{
    const char *value = getenv("BATON_TEST_FULL");

    return value != NULL && value[0] == '1';
}

struct run {
    struct model *m;
    struct kv_memory kv;
};

static const char *checkpoint(const char *preset, enum checkpoint_experts experts, char *path,
                              size_t n)
{
    struct checkpoint_options opt = {.preset = preset, .experts = experts, .seed = -1};
    struct status st;

    snprintf(path, n, "%s/%s-%d", folder, preset, (int)experts);
    if (access(path, F_OK) != 0 && checkpoint_make(path, &opt, &st) != ST_OK)
        fail_msg("%s", st.msg);
    return path;
}

static void run_open(struct run *r, const char *path, int level)
{
    char device[24];
    struct model_options opt = {.path = path,
                                .device = device,
                                .open_kernels = cuda_place_open,
                                .n_threads = 1,
                                .max_batch_tokens = ROWS,
                                .max_batch_seqs = SEQS,
                                .max_context = CONTEXT,
                                .max_logit_rows = LOGITS};
    struct status st;

    snprintf(device, sizeof(device), "cuda:%d", level);
    if (model_open(&opt, &r->m, &st) != ST_OK ||
        model_kv_alloc(r->m, PAGES * SEQS, SLOTS, &r->kv, &st) != ST_OK)
        fail_msg("%s", st.msg);
}

static void run_close(struct run *r)
{
    model_kv_free(r->m, &r->kv);
    model_free(r->m);
}

/* Pages of sequence i, not in order. */
static const uint32_t *pages_of(int i)
{
    static uint32_t pages[SEQS][PAGES];

    for (int p = 0; p < PAGES; p++)
        pages[i][p] = (uint32_t)((PAGES - 1 - p) * SEQS + i);
    return pages[i];
}

static struct model_span span_of(int seq, const int32_t *tokens, int start, int n,
                                 enum model_logits logits)
{
    return (struct model_span){.tokens = tokens + start,
                               .n_tokens = n,
                               .start = start,
                               .slot = (uint32_t)seq + 1,
                               .pages = pages_of(seq),
                               .logits = logits};
}

static const float *forward(struct run *r, const struct model_span *spans, int n)
{
    const float *logits = NULL;
    struct status st;

    if (model_forward(r->m, &r->kv, spans, n, &logits, &st) != ST_OK)
        fail_msg("%s", st.msg);
    return logits;
}

/* Logits of all n tokens of a sequence, in chunks; malloc'd. */
static float *all_logits(struct run *r, int seq, const int32_t *tokens, int n, int chunk)
{
    size_t vocab = (size_t)model_get_config(r->m)->vocab_size;
    float *out = calloc((size_t)n * vocab, sizeof(*out));

    for (int start = 0; start < n; start += chunk) {
        int some = n - start < chunk ? n - start : chunk;
        struct model_span s = span_of(seq, tokens, start, some, MODEL_LOGITS_ALL);

        memcpy(out + (size_t)start * vocab, forward(r, &s, 1), (size_t)some * vocab * sizeof(*out));
    }
    return out;
}

/* ---- golden ---- */

static const struct tensor *golden(struct safetensors *s, const char *what, int n)
{
    char name[64];
    const struct tensor *t;

    snprintf(name, sizeof(name), "%s.%d", what, n);
    t = safetensors_find(s, name);
    assert_non_null(t);
    return t;
}

/* Per row: at most 5 times its noise, twice on average (vectors/INDEX.json, `prompts`). */
static void check_golden(struct run *r, struct safetensors *file, int n)
{
    size_t vocab = (size_t)model_get_config(r->m)->vocab_size;
    const struct tensor *positions = golden(file, "positions", n);
    const float *want = (const float *)(const void *)golden(file, "logits", n)->data;
    const float *noise = (const float *)(const void *)golden(file, "noise", n)->data;
    float *got =
        all_logits(r, 0, (const int32_t *)(const void *)golden(file, "tokens", n)->data, n, ROWS);
    double errors = 0, noises = 0;
    int n_rows = (int)positions->shape[0];

    for (int i = 0; i < n_rows; i++) {
        size_t at = (size_t)((const int32_t *)(const void *)positions->data)[i] * vocab;
        double sum = 0;

        for (size_t v = 0; v < vocab; v++) {
            double d = (double)got[at + v] - (double)want[(size_t)i * vocab + v];

            sum += d * d;
        }
        sum = sqrt(sum / (double)vocab);
        if (!(sum <= 5 * (double)noise[i] + 1e-4))
            fail_msg("prompt of %d, row %d: error %g, noise %g", n, i, sum, (double)noise[i]);
        errors += sum;
        noises += (double)noise[i];
    }
    print_message("%s, prompt of %d: error %.2f of the noise\n", model_backend_name(r->m), n,
                  errors / noises);
    assert_true(errors <= 2 * noises + 1e-4 * n_rows);
    free(got);
}

static void golden_logits_within_their_noise(void **state)
{
    static const int lengths[] = {1, 5, 129};
    char path[128], name[4096];
    struct safetensors *file = NULL;
    struct status st;

    (void)state;
    snprintf(name, sizeof(name), "%s/tiny/prompts.safetensors", vectors);
    if (safetensors_open_file(name, &file, &st) != ST_OK)
        fail_msg("%s", st.msg);
    for (int level = 0; level < cuda_place_n_levels; level++) {
        struct run r;

        run_open(&r, checkpoint("tiny", EXPERTS_FP4, path, sizeof(path)), level);
        for (int i = 0; i < (full() ? 3 : 2); i++)
            check_golden(&r, file, lengths[i]);
        run_close(&r);
    }
    safetensors_close(file);
}

/* ---- bits ---- */

static void same(const char *what, const float *got, const float *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(&got[i], &want[i], sizeof(*got)) != 0)
            fail_msg("%s: logit %zu is %.9g, expected %.9g", what, i, (double)got[i],
                     (double)want[i]);
}

/* Sequence i decodes from here on. */
static int decode_start(int i)
{
    return 132 + 2 * i;
}

/* The same with the MTP block over all of them, whose logits of the last MTP_ROWS rows are mtp. */
static float *whole(struct run *r, int seq, const int32_t *tokens, float *mtp)
{
    size_t vocab = (size_t)model_get_config(r->m)->vocab_size;
    float *out = all_logits(r, seq, tokens, LENGTH, LENGTH);
    const float *logits;
    int32_t rows[MTP_ROWS];
    struct status st;

    for (int i = 0; i < MTP_ROWS; i++)
        rows[i] = LENGTH - MTP_ROWS + i;
    if (model_mtp(r->m, &r->kv, tokens + 1, rows, MTP_ROWS, &logits, &st) != ST_OK)
        fail_msg("%s", st.msg);
    memcpy(mtp, logits, MTP_ROWS * vocab * sizeof(*mtp));
    return out;
}

/* What is in the KV before position n, the MTP block's included. */
static void prefill(struct run *r, int seq, const int32_t *tokens, int n)
{
    struct model_span s = span_of(seq, tokens, 0, n, MODEL_LOGITS_NONE);
    const float *logits;
    struct status st;

    forward(r, &s, 1);
    if (model_mtp(r->m, &r->kv, tokens + 1, NULL, 0, &logits, &st) != ST_OK)
        fail_msg("%s", st.msg);
}

/* All sequences decode a token together, each with its MTP row. */
static void decode_together(struct run *r, int32_t tokens[SEQS][ROWS], float *const want[SEQS],
                            float *const mtp[SEQS], int step)
{
    size_t vocab = (size_t)model_get_config(r->m)->vocab_size;
    struct model_span spans[SEQS];
    int32_t next[SEQS], rows[SEQS];
    const float *logits;
    struct status st;

    for (int i = 0; i < SEQS; i++) {
        int at = decode_start(i) + step;

        spans[i] = span_of(i, tokens[i], at, 1, MODEL_LOGITS_LAST);
        next[i] = tokens[i][at + 1];
        rows[i] = i;
    }
    logits = forward(r, spans, SEQS);
    for (int i = 0; i < SEQS; i++)
        same("together", logits + (size_t)i * vocab,
             want[i] + (size_t)(decode_start(i) + step) * vocab, vocab);
    if (model_mtp(r->m, &r->kv, next, rows, SEQS, &logits, &st) != ST_OK)
        fail_msg("%s", st.msg);
    for (int i = 0; i < SEQS; i++)
        same("MTP", logits + (size_t)i * vocab,
             mtp[i] + (size_t)(decode_start(i) + step - LENGTH + MTP_ROWS) * vocab, vocab);
}

/* Sequence i has rows for VERIFIED - i tokens at once, as drafts that are verified: fewer rows than
 * any recording but the last has. All rows of the MTP block are drafted from. */
static void verify_together(struct run *r, int32_t tokens[SEQS][ROWS], float *const want[SEQS],
                            float *const mtp[SEQS], int step)
{
    size_t vocab = (size_t)model_get_config(r->m)->vocab_size, row = 0;
    struct model_span spans[SEQS];
    int32_t next[SEQS * VERIFIED], last[SEQS];
    const float *logits;
    struct status st;

    for (int i = 0; i < SEQS; i++) {
        int at = decode_start(i) + step;

        spans[i] = span_of(i, tokens[i], at, VERIFIED - i, MODEL_LOGITS_ALL);
        for (int j = 0; j < VERIFIED - i; j++)
            next[row++] = tokens[i][at + 1 + j];
        last[i] = (int32_t)row - 1;
    }
    logits = forward(r, spans, SEQS);
    row = 0;
    for (int i = 0; i < SEQS; i++)
        for (int j = 0; j < VERIFIED - i; j++, row++)
            same("verified", logits + row * vocab,
                 want[i] + (size_t)(decode_start(i) + step + j) * vocab, vocab);
    if (model_mtp(r->m, &r->kv, next, last, SEQS, &logits, &st) != ST_OK)
        fail_msg("%s", st.msg);
    for (int i = 0; i < SEQS; i++)
        same("MTP of drafts", logits + (size_t)i * vocab,
             mtp[i] +
                 (size_t)(decode_start(i) + step + VERIFIED - i - 1 - LENGTH + MTP_ROWS) * vocab,
             vocab);
}

static void bits_depend_on_the_sequence_alone(int level, enum checkpoint_experts experts)
{
    static int32_t tokens[SEQS][ROWS];
    float *want[SEQS], *mtp[SEQS], *chunks;
    char path[128];
    struct run r;
    struct status st;
    size_t vocab;

    for (int i = 0; i < SEQS; i++)
        for (int t = 0; t < ROWS; t++)
            tokens[i][t] = (t * 37 + i * 101 + t * t % 11) % 500;
    run_open(&r, checkpoint("slim", experts, path, sizeof(path)), level);
    vocab = (size_t)model_get_config(r.m)->vocab_size;
    for (int i = 0; i < SEQS; i++) { /* alone and whole */
        mtp[i] = calloc(MTP_ROWS * vocab, sizeof(float));
        want[i] = whole(&r, i, tokens[i], mtp[i]);
    }
    chunks = all_logits(&r, 0, tokens[0], LENGTH, 37);
    same("in chunks", chunks, want[0], LENGTH * vocab);
    free(chunks);
    for (int i = 0; i < SEQS; i++)
        prefill(&r, i, tokens[i], decode_start(i));
    for (int step = 0; step < STEPS; step++) {
        if (step == 2 && model_record(r.m, &r.kv, SEQS, VERIFIED, &st) != ST_OK)
            fail_msg("%s", st.msg);
        decode_together(&r, tokens, want, mtp, step);
    }
    assert_int_equal(model_debug_replays(r.m), 2 * (STEPS - 2));
    assert_true(model_recorded_bytes(r.m) > 0);
    verify_together(&r, tokens, want, mtp, STEPS); /* 5 rows by a recording of 6 */
    assert_int_equal(model_debug_replays(r.m), 2 * (STEPS - 1));
    decode_together(&r, tokens, want, mtp, STEPS + 1); /* after one token of each was accepted */
    for (int i = 0; i < SEQS; i++) {
        free(want[i]);
        free(mtp[i]);
    }
    run_close(&r);
}

static void fp4_experts_give_the_same_bits_in_any_company(void **state)
{
    (void)state;
    bits_depend_on_the_sequence_alone(CUDA_PLACE_HIDDEN, EXPERTS_FP4);
}

static void fp8_experts_give_the_same_bits_in_any_company(void **state)
{
    (void)state;
    if (!full())
        skip(); /* test_dense.c has the experts alone */
    bits_depend_on_the_sequence_alone(1, EXPERTS_FP8);
}

/* FP8 experts that say the same as FP4 ones: the very same logits, whatever unpacks them. */
static void converted_experts_give_the_logits_of_fp4_ones(void **state)
{
    int32_t tokens[24];
    float *logits[2];
    char path[128];
    size_t vocab = 0;

    (void)state;
    for (int t = 0; t < 24; t++)
        tokens[t] = t * 19 % 500;
    for (int i = 0; i < 2; i++) {
        struct run r;

        run_open(
            &r,
            checkpoint("slim", i == 0 ? EXPERTS_FP4 : EXPERTS_FP8_CONVERTED, path, sizeof(path)),
            1);
        vocab = (size_t)model_get_config(r.m)->vocab_size;
        logits[i] = all_logits(&r, 0, tokens, 24, 24);
        run_close(&r);
    }
    for (size_t i = 0; i < 24 * vocab; i++)
        if (!(fabsf(logits[0][i] - logits[1][i]) <= 0.05f + 0.02f * fabsf(logits[0][i])))
            fail_msg("logit %zu is %g with FP8, %g with FP4", i, (double)logits[1][i],
                     (double)logits[0][i]);
    free(logits[0]);
    free(logits[1]);
}

static int setup(void **state)
{
    (void)state;
    return checkpoint_folder_make(folder, "test_cuda_model", NULL);
}

static int teardown(void **state)
{
    (void)state;
    return checkpoint_folder_remove(folder);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_logits_within_their_noise),
        cmocka_unit_test(fp4_experts_give_the_same_bits_in_any_company),
        cmocka_unit_test(fp8_experts_give_the_same_bits_in_any_company),
        cmocka_unit_test(converted_experts_give_the_logits_of_fp4_ones),
    };

    if (argc != 2)
        return 2;
    if (!cuda_place_ready())
        return CUDA_PLACE_SKIPPED;
    vectors = argv[1];
    return cmocka_run_group_tests_name("cuda model", tests, setup, teardown);
}
