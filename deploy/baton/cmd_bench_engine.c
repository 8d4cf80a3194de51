/*
 * bench-engine: decode and prefill of a checkpoint against the limits of this machine, measured in
 * the same run. A row's limit is what the machine owes: tokens a second if the step took no longer
 * than reading its bytes at the measured read bandwidth, or its FLOPs at the measured peak,
 * whichever is longer (bench_roofline.h says how both are counted). Each round of a case stands
 * between two rounds of the limits, and is held to their mean; the fraction is the median over the
 * rounds.
 *
 * The KV of a long context is not computed: pages of a prompt that was are copied until the context
 * is full, which costs a step the same. Tokens are random, so that every step wants other experts.
 */
#include "deploy/baton/commands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/flags.h"
#include "common/base/log.h"
#include "common/model/model.h"
#include "deploy/baton/bench_limits.h"
#include "deploy/baton/bench_load.h"
#include "deploy/baton/bench_roofline.h"
#include "deploy/baton/bench_table.h"

enum { ROUNDS = 9, LIST_MAX = 8, SLACK_TOKENS = 4096, SEED_TOKENS = 1024 };

struct list {
    int n, at[LIST_MAX], most;
};

struct engine_bench {
    const char *model_path, *device, *cpu_isa, *svg;
    int64_t threads, footprint_mb, chunk;
    double seconds;
    bool json, load, no_repack;
    struct list batch, context, prefill;
    enum cpu_isa isa;
    struct bench_limits limits;
    struct bench_table table;
};

/* One model, opened with some threads. */
struct bench_model {
    struct engine_bench *b;
    struct model *model;
    struct pool *pool; /* for the limits: as many threads as the model has */
    struct kv_memory kv;
    uint32_t *pages; /* [batch.most][n_pages]: block tables */
    uint32_t n_pages;
    int32_t *tokens; /* [most rows of a step] */
    struct model_span *spans;
    uint64_t seed;
};

static double seconds_since(uint64_t start)
{
    return (double)(clock_now_ns() - start) * 1e-9;
}

static void draw_tokens(struct bench_model *m, int n)
{
    uint64_t vocab = (uint64_t)model_get_config(m->model)->vocab_size;

    for (int i = 0; i < n; i++) {
        m->seed = m->seed * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX */
        m->tokens[i] = (int32_t)((m->seed >> 33) % vocab);
    }
}

/* ---- what is measured ---- */

/* Rows [start, start + n) of sequence 0, in chunks. */
static enum status_code prefill(struct bench_model *m, int n, struct status *st)
{
    const float *logits;

    draw_tokens(m, n);
    status_ok(st);
    for (int at = 0; at < n && st->code == ST_OK; at += (int)m->b->chunk) {
        int some = n - at < m->b->chunk ? n - at : (int)m->b->chunk;
        struct model_span span = {.tokens = m->tokens + at,
                                  .n_tokens = some,
                                  .start = at,
                                  .pages = m->pages,
                                  .logits = at + some == n ? MODEL_LOGITS_LAST : MODEL_LOGITS_NONE};

        model_forward(m->model, &m->kv, &span, 1, &logits, st);
    }
    return st->code;
}

static enum status_code decode(struct bench_model *m, int batch, int64_t at, struct status *st)
{
    const float *logits;

    draw_tokens(m, batch);
    for (int i = 0; i < batch; i++)
        m->spans[i] = (struct model_span){.tokens = m->tokens + i,
                                          .n_tokens = 1,
                                          .start = at,
                                          .slot = (uint32_t)i,
                                          .pages = m->pages + (size_t)i * m->n_pages,
                                          .logits = MODEL_LOGITS_LAST};
    return model_forward(m->model, &m->kv, m->spans, batch, &logits, st);
}

/* Gives every page and slot what a real prompt left in the first ones. */
static enum status_code fill_kv(struct bench_model *m, struct status *st)
{
    const struct kv_geometry *g = model_get_geometry(m->model);
    uint32_t n_seed = SEED_TOKENS / KV_PAGE_TOKENS;

