#include "common/base/pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Spins before sleeping: about 20 us, longer than the gap between two kernels of a step, far
 * shorter than the gap between two requests. */
enum { SPINS = 4000 };

enum { GROUP = 16, LINE = 64 };

/* Workers of one group that are still running a job; alone on its cache line. */
struct group {
    _Atomic uint32_t n_left; /* release in worker, acquire in its last one */
    uint32_t n;
    char rest[LINE - 8];
};

struct pool {
    int n; /* threads, the caller included */
    int n_nodes;
    bool pin;
    pthread_t *threads;   /* [n - 1] */
    int *node;            /* [n]: of each part */
    cpu_set_t *cpus;      /* [n]: where each part may run */
    struct group *groups; /* [n_groups]: of the workers */
    int n_groups;
    pool_fn fn; /* of the current job; published by the release on `job` */
    void *arg;
    _Atomic int stop;
    /* On lines of their own: workers look at them while others write the rest. */
    _Alignas(LINE) _Atomic uint32_t job; /* counts jobs; release in run, acquire in worker; futex
                                          * word */
    _Alignas(LINE) _Atomic uint32_t n_sleeping;  /* workers that are in, or about to enter, futex
                                                  * wait */
    _Alignas(LINE) _Atomic uint32_t groups_left; /* release in a group's last, acquire in run */
};

struct worker {
    struct pool *pool;
    int part;
};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void wait_for_job(struct pool *p, uint32_t seen)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&p->job, memory_order_acquire) != seen)
            return;
        relax();
    }
    atomic_fetch_add(&p->n_sleeping, 1);
    while (atomic_load(&p->job) == seen)
        futex_wait(&p->job, seen);
    atomic_fetch_sub(&p->n_sleeping, 1);
}

/* A part has ended: the last of a group reports for all. */
static void report(struct pool *p, int part)
{
    struct group *g = &p->groups[(part - 1) / GROUP];

    if (atomic_fetch_sub_explicit(&g->n_left, 1, memory_order_acq_rel) == 1)
        atomic_fetch_sub_explicit(&p->groups_left, 1, memory_order_release);
}

static void *worker_main(void *arg)
{
    struct worker w = *(struct worker *)arg;
    struct pool *p = w.pool;
    uint32_t seen = 0;

    free(arg);
    if (p->pin || p->n_nodes > 1) /* a hint: elsewhere it is only slower */
        pthread_setaffinity_np(pthread_self(), sizeof(p->cpus[w.part]), &p->cpus[w.part]);
    for (;;) {
        wait_for_job(p, seen);
        seen = atomic_load_explicit(&p->job, memory_order_acquire);
        if (atomic_load(&p->stop))
            return NULL;
        p->fn(p->arg, w.part, p->n);
        report(p, w.part);
    }
}

int pool_usable_cpus(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) != 0)
        return 1;
    return CPU_COUNT(&set);
}

/* Node and CPUs of each part. */
static void place(struct pool *p, const struct topology *t, int *at)
{
    topology_place(t, p->n, at);
    for (int i = 0; i < p->n; i++) {
        const struct topology_cpu *mine = &t->cpus[at[i]];

        CPU_ZERO(&p->cpus[i]);
        p->node[i] = mine->node;
        if (mine->node >= p->n_nodes)
            p->n_nodes = mine->node + 1;
        for (int c = 0; c < t->n_cpus; c++)
            if (p->pin ? c == at[i] : t->cpus[c].node == mine->node)
                CPU_SET(t->cpus[c].id, &p->cpus[i]);
    }
}

