#include "common/base/pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Spins before sleeping: about 20 us, longer than the gap between two kernels of a step, far
 * shorter than the gap between two requests. */
enum { SPINS = 4000 };

struct pool {
    int n;              /* threads, the caller included */
    pthread_t *threads; /* [n - 1] */
    pool_fn fn;         /* of the current job; published by the release on `job` */
    void *arg;
    _Atomic uint32_t job;        /* counts jobs; release in run, acquire in worker; futex word */
    _Atomic uint32_t n_sleeping; /* workers that are in, or about to enter, futex wait */
    _Atomic uint32_t n_left;     /* parts still running; release in worker, acquire in run */
    _Atomic int stop;
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

static void *worker_main(void *arg)
{
    struct worker w = *(struct worker *)arg;
    struct pool *p = w.pool;
    uint32_t seen = 0;

    free(arg);
    for (;;) {
        wait_for_job(p, seen);
        seen = atomic_load_explicit(&p->job, memory_order_acquire);
        if (atomic_load(&p->stop))
            return NULL;
        p->fn(p->arg, w.part, p->n);
        atomic_fetch_sub_explicit(&p->n_left, 1, memory_order_release);
    }
}

int pool_usable_cpus(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) != 0)
        return 1;
    return CPU_COUNT(&set);
}

enum status_code pool_new(int n_threads, struct pool **out, struct status *st)
{
    struct pool *p = calloc(1, sizeof(*p));
    int wanted = n_threads > 0 ? n_threads : pool_usable_cpus();

    if (p == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a thread pool");
    p->n = 1;
    p->threads = calloc((size_t)wanted, sizeof(*p->threads));
    if (p->threads == NULL) {
        pool_free(p);
        return status_set(st, ST_EXHAUSTED, "no memory for %d threads", wanted);
    }
    while (p->n < wanted) {
        struct worker *w = malloc(sizeof(*w));

        if (w == NULL) {
            pool_free(p);
            return status_set(st, ST_EXHAUSTED, "no memory for %d threads", wanted);
        }
        *w = (struct worker){p, p->n};
        if (pthread_create(&p->threads[p->n - 1], NULL, worker_main, w) != 0) {
            free(w);
            pool_free(p);
            return status_set(st, ST_EXHAUSTED, "cannot start thread %d of %d (ulimit -u)", p->n,
                              wanted);
        }
        p->n++;
    }
    *out = p;
    return status_ok(st);
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
    free(p);
}

int pool_threads(const struct pool *p)
{
    return p->n;
}

void pool_run(struct pool *p, pool_fn fn, void *arg)
{
    if (p->n == 1) {
        fn(arg, 0, 1);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    atomic_store_explicit(&p->n_left, (uint32_t)p->n - 1, memory_order_relaxed);
    publish(p);
    fn(arg, 0, p->n);
    for (int spins = 0; atomic_load_explicit(&p->n_left, memory_order_acquire) > 0; spins++) {
        if (spins < SPINS)
            relax();
        else
            sched_yield(); /* fewer cores than threads: let the others run */
    }
}
