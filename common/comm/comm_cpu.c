/*
 * comm_cpu: ranks as threads of one process.
 *
 * A collective is: say what I bring (meet), read what the others brought, and meet again so that
 * nobody's buffer changes while it is read. One mutex guards the group; nobody computes under it.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/comm/comm_internal.h"

enum {
    LOOK_MS = 100,  /* how often one who waits looks at the missing */
    SUM_BLOCK = 256 /* elements added at once */
};

enum collective { BARRIER, ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL };

static const char *const collective_names[] = {
    [BARRIER] = "barrier",       [ALL_REDUCE] = "all-reduce",
    [ALL_GATHER] = "all-gather", [REDUCE_SCATTER] = "reduce-scatter",
    [ALL_TO_ALL] = "all-to-all",
};

/* What a rank brings to the meeting it came to last. */
struct seat {
    uint64_t n_met; /* meetings this rank has come to */
    enum collective what;
    size_t rows, bytes; /* must be everyone's */
    uint8_t *in;
    bool attached;
    clockid_t clock;              /* CPU time of its thread */
    int64_t burnt_ns;             /* as last seen */
    uint64_t changed_us;          /* when that was seen to move */
    _Atomic uint64_t beats;       /* without the mutex; relaxed: only whether it moves counts */
    uint64_t beats_seen, beat_us; /* as last seen, and when that was seen to move */
};

struct group {
    pthread_mutex_t mutex; /* everything below; held for a few lines, never while another is */
    pthread_cond_t moved;  /* a meeting is complete, or the group has failed */
    int n_ranks, n_handles;
    uint64_t timeout_us, beat_us;
    void (*on_failure)(void *arg, const char *reason);
    void *arg;
    uint64_t n_met;    /* complete meetings */
    int n_here;        /* ranks at the next one */
    uint64_t first_us; /* when the first of them came: waiting is counted from here */
    bool failed;
    char reason[256];
    struct seat seats[COMM_RANKS_MAX];
};

/* ---- failing ---- */

/* The caller holds the mutex. @return whether the caller has to tell on_failure */
static bool fail_locked(struct group *g, const char *reason)
{
    if (g->failed)
        return false;
    g->failed = true;
    snprintf(g->reason, sizeof(g->reason), "%s", reason);
    pthread_cond_broadcast(&g->moved);
    return g->on_failure != NULL;
}

static void cpu_fail(struct comm *c, const char *reason)
{
    struct group *g = c->self;
    bool tell;

    pthread_mutex_lock(&g->mutex);
    tell = fail_locked(g, reason);
    pthread_mutex_unlock(&g->mutex);
    if (tell)
        g->on_failure(g->arg, reason);
}

static enum status_code cpu_check(struct comm *c, struct status *st)
{
    struct group *g = c->self;

    pthread_mutex_lock(&g->mutex);
    if (g->failed)
        status_set(st, ST_UNAVAILABLE, "rank group of %d: %s", g->n_ranks, g->reason);
    else
        status_ok(st);
    pthread_mutex_unlock(&g->mutex);
    return st->code;
}

/* ---- the watchdog: those who wait look at those who are missing ---- */