static bool make_room(struct pool *p, const struct topology *t)
{
    int *at = calloc((size_t)p->n, sizeof(*at));
    size_t n = (size_t)p->n;

    p->n_groups = (p->n - 1 + GROUP - 1) / GROUP;
    p->threads = calloc(n, sizeof(*p->threads));
    p->node = calloc(n, sizeof(*p->node));
    p->cpus = calloc(n, sizeof(*p->cpus));
    p->groups = aligned_alloc(LINE, (size_t)(p->n_groups + 1) * sizeof(*p->groups));
    if (at == NULL || p->threads == NULL || p->node == NULL || p->cpus == NULL ||
        p->groups == NULL) {
        free(at);
        return false;
    }
    memset(p->groups, 0, (size_t)(p->n_groups + 1) * sizeof(*p->groups));
    for (int i = 1; i < p->n; i++)
        p->groups[(i - 1) / GROUP].n++;
    if (t->n_cpus > 0)
        place(p, t, at);
    free(at);
    return true;
}

enum status_code pool_new_on(const struct topology *t, int n_threads, bool pin, struct pool **out,
                             struct status *st)
{
    struct pool *p = aligned_alloc(LINE, (sizeof(*p) + LINE - 1) / LINE * LINE);

    if (p == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a thread pool");
    memset(p, 0, sizeof(*p));
    p->pin = pin;
    p->n = n_threads;
    p->n_nodes = 1;
    if (!make_room(p, t)) {
        p->n = 1; /* none has started */
        pool_free(p);
        return status_set(st, ST_EXHAUSTED, "no memory for %d threads", n_threads);
    }
    for (int i = 1; i < n_threads; i++) {
        struct worker *w = malloc(sizeof(*w));
        bool started;

        if (w != NULL)
            *w = (struct worker){p, i};
        started = w != NULL && pthread_create(&p->threads[i - 1], NULL, worker_main, w) == 0;
        if (!started) {
            free(w);
            p->n = i;
            pool_free(p);
            return status_set(st, ST_EXHAUSTED, "cannot start thread %d of %d (ulimit -u)", i,
                              n_threads);
        }
    }
    *out = p;
    return status_ok(st);
}

enum status_code pool_new_pinned(int n_threads, bool pin, struct pool **out, struct status *st)
{
    struct topology *t = malloc(sizeof(*t));
    int n = n_threads > 0 ? n_threads : pool_usable_cpus();

    if (t == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a thread pool");
    topology_read("/sys/devices/system", NULL, t);
    pool_new_on(t, n, pin, out, st);
    free(t);
    return st->code;
}

enum status_code pool_new(int n_threads, struct pool **out, struct status *st)
{
    return pool_new_pinned(n_threads, false, out, st);
}

static void publish(struct pool *p)
{
    atomic_fetch_add(&p->job, 1); /* seq_cst: ordered before the load of n_sleeping */
    if (atomic_load(&p->n_sleeping) > 0)
        futex_wake(&p->job);
}

void pool_free(struct pool *p)
{
    if (p == NULL)
        return;
    atomic_store(&p->stop, 1);
    publish(p);
    for (int i = 0; i + 1 < p->n; i++)
        pthread_join(p->threads[i], NULL);
    free(p->threads);
    free(p->node);
    free(p->cpus);
    free(p->groups);
    free(p);
}

int pool_threads(const struct pool *p)
{
    return p->n;
}

int pool_nodes(const struct pool *p)
{
    return p->n_nodes;
}

int pool_node(const struct pool *p, int part)
{
    return p->node[part];
}

void pool_run(struct pool *p, pool_fn fn, void *arg)
{
    if (p->n == 1) {
        fn(arg, 0, 1);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    for (int i = 0; i < p->n_groups; i++)
        atomic_store_explicit(&p->groups[i].n_left, p->groups[i].n, memory_order_relaxed);
    atomic_store_explicit(&p->groups_left, (uint32_t)p->n_groups, memory_order_relaxed);
    publish(p);
    fn(arg, 0, p->n);
    for (int spins = 0; atomic_load_explicit(&p->groups_left, memory_order_acquire) > 0; spins++) {
        if (spins < SPINS)
            relax();
        else
            sched_yield(); /* fewer cores than threads: let the others run */
    }
}
