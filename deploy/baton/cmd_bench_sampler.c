/* baton bench-sampler: one draw from a row of logits, on one core, beside a memcpy of the row. */
#include "deploy/baton/commands.h"

#include "common/base/clock.h"
#include "common/base/flags.h"
#include "common/model/sampler.h"
#include "common/model/sampler_history.h"
#include "kernels/sampler_noise.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_PROMPT = 500, N_OUTPUT = 500, N_WARM = 20, BIASES = 16 };

struct bench_case {
    const char *name;
    struct sampling_params params;
    bool flat; /* every token as probable as any other: the worst for filters */
};

static const struct bench_case cases[] = {
    {"greedy", {.temperature = 0, .top_p = 1}},
    {"temperature", {.temperature = 1, .top_p = 1}},
    {"temperature, top_p", {.temperature = 1, .top_p = 0.95f}},
    {"temperature, min_p", {.temperature = 1, .top_p = 1, .min_p = 0.05f}},
    {"temperature, top_p, top_k, penalties, bias, 20 logprobs",
     {.temperature = 0.8f,
      .top_p = 0.95f,
      .top_k = 50,
      .presence_penalty = 0.5f,
      .frequency_penalty = 0.1f,
      .repetition_penalty = 1.1f,
      .n_bias = BIASES,
      .logprobs = true,
      .n_top_logprobs = 20}},
    {"greedy, 20 logprobs", {.temperature = 0, .top_p = 1, .logprobs = true, .n_top_logprobs = 20}},
    {"flat row: temperature", {.temperature = 1, .top_p = 1}, .flat = true},
    {"flat row: temperature, top_p 0.5", {.temperature = 1, .top_p = 0.5f}, .flat = true},
};

struct bench_row {
    int32_t vocab;
    float *plain, *flat, *copy;
    int32_t tokens[N_PROMPT + N_OUTPUT];
    float bias[BIASES];
    int runs;
    double *took_us; /* [runs] */
    double memcpy_us;
};

/* Sum of twelve uniform numbers: near enough to a normal one. */
static float normal(uint64_t *state)
{
    float sum = -6;

    for (int i = 0; i < 12; i++) {
        *state += NOISE_GOLDEN;
        sum += (float)(noise_mix(*state) >> 40) * 0x1p-24f;
    }
    return sum;
}

