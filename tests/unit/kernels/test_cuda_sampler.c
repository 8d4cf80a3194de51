/* kernels/cuda/sampler.cu against common/model/sampler.c: the same tokens
 * and log probabilities, bit for bit, whatever the parameters; and rows together draw as alone. */
#include "common/model/sampler.h"
#include "common/model/sampler_history.h"
#include "kernels/cuda/sampler.h"
#include "tests/lib/kernel_rig.h"
#include "tests/unit/kernels/cuda_place.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { VOCAB_MAX = 129280, HISTORY = 60, N_OUTPUT = 25, LIST = 8, ROWS = 12 };

/* One draw: what both samplers are asked. */
struct ask {
    struct sampling_params p;
    int32_t bias_ids[LIST], stop_ids[LIST], tokens[HISTORY];
    float bias[LIST];
    uint64_t position;
    int32_t n_output;
};

static float pick_of(struct rig_random *r, const float *of, int n)
{
    return of[rig_bits(r) % (uint64_t)n];
}

static void ask_make(struct ask *a, struct rig_random *r, int vocab)
{
    static const float temperatures[] = {0, 0.3f, 1, 1, 1.7f, 1e-6f, 100},
                       top_ps[] = {1, 1, 0.9f, 0.3f, 0.01f, 0.999f}, min_ps[] = {0, 0, 0.05f, 1},
                       top_ks[] = {0, 0, 1, 5, 50, 700, 1e6f},
                       penalties[] = {0, 0, 0.5f, -0.5f, 1.5f}, repetitions[] = {1, 1, 0, 1.3f};

    memset(a, 0, sizeof(*a));
    a->p = (struct sampling_params){.temperature = pick_of(r, temperatures, 7),
                                    .top_p = pick_of(r, top_ps, 6),
                                    .min_p = pick_of(r, min_ps, 4),
                                    .top_k = (int32_t)pick_of(r, top_ks, 7),
                                    .seed = rig_bits(r),
                                    .presence_penalty = pick_of(r, penalties, 5),
                                    .frequency_penalty = pick_of(r, penalties, 5),
                                    .repetition_penalty = pick_of(r, repetitions, 4),
                                    .eos = (int32_t)(rig_bits(r) % (uint64_t)vocab),
                                    .min_new = rig_bits(r) % 3 == 0 ? 1000 : 0,
                                    .n_bias = (uint32_t)(rig_bits(r) % (LIST + 1)),
                                    .n_stop_ids = (uint32_t)(rig_bits(r) % (LIST + 1)),
                                    .logprobs = rig_bits(r) % 2 == 0,
                                    .n_top_logprobs = (int32_t)(rig_bits(r) % 22)};
    a->position = rig_bits(r) % 100000;
    for (int i = 0; i < LIST; i++) { /* ids come twice, and from outside */
        a->bias_ids[i] = (int32_t)(rig_bits(r) % 5) - 1 + (int32_t)(rig_bits(r) % 3) * (vocab / 2);
        a->bias[i] = rig_normal(r) * 3;
        a->stop_ids[i] = (int32_t)(rig_bits(r) % (uint64_t)vocab);
    }
    a->p.bias_ids = a->bias_ids;
    a->p.bias = a->bias;
    a->p.stop_ids = a->stop_ids;
    for (int i = 0; i < HISTORY; i++)
        a->tokens[i] = (int32_t)(rig_bits(r) % (uint64_t)(i % 2 && vocab > 7 ? 7 : vocab));
}

/* Logits with whatever a model may bring forth. */
static void logits_make(float *x, struct rig_random *r, int vocab, int kind)
{
    rig_f32(r, x, (size_t)vocab, kind == 1 ? 0.01f : 4);
    for (int i = 0; kind == 2 && i < vocab; i++)
        x[i] = rintf(x[i]); /* many are equal */
    if (kind == 3) {
        x[vocab / 3] = NAN;
        x[vocab / 2] = -INFINITY;
        x[0] = NAN;
    }
    if (kind == 4)
        x[vocab - 1] = x[vocab / 2] = INFINITY;
    for (int i = 0; kind == 5 && i < vocab; i++)
        x[i] = i % 2 ? NAN : -INFINITY;
}

/* ---- the GPU's side ---- */

struct call {
    struct sample_row rows[ROWS];
    struct sample_seen seen[ROWS * HISTORY];
    struct sample_bias bias[ROWS * LIST];
    int32_t masked[ROWS * (LIST + 1)], ids[ROWS];
    struct sample_logprobs told[ROWS];
    uint32_t n_seen, n_bias, n_masked;
};