    if (prefill(m, SEED_TOKENS, st) != ST_OK)
        return st->code;
    for (uint32_t i = n_seed; i < m->kv.n_pages; i++)
        model_memory_copy(m->model, dev_at(m->kv.pages, i * g->page_bytes),
                          dev_at(m->kv.pages, i % n_seed * g->page_bytes), g->page_bytes);
    for (uint32_t i = 1; i < m->kv.n_slots; i++)
        model_memory_copy(m->model, dev_at(m->kv.slots, i * g->slot_bytes), m->kv.slots,
                          g->slot_bytes);
    return st->code;
}

/* Seconds that the machine owes, and which limit it is. */
static double owed(double bytes, double read, double flops, double peak, const char **by)
{
    double t_read = bytes / read, t_flops = flops / peak;

    *by = t_read > t_flops ? "bytes" : "FLOPs";
    return t_read > t_flops ? t_read : t_flops;
}

/* What a case is: decode of `batch` at `context` (n_prefill 0), or prefill. */
struct engine_case {
    int batch, n_prefill;
    int64_t context;
    double bytes, flops; /* of one run */
};

static enum status_code measure(struct bench_model *m, const struct engine_case *c,
                                struct status *st)
{
    struct engine_bench *b = m->b;
    double value[ROUNDS], limit[ROUNDS], fraction[ROUNDS];
    double tokens = c->n_prefill > 0 ? c->n_prefill : c->batch;
    double before = 0;
    int n_rounds = 0;
    uint64_t begun = clock_now_ns();
    struct bench_row row = {.threads = pool_threads(m->pool), .unit = "tok/s"};
    const char *by = "";
    int64_t step = 0;

    for (int round = -1; round < ROUNDS; round++) { /* the first one warms up */
        if (round > 0 && seconds_since(begun) > 2 * b->seconds)
            break; /* long ones have few rounds */
        uint64_t start = clock_now_ns();
        int64_t n = 0;

        do {
            if (c->n_prefill > 0)
                prefill(m, c->n_prefill, st);
            else
                decode(m, c->batch, c->context + step++ % (SLACK_TOKENS - 1), st);
            if (st->code != ST_OK)
                return st->code;
            n++;
        } while (round >= 0 && seconds_since(start) < b->seconds / ROUNDS);
        double seconds = seconds_since(start);
        double after = owed(c->bytes, bench_limit_read(&b->limits, m->pool), c->flops,
                            bench_limit_flops(&b->limits, m->pool), &by);

        if (round >= 0) {
            value[round] = tokens * (double)n / seconds;
            limit[round] = tokens / ((before + after) / 2);
            n_rounds = round + 1;
            fraction[round] = value[round] / limit[round];
        }
        before = after;
    }
    snprintf(row.name, sizeof(row.name), c->n_prefill > 0 ? "prefill" : "decode");
    if (c->n_prefill > 0)
        snprintf(row.shape, sizeof(row.shape), "%d tokens in chunks of %d, owed by %s",
                 c->n_prefill, (int)b->chunk, by);
    else
        snprintf(row.shape, sizeof(row.shape), "batch %d, context %lld, owed by %s", c->batch,
                 (long long)c->context, by);
    row.value = bench_median(value, n_rounds);
    row.limit = bench_median(limit, n_rounds);
    row.fraction = bench_median(fraction, n_rounds);
    bench_table_add(&b->table, &row);
    return status_ok(st);
}

static enum status_code run_cases(struct bench_model *m, struct status *st)
{
    struct engine_bench *b = m->b;
    const struct model_config *config = model_get_config(m->model);

    if (fill_kv(m, st) != ST_OK)
        return st->code;
    for (int i = 0; i < b->batch.n; i++)
        for (int j = 0; j < b->context.n; j++) {
            struct engine_case c = {.batch = b->batch.at[i], .context = b->context.at[j]};

            c.bytes = roofline_decode_bytes(m->model, c.batch, c.context);
            c.flops = c.batch * roofline_flops(config, c.context, 1, 1);
            if (measure(m, &c, st) != ST_OK)
                return st->code;
        }
    for (int i = 0; i < b->prefill.n; i++) {
        struct engine_case c = {.n_prefill = b->prefill.at[i]};
        int n_chunks = (c.n_prefill + (int)b->chunk - 1) / (int)b->chunk;

        c.bytes = n_chunks * roofline_weight_bytes(m->model, c.n_prefill / n_chunks);
        c.flops = roofline_flops(config, 0, c.n_prefill, 1);
        if (measure(m, &c, st) != ST_OK)
            return st->code;
    }
    return status_ok(st);
}

