/* The sampler against a naive one, its distribution, and what it promises about bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/sampler.h"
#include "common/model/sampler_history.h"
#include "kernels/sampler_noise.h"
#include "naive_sampler.h"

enum { VOCAB_MAX = 129280, N_LEVELS = CPU_ISA_AVX512 + 1, TOKENS_MAX = 600 };

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t n)
{
    random_state += NOISE_GOLDEN;
    return (uint32_t)((noise_mix(random_state) >> 32) * n >> 32);
}

static float random_unit(void)
{
    return ((float)random_below(1 << 24) + 0.5f) * 0x1p-24f;
}

static float random_normal(void)
{
    return sqrtf(-2 * logf(random_unit())) * cosf(6.2831853f * random_unit());
}

/* Shapes of rows that models and mischief produce. */
enum row_kind {
    ROW_NORMAL, /* a bulk and a few high ones */
    ROW_FLAT,   /* every logit the same */
    ROW_STEPS,  /* few different values: ties everywhere */
    ROW_PEAKED, /* one takes all */
    ROW_WIDE,   /* hundreds of units */
    ROW_GAPS,   /* NaN and -inf among the others */
    ROW_N_KINDS
};

static void fill_row(float *x, int32_t vocab, enum row_kind kind)
{
    for (int32_t i = 0; i < vocab; i++) {
        x[i] = random_normal() * (kind == ROW_WIDE ? 300 : 2.5f);
        if (kind == ROW_FLAT)
            x[i] = 1.5f;
        if (kind == ROW_STEPS)
            x[i] = floorf(x[i]);
        if (kind == ROW_GAPS && random_below(3) == 0)
            x[i] = random_below(2) ? -INFINITY : NAN;
    }
    for (int i = 0; i < 20 && (kind == ROW_NORMAL || kind == ROW_GAPS); i++)
        x[random_below((uint32_t)vocab)] = 6 + 4 * random_unit();
    if (kind == ROW_PEAKED)
        x[random_below((uint32_t)vocab)] = 40;
    if (kind == ROW_GAPS) /* one at least is a number */
        x[random_below((uint32_t)vocab)] = 1;
}

struct levels {
    struct sampler *s[N_LEVELS];
};

static struct levels new_levels(int32_t vocab)
{
    struct levels l;
    struct status st;

    for (int isa = 0; isa < N_LEVELS; isa++)
        assert_int_equal(sampler_new(vocab, (enum cpu_isa)isa, &l.s[isa], &st), ST_OK);
    return l;
}

static void free_levels(struct levels *l)
{
    for (int isa = 0; isa < N_LEVELS; isa++)
        sampler_free(l->s[isa]);
}

/* One situation: a row, parameters and the tokens before. */
struct scene {
    int32_t vocab;
    float *row, *copy;
    struct sampling_params p;
    int32_t bias_ids[8];
    float bias[8];
    int32_t stop_ids[3];
    int32_t tokens[TOKENS_MAX];
    uint32_t n_prompt, n_output;
    uint64_t position;
};

static void random_penalties(struct scene *s)
{
    s->p.presence_penalty = random_below(2) ? 4 * random_unit() - 2 : 0;
    s->p.frequency_penalty = random_below(2) ? 4 * random_unit() - 2 : 0;
    s->p.repetition_penalty = random_below(2) ? 0.5f + 1.5f * random_unit() : 1;
    s->p.n_bias = random_below(9);
    s->p.bias = s->bias;
    s->p.bias_ids = s->bias_ids;
    for (int i = 0; i < 8; i++) {
        s->bias_ids[i] = (int32_t)random_below((uint32_t)s->vocab);
        s->bias[i] = random_unit() * 20 - 10;
    }
    s->p.min_new = random_below(40);
    s->p.n_stop_ids = random_below(4);
    s->p.stop_ids = s->stop_ids;
    s->p.eos = s->vocab > 4 ? (int32_t)random_below((uint32_t)s->vocab) : -1;
    for (int i = 0; i < 3; i++)
        s->stop_ids[i] = (int32_t)random_below((uint32_t)s->vocab);
    if (s->vocab <= 4)
        s->p.n_stop_ids = 0; /* or nothing might be left */
}