static void call_add(struct call *c, int t, const struct ask *a, const struct sampler_history *h)
{
    const struct sampling_params *p = &a->p;
    struct sample_row *row = &c->rows[t];
    uint32_t n = 0;
    const struct sampler_seen *seen = h != NULL ? sampler_history_borrow(h, &n) : NULL;

    *row = (struct sample_row){.seed = p->seed,
                               .position = a->position,
                               .temperature = p->temperature,
                               .top_p = p->top_p,
                               .min_p = p->min_p,
                               .top_k = p->top_k,
                               .presence_penalty = p->presence_penalty,
                               .frequency_penalty = p->frequency_penalty,
                               .repetition_penalty = p->repetition_penalty,
                               .seen = c->n_seen,
                               .n_seen = n,
                               .bias = c->n_bias,
                               .n_bias = p->n_bias,
                               .masked = c->n_masked,
                               .n_top = p->logprobs ? p->n_top_logprobs : -1};
    for (uint32_t i = 0; i < n; i++)
        c->seen[c->n_seen++] = (struct sample_seen){seen[i].id, seen[i].n_output};
    for (uint32_t i = 0; i < p->n_bias; i++)
        c->bias[c->n_bias++] = (struct sample_bias){p->bias_ids[i], p->bias[i]};
    if (N_OUTPUT >= p->min_new)
        return;
    c->masked[c->n_masked++] = p->eos;
    for (uint32_t i = 0; i < p->n_stop_ids; i++)
        c->masked[c->n_masked++] = p->stop_ids[i];
    row->n_masked = p->n_stop_ids + 1;
}

static void call_run(struct call *c, float *logits, int vocab, int T)
{
    float *work = cuda_place_alloc(cuda_sample_bytes(vocab, T));
    struct sample_args args = {c->ids,  c->told,   logits, c->rows, c->seen,
                               c->bias, c->masked, work,   vocab};

    cuda_sample(0, args, T);
    cuda_place_free(work);
}

static void same_logprobs(const struct sample_logprobs *got, const struct sampler_logprobs *want)
{
    assert_int_equal(got->n_top, want->n_top);
    rig_same_bytes("logprob", &got->logprob, &want->logprob, 4);
    rig_same_bytes("top ids", got->top_ids, want->top_ids, (size_t)want->n_top * 4);
    rig_same_bytes("top logprobs", got->top_logprobs, want->top_logprobs, (size_t)want->n_top * 4);
}

static void check(int vocab, int n_calls, uint64_t seed)
{
    struct rig_random r = {seed};
    struct call *c = cuda_place_alloc(sizeof(*c));
    float *logits = cuda_place_alloc((size_t)ROWS * (size_t)vocab * 4);
    struct sampler *s;
    struct status st;

    assert_int_equal(sampler_new(vocab, CPU_ISA_AVX512, &s, &st), ST_OK);
    for (int call = 0; call < n_calls; call++) {
        struct ask asks[ROWS];
        struct sampler_logprobs want[ROWS];
        int32_t ids[ROWS];

        memset(c, 0, sizeof(*c));
        for (int t = 0; t < ROWS; t++) {
            float *x = logits + (size_t)t * (size_t)vocab;
            struct sampler_history *h = NULL;

            ask_make(&asks[t], &r, vocab);
            logits_make(x, &r, vocab, t % 7);
            if (sampler_history_needed(&asks[t].p))
                assert_int_equal(sampler_history_new(vocab, &asks[t].p, asks[t].tokens, HISTORY,
                                                     N_OUTPUT, 100, &h, &st),
                                 ST_OK);
            ids[t] = sampler_pick(s, x, &asks[t].p, h, asks[t].position, N_OUTPUT, &want[t]);
            call_add(c, t, &asks[t], h);
            sampler_history_free(h);
        }
        call_run(c, logits, vocab, ROWS);
        for (int t = 0; t < ROWS; t++) {
            if (c->ids[t] != ids[t])
                fail_msg("vocab %d, seed %d, call %d, row %d: drew %d, the CPU %d", vocab,
                         (int)seed, call, t, c->ids[t], ids[t]);
            if (ids[t] >= 0 && asks[t].p.logprobs)
                same_logprobs(&c->told[t], &want[t]);
        }
    }
    sampler_free(s);
    cuda_place_free(logits);
    cuda_place_free(c);
}

static void draws_are_those_of_the_cpu(void **state)
{
    (void)state;
    check(1, 2, 1);
    check(7, 10, 2);
    check(256, 20, 3);
    check(1000, 40, 4);
    check(4099, 20, 5);
    check(VOCAB_MAX, 1, 6);
}

static void known_tokens_are_scored_as_on_the_cpu(void **state)
{
    enum { VOCAB = 3001 };
    static const int32_t given[ROWS] = {0, 5, 3000, -1, 3001, 7, 100, 2000, 1500, 1, 2, 3};
    struct rig_random r = {9};
    struct call *c = cuda_place_alloc(sizeof(*c));
    float *logits = cuda_place_alloc(ROWS * VOCAB * 4);
    struct sampler *s;
    struct status st;

    (void)state;
    assert_int_equal(sampler_new(VOCAB, CPU_ISA_AVX512, &s, &st), ST_OK);
    for (int t = 0; t < ROWS; t++) {
        logits_make(logits + t * VOCAB, &r, VOCAB, t % 6);
        c->rows[t] = (struct sample_row){
            .temperature = 0.5f, .top_p = 1, .n_top = 20, .is_given = 1, .given = given[t]};
    }
    call_run(c, logits, VOCAB, ROWS);
    for (int t = 0; t < ROWS; t++) {
        struct sampler_logprobs want;

        if (sampler_score(s, logits + t * VOCAB, given[t], 20, &want))
            same_logprobs(&c->told[t], &want);
        else
            assert_int_equal(c->ids[t], -1);
    }
    sampler_free(s);
    cuda_place_free(logits);
    cuda_place_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_are_those_of_the_cpu),
        cmocka_unit_test(known_tokens_are_scored_as_on_the_cpu),
    };

    if (!cuda_place_ready())
        return CUDA_PLACE_SKIPPED;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