/* ---- opening ---- */

static int most(int a, int b)
{
    return a > b ? a : b;
}

static struct model_options options_of(const struct engine_bench *b, int threads)
{
    int n_tokens = most(b->prefill.most, SEED_TOKENS);

    return (struct model_options){.path = b->model_path,
                                  .device = b->device,
                                  .cpu_isa = b->cpu_isa,
                                  .n_threads = threads,
                                  .no_repack = b->no_repack,
                                  .max_batch_tokens = most((int)b->chunk, b->batch.most),
                                  .max_batch_seqs = b->batch.most,
                                  .max_logit_rows = b->batch.most,
                                  .max_context = most(b->context.most + SLACK_TOKENS, n_tokens)};
}

static enum status_code open_model(struct bench_model *m, int threads, struct status *st)
{
    struct engine_bench *b = m->b;
    struct model_options o = options_of(b, threads);
    int n_tokens = most(b->prefill.most, SEED_TOKENS);
    uint64_t start = clock_now_ns();

    if (pool_new(threads, &m->pool, st) != ST_OK || model_open(&o, &m->model, st) != ST_OK)
        return st->code;
    fprintf(stderr, "baton bench-engine: %s, %.2f GB of weights loaded in %.2f s\n",
            model_backend_name(m->model), (double)model_weight_bytes(m->model) * 1e-9,
            seconds_since(start));
    m->n_pages = kv_pages_for((uint64_t)o.max_context);
    m->pages = malloc((size_t)b->batch.most * m->n_pages * sizeof(*m->pages));
    m->tokens = malloc((size_t)most(n_tokens, o.max_batch_tokens) * sizeof(*m->tokens));
    m->spans = malloc((size_t)b->batch.most * sizeof(*m->spans));
    if (m->pages == NULL || m->tokens == NULL || m->spans == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a batch of %d", b->batch.most);
    for (uint32_t i = 0; i < (uint32_t)b->batch.most * m->n_pages; i++)
        m->pages[i] = i;
    return model_kv_alloc(m->model, (uint32_t)b->batch.most * m->n_pages, (uint32_t)b->batch.most,
                          &m->kv, st);
}

static void close_model(struct bench_model *m)
{
    if (m->model != NULL && !dev_is_null(m->kv.pages))
        model_kv_free(m->model, &m->kv);
    model_free(m->model);
    pool_free(m->pool);
    free(m->pages);
    free(m->tokens);
    free(m->spans);
}

static enum status_code run_threads(struct engine_bench *b, int threads, struct status *st)
{
    struct bench_model m = {.b = b, .seed = 1};

