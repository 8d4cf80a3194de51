/*
 * bench_host: what the host spends on a step beside the model: admission, batch, growth, events,
 * figures, with 256 requests that run: each has a token in every step; or most of them still have
 * their prompts computed, of all lengths, and share the chunk. Printed beside a limit of 50 us.
 *
 * usage: bench_host [--json]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/engine/engine.h"
#include "common/model/checkpoint_make.h"

enum {
    RUNNING = 256,
    STEPS = 500,
    PROMPT = 20,
    LONG = 3000,
    CHUNK = 512,
    PAGES = 4 * RUNNING,
    LIMIT_US = 50
};

struct bench {
    struct engine *engine;
    struct sequence seqs[RUNNING];
    uint32_t n_tokens;
};

static void on_admitted(void *arg, struct sequence *s)
{
    struct bench *b = arg;

    engine_run(b->engine, s, s->n_cached);
}

static void on_stepped(void *arg, struct sequence *s)
{
    struct bench *b = arg;

    b->n_tokens += s->n_new;
    if (s->finish != SEQ_GOES_ON)
        engine_remove(b->engine, s);
}

static void on_retracted(void *arg, struct sequence *s)
{
    (void)arg, (void)s;
}

static void on_failed(void *arg, struct sequence *s, const struct status *error)
{
    (void)arg, (void)s;
    fprintf(stderr, "bench_host: %s\n", error->msg);
    exit(1);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void check(enum status_code code, const struct status *st)
{
    if (code == ST_OK)
        return;
    fprintf(stderr, "bench_host: %s\n", st->msg);
    exit(1);
}

static uint32_t short_prompt(int i)
{
    (void)i;
    return PROMPT;
}

static uint32_t any_prompt(int i)
{
    return i == 0 ? LONG : 50 + (uint32_t)i * 97 % 250;
}

static void submit_all(struct bench *b, int32_t vocab, uint32_t (*length)(int i))
{
    struct sampling_params p = {.temperature = 1, .top_p = 0.95f, .eos = -1};
    int32_t tokens[LONG];
    struct status st;

    for (int i = 0; i < RUNNING; i++) {
        uint32_t n = length(i);

        for (uint32_t t = 0; t < n; t++)
            tokens[t] = (i * 31 + (int32_t)t * 7) % (vocab - 2) + 2;
        p.seed = (uint64_t)i;
        check(sequence_init(&b->seqs[i], tokens, n, 0, STEPS + 50, &p, vocab, &st), &st);
        b->seqs[i].ignore_eos = true;
        b->seqs[i].rid = "bench";
        check(engine_submit(b->engine, &b->seqs[i], &st), &st);
    }
}

static void remove_all(struct bench *b)
{
    for (int i = 0; i < RUNNING; i++) {
        engine_remove(b->engine, &b->seqs[i]);
        sequence_deinit(&b->seqs[i]);
    }
}

/* A step and what of it the host took. */
static uint64_t step(struct bench *b, struct engine_stats *s)
{
    uint64_t t0 = clock_now_us();

    engine_admit(b->engine);
    engine_step(b->engine);
    engine_get_stats(b->engine, s);
    return clock_now_us() - t0 - s->forward_us - s->sample_us - s->draft_us;
}

static int measure_tokens(struct bench *b, uint64_t *host)
{
    struct engine_stats s;
    int n = 0;

    while (n < STEPS) {
        uint64_t us = step(b, &s);

        if (s.batch_seqs == RUNNING && s.batch_tokens == RUNNING)
            host[n++] = us;
    }
    return n;
}

static int measure_prompts(struct bench *b, uint64_t *host)
{
    struct engine_stats s;
    int n = 0;

    engine_admit(b->engine); /* all of them, once */
    do
        host[n++] = step(b, &s);
    while (n < STEPS && s.batch_tokens >= CHUNK);
    return n - 1; /* the last one was less */
}

static void print(bool json, const char *name, uint64_t us)
{
    if (json)
        printf("{\"name\": \"engine_host_us_%s\", \"value\": %llu, \"unit\": \"us\", \"peer\": "
               "\"limit\", \"peer_value\": %d, \"ratio\": %.3f}\n",
               name, (unsigned long long)us, LIMIT_US, (double)us / LIMIT_US);
    else
        printf("host time of a step, %d running, %s: %llu us (limit %d us: %.2f)\n", RUNNING, name,
               (unsigned long long)us, LIMIT_US, (double)us / LIMIT_US);
}

int main(int argc, char **argv)
{
    static struct bench b;
    static uint64_t host[STEPS];
    bool json = argc > 1 && strcmp(argv[1], "--json") == 0;
    char dir[] = "/tmp/baton-bench-XXXXXX", command[64];
    struct checkpoint_options ck = {.preset = "tiny", .seed = -1};
    struct engine_options o = {
        .max_running = RUNNING,
        .chunk_tokens = CHUNK,
        .context_length = 4096,
        .prefix_cache = true,
        .n_snapshots = 8,
        .snapshot_prompts = true,
        .snapshot_turns = true,
        .local_tokens = UINT32_MAX,
        .grow = true,
    };
    struct model_options m = {.path = dir, .device = "cpu", .cpu_isa = "auto", .max_context = 4096};
    struct engine_events events = {on_admitted, on_stepped, NULL, on_retracted, on_failed, &b};
    struct slab *pages, *slots;
    struct kv_memory kv;
    struct model *model;
    struct status st;
    int n;

    if (mkdtemp(dir) == NULL)
        return 1;
    check(checkpoint_make(dir, &ck, &st), &st);
    engine_batch_bounds(&o, &m.max_batch_tokens, &m.max_batch_seqs, &m.max_logit_rows);
    check(model_open(&m, &model, &st), &st);
    check(model_kv_alloc(model, PAGES, RUNNING, &kv, &st), &st);
    check(slab_new("page", PAGES, &pages, &st), &st);
    check(slab_new("slot", RUNNING, &slots, &st), &st);
    check(engine_new(&o, model, &kv, pages, slots, &events, &b.engine, &st), &st);
    submit_all(&b, model_get_config(model)->vocab_size, short_prompt);
    n = measure_tokens(&b, host);
    qsort(host, (size_t)n, sizeof(*host), by_value);
    print(json, "median", host[n / 2]);
    print(json, "p99", host[n * 99 / 100]);
    remove_all(&b);
    submit_all(&b, model_get_config(model)->vocab_size, any_prompt);
    n = measure_prompts(&b, host);
    qsort(host, (size_t)n, sizeof(*host), by_value);
    print(json, "prompts_median", host[n / 2]);
    print(json, "prompts_p99", host[n * 99 / 100]);
    remove_all(&b);
    engine_free(b.engine);
    slab_free(pages);
    slab_free(slots);
    model_kv_free(model, &kv);
    model_free(model);
    snprintf(command, sizeof(command), "rm -r %s", dir);
    return system(command);
}
