/*
 * bench_policy: what a routing decision costs, and how good it is.
 *
 *   bench_router_policy [--json]
 *
 * decision   prompts of 32 pages, half of them known to some workers, the request begun and ended
 * index      unique pages told by workers until past the cap
 * trace      generated shared prefixes over 8 mock workers in simulated time, against an oracle
 *            for which every prefix is computed once
 */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/kv/block_hash.h"
#include "router/policy/policy.h"

static bool json;

static void show(const char *name, double value, const char *unit)
{
    if (json)
        printf("{\"name\":\"%s\",\"value\":%.4g,\"unit\":\"%s\"}\n", name, value, unit);
    else
        printf("%-44s %12.4g %s\n", name, value, unit);
    fflush(stdout);
}

static uint64_t seed = 88172645463325252u;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static struct policy *make(enum policy_kind kind, uint32_t n, size_t bytes)
{
    struct policy_config c = {kind, true, bytes, bytes, 42};
    struct policy *p;
    struct status st;
    char address[32];

    if (policy_new(&c, &p, &st) != ST_OK)
        exit(1);
    for (uint32_t i = 0; i < n; i++) {
        snprintf(address, sizeof(address), "10.0.%u.%u:30000", i / 256, i % 256);
        if (policy_join(p, i, address, &st) != ST_OK)
            exit(1);
        policy_pages_reset(p, i, true);
        policy_set_eligible(p, i, true);
    }
    return p;
}

/* ---- decisions ------------------------------------------------------------------------------- */

enum { PAGES = 32, GROUPS = 20000, ROUNDS = 200000, INFLIGHT = 512 };

static void group_pages(uint64_t group, uint64_t *pages)
{
    for (uint64_t i = 0, h = group * 77 + 1; i < PAGES; i++)
        pages[i] = h = (h ^ i) * UINT64_C(0x9e3779b97f4a7c15) | 1;
}

/* Of this thread: others that want the processor as well do not count. */
static uint64_t cpu_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void decision(enum policy_kind kind, uint32_t n_workers)
{
    static int32_t ids[PAGES * PREFIX_BLOCK_TOKENS + 50];
    static struct policy_ticket open[INFLIGHT];
    struct policy *p = make(kind, n_workers, 256 << 20);
    uint64_t pages[PAGES], start, sum = 0;
    struct policy_request r = {
        .n_ids = sizeof(ids) / sizeof(ids[0]), .ids = ids, .n_pages = PAGES, .pages = pages};
    char name[64];

    for (uint64_t g = 0; g < GROUPS / 2; g++) { /* a hot one in ten is held by many */
        group_pages(g, pages);
        for (uint32_t k = g % 10 == 0 ? 64 : 1 + (uint32_t)(rnd() % 3); k > 0; k--) {
            uint32_t w = (uint32_t)(rnd() % n_workers), n = 1 + (uint32_t)(rnd() % PAGES);

            for (uint32_t i = 0; i < n; i++)
                policy_page(p, w, POLICY_PAGE_IN, pages[i]);
            policy_page(p, w, POLICY_STATE_IN, pages[n - 1]);
        }
    }
    start = cpu_us();
    for (int i = 0; i < ROUNDS; i++) {
        struct policy_choice c;
        struct policy_ticket *t = &open[i % INFLIGHT];

        group_pages(rnd() % GROUPS, pages);
        ids[0] = (int32_t)pages[0];
        r.key = (const char *)pages;
        r.key_len = 8;
        policy_ended(p, t);
        if (!policy_pick(p, &r, &c))
            exit(1);
        policy_began(p, &r, &c, t);
        sum += c.worker;
    }
    snprintf(name, sizeof(name), "decision_%s_%u", policy_kind_name(kind), n_workers);
    show(name, (double)(cpu_us() - start) / ROUNDS, "us");
    if (sum == 0)
        printf("(nobody but the first)\n");
    for (int i = 0; i < INFLIGHT; i++)
        policy_ended(p, &open[i]);
    policy_free(p);
}