static void random_scene(struct scene *s, enum row_kind kind)
{
    fill_row(s->row, s->vocab, kind);
    s->p = (struct sampling_params){.temperature = 0.3f + 1.7f * random_unit(),
                                    .top_p = 1,
                                    .eos = -1,
                                    .seed = random_below(1 << 30)};
    if (random_below(8) == 0)
        s->p.temperature = 0;
    if (random_below(2))
        s->p.top_p = random_below(8) ? 0.05f + 0.94f * random_unit() : 1e-6f;
    if (random_below(2))
        s->p.top_k = 1 + (int32_t)random_below(random_below(3) ? 60 : 3000);
    if (random_below(3) == 0)
        s->p.min_p = random_below(8) ? 0.3f * random_unit() : 1;
    s->n_prompt = random_below(TOKENS_MAX / 2);
    s->n_output = random_below(TOKENS_MAX / 2);
    for (int i = 0; i < TOKENS_MAX; i++)
        s->tokens[i] = (int32_t)random_below((uint32_t)s->vocab);
    if (random_below(2))
        random_penalties(s);
    s->p.logprobs = random_below(2);
    s->p.n_top_logprobs = s->p.logprobs ? (int32_t)random_below(25) : 0;
    s->position = random_below(1 << 20);
}

static struct sampler_history *history_of(const struct scene *s)
{
    struct sampler_history *h;
    struct status st;

    assert_int_equal(sampler_history_new(s->vocab, &s->p, s->tokens, s->n_prompt + s->n_output,
                                         s->n_output, TOKENS_MAX, &h, &st),
                     ST_OK);
    return h;
}

static void check_close(double got, double want)
{
    if (isinf(want))
        assert_true(got == want);
    else
        assert_true(fabs(got - want) < 2e-6 * (1 + fabs(want)));
}

static void check_logprobs(const struct scene *s, const struct naive *n, int32_t token,
                           const struct sampler_logprobs *out)
{
    int32_t want_top = s->p.n_top_logprobs;

    check_close((double)out->logprob, n->log_p[token]);
    for (int32_t i = 0; i < out->n_top; i++) {
        assert_int_equal(out->top_ids[i], n->order[i]);
        check_close((double)out->top_logprobs[i], n->log_p[n->order[i]]);
    }
    if (out->n_top < want_top) /* the rest cannot be drawn */
        assert_true(out->n_top == s->vocab || n->x[n->order[out->n_top]] == -INFINITY);
    else
        assert_int_equal(out->n_top, want_top);
}

/* @return whether the naive draw was clear enough to be compared */
static bool check_scene(const struct scene *s, struct levels *l)
{
    struct sampler_history *h = history_of(s);
    struct sampler_logprobs out[N_LEVELS];
    struct naive n;
    double margin, margin_less, margin_more;
    int32_t token, want;
    bool clear;

    memset(out, 0, sizeof(out));
    memcpy(s->copy, s->row, (size_t)s->vocab * sizeof(float));
    token = sampler_pick(l->s[0], s->row, &s->p, h, s->position, s->n_output, &out[0]);
    for (int isa = 1; isa < N_LEVELS; isa++) { /* every level: every bit */
        assert_int_equal(
            sampler_pick(l->s[isa], s->row, &s->p, h, s->position, s->n_output, &out[isa]), token);
        assert_memory_equal(&out[isa], &out[0], sizeof(out[0]));
    }
    assert_memory_equal(s->row, s->copy, (size_t)s->vocab * sizeof(float));

    naive_read(&n, s->row, s->vocab, &s->p, s->tokens, s->n_prompt, s->n_output);
    want = naive_draw(&n, &s->p, naive_kept(&n, &s->p, 0), s->position, &margin);
    clear =
        margin > 1e-9 &&
        naive_draw(&n, &s->p, naive_kept(&n, &s->p, -1e-6), s->position, &margin_less) == want &&
        naive_draw(&n, &s->p, naive_kept(&n, &s->p, 1e-6), s->position, &margin_more) == want;
    if (clear)
        assert_int_equal(token, want);
    if (s->p.logprobs)
        check_logprobs(s, &n, token, &out[0]);
    naive_deinit(&n);
    sampler_history_free(h);
    return clear;
}