    if (open_model(&m, threads, st) == ST_OK)
        run_cases(&m, st);
    close_model(&m);
    return st->code;
}

/* ---- the command ---- */

static enum status_code parse_list(const char *text, const char *flag, int least, int most,
                                   bool may_be_empty, struct list *out, struct status *st)
{
    *out = (struct list){0};
    for (const char *p = text; *p != '\0';) {
        char *end;
        long v = strtol(p, &end, 10);

        if (end == p || v < least || v > most || (*end != ',' && *end != '\0'))
            return status_set(st, ST_INVALID,
                              "--%s %s: expected numbers from %d to %d between commas", flag, text,
                              least, most);
        if (out->n == LIST_MAX)
            return status_set(st, ST_INVALID, "--%s: at most %d numbers", flag, LIST_MAX);
        out->at[out->n++] = (int)v;
        out->most = (int)v > out->most ? (int)v : out->most;
        p = *end == ',' ? end + 1 : end;
    }
    if (out->n == 0 && !may_be_empty)
        return status_set(st, ST_INVALID, "--%s needs a number", flag);
    return status_ok(st);
}

static enum status_code run_all(struct engine_bench *b, struct status *st)
{
    if (b->model_path == NULL)
        return status_set(st, ST_INVALID, "--model-path DIR is needed");
    b->isa = strcmp(b->cpu_isa, "avx2") == 0 ? CPU_ISA_AVX2 : kernels_cpu_best();
    if (b->isa == CPU_ISA_REF || b->isa > kernels_cpu_best())
        return status_set(st, ST_INVALID, "this processor runs no fast level: nothing to measure");
    if (bench_limits_open(&b->limits, b->isa, (size_t)b->footprint_mb << 20) != 0)
        return status_set(st, ST_EXHAUSTED, "no memory for --footprint-mb %lld",
                          (long long)b->footprint_mb);
    bench_table_begin(&b->table, b->json);
    if (b->load) {
        struct model_options o = options_of(b, (int)b->threads);

        return bench_load(&o, &b->table, st);
    }
    if (b->threads > 0)
        return run_threads(b, (int)b->threads, st);
    if (run_threads(b, 1, st) != ST_OK)
        return st->code;
    return run_threads(b, 0, st);
}

int cmd_bench_engine(int argc, char **argv)
{
    struct engine_bench b = {
        .device = "cpu", .cpu_isa = "auto", .footprint_mb = 1024, .chunk = 2048, .seconds = 2};
    const char *batch = "1,4,16", *context = "1024,32768", *lengths = "512,2048";
    const struct flag flags[] = {
        {"model-path", FLAG_STRING, &b.model_path, .arg = "DIR", .help = "checkpoint directory"},
        {"batch", FLAG_STRING, &batch, .arg = "1,4,16", .help = "sequences of a decode step"},
        {"context", FLAG_STRING, &context, .arg = "1024,32768",
         .help = "tokens that each of them has"},
        {"prefill", FLAG_STRING, &lengths, .arg = "512,2048",
         .help = "tokens of a prompt; \"\" for none"},
        {"chunk-size", FLAG_INT, &b.chunk, 64, 65536, .arg = "N",
         .help = "tokens of one forward in prefill"},
        {"device", FLAG_STRING, &b.device, .arg = "cpu|cuda:N",
         .help = "where it runs; shares of limits are of the CPU's in any case"},
        {"cpu-isa", FLAG_CHOICE, &b.cpu_isa, .choices = "auto|avx2|avx512|amx",
         .help = "highest instruction set used"},
        {"threads", FLAG_INT, &b.threads, 0, 1024, .arg = "N",
         .help = "0: one thread, then one per CPU"},
        {"footprint-mb", FLAG_INT, &b.footprint_mb, 16, 1 << 20, .arg = "MB",
         .help = "the read loop goes through this much: more than the last cache"},
        {"seconds", FLAG_FLOAT, &b.seconds, 0.001, 600, .arg = "S", .help = "time for each case"},
        {"no-repack", FLAG_BOOL, &b.no_repack, .help = "use weights as mapped"},
        {"load", FLAG_BOOL, &b.load,
         .help = "measure loading instead, beside reading the files into memory"},
        {"json", FLAG_BOOL, &b.json, .help = "one JSON object a line"},
        {"svg", FLAG_STRING, &b.svg, .arg = "FILE", .help = "draw the shares too"},
        {0},
    };
    struct status st;

    log_init("baton", LOG_WARN);
    if (flags_parse(flags, argc, argv, NULL, NULL, &st) == ST_CANCELLED) {
        flags_help(flags, "usage: baton bench-engine --model-path DIR [flags]");
        return 0;
    }
    if (st.code == ST_OK && parse_list(batch, "batch", 1, 4096, false, &b.batch, &st) == ST_OK &&
        parse_list(context, "context", SEED_TOKENS, 1 << 20, false, &b.context, &st) == ST_OK &&
        parse_list(lengths, "prefill", 1, 1 << 20, true, &b.prefill, &st) == ST_OK)
        run_all(&b, &st);
    bench_limits_close(&b.limits);
    if (st.code == ST_OK && b.svg != NULL &&
        bench_table_svg(&b.table, "baton bench-engine", b.svg) != 0)
        status_set(&st, ST_INVALID, "%s: %s", b.svg, strerror(errno));
    if (st.code != ST_OK)
        fprintf(stderr, "baton bench-engine: %s\n", st.msg);
    return st.code == ST_OK ? 0 : 1;
}