/* @return whether rank r is held for lost, with the reason. The mutex is held. */
static bool is_lost(struct group *g, int r, int me, uint64_t since_us, uint64_t now_us, char *why,
                    size_t why_len)
{
    struct seat *s = &g->seats[r];
    uint64_t beats = atomic_load_explicit(&s->beats, memory_order_relaxed);
    struct timespec burnt;
    int64_t ns = -1;
    uint64_t still_us;

    if (s->attached && clock_gettime(s->clock, &burnt) != 0) {
        snprintf(why, why_len,
                 "rank %d has died: rank %d waits for it in %s %llu, its thread is gone", r, me,
                 collective_names[g->seats[me].what], (unsigned long long)g->n_met);
        return true;
    }
    if (s->attached)
        ns = (int64_t)burnt.tv_sec * 1000000000 + burnt.tv_nsec;
    if (s->changed_us < since_us) /* the first look of this wait: both clocks begin */
        s->changed_us = s->beat_us = now_us;
    if (ns != s->burnt_ns)
        s->changed_us = now_us;
    if (beats != s->beats_seen)
        s->beat_us = now_us;
    s->burnt_ns = ns;
    s->beats_seen = beats;
    still_us = now_us - s->changed_us;
    if (still_us < g->timeout_us && now_us - s->beat_us < g->beat_us)
        return false;
    snprintf(why, why_len, "rank %d hangs: rank %d waits for it in %s %llu since %.1f s%s", r, me,
             collective_names[g->seats[me].what], (unsigned long long)g->n_met,
             (double)(now_us - since_us) / 1e6,
             still_us < g->timeout_us ? ", it computes without getting on" : ", it does nothing");
    return true;
}

static bool look_for_lost(struct group *g, int me, char *why, size_t why_len)
{
    uint64_t now_us = clock_now_us();

    for (int r = 0; r < g->n_ranks; r++)
        if (g->seats[r].n_met <= g->n_met && is_lost(g, r, me, g->first_us, now_us, why, why_len))
            return true;
    return false;
}

static void wait_a_little(struct group *g)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += LOOK_MS * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    pthread_cond_timedwait(&g->moved, &g->mutex, &until);
}

/* Whether the last of us brought the same as all. */
static bool all_alike(const struct group *g, char *why, size_t why_len)
{
    const struct seat *a = &g->seats[0];

    for (int r = 1; r < g->n_ranks; r++) {
        const struct seat *b = &g->seats[r];

        if (a->what != b->what || a->rows != b->rows || a->bytes != b->bytes) {
            snprintf(why, why_len,
                     "ranks disagree: rank 0 is in %s of %zu x %zu bytes, rank %d in %s of %zu x "
                     "%zu bytes",
                     collective_names[a->what], a->rows, a->bytes, r, collective_names[b->what],
                     b->rows, b->bytes);
            return false;
        }
    }
    return true;
}

/* Waits for all. @return whether all came; false: the group has failed */
static bool meet(struct comm *c)
{
    struct group *g = c->self;
    char why[sizeof(g->reason)];
    bool tell = false, fine;
    uint64_t mine;

    pthread_mutex_lock(&g->mutex);
    mine = ++g->seats[c->rank].n_met;
    if (g->n_here == 0)
        g->first_us = clock_now_us();
    if (!g->failed && ++g->n_here == g->n_ranks) {
        if (all_alike(g, why, sizeof(why))) {
            g->n_here = 0;
            g->n_met++;
            pthread_cond_broadcast(&g->moved);
        } else {
            tell = fail_locked(g, why);
        }
    }
    while (!g->failed && g->n_met < mine) {
        wait_a_little(g);
        if (!g->failed && g->n_met < mine && look_for_lost(g, c->rank, why, sizeof(why)))
            tell = fail_locked(g, why);
    }
    fine = !g->failed;
    pthread_mutex_unlock(&g->mutex);
    if (tell)
        g->on_failure(g->arg, why);
    return fine;
}

/* My seat is mine to write until I meet; the mutex in meet() shows it to the others. */
static bool bring(struct comm *c, enum collective what, struct dev_ptr in, size_t rows,
                  size_t bytes)
{
    struct group *g = c->self;
    struct seat *s = &g->seats[c->rank];

    pthread_mutex_lock(&g->mutex); /* the watchdog reads `what` at any time */
    s->what = what;
    s->rows = rows;
    s->bytes = bytes;
    s->in = (uint8_t *)(uintptr_t)in.addr;
    pthread_mutex_unlock(&g->mutex);
    return meet(c);
}

static uint8_t *brought_by(struct comm *c, int rank)
{
    return ((struct group *)c->self)->seats[rank].in;
}