static void draws_as_the_naive_sampler(int32_t vocab, int n_scenes)
{
    struct levels l = new_levels(vocab);
    struct scene s = {.vocab = vocab};
    int n_clear = 0;

    s.row = malloc((size_t)vocab * sizeof(float));
    s.copy = malloc((size_t)vocab * sizeof(float));
    for (int i = 0; i < n_scenes; i++) {
        random_scene(&s, (enum row_kind)(i % ROW_N_KINDS));
        n_clear += check_scene(&s, &l);
    }
    assert_true(n_clear > n_scenes * 9 / 10); /* or the comparison says little */
    free(s.row);
    free(s.copy);
    free_levels(&l);
}

static void every_filter_draws_as_the_naive_sampler(void **state)
{
    static const int32_t vocabs[] = {1, 2, 15, 16, 17, 255, 256, 257, 300, 1000};

    (void)state;
    random_state = 1;
    for (size_t i = 0; i < sizeof(vocabs) / sizeof(vocabs[0]); i++)
        draws_as_the_naive_sampler(vocabs[i], 600);
    draws_as_the_naive_sampler(16 * 1024 + 7, 60);
    draws_as_the_naive_sampler(VOCAB_MAX, 12);
}

/* ---- greedy and ties ---- */

static int32_t pick_plain(struct sampler *s, float *row, struct sampling_params p,
                          uint64_t position)
{
    return sampler_pick(s, row, &p, NULL, position, 0, NULL);
}

static void greedy_ties_go_to_the_lowest_id(void **state)
{
    struct levels l = new_levels(1000);
    float row[1000];

    (void)state;
    for (int trial = 0; trial < 300; trial++) {
        int32_t a = (int32_t)random_below(1000), b = (int32_t)random_below(1000);

        for (int i = 0; i < 1000; i++)
            row[i] = -1 - random_unit();
        row[a] = row[b] = 0.25f;
        for (int isa = 0; isa < N_LEVELS; isa++) {
            struct sampling_params p = {.temperature = 0, .top_p = 1};

            assert_int_equal(pick_plain(l.s[isa], row, p, 3), a < b ? a : b);
            p = (struct sampling_params){.temperature = 1, .top_p = 1, .top_k = 1};
            assert_int_equal(pick_plain(l.s[isa], row, p, 3), a < b ? a : b);
            p = (struct sampling_params){.temperature = 9e-6f, .top_p = 1};
            assert_int_equal(pick_plain(l.s[isa], row, p, 3), a < b ? a : b);
        }
    }
    free_levels(&l);
}

static void of_equal_logits_top_k_keeps_the_lowest_ids(void **state)
{
    struct levels l = new_levels(5000);
    float *row = malloc(5000 * sizeof(float));

    (void)state;
    for (int i = 0; i < 5000; i++)
        row[i] = 7;
    for (int k = 2; k <= 2050; k *= 4)
        for (uint64_t position = 0; position < 50; position++) {
            struct sampling_params p = {.temperature = 1, .top_p = 1, .top_k = k};

            assert_in_range(pick_plain(l.s[N_LEVELS - 1], row, p, position), 0, k - 1);
            p = (struct sampling_params){.temperature = 1, .top_p = (float)k / 5000.f};
            assert_in_range(pick_plain(l.s[N_LEVELS - 1], row, p, position), 0, k);
        }
    free(row);
    free_levels(&l);
}