static void hashing(void)
{
    static int32_t ids[PREFIX_BLOCK_TOKENS * 64];
    uint64_t start = clock_now_us(), h = 0;

    for (int i = 0; i < 2000; i++)
        for (int k = 0; k < 64; k++)
            h = prefix_block_hash(h, 0, ids + k * PREFIX_BLOCK_TOKENS);
    show("naming_a_page", (double)(clock_now_us() - start) / 128000 + (h == 0), "us");
}

/* ---- the index's memory ---------------------------------------------------------------------- */

static double rss_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    long total, rss = 0;

    if (f == NULL || fscanf(f, "%ld %ld", &total, &rss) != 2)
        rss = 0;
    if (f != NULL)
        fclose(f);
    return (double)rss * (double)sysconf(_SC_PAGESIZE);
}

static void memory(size_t cap, uint64_t n_pages)
{
    double before = rss_bytes();
    struct policy *p = make(POLICY_KV_EXACT, 8, cap);
    struct policy_stats s;
    uint64_t start = clock_now_us(), worst = 0, t, h = 1;

    for (uint64_t i = 0; i < n_pages; i++) {
        if (i % 256 == 0 && i > 0) {
            t = clock_now_us();
            worst = t - start > worst ? t - start : worst;
            start = t;
        }
        h = (h ^ i) * UINT64_C(0x9e3779b97f4a7c15) | 1;
        policy_page(p, (uint32_t)(h >> 40) % 8, POLICY_PAGE_IN, h);
    }
    policy_stats(p, &s);
    show("index_cap", (double)cap / 1e6, "MB");
    show("index_pages_told", (double)n_pages / 1e6, "M");
    show("index_pages_known", (double)s.index_pages / 1e6, "M");
    show("index_bytes_per_page", (double)s.index_bytes / (double)s.index_pages, "B");
    show("index_rss", (rss_bytes() - before) / 1e6, "MB");
    show("index_worst_256_inserts", (double)worst, "us");
    policy_free(p);
}

/* ---- generated shared prefixes --------------------------------------------------------------- */

/*
 * 8 workers, each with one prefill at a time at 10,000 tokens/s and a page cache of least recently
 * used groups; 64 groups that share 8 pages (2,048 tokens), 64 prompts each with 128 tokens of
 * their own, in random order, arriving at a share of what the workers can do.
 */
enum { W = 8, N_GROUPS = 64, PER_GROUP = 64, SHARED_PAGES = 8, OWN = 128 };

struct job {
    double start, done;
    uint32_t worker, group;
    bool told;
    struct policy_ticket ticket;
};

struct result {
    double hits, cov;
};

/* What a run cost: hit tokens, and how evenly requests and computed tokens fell. */
static struct result trace(enum policy_kind kind, double utilisation)
{
    enum { N = N_GROUPS * PER_GROUP };
    static struct job jobs[N];
    static uint32_t order[N];
    static int32_t ids[SHARED_PAGES * PREFIX_BLOCK_TOKENS + OWN];
    const double token_s = 1e-4;
    bool cached[W][N_GROUPS] = {{false}};
    double free_at[W] = {0}, now = 0, hits = 0, work[W] = {0}, mean = 0, var = 0;
    /* Tokens that have to be computed when every prefix is computed once. */
    double oracle_tokens = N_GROUPS * (SHARED_PAGES * 256.0) + (double)N * OWN;
    double gap = oracle_tokens * token_s / N / W / utilisation;
    struct policy *p = make(kind, W, 16 << 20);
    int first_open = 0;

