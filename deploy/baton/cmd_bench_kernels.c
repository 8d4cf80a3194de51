/*
 * bench-kernels: operations of the CPU backend against the limits of this machine, measured in the
 * same run: each round of a case stands between two rounds of its limit (a read loop over huge
 * pages, or arithmetic on registers: see bench_limits.h) and is divided by their mean; the fraction
 * is the median over the rounds. Rounds are short: a machine with neighbours changes its speed.
 */
#include "deploy/baton/commands.h"

#include "common/base/clock.h"
#include "common/base/flags.h"
#include "deploy/baton/bench_kernels.h"
#include "deploy/baton/bench_limits.h"
#include "deploy/baton/bench_table.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { ROUNDS = 15 };

struct options {
    const char *cpu_isa, *only, *svg;
    int64_t threads, footprint_mb;
    double seconds; /* of each case */
    bool json;
};

struct run {
    struct options opt;
    struct bench_limits limits;
    struct bench_table table;
};

/* ---- measuring ---- */

static double seconds_since(uint64_t start)
{
    return (double)(clock_now_ns() - start) * 1e-9;
}

static double limit_of(struct run *run, struct pool *pool, enum bench_limit kind)
{
    switch (kind) {
    case LIMIT_READ:
        return bench_limit_read(&run->limits, pool);
    case LIMIT_FMA:
        return bench_limit_fma(&run->limits, pool);
    default:
        return bench_limit_flops(&run->limits, pool);
    }
}

static void measure(struct kernel_bench *b, const char *name, const char *shape,
                    enum bench_limit limit_kind, double amount, void (*run_case)(void *, int64_t),
                    void *arg)
{
    struct run *run = b->ctx;
    double value[ROUNDS], limit[ROUNDS], fraction[ROUNDS], budget = run->opt.seconds / ROUNDS;
    double before;
    struct bench_row row = {.threads = pool_threads(b->pool)};
    int64_t i = 0;

    run_case(arg, i++); /* pages in, threads awake */
    before = limit_of(run, b->pool, limit_kind);
    for (int round = 0; round < ROUNDS; round++) {
        int64_t first = i;
        uint64_t start = clock_now_ns();

        do
            run_case(arg, i++);
        while (seconds_since(start) < budget);
        value[round] = amount * (double)(i - first) / seconds_since(start);
        double after = limit_of(run, b->pool, limit_kind);

        limit[round] = (before + after) / 2;
        before = after;
        fraction[round] = value[round] / limit[round];
    }
    snprintf(row.name, sizeof(row.name), "%s", name);
    snprintf(row.shape, sizeof(row.shape), "%s", shape);
    snprintf(row.unit, sizeof(row.unit), "%s", limit_kind == LIMIT_READ ? "GB/s" : "GFLOP/s");
    row.value = bench_median(value, ROUNDS) * 1e-9;
    row.limit = bench_median(limit, ROUNDS) * 1e-9;
    row.fraction = bench_median(fraction, ROUNDS);
    bench_table_add(&run->table, &row);
}

/* At the AMX level products are divided by what vectors reach, as at the others. What tiles reach
 * stands beside them. */
static void measure_tiles(struct run *run, struct pool *pool)
{
    struct bench_row row = {.threads = pool_threads(pool)};
    double tiles[ROUNDS], limit[ROUNDS], fraction[ROUNDS];

    for (int i = 0; i < ROUNDS; i++) {
        tiles[i] = bench_limit_tiles(&run->limits, pool);
        limit[i] = bench_limit_flops(&run->limits, pool);
        fraction[i] = tiles[i] / limit[i];
    }
    snprintf(row.name, sizeof(row.name), "tile loop");
    snprintf(row.shape, sizeof(row.shape), "16 x 16 x 32, registers only");
    snprintf(row.unit, sizeof(row.unit), "GFLOP/s");
    row.value = bench_median(tiles, ROUNDS) * 1e-9;
    row.limit = bench_median(limit, ROUNDS) * 1e-9;
    row.fraction = bench_median(fraction, ROUNDS);
    bench_table_add(&run->table, &row);
}

/* ---- the command ---- */

static void pool_parallel(void *pool, void (*fn)(void *, int, int), void *arg)
{
    pool_run(pool, fn, arg);
}