/* ---- distribution ---- */

/* chi-square of the counts against probabilities; few expected ones are joined. */
static double chi_square(const int *counts, const double *p, int n, int n_draws, int *freedom)
{
    double chi = 0, rest_want = 0, rest_got = 0;

    *freedom = -1;
    for (int i = 0; i < n; i++) {
        double want = p[i] * n_draws;

        if (want < 8) {
            rest_want += want;
            rest_got += counts[i];
            continue;
        }
        chi += (counts[i] - want) * (counts[i] - want) / want;
        ++*freedom;
    }
    if (rest_want > 0) {
        chi += (rest_got - rest_want) * (rest_got - rest_want) / rest_want;
        ++*freedom;
    }
    return chi;
}

/* Five standard deviations of chi-square's normal approximation (Wilson, Hilferty 1931). */
static void assert_plausible(double chi, int freedom)
{
    double v = 2 / (9. * freedom);
    double z = (cbrt(chi / freedom) - (1 - v)) / sqrt(v);

    if (!(z < 5))
        fail_msg("chi-square %.1f with %d degrees of freedom: %.1f sigma", chi, freedom, z);
}

static void check_distribution(float *row, int vocab, const struct sampling_params *params,
                               int n_draws)
{
    struct levels l = new_levels(vocab);
    struct sampling_params p = *params;
    int *counts = calloc((size_t)vocab, sizeof(int)), freedom;
    double *want = calloc((size_t)vocab, sizeof(double)), kept_mass = 0, chi;
    struct naive n;
    int32_t kept;

    naive_read(&n, row, vocab, &p, NULL, 0, 0);
    kept = naive_kept(&n, &p, 0);
    for (int32_t k = 0; k < kept; k++)
        kept_mass += n.p[n.order[k]];
    for (int32_t k = 0; k < kept; k++)
        want[n.order[k]] = n.p[n.order[k]] / kept_mass;
    for (int i = 0; i < n_draws; i++) { /* other seeds as well as other positions */
        p.seed = params->seed + (uint64_t)(i % 7);
        counts[pick_plain(l.s[N_LEVELS - 1], row, p, (uint64_t)i)]++;
    }
    for (int i = 0; i < vocab; i++)
        assert_true(counts[i] == 0 || want[i] > 0);
    chi = chi_square(counts, want, vocab, n_draws, &freedom);
    assert_plausible(chi, freedom);
    naive_deinit(&n);
    free(counts);
    free(want);
    free_levels(&l);
}

static void the_distribution_is_softmax_over_what_is_kept(void **state)
{
    static const struct sampling_params cases[] = {
        {.temperature = 1, .top_p = 1},
        {.temperature = 0.6f, .top_p = 1},
        {.temperature = 2, .top_p = 1},
        {.temperature = 1, .top_p = 0.7f},
        {.temperature = 1, .top_p = 1, .top_k = 12},
        {.temperature = 1, .top_p = 1, .min_p = 0.1f},
        {.temperature = 1.3f, .top_p = 0.9f, .top_k = 40, .min_p = 0.02f, .seed = 99},
    };
    float row[700];

    (void)state;
    random_state = 2;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (int k = 0; k < 700; k++)
            row[k] = 2 * random_normal();
        check_distribution(row, 700, &cases[i], 40000);
        check_distribution(row, 37, &cases[i], 20000);
    }
    for (int k = 0; k < 700; k++)
        row[k] = 0;
    check_distribution(row, 700, &cases[0], 70000); /* all members of all groups alike */
}

