/* Counts for penalties: kept up token by token as made anew. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/sampler_history.h"
#include "kernels/sampler_noise.h"

enum { VOCAB = 50, OUTPUT_MAX = 300, PROMPT_MAX = 40 };

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t n)
{
    random_state += NOISE_GOLDEN;
    return (uint32_t)((noise_mix(random_state) >> 32) * n >> 32);
}

static struct sampler_history *make(const struct sampling_params *p, const int32_t *tokens,
                                    uint32_t n_prompt, uint32_t n_output)
{
    struct sampler_history *h;
    struct status st;

    assert_int_equal(
        sampler_history_new(VOCAB, p, tokens, n_prompt + n_output, n_output, OUTPUT_MAX, &h, &st),
        ST_OK);
    return h;
}

/* Counts by id; entries that were dropped again count nothing. */
static void tally(const struct sampler_history *h, uint32_t output[VOCAB], bool prompt[VOCAB])
{
    uint32_t n;
    const struct sampler_seen *seen = sampler_history_borrow(h, &n);

    memset(output, 0, VOCAB * sizeof(output[0]));
    memset(prompt, 0, VOCAB * sizeof(prompt[0]));
    for (uint32_t i = 0; i < n; i++) {
        assert_in_range(seen[i].id, 0, VOCAB - 1);
        assert_true(output[seen[i].id] == 0 && !prompt[seen[i].id]); /* one entry for an id */
        output[seen[i].id] = seen[i].n_output;
        prompt[seen[i].id] = seen[i].in_prompt;
    }
}

static void assert_same(const struct sampler_history *a, const struct sampler_history *b)
{
    uint32_t output[2][VOCAB];
    bool prompt[2][VOCAB];

    assert_int_equal(sampler_history_n_output(a), sampler_history_n_output(b));
    tally(a, output[0], prompt[0]);
    tally(b, output[1], prompt[1]);
    assert_memory_equal(output[0], output[1], sizeof(output[0]));
    assert_memory_equal(prompt[0], prompt[1], sizeof(prompt[0]));
}

static void kept_up_counts_equal_rebuilt_ones(void **state)
{
    const struct sampling_params params[] = {
        {.repetition_penalty = 1.2f},
        {.presence_penalty = 0.5f, .repetition_penalty = 1},
    };

    (void)state;
    for (int trial = 0; trial < 200; trial++) {
        const struct sampling_params *p = &params[trial % 2];
        int32_t tokens[PROMPT_MAX + OUTPUT_MAX];
        uint32_t n_prompt = random_below(PROMPT_MAX), n_output = 0;
        struct sampler_history *h, *again;

        for (int i = 0; i < PROMPT_MAX + OUTPUT_MAX; i++)
            tokens[i] = (int32_t)random_below(VOCAB);
        h = make(p, tokens, n_prompt, 0);
        for (int step = 0; step < 60; step++) { /* drafts come and go */
            uint32_t n_push = random_below(6), n_drop = random_below(8);

            for (uint32_t i = 0; i < n_push && n_output < OUTPUT_MAX; i++)
                sampler_history_push(h, tokens[n_prompt + n_output++]);
            n_output -= n_drop < n_output ? n_drop : n_output;
            sampler_history_truncate(h, n_output);
            tokens[n_prompt + n_output] = (int32_t)random_below(VOCAB); /* another continuation */
        }
        again = make(p, tokens, n_prompt, n_output);
        assert_same(h, again);
        sampler_history_free(again);
        sampler_history_free(h);
    }
}

/* A draft that is dropped leaves no trace: however many there were, the room is enough. */
static void rejected_drafts_take_no_room(void **state)
{
    enum { OUTPUT = 6, LARGE = 100000 };
    const struct sampling_params params[] = {{.frequency_penalty = 1}, {.repetition_penalty = 2}};
    const int32_t prompt[] = {1, 2, 3};

    (void)state;
    for (int k = 0; k < 2; k++) {
        struct sampler_history *h;
        struct status st;
        uint32_t n;

        assert_int_equal(sampler_history_new(LARGE, &params[k], prompt, 3, 0, OUTPUT, &h, &st),
                         ST_OK);
        for (int i = 0; i < 5000; i++) {
            uint32_t keep = (uint32_t)i % OUTPUT;

            sampler_history_truncate(h, keep);
            for (uint32_t j = keep; j < OUTPUT; j++)
                sampler_history_push(h, (int32_t)random_below(LARGE));
        }
        sampler_history_borrow(h, &n);
        assert_true(n <= OUTPUT + 3);
        sampler_history_truncate(h, 0);
        sampler_history_borrow(h, &n);
        assert_int_equal(n, k == 0 ? 0 : 3);
        sampler_history_free(h);
    }
}

static void without_penalties_there_is_no_history(void **state)
{
    const struct sampling_params p = {.temperature = 1, .top_p = 1};
    const int32_t tokens[] = {1, 2};
    struct sampler_history *h = make(&p, tokens, 1, 1);

    (void)state;
    assert_null(h);
    sampler_history_push(h, 3);
    sampler_history_truncate(h, 0);
    sampler_history_free(h);
}

static void it_holds_the_whole_vocabulary(void **state)
{
    const struct sampling_params p = {.frequency_penalty = 1};
    struct sampler_history *h = make(&p, NULL, 0, 0);
    uint32_t n;

    (void)state;
    for (int32_t i = 0; i < OUTPUT_MAX; i++)
        sampler_history_push(h, i % VOCAB);
    sampler_history_borrow(h, &n);
    assert_int_equal(n, VOCAB);
    sampler_history_free(h);
}

static void tokens_outside_the_vocabulary_are_refused_or_harmless(void **state)
{
    const struct sampling_params p = {.frequency_penalty = 1};
    const int32_t bad[] = {1, VOCAB}, good[] = {1};
    struct sampler_history *h;
    struct status st;
    uint32_t n;

    (void)state;
    assert_int_equal(sampler_history_new(VOCAB, &p, bad, 2, 1, OUTPUT_MAX, &h, &st), ST_INVALID);
    assert_null(h);
    assert_int_equal(sampler_history_new(VOCAB, &p, good, 1, 2, OUTPUT_MAX, &h, &st), ST_INVALID);
    h = make(&p, good, 0, 1);
    sampler_history_push(h, VOCAB + 3);
    sampler_history_push(h, -1);
    assert_int_equal(sampler_history_n_output(h), 3);
    sampler_history_borrow(h, &n);
    assert_int_equal(n, 1);
    sampler_history_truncate(h, 0);
    assert_int_equal(sampler_history_n_output(h), 0);
    sampler_history_free(h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kept_up_counts_equal_rebuilt_ones),
        cmocka_unit_test(rejected_drafts_take_no_room),
        cmocka_unit_test(without_penalties_there_is_no_history),
        cmocka_unit_test(it_holds_the_whole_vocabulary),
        cmocka_unit_test(tokens_outside_the_vocabulary_are_refused_or_harmless),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
