/* Sampling parameters and log probabilities between messages and their structs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/worker/sampling.h"

enum { VOCAB = 1000, EOS = 7 };

static void absent_fields_mean_the_defaults(void **state)
{
    Baton__V1__Sampling m = BATON__V1__SAMPLING__INIT;
    struct sampling_params p;
    struct status st;

    (void)state;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(sampling_params_read(i ? &m : NULL, VOCAB, EOS, &p, &st), ST_OK);
        assert_true(p.temperature == 1 && p.top_p == 1 && p.min_p == 0 && p.top_k == 0);
        assert_true(p.presence_penalty == 0 && p.frequency_penalty == 0);
        assert_true(p.repetition_penalty == 1 && p.n_bias == 0 && p.n_stop_ids == 0);
        assert_true(p.min_new == 0 && p.eos == EOS && !p.logprobs && !p.prompt_logprobs);
        sampling_params_deinit(&p);
    }
}

static void everything_goes_through_a_message_and_back(void **state)
{
    int32_t stops[] = {1, 2, 999}, biased[] = {0, 500};
    float bias[] = {-100, 2.5f};
    struct sampling_params p = {.temperature = 0.5f,
                                .top_p = 0.25f,
                                .min_p = 0.125f,
                                .top_k = 40,
                                .seed = UINT64_MAX,
                                .presence_penalty = -2,
                                .frequency_penalty = 2,
                                .repetition_penalty = 1.5f,
                                .n_bias = 2,
                                .bias_ids = biased,
                                .bias = bias,
                                .min_new = 3,
                                .eos = EOS,
                                .n_stop_ids = 3,
                                .stop_ids = stops,
                                .logprobs = true,
                                .n_top_logprobs = 128,
                                .prompt_logprobs = true};
    Baton__V1__Sampling m, *unpacked;
    struct sampling_params q;
    struct status st;
    uint8_t *bytes;
    size_t n;

    (void)state;
    sampling_params_write(&p, 9, &m);
    bytes = malloc(baton__v1__sampling__get_packed_size(&m));
    n = baton__v1__sampling__pack(&m, bytes);
    unpacked = baton__v1__sampling__unpack(NULL, n, bytes);
    assert_int_equal(unpacked->max_new_tokens, 9);
    assert_int_equal(sampling_params_read(unpacked, VOCAB, EOS, &q, &st), ST_OK);
    baton__v1__sampling__free_unpacked(unpacked, NULL); /* q has copies */
    free(bytes);
    assert_true(q.temperature == p.temperature && q.top_p == p.top_p && q.min_p == p.min_p);
    assert_true(q.top_k == p.top_k && q.seed == p.seed && q.min_new == p.min_new);
    assert_true(q.presence_penalty == -2 && q.frequency_penalty == 2);
    assert_true(q.repetition_penalty == 1.5f && q.eos == EOS);
    assert_int_equal(q.n_bias, 2);
    assert_memory_equal(q.bias_ids, biased, sizeof(biased));
    assert_memory_equal(q.bias, bias, sizeof(bias));
    assert_int_equal(q.n_stop_ids, 3);
    assert_memory_equal(q.stop_ids, stops, sizeof(stops));
    assert_true(q.logprobs && q.n_top_logprobs == 128 && q.prompt_logprobs);
    sampling_params_deinit(&q);
}