/* Neighbours in a group share its least variate, and must be independent nevertheless. */
static void variates_of_a_group_are_independent(void **state)
{
    enum { N = 40000 };
    double sum[16] = {0}, product[16] = {0};
    int first_less[16] = {0};

    (void)state;
    for (int i = 0; i < N; i++) {
        struct noise noise = noise_of(5, (uint64_t)i);
        struct noise_group g = noise_group_of(&noise, 3);
        double e[16];

        for (int row = 0; row < 16; row++) {
            e[row] = row == g.row ? g.least : noise_member(&noise, &g, row * 16 + 3);
            assert_true(e[row] >= g.least && g.least > 0);
            sum[row] += e[row];
            product[row] += e[row] * e[0];
            first_less[row] += e[0] < e[row];
        }
    }
    for (int row = 0; row < 16; row++) { /* means of Exp(1), product of independent ones: 1 */
        assert_true(fabs(sum[row] / N - 1) < 5 / sqrt(N));
        if (row > 0) {
            assert_true(fabs(product[row] / N - 1) < 5 * sqrt(3. / N));
            assert_true(abs(first_less[row] - N / 2) < 5 * sqrt(N) / 2);
        }
    }
}

static void the_logarithm_agrees_with_libm(void **state)
{
    (void)state;
    assert_true(noise_log(1) == 0);
    for (int i = 0; i < 200000; i++) {
        double x = ldexp(1 + (double)random_unit(), (int)random_below(120) - 100);

        assert_true(fabs(noise_log(x) - log(x)) <= 4e-16 * (1 + fabs(log(x))));
    }
}

/* ---- what is not a number ---- */

static void what_is_not_a_number_is_never_drawn(void **state)
{
    struct levels l = new_levels(600);
    float row[600];
    struct sampling_params sampled = {
        .temperature = 1, .top_p = 0.9f, .logprobs = true, .n_top_logprobs = 5};
    struct sampling_params greedy = {.temperature = 0, .top_p = 1, .logprobs = true};
    struct sampler_logprobs out = {.n_top = -7};

    (void)state;
    for (int isa = 0; isa < N_LEVELS; isa++) {
        struct sampler *s = l.s[isa];

        for (int i = 0; i < 600; i++)
            row[i] = i % 2 ? NAN : -INFINITY;
        assert_int_equal(sampler_pick(s, row, &greedy, NULL, 9, 0, &out), -1);
        assert_int_equal(sampler_pick(s, row, &sampled, NULL, 9, 0, &out), -1);
        assert_false(sampler_score(s, row, 3, 2, &out));
        assert_int_equal(out.n_top, -7);
        row[431] = -3e38f; /* the one number */
        assert_int_equal(sampler_pick(s, row, &greedy, NULL, 9, 0, &out), 431);
        assert_int_equal(sampler_pick(s, row, &sampled, NULL, 9, 0, &out), 431);
        assert_true(out.logprob == 0 && out.n_top == 1 && out.top_ids[0] == 431);
        row[500] = row[502] = INFINITY;
        assert_int_equal(sampler_pick(s, row, &greedy, NULL, 9, 0, &out), 500);
        assert_int_equal(sampler_pick(s, row, &sampled, NULL, 9, 0, &out), 500);
        assert_true(out.logprob == 0 && out.top_ids[1] == 502 && out.top_logprobs[2] < -1e30f);
        out.n_top = -7;
    }
    free_levels(&l);
}

static void extreme_parameters_draw_something_that_is_allowed(void **state)
{
    static const float temperatures[] = {0, 1e-30f, 1e-5f, 1, 1e10f, 3e38f, NAN};
    struct levels l = new_levels(300);
    float row[300];

    (void)state;
    for (int i = 0; i < 300; i++)
        row[i] = (i % 3 ? 1 : -1) * 3e38f * random_unit();
    for (size_t i = 0; i < sizeof(temperatures) / sizeof(float); i++)
        for (int k = -1; k <= 301; k += 151) {
            struct sampling_params p = {.temperature = temperatures[i],
                                        .top_p = k < 0 ? 0 : 1e-30f,
                                        .top_k = k,
                                        .min_p = k > 0 ? 2 : 0};
            int32_t token = pick_plain(l.s[0], row, p, UINT64_MAX);

            assert_in_range(token, 0, 299);
            for (int isa = 1; isa < N_LEVELS; isa++)
                assert_int_equal(pick_plain(l.s[isa], row, p, UINT64_MAX), token);
        }
    free_levels(&l);
}