    memset(jobs, 0, sizeof(jobs));
    seed = 88172645463325252u;
    for (uint32_t i = 0; i < W; i++)
        policy_measure(p, i, 1000, 1000 * token_s);
    for (uint32_t i = 0; i < N; i++)
        order[i] = i;
    for (uint32_t i = N - 1; i > 0; i--) {
        uint32_t k = (uint32_t)(rnd() % (i + 1)), o = order[i];

        order[i] = order[k];
        order[k] = o;
    }
    for (int i = 0; i < N; i++) {
        struct job *j = &jobs[i];
        uint64_t pages[SHARED_PAGES];
        struct policy_request r = {.n_ids = sizeof(ids) / sizeof(ids[0]),
                                   .ids = ids,
                                   .n_pages = SHARED_PAGES,
                                   .pages = pages};
        struct policy_choice c;
        uint32_t uncached;

        now += -log((double)(rnd() % 1000000 + 1) / 1000001.0) * gap;
        j->group = order[i] / PER_GROUP;
        for (size_t k = 0; k < r.n_ids; k++)
            ids[k] = (int32_t)(k < SHARED_PAGES * 256 ? j->group * 10000 + k : order[i] * 77 + k);
        for (uint64_t k = 0, h = 0; k < SHARED_PAGES; k++)
            pages[k] = h = prefix_block_hash(h, 0, ids + k * 256);
        for (int k = first_open; k < i; k++) { /* what has finished by now */
            if (jobs[k].told || jobs[k].done > now)
                continue;
            jobs[k].told = true;
            policy_ended(p, &jobs[k].ticket);
        }
        while (first_open < i && jobs[first_open].told)
            first_open++;
        policy_pick(p, &r, &c);
        policy_began(p, &r, &c, &j->ticket);
        j->worker = c.worker;
        /* First come, first served: the one before in the same group has filled the cache. */
        uncached = OWN;
        if (cached[c.worker][j->group])
            hits += SHARED_PAGES * 256;
        else
            uncached += SHARED_PAGES * 256;
        if (!cached[c.worker][j->group])
            for (int k = 0; k < SHARED_PAGES; k++) {
                policy_page(p, c.worker, POLICY_PAGE_IN, pages[k]);
                policy_page(p, c.worker, POLICY_STATE_IN, pages[k]);
            }
        cached[c.worker][j->group] = true;
        j->start = now > free_at[c.worker] ? now : free_at[c.worker];
        j->done = free_at[c.worker] = j->start + uncached * token_s;
        work[c.worker] += uncached * token_s;
    }
    for (int w = 0; w < W; w++)
        mean += work[w] / W;
    for (int w = 0; w < W; w++)
        var += (work[w] - mean) * (work[w] - mean) / W;
    for (int i = 0; i < N; i++)
        policy_ended(p, &jobs[i].ticket);
    policy_free(p);
    return (struct result){hits / ((N - N_GROUPS) * SHARED_PAGES * 256.0), sqrt(var) / mean};
}

int main(int argc, char **argv)
{
    char name[64];

    json = argc > 1 && strcmp(argv[1], "--json") == 0;
    hashing();
    for (int k = 0; k < POLICY_N_KINDS; k++)
        decision((enum policy_kind)k, 128);
    decision(POLICY_KV_EXACT, 8);
    decision(POLICY_KV_EXACT, 4096);
    decision(POLICY_LEAST_LOAD, 4096);
    for (int k = 0; k < POLICY_N_KINDS; k++)
        for (int u = 5; u <= 9; u += 2) {
            struct result r = trace((enum policy_kind)k, u / 10.0);

            snprintf(name, sizeof(name), "trace_hits_%s_load_0.%d",
                     policy_kind_name((enum policy_kind)k), u);
            show(name, 100 * r.hits, "% of oracle");
            snprintf(name, sizeof(name), "trace_cov_%s_load_0.%d",
                     policy_kind_name((enum policy_kind)k), u);
            show(name, r.cov, "");
        }
    memory(256 << 20, 10 * 1000 * 1000);
    memory(64 << 20, 10 * 1000 * 1000);
    return 0;
}
