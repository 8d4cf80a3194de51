#include "deploy/baton/bench_limits.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "common/base/clock.h"
#include "kernels/cpu/limits.h"

enum { DOT_ROUNDS = 500000 };

struct job {
    struct bench_limits *limits;
    size_t from, bytes; /* read */
    double (*loop)(enum cpu_isa isa, int64_t n);
    _Atomic uint64_t sink;
    _Atomic int64_t flops;
};

int bench_limits_open(struct bench_limits *l, enum cpu_isa isa, size_t bytes)
{
    *l = (struct bench_limits){.isa = isa, .bytes = bytes};
    l->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (l->memory == MAP_FAILED) {
        l->memory = NULL;
        return -1;
    }
    madvise(l->memory, bytes, MADV_HUGEPAGE);
    memset(l->memory, 1, bytes);
    return 0;
}

void bench_limits_close(struct bench_limits *l)
{
    if (l->memory != NULL)
        munmap(l->memory, l->bytes);
    l->memory = NULL;
}

static double seconds_since(uint64_t start)
{
    return (double)(clock_now_ns() - start) * 1e-9;
}

static void read_part(void *arg, int part, int n_parts)
{
    struct job *job = arg;
    size_t share = job->bytes / (size_t)n_parts / 4096 * 4096;

    job->sink ^= cpu_limit_read(job->limits->isa,
                                job->limits->memory + job->from + (size_t)part * share, share);
}

double bench_limit_read(struct bench_limits *l, struct pool *pool)
{
    struct job job = {.limits = l, .from = l->at, .bytes = l->bytes / 4};
    uint64_t start = clock_now_ns();

    l->at = (l->at + job.bytes) % l->bytes;
    pool_run(pool, read_part, &job);
    return (double)job.bytes / seconds_since(start);
}

static void flops_part(void *arg, int part, int n_parts)
{
    struct job *job = arg;

    (void)part;
    (void)n_parts;
    job->flops += (int64_t)job->loop(job->limits->isa, DOT_ROUNDS);
}

static double flops_of(struct bench_limits *l, struct pool *pool,
                       double (*loop)(enum cpu_isa isa, int64_t n))
{
    struct job job = {.limits = l, .loop = loop};
    uint64_t start = clock_now_ns();

    pool_run(pool, flops_part, &job);
    return (double)job.flops / seconds_since(start);
}

double bench_limit_fma(struct bench_limits *l, struct pool *pool)
{
    return flops_of(l, pool, cpu_limit_f32);
}

double bench_limit_tiles(struct bench_limits *l, struct pool *pool)
{
    return flops_of(l, pool, cpu_limit_tiles);
}

double bench_limit_flops(struct bench_limits *l, struct pool *pool)
{
    double dot = flops_of(l, pool, cpu_limit_bf16), fma = flops_of(l, pool, cpu_limit_f32);

    return dot > fma ? dot : fma;
}