static void out_of_bounds_numbers_are_refused_by_name(void **state)
{
    static const struct {
        const char *name;
        size_t has, at;
        float bad[4]; /* the last ones may repeat */
    } rows[] = {
#define ROW(field)                                                                                 \
#field, offsetof(Baton__V1__Sampling, has_##field), offsetof(Baton__V1__Sampling, field)
        {ROW(temperature), {-0.1f, NAN, INFINITY, 1e7f}},
        {ROW(top_p), {0, -1, 1.01f, NAN}},
        {ROW(min_p), {-0.1f, 1.01f, NAN, INFINITY}},
        {ROW(presence_penalty), {-2.1f, 2.1f, NAN, -INFINITY}},
        {ROW(frequency_penalty), {-2.1f, 2.1f, NAN, -INFINITY}},
        {ROW(repetition_penalty), {0, -1, 2.1f, NAN}},
#undef ROW
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        for (int k = 0; k < 4; k++) {
            Baton__V1__Sampling m = BATON__V1__SAMPLING__INIT;
            struct sampling_params p;
            struct status st;

            *(protobuf_c_boolean *)((char *)&m + rows[i].has) = 1;
            *(float *)((char *)&m + rows[i].at) = rows[i].bad[k];
            assert_int_equal(sampling_params_read(&m, VOCAB, EOS, &p, &st), ST_INVALID);
            assert_non_null(strstr(st.msg, rows[i].name));
            sampling_params_deinit(&p);
        }
}

static void assert_refused(const Baton__V1__Sampling *m, const char *word)
{
    struct sampling_params p;
    struct status st;

    assert_int_equal(sampling_params_read(m, VOCAB, EOS, &p, &st), ST_INVALID);
    if (strstr(st.msg, word) == NULL)
        fail_msg("'%s' does not tell of %s", st.msg, word);
    sampling_params_deinit(&p);
}

static void lists_that_do_not_fit_are_refused(void **state)
{
    int32_t ids[SAMPLER_BIAS_MAX + 1] = {VOCAB};
    float bias[SAMPLER_BIAS_MAX + 1] = {INFINITY};
    Baton__V1__Sampling m = BATON__V1__SAMPLING__INIT;

    (void)state;
    m.logit_bias_ids = m.stop_token_ids = ids;
    m.logit_bias = bias;
    m.n_logit_bias = 1;
    assert_refused(&m, "1 values for 0 token ids");
    m.n_logit_bias_ids = 1;
    assert_refused(&m, "token 1000 is outside the vocabulary of 1000");
    ids[0] = -1;
    assert_refused(&m, "token -1");
    ids[0] = 5;
    assert_refused(&m, "logit_bias of token 5");
    m.n_logit_bias = m.n_logit_bias_ids = SAMPLER_BIAS_MAX + 1;
    assert_refused(&m, "1025 entries");
    m.n_logit_bias = m.n_logit_bias_ids = 0;
    m.n_stop_token_ids = SAMPLER_STOP_MAX + 1;
    assert_refused(&m, "65 stop token ids");
    m.n_stop_token_ids = 0;
    m.has_top_logprobs = 1;
    m.top_logprobs = SAMPLER_TOP_MAX + 1;
    assert_refused(&m, "top_logprobs");
    m.top_logprobs = 0;
    m.has_min_new_tokens = m.has_max_new_tokens = 1;
    m.min_new_tokens = 3;
    m.max_new_tokens = 2;
    assert_refused(&m, "min_new_tokens");
}

static void log_probabilities_gather_and_travel(void **state)
{
    struct sampler_logprobs one = {
        .logprob = -0.5f, .n_top = 2, .top_ids = {3, 4}, .top_logprobs = {-0.25f, -0.5f}};
    struct logprobs l = {0}, copy = {0};
    Baton__V1__Logprobs m;
    struct status st;

    (void)state;
    for (int i = 0; i < 100; i++) {
        one.n_top = i % 3;
        one.logprob = (float)-i;
        assert_int_equal(logprobs_add(&l, &one, &st), ST_OK);
    }
    logprobs_write(&l, &m);
    assert_int_equal(m.n_logprobs, 100);
    assert_int_equal(m.n_top_ids, 99);
    assert_int_equal(logprobs_add_message(&copy, &m, 100, &st), ST_OK);
    assert_memory_equal(copy.logprobs, l.logprobs, 100 * sizeof(float));
    assert_memory_equal(copy.n_top, l.n_top, 100 * sizeof(uint32_t));
    assert_memory_equal(copy.top_ids, l.top_ids, 99 * sizeof(int32_t));
    assert_memory_equal(copy.top_logprobs, l.top_logprobs, 99 * sizeof(float));

    logprobs_clear(&copy); /* contradictions */
    assert_int_equal(logprobs_add_message(&copy, &m, 99, &st), ST_CORRUPT);
    m.n_top_ids--;
    assert_int_equal(logprobs_add_message(&copy, &m, 100, &st), ST_CORRUPT);
    m.n_top_ids++;
    m.n_n_top--;
    assert_int_equal(logprobs_add_message(&copy, &m, 100, &st), ST_CORRUPT);
    assert_int_equal(copy.n, 0);
    logprobs_deinit(&l);
    logprobs_deinit(&copy);
}

static void reserved_room_is_not_allocated_again(void **state)
{
    struct sampler_logprobs one = {.n_top = 20};
    struct logprobs l = {0};
    struct status st;
    float *at;

    (void)state;
    assert_int_equal(logprobs_reserve(&l, 50, 20, &st), ST_OK);
    at = l.top_logprobs;
    for (int i = 0; i < 50; i++)
        assert_int_equal(logprobs_add(&l, &one, &st), ST_OK);
    assert_ptr_equal(l.top_logprobs, at);
    assert_int_equal(l.cap, 50);
    logprobs_deinit(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(absent_fields_mean_the_defaults),
        cmocka_unit_test(everything_goes_through_a_message_and_back),
        cmocka_unit_test(out_of_bounds_numbers_are_refused_by_name),
        cmocka_unit_test(lists_that_do_not_fit_are_refused),
        cmocka_unit_test(log_probabilities_gather_and_travel),
        cmocka_unit_test(reserved_room_is_not_allocated_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