/* A row as models give them: a broad bulk, and a few dozen tokens far above it. */
static bool make_row(struct bench_row *b)
{
    uint64_t state = 1;

    b->plain = malloc((size_t)b->vocab * sizeof(float));
    b->flat = malloc((size_t)b->vocab * sizeof(float));
    b->copy = malloc((size_t)b->vocab * sizeof(float));
    b->took_us = malloc((size_t)b->runs * sizeof(double));
    if (b->plain == NULL || b->flat == NULL || b->copy == NULL || b->took_us == NULL)
        return false;
    for (int32_t i = 0; i < b->vocab; i++) {
        b->plain[i] = 2.5f * normal(&state);
        b->flat[i] = 0.01f * normal(&state);
    }
    for (int i = 0; i < 40; i++) {
        state += NOISE_GOLDEN;
        b->plain[noise_mix(state) % (uint64_t)b->vocab] += 9;
    }
    for (int i = 0; i < N_PROMPT + N_OUTPUT; i++) {
        state += NOISE_GOLDEN;
        b->tokens[i] = (int32_t)(noise_mix(state) % (uint64_t)b->vocab);
    }
    for (int i = 0; i < BIASES; i++)
        b->bias[i] = 1;
    return true;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double median(struct bench_row *b)
{
    qsort(b->took_us, (size_t)b->runs, sizeof(double), by_value);
    return b->took_us[b->runs / 2];
}

static void measure_memcpy(struct bench_row *b)
{
    for (int i = -N_WARM; i < b->runs; i++) {
        uint64_t start = clock_now_ns();

        memcpy(b->copy, b->plain, (size_t)b->vocab * sizeof(float));
        __asm__ volatile("" : : "r"(b->copy) : "memory");
        if (i >= 0)
            b->took_us[i] = (double)(clock_now_ns() - start) * 1e-3;
    }
    b->memcpy_us = median(b);
}

static enum status_code measure(struct bench_row *b, struct sampler *s, const struct bench_case *c,
                                double *us, struct status *st)
{
    struct sampling_params p = c->params;
    struct sampler_history *h;
    struct sampler_logprobs out;
    float *row = c->flat ? b->flat : b->plain;

    p.bias = b->bias;
    p.bias_ids = b->tokens;
    p.eos = -1;
    if (sampler_history_new(b->vocab, &p, b->tokens, N_PROMPT + N_OUTPUT, N_OUTPUT, N_OUTPUT + 1,
                            &h, st) != ST_OK)
        return st->code;
    for (int i = -N_WARM; i < b->runs; i++) {
        uint64_t start = clock_now_ns();
        int32_t id = sampler_pick(s, row, &p, h, (uint64_t)(i + N_WARM), N_OUTPUT, &out);

        __asm__ volatile("" : : "r"(id));
        if (i >= 0)
            b->took_us[i] = (double)(clock_now_ns() - start) * 1e-3;
    }
    *us = median(b);
    sampler_history_free(h);
    return status_ok(st);
}

static void report(const struct bench_row *b, const char *level, const char *name, double us,
                   bool json)
{
    double ratio = us / b->memcpy_us;

    if (json)
        printf("{\"name\": \"sampler %s: %s\", \"value\": %.4g, \"unit\": \"us\", \"peer\": "
               "\"memcpy of the row\", \"peer_value\": %.4g, \"ratio\": %.4g}\n",
               level, name, us, b->memcpy_us, ratio);
    else
        printf("%-7s %-56s %8.1f us  %5.1f x memcpy (%.1f us)\n", level, name, us, ratio,
               b->memcpy_us);
    fflush(stdout);
}

static enum status_code bench_all(struct bench_row *b, bool json, struct status *st)
{
    static const char *const levels[] = {"plain", "avx2", "avx512"};

    int best = kernels_cpu_best();

    for (int isa = best < CPU_ISA_AVX512 ? best : CPU_ISA_AVX512; isa >= 0; isa--) {
        struct sampler *s;

        if (sampler_new(b->vocab, (enum cpu_isa)isa, &s, st) != ST_OK)
            return st->code;
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]) && st->code == ST_OK; i++) {
            double us = 0;

            measure_memcpy(b);
            if (measure(b, s, &cases[i], &us, st) == ST_OK)
                report(b, levels[isa], cases[i].name, us, json);
        }
        sampler_free(s);
        if (st->code != ST_OK)
            return st->code;
    }
    return status_ok(st);
}

int cmd_bench_sampler(int argc, char **argv)
{
    struct bench_row b = {0};
    struct status st;
    int64_t vocab = 129280, runs = 200;
    bool json = false;
    const struct flag flags[] = {
        {"vocab", FLAG_INT, &vocab, .arg = "N", .min = 1, .max = 1 << 24,
         .help = "logits of a row"},
        {"runs", FLAG_INT, &runs, .arg = "N", .min = 1, .max = 1000000,
         .help = "draws of each kind; the median is told"},
        {"json", FLAG_BOOL, &json, .help = "one JSON object a line"},
        {0},
    };

    if (flags_parse(flags, argc, argv, NULL, NULL, &st) != ST_OK) {
        if (st.code == ST_CANCELLED) {
            flags_help(flags, "baton bench-sampler: a draw from a row of logits, beside a memcpy.");
            return 0;
        }
        fprintf(stderr, "baton bench-sampler: %s\n", st.msg);
        return 2;
    }
    b.vocab = (int32_t)vocab;
    b.runs = (int)runs;
    if (make_row(&b))
        bench_all(&b, json, &st);
    else
        status_set(&st, ST_EXHAUSTED, "no memory for rows of %lld logits", (long long)vocab);
    if (st.code != ST_OK)
        fprintf(stderr, "baton bench-sampler: %s\n", st.msg);
    free(b.plain);
    free(b.flat);
    free(b.copy);
    free(b.took_us);
    return st.code == ST_OK ? 0 : 1;
}