/* ---- sums ---- */

static float decode(const uint8_t *at, enum comm_type type)
{
    uint32_t bits = 0;
    float x;

    if (type == COMM_F32) {
        memcpy(&x, at, sizeof(x));
        return x;
    }
    memcpy((uint8_t *)&bits + 2, at, 2); /* little endian: the upper half */
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static void encode(uint8_t *at, float x, enum comm_type type)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof(bits));
    if (type == COMM_F32) {
        memcpy(at, &bits, sizeof(bits));
        return;
    }
    if (x != x)
        bits |= 0x00400000; /* stays a NaN when cut */
    else
        bits += 0x7FFF + (bits >> 16 & 1); /* ties to even */
    memcpy(at, (uint8_t *)&bits + 2, 2);
}

static size_t size_of(enum comm_type type)
{
    return type == COMM_F32 ? 4 : 2;
}

/* Elements [first, first + n) of all ranks' buffers, n <= SUM_BLOCK. */
static void sum_block(struct comm *c, float *sum, size_t first, size_t n, enum comm_type type)
{
    size_t size = size_of(type);

    for (int r = 0; r < c->n_ranks; r++) {
        const uint8_t *in = brought_by(c, r) + first * size;

        for (size_t i = 0; i < n; i++) {
            float x = decode(in + i * size, type);

            sum[i] = r == 0 ? x : sum[i] + x;
        }
    }
}

/* ---- the collectives ---- */

static void cpu_barrier(struct comm *c)
{
    bring(c, BARRIER, (struct dev_ptr){0}, 0, 0);
}

/* Each rank adds up its share of the elements and writes the sums into everybody's buffer: nobody
 * else touches that share. */
static void cpu_all_reduce(struct comm *c, struct dev_ptr buf, size_t n, enum comm_type type)
{
    size_t size = size_of(type), N = (size_t)c->n_ranks, rank = (size_t)c->rank;
    size_t end = n * (rank + 1) / N;
    float sum[SUM_BLOCK];

    if (!bring(c, ALL_REDUCE, buf, n, size))
        return;
    for (size_t at = n * rank / N; at < end; at += SUM_BLOCK) {
        size_t some = end - at < SUM_BLOCK ? end - at : SUM_BLOCK;

        sum_block(c, sum, at, some, type);
        for (int r = 0; r < c->n_ranks; r++)
            for (size_t i = 0; i < some; i++)
                encode(brought_by(c, r) + (at + i) * size, sum[i], type);
    }
    meet(c);
}

static void cpu_all_gather_columns(struct comm *c, struct dev_ptr out, struct dev_ptr in,
                                   size_t n_rows, size_t row_bytes)
{
    uint8_t *to = (uint8_t *)(uintptr_t)out.addr;
    size_t N = (size_t)c->n_ranks;

    if (!bring(c, ALL_GATHER, in, n_rows, row_bytes))
        return;
    for (size_t t = 0; t < n_rows; t++)
        for (size_t r = 0; r < N; r++)
            memcpy(to + (t * N + r) * row_bytes, brought_by(c, (int)r) + t * row_bytes, row_bytes);
    meet(c);
}

static void cpu_reduce_scatter(struct comm *c, struct dev_ptr out, struct dev_ptr in, size_t n,
                               enum comm_type type)
{
    uint8_t *to = (uint8_t *)(uintptr_t)out.addr;
    size_t size = size_of(type), first = n * (size_t)c->rank;
    float sum[SUM_BLOCK];

    if (!bring(c, REDUCE_SCATTER, in, n, size))
        return;
    for (size_t at = 0; at < n; at += SUM_BLOCK) {
        size_t some = n - at < SUM_BLOCK ? n - at : SUM_BLOCK;

        sum_block(c, sum, first + at, some, type);
        for (size_t i = 0; i < some; i++)
            encode(to + (at + i) * size, sum[i], type);
    }
    meet(c);
}