static int run_threads(struct run *run, enum cpu_isa isa, int threads)
{
    struct kernel_dims dims = bench_kernel_dims();
    struct kernel_bench b = {.isa = isa,
                             .footprint = (size_t)run->opt.footprint_mb << 20,
                             .only = run->opt.only,
                             .seed = 1,
                             .ctx = run,
                             .measure = measure};
    struct kernel_env env = {.parallel = pool_parallel};
    struct status st;
    int status = 1;

    if (pool_new(threads, &b.pool, &st) != ST_OK) {
        fprintf(stderr, "baton bench-kernels: %s\n", st.msg);
        return 1;
    }
    env.pool = b.pool;
    env.n_threads = pool_threads(b.pool);
    if (kernels_open_cpu(&b.k, isa, &dims, &env) != 0) {
        fprintf(stderr, "baton bench-kernels: %s\n", b.k.error);
    } else {
        if (isa == CPU_ISA_AMX && run->opt.only == NULL)
            measure_tiles(run, b.pool);
        status = bench_kernels_run(&b) == 0 ? 0 : 1;
        kernels_close(&b.k);
    }
    pool_free(b.pool);
    return status;
}

static bool parse_isa(const char *name, enum cpu_isa *out)
{
    *out = kernels_cpu_best();
    (void)kernels_cpu_named(name, out); /* or "auto": the best */
    if (*out == CPU_ISA_REF || *out > kernels_cpu_best()) {
        fprintf(stderr, "baton bench-kernels: this processor does not run %s\n",
                *out == CPU_ISA_REF ? "any fast level" : name);
        return false;
    }
    return true;
}

int cmd_bench_kernels(int argc, char **argv)
{
    struct run run = {.opt = {.cpu_isa = "auto", .footprint_mb = 1024, .seconds = 1}};
    struct options *o = &run.opt;
    const struct flag table[] = {
        {.name = "cpu-isa",
         .type = FLAG_CHOICE,
         .field = &o->cpu_isa,
         .choices = "auto|avx2|avx512|amx",
         .help = "instruction set"},
        {.name = "threads",
         .type = FLAG_INT,
         .field = &o->threads,
         .min = 0,
         .max = 1024,
         .arg = "N",
         .help = "0: one thread, then one per CPU"},
        {.name = "only",
         .type = FLAG_STRING,
         .field = &o->only,
         .arg = "NAME",
         .help = "cases whose name holds this: \"fp4 gemv\", \"moe\", \"attention\""},
        {.name = "footprint-mb",
         .type = FLAG_INT,
         .field = &o->footprint_mb,
         .min = 16,
         .max = 1 << 20,
         .arg = "MB",
         .help = "weights rotate through this much memory: more than the last cache"},
        {.name = "seconds",
         .type = FLAG_FLOAT,
         .field = &o->seconds,
         .min = 0.001,
         .max = 60,
         .arg = "S",
         .help = "time for each case"},
        {.name = "json", .type = FLAG_BOOL, .field = &o->json, .help = "one JSON object a line"},
        {.name = "svg",
         .type = FLAG_STRING,
         .field = &o->svg,
         .arg = "FILE",
         .help = "draw the shares too"},
        {0},
    };
    enum cpu_isa isa;
    struct status st;
    int status = 0;

    if (flags_parse(table, argc, argv, NULL, NULL, &st) != ST_OK) {
        if (st.code == ST_CANCELLED) {
            flags_help(table, "usage: baton bench-kernels [flags]");
            return 0;
        }
        fprintf(stderr, "baton bench-kernels: %s\n", st.msg);
        return 2;
    }
    if (!parse_isa(o->cpu_isa, &isa))
        return 1;
    if (bench_limits_open(&run.limits, isa, (size_t)o->footprint_mb << 20) != 0) {
        fprintf(stderr, "baton bench-kernels: no memory for --footprint-mb %lld\n",
                (long long)o->footprint_mb);
        return 1;
    }
    bench_table_begin(&run.table, o->json);
    if (o->threads > 0) {
        status = run_threads(&run, isa, (int)o->threads);
    } else {
        status = run_threads(&run, isa, 1);
        if (status == 0)
            status = run_threads(&run, isa, 0);
    }
    bench_limits_close(&run.limits);
    if (o->svg != NULL && bench_table_svg(&run.table, "baton bench-kernels", o->svg) != 0) {
        fprintf(stderr, "baton bench-kernels: %s: %s\n", o->svg, strerror(errno));
        return 1;
    }
    return status;
}
