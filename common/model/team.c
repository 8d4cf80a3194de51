#include "common/model/team.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

enum { LOOK_MS = 100 };   /* how often a wait looks whether the group has failed */
enum { FREE_WAIT_S = 2 }; /* a group that has failed lets go of its ranks at once */

struct team {
    pthread_mutex_t mutex; /* all below, but comms and n */
    pthread_cond_t job_there, rank_ended;
    struct comm *comms[COMM_RANKS_MAX];
    pthread_t threads[COMM_RANKS_MAX]; /* [1, n) */
    int n, n_started, n_gone;
    uint64_t n_jobs;
    int n_ended; /* ranks from 1 on that are through with the present job */
    team_fn fn;
    void *arg;
    bool stop;
};

struct start {
    struct team *team;
    int rank;
};

/* Waits for job number `job`. @return whether there is one */
static bool next_job(struct team *t, uint64_t job, team_fn *fn, void **arg)
{
    bool run;

    pthread_mutex_lock(&t->mutex);
    while (!t->stop && t->n_jobs < job)
        pthread_cond_wait(&t->job_there, &t->mutex);
    run = !t->stop;
    *fn = t->fn;
    *arg = t->arg;
    pthread_mutex_unlock(&t->mutex);
    return run;
}

static void run_rank(struct team *t, int rank, team_fn fn, void *arg)
{
    comm_attach(t->comms[rank]);
    fn(arg, rank);
    comm_barrier(t->comms[rank]);
}

static void *rank_main(void *start_arg)
{
    struct start s = *(struct start *)start_arg;
    struct team *t = s.team;
    team_fn fn;
    void *arg;

    free(start_arg);
    for (uint64_t job = 1; next_job(t, job, &fn, &arg); job++) {
        run_rank(t, s.rank, fn, arg);
        pthread_mutex_lock(&t->mutex);
        t->n_ended++;
        pthread_cond_signal(&t->rank_ended);
        pthread_mutex_unlock(&t->mutex);
    }
    pthread_mutex_lock(&t->mutex);
    t->n_gone++;
    pthread_cond_signal(&t->rank_ended);
    pthread_mutex_unlock(&t->mutex);
    return NULL;
}

enum status_code team_new(struct comm *const *comms, int n, struct team **out, struct status *st)
{
    struct team *t = calloc(1, sizeof(*t));

    if (t == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a team");
    pthread_mutex_init(&t->mutex, NULL);
    pthread_cond_init(&t->job_there, NULL);
    pthread_cond_init(&t->rank_ended, NULL);
    t->n = n;
    for (int r = 0; r < n; r++)
        t->comms[r] = comms[r];
    for (int r = 1; r < n; r++) {
        struct start *s = malloc(sizeof(*s));

        if (s != NULL)
            *s = (struct start){t, r};
        if (s == NULL || pthread_create(&t->threads[r], NULL, rank_main, s) != 0) {
            free(s);
            team_free(t);
            return status_set(st, ST_EXHAUSTED, "cannot start the thread of rank %d (ulimit -u)",
                              r);
        }
        t->n_started++;
    }
    *out = t;
    return status_ok(st);
}

/* A barrier of devices is queued and waits for no thread: this does. */
static void wait_for_ranks(struct team *t)
{
    struct status st;
    struct timespec until;

    pthread_mutex_lock(&t->mutex);
    while (t->n_ended < t->n - 1 && comm_check(t->comms[0], &st) == ST_OK) {
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += LOOK_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        pthread_cond_timedwait(&t->rank_ended, &t->mutex, &until);
    }
    pthread_mutex_unlock(&t->mutex);
}

enum status_code team_run(struct team *t, team_fn fn, void *arg, struct status *st)
{
    if (comm_check(t->comms[0], st) != ST_OK)
        return st->code;
    pthread_mutex_lock(&t->mutex);
    t->fn = fn;
    t->arg = arg;
    t->n_ended = 0;
    t->n_jobs++;
    pthread_cond_broadcast(&t->job_there);
    pthread_mutex_unlock(&t->mutex);
    run_rank(t, 0, fn, arg);
    wait_for_ranks(t);
    return comm_check(t->comms[0], st);
}

bool team_free(struct team *t)
{
    struct timespec until;
    int late = 0;

    if (t == NULL)
        return true;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += FREE_WAIT_S;
    pthread_mutex_lock(&t->mutex);
    t->stop = true;
    pthread_cond_broadcast(&t->job_there);
    while (t->n_gone < t->n_started && late == 0)
        late = pthread_cond_timedwait(&t->rank_ended, &t->mutex, &until);
    late = t->n_gone < t->n_started;
    pthread_mutex_unlock(&t->mutex);
    if (late)
        return false;
    for (int r = 1; r <= t->n_started; r++)
        pthread_join(t->threads[r], NULL);
    pthread_cond_destroy(&t->rank_ended);
    pthread_cond_destroy(&t->job_there);
    pthread_mutex_destroy(&t->mutex);
    free(t);
    return true;
}