static void cpu_all_to_all(struct comm *c, struct dev_ptr out, struct dev_ptr in, size_t bytes)
{
    uint8_t *to = (uint8_t *)(uintptr_t)out.addr;

    if (!bring(c, ALL_TO_ALL, in, 1, bytes))
        return;
    for (int r = 0; r < c->n_ranks; r++)
        memcpy(to + (size_t)r * bytes, brought_by(c, r) + (size_t)c->rank * bytes, bytes);
    meet(c);
}

/* ---- making and freeing ---- */

static void cpu_attach(struct comm *c)
{
    struct group *g = c->self;
    struct seat *s = &g->seats[c->rank];

    pthread_mutex_lock(&g->mutex);
    s->attached = pthread_getcpuclockid(pthread_self(), &s->clock) == 0;
    s->burnt_ns = -1;
    pthread_mutex_unlock(&g->mutex);
}

static void cpu_beat(struct comm *c)
{
    struct group *g = c->self;

    atomic_fetch_add_explicit(&g->seats[c->rank].beats, 1, memory_order_relaxed);
}

static void free_group(struct group *g)
{
    pthread_cond_destroy(&g->moved);
    pthread_mutex_destroy(&g->mutex);
    free(g);
}

static void cpu_free(struct comm *c)
{
    struct group *g = c->self;
    bool last;

    pthread_mutex_lock(&g->mutex);
    last = --g->n_handles == 0;
    pthread_mutex_unlock(&g->mutex);
    if (last)
        free_group(g);
    free(c);
}

static const struct comm_ops cpu_ops = {
    .name = "cpu",
    .free = cpu_free,
    .attach = cpu_attach,
    .beat = cpu_beat,
    .fail = cpu_fail,
    .check = cpu_check,
    .barrier = cpu_barrier,
    .all_reduce = cpu_all_reduce,
    .all_gather_columns = cpu_all_gather_columns,
    .reduce_scatter = cpu_reduce_scatter,
    .all_to_all = cpu_all_to_all,
};

static struct group *new_group(const struct comm_options *opt)
{
    struct group *g = calloc(1, sizeof(*g));
    pthread_condattr_t attr;

    if (g == NULL)
        return NULL;
    pthread_mutex_init(&g->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&g->moved, &attr);
    pthread_condattr_destroy(&attr);
    g->n_ranks = opt->n_ranks;
    g->timeout_us = 1000 * (uint64_t)(opt->timeout_ms > 0 ? opt->timeout_ms : COMM_TIMEOUT_MS);
    g->beat_us = opt->beat_ms > 0 ? 1000 * (uint64_t)opt->beat_ms : g->timeout_us;
    g->on_failure = opt->on_failure;
    g->arg = opt->arg;
    return g;
}

enum status_code comm_cpu_new(const struct comm_options *opt, struct comm **out, struct status *st)
{
    struct comm *made[COMM_RANKS_MAX] = {0};
    struct group *g;

    if (opt->n_ranks < 1 || opt->n_ranks > COMM_RANKS_MAX)
        return status_set(st, ST_INVALID, "a group of %d ranks: 1 to %d", opt->n_ranks,
                          COMM_RANKS_MAX);
    g = new_group(opt);
    for (int r = 0; g != NULL && r < opt->n_ranks; r++) {
        made[r] = calloc(1, sizeof(*made[r]));
        if (made[r] == NULL) {
            while (r > 0)
                free(made[--r]);
            free_group(g);
            g = NULL;
            break;
        }
        *made[r] = (struct comm){&cpu_ops, r, opt->n_ranks, g};
    }
    if (g == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a group of %d ranks", opt->n_ranks);
    g->n_handles = opt->n_ranks;
    memcpy(out, made, (size_t)opt->n_ranks * sizeof(*out));
    return status_ok(st);
}
