/*
 * bench-kernels: operations of the CPU backend against the limits of this machine, measured in the
 * same run: each round of a case is preceded by a round of its limit (a read loop over huge pages,
 * or bf16 dot products on registers), and the fraction is the median over the rounds.
 */
#include "deploy/baton/commands.h"

#include "common/base/clock.h"
#include "common/base/flags.h"
#include "common/base/json.h"
#include "deploy/baton/bench_kernels.h"
#include "kernels/cpu/limits.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ROUNDS = 7 };

struct options {
    const char *cpu_isa, *only;
    int64_t threads, footprint_mb;
    double seconds; /* of each case */
    bool json;
};

struct run {
    struct options opt;
    uint8_t *memory; /* [memory_bytes]: what the read loop reads */
    size_t memory_bytes;
    size_t read_at; /* the next part of it */
    _Atomic uint64_t sink;
};

/* ---- limits ---- */

struct limit_job {
    struct run *run;
    enum cpu_isa isa;
    size_t from, bytes; /* read */
    int64_t n;          /* dot */
    _Atomic int64_t flops;
};

static void read_part(void *arg, int part, int n_parts)
{
    struct limit_job *job = arg;
    size_t share = job->bytes / (size_t)n_parts / 4096 * 4096;

    job->run->sink ^=
        cpu_limit_read(job->isa, job->run->memory + job->from + (size_t)part * share, share);
}

static void dot_part(void *arg, int part, int n_parts)
{
    struct limit_job *job = arg;
    double flops = cpu_limit_bf16(job->isa, job->n);

    (void)part;
    (void)n_parts;
    if (flops == 0)
        flops = cpu_limit_f32(job->isa, job->n);
    job->flops += (int64_t)flops;
}

static double seconds_since(uint64_t start)
{
    return (double)(clock_now_ns() - start) * 1e-9;
}

/* Bytes a second of all threads, over a part of memory that was not read lately. */
static double limit_read(struct kernel_bench *b)
{
    struct run *run = b->ctx;
    struct limit_job job = {.run = run, .isa = b->isa, .bytes = run->memory_bytes / 4};

    job.from = run->read_at;
    run->read_at = (run->read_at + job.bytes) % run->memory_bytes;
    uint64_t start = clock_now_ns();

    pool_run(b->pool, read_part, &job);
    return (double)job.bytes / seconds_since(start);
}

static double limit_dot(struct kernel_bench *b)
{
    struct limit_job job = {.run = b->ctx, .isa = b->isa, .n = 1000000};
    uint64_t start = clock_now_ns();

    pool_run(b->pool, dot_part, &job);
    return (double)job.flops / seconds_since(start);
}

/* ---- measuring ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double median(double *x)
{
    qsort(x, ROUNDS, sizeof(*x), by_value);
    return x[ROUNDS / 2];
}

static void print_json(const char *name, const char *shape, int threads, double value,
                       const char *unit, double limit, double fraction)
{
    struct buf line = {0};

    buf_puts(&line, "{\"name\": ");
    json_write_string(&line, name, strlen(name));
    buf_puts(&line, ", \"shape\": ");
    json_write_string(&line, shape, strlen(shape));
    printf("%s, \"threads\": %d, \"value\": %.4g, \"unit\": \"%s\", \"limit\": %.4g, "
           "\"fraction\": %.3f}\n",
           buf_cstr(&line), threads, value, unit, limit, fraction);
    buf_deinit(&line);
}

static void measure(struct kernel_bench *b, const char *name, const char *shape,
                    enum bench_limit limit_kind, double amount, void (*run_case)(void *, int64_t),
                    void *arg)
{
    struct run *run = b->ctx;
    double value[ROUNDS], limit[ROUNDS], fraction[ROUNDS], budget = run->opt.seconds / ROUNDS;
    int64_t i = 0;

    run_case(arg, i++); /* pages in, threads awake */
    for (int round = 0; round < ROUNDS; round++) {
        int64_t first = i;

        limit[round] = limit_kind == LIMIT_READ ? limit_read(b) : limit_dot(b);
        uint64_t start = clock_now_ns();

        do
            run_case(arg, i++);
        while (seconds_since(start) < budget);
        value[round] = amount * (double)(i - first) / seconds_since(start);
        fraction[round] = value[round] / limit[round];
    }
    const char *unit = limit_kind == LIMIT_READ ? "GB/s" : "GFLOP/s";
    double v = median(value) * 1e-9, l = median(limit) * 1e-9, f = median(fraction);

    if (run->opt.json)
        print_json(name, shape, pool_threads(b->pool), v, unit, l, f);
    else
        printf("| %-12s | %-48s | %7d | %7.1f %-7s | %7.1f | %5.1f %% |\n", name, shape,
               pool_threads(b->pool), v, unit, l, 100 * f);
    fflush(stdout);
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
        status = bench_kernels_run(&b) == 0 ? 0 : 1;
        kernels_close(&b.k);
    }
    pool_free(b.pool);
    return status;
}

static bool parse_isa(const char *name, enum cpu_isa *out)
{
    *out = kernels_cpu_best();
    if (strcmp(name, "avx2") == 0)
        *out = CPU_ISA_AVX2;
    else if (strcmp(name, "avx512") == 0)
        *out = CPU_ISA_AVX512;
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
         .choices = "auto|avx2|avx512",
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
    run.memory_bytes = (size_t)o->footprint_mb << 20;
    run.memory =
        mmap(NULL, run.memory_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (run.memory == MAP_FAILED) {
        fprintf(stderr, "baton bench-kernels: no memory for --footprint-mb %lld\n",
                (long long)o->footprint_mb);
        return 1;
    }
    madvise(run.memory, run.memory_bytes, MADV_HUGEPAGE);
    memset(run.memory, 1, run.memory_bytes);
    if (!o->json)
        printf(
            "| %-12s | %-48s | threads | %-15s | %7s | %7s |\n| --- | --- | ---: | ---: | ---: | "
            "---: |\n",
            "operation", "shape", "reached", "limit", "share");
    if (o->threads > 0) {
        status = run_threads(&run, isa, (int)o->threads);
    } else {
        status = run_threads(&run, isa, 1);
        if (status == 0)
            status = run_threads(&run, isa, 0);
    }
    munmap(run.memory, run.memory_bytes);
    return status;
}