/* ---- masks ---- */

static void stop_tokens_are_masked_until_min_new(void **state)
{
    static const int32_t stops[] = {5, 6, 6, 900000, -4};
    struct levels l = new_levels(64);
    struct sampling_params p = {
        .temperature = 1, .top_p = 1, .min_new = 3, .eos = 4, .n_stop_ids = 5, .stop_ids = stops};
    float row[64];

    (void)state;
    for (int i = 0; i < 64; i++)
        row[i] = i >= 4 && i <= 6 ? 50 : 0;
    for (uint64_t position = 0; position < 200; position++)
        for (uint32_t n_output = 0; n_output < 5; n_output++) {
            int32_t id = sampler_pick(l.s[N_LEVELS - 1], row, &p, NULL, position, n_output, NULL);

            assert_true((id >= 4 && id <= 6) == (n_output >= 3));
        }
    free_levels(&l);
}

static void masking_everything_draws_nothing(void **state)
{
    static const int32_t stops[] = {0, 1};
    struct levels l = new_levels(2);
    struct sampling_params p = {
        .temperature = 1, .top_p = 1, .min_new = 1, .eos = -1, .n_stop_ids = 2, .stop_ids = stops};
    float row[2] = {1, 2};

    (void)state;
    for (int isa = 0; isa < N_LEVELS; isa++)
        assert_int_equal(sampler_pick(l.s[isa], row, &p, NULL, 0, 0, NULL), -1);
    assert_true(row[0] == 1 && row[1] == 2);
    free_levels(&l);
}

/* ---- scores of known tokens ---- */

static void a_score_is_log_softmax_of_the_plain_logits(void **state)
{
    struct levels l = new_levels(2000);
    struct sampling_params plain = {.temperature = 1, .top_p = 1, .eos = -1};
    float *row = malloc(2000 * sizeof(float));
    struct sampler_logprobs out;
    struct naive n;

    (void)state;
    for (int trial = 0; trial < 20; trial++) {
        int32_t token = (int32_t)random_below(2000);

        fill_row(row, 2000, (enum row_kind)(trial % ROW_GAPS));
        naive_read(&n, row, 2000, &plain, NULL, 0, 0);
        for (int isa = 0; isa < N_LEVELS; isa++) {
            assert_true(sampler_score(l.s[isa], row, token, 7, &out));
            check_close((double)out.logprob, n.log_p[token]);
            assert_int_equal(out.n_top, 7);
            for (int i = 0; i < 7; i++)
                assert_int_equal(out.top_ids[i], n.order[i]);
        }
        naive_deinit(&n);
    }
    free(row);
    free_levels(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_filter_draws_as_the_naive_sampler),
        cmocka_unit_test(greedy_ties_go_to_the_lowest_id),
        cmocka_unit_test(of_equal_logits_top_k_keeps_the_lowest_ids),
        cmocka_unit_test(the_distribution_is_softmax_over_what_is_kept),
        cmocka_unit_test(variates_of_a_group_are_independent),
        cmocka_unit_test(the_logarithm_agrees_with_libm),
        cmocka_unit_test(what_is_not_a_number_is_never_drawn),
        cmocka_unit_test(extreme_parameters_draw_something_that_is_allowed),
        cmocka_unit_test(stop_tokens_are_masked_until_min_new),
        cmocka_unit_test(masking_everything_draws_nothing),
        cmocka_unit_test(a_score_is_log_softmax_of_the_plain_logits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
