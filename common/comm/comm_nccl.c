#include "common/comm/comm_nccl.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/comm/comm_internal.h"

/* ---- NCCL's own: its header is not needed to build; the values are its ABI ---- */

typedef struct {
    char internal[COMM_NCCL_ID_BYTES];
} nccl_id;

enum { NCCL_OK = 0, NCCL_IN_PROGRESS = 7 };
enum { NCCL_UINT8 = 1, NCCL_F32 = 7, NCCL_BF16 = 9, NCCL_SUM = 0 };

struct nccl {
    void *library;
    int (*get_id)(nccl_id *id);
    int (*init)(void **comm, int n_ranks, nccl_id id, int rank);
    int (*destroy)(void *comm);
    int (*abort)(void *comm);
    int (*async_error)(void *comm, int *error);
    const char *(*error_string)(int result);
    int (*all_reduce)(const void *in, void *out, size_t n, int type, int op, void *comm, void *s);
    int (*all_gather)(const void *in, void *out, size_t n, int type, void *comm, void *s);
    int (*reduce_scatter)(const void *in, void *out, size_t n, int type, int op, void *comm,
                          void *s);
    int (*send)(const void *p, size_t n, int type, int peer, void *comm, void *s);
    int (*recv)(void *p, size_t n, int type, int peer, void *comm, void *s);
    int (*group_start)(void);
    int (*group_end)(void);
};

static void nccl_close(struct nccl *n)
{
    if (n->library != NULL)
        dlclose(n->library);
    n->library = NULL;
}

static enum status_code nccl_open(struct nccl *n, const char *library, struct status *st)
{
    const struct {
        const char *name;
        void *fn; /* where its address goes */
    } names[] = {
        {"ncclGetUniqueId", &n->get_id},
        {"ncclCommInitRank", &n->init},
        {"ncclCommDestroy", &n->destroy},
        {"ncclCommAbort", &n->abort},
        {"ncclCommGetAsyncError", &n->async_error},
        {"ncclGetErrorString", &n->error_string},
        {"ncclAllReduce", &n->all_reduce},
        {"ncclAllGather", &n->all_gather},
        {"ncclReduceScatter", &n->reduce_scatter},
        {"ncclSend", &n->send},
        {"ncclRecv", &n->recv},
        {"ncclGroupStart", &n->group_start},
        {"ncclGroupEnd", &n->group_end},
    };
    const char *path = library != NULL ? library : "libnccl.so.2";

    n->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (n->library == NULL)
        return status_set(st, ST_UNAVAILABLE,
                          "several GPUs need NCCL, and it does not load: %s (install it, or take "
                          "--tp-size 1)",
                          dlerror());
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        void *fn = dlsym(n->library, names[i].name);

        if (fn == NULL) {
            nccl_close(n);
            return status_set(st, ST_UNAVAILABLE, "%s has no %s", path, names[i].name);
        }
        memcpy(names[i].fn, &fn, sizeof(fn)); /* ISO C has no cast for it, POSIX has */
    }
    return status_ok(st);
}

enum status_code comm_nccl_id(const char *library, uint8_t *id, struct status *st)
{
    struct nccl n = {0};
    nccl_id made;
    int e;

    if (nccl_open(&n, library, st) != ST_OK)
        return st->code;
    e = n.get_id(&made);
    if (e == NCCL_OK)
        memcpy(id, &made, sizeof(made));
    else
        status_set(st, ST_UNAVAILABLE, "NCCL makes no id: %s", n.error_string(e));
    nccl_close(&n);
    return st->code;
}

/* ---- a rank ---- */

enum { LOOK_MS = 100, LEAVE_MS = 1000 };

struct member {
    struct nccl nccl;
    struct comm_nccl_device device;
    void *comm; /* ncclComm_t; NULL once torn down: the watchdog's to write */
    int rank, n_ranks;
    uint64_t timeout_us;
    void (*on_failure)(void *arg, const char *reason);
    void *arg;
    /* Relaxed: each is a figure of its own. */
    _Atomic uint64_t n_queued;
    _Atomic(const char *) what; /* the collective queued last */
    _Atomic int n_inside;       /* seq_cst, against `failed`: a call is in NCCL */
    _Atomic bool failed;
    pthread_mutex_t mutex; /* reason, stop */
    pthread_cond_t wake;
    char reason[256];
    bool stop;
    pthread_t watchdog;
};

/* The first reason stays. */
static void member_fail(struct member *m, const char *reason)
{
    bool first = false;

    pthread_mutex_lock(&m->mutex);
    if (!m->failed) {
        snprintf(m->reason, sizeof(m->reason), "%s", reason);
        m->failed = first = true;
        pthread_cond_broadcast(&m->wake); /* the watchdog tears down */
    }
    pthread_mutex_unlock(&m->mutex);
    if (first && m->on_failure != NULL)
        m->on_failure(m->arg, reason);
}

static void nccl_comm_fail(struct comm *c, const char *reason)
{
    member_fail(c->self, reason);
}

static enum status_code nccl_comm_check(struct comm *c, struct status *st)
{
    struct member *m = c->self;

    pthread_mutex_lock(&m->mutex);
    if (m->failed)
        status_set(st, ST_UNAVAILABLE, "rank group of %d: %s", m->n_ranks, m->reason);
    else
        status_ok(st);
    pthread_mutex_unlock(&m->mutex);
    return st->code;
}

/* ---- the watchdog ---- */

struct watch {
    uint64_t reached, moved_us; /* as last seen, and when that was seen to move */
};

/* @return whether the group is lost, with the reason */
static bool look(struct member *m, struct watch *w, char *why, size_t why_len)
{
    uint64_t queued = atomic_load_explicit(&m->n_queued, memory_order_relaxed);
    uint64_t reached = m->device.reached(m->device.arg), now_us = clock_now_us();
    int error = NCCL_OK, e = m->nccl.async_error(m->comm, &error);

    if (e != NCCL_OK || (error != NCCL_OK && error != NCCL_IN_PROGRESS)) {
        snprintf(why, why_len, "rank %d: NCCL: %s", m->rank,
                 m->nccl.error_string(e != NCCL_OK ? e : error));
        return true;
    }
    if (reached != w->reached || reached >= queued) {
        w->reached = reached;
        w->moved_us = now_us;
    }
    if (now_us - w->moved_us < m->timeout_us)
        return false;
    snprintf(why, why_len,
             "a rank hangs or has died: rank %d of %d waits for the others in %s %llu since %.1f s",
             m->rank, m->n_ranks, atomic_load_explicit(&m->what, memory_order_relaxed),
             (unsigned long long)reached, (double)(now_us - w->moved_us) / 1e6);
    return true;
}

static void tear_down(struct member *m)
{
    uint64_t end = clock_now_us() + 1000 * LEAVE_MS;

    /* A call that is inside leaves by itself, or is stuck there: then this is what wakes it. */
    while (m->n_inside > 0 && clock_now_us() < end)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    m->nccl.abort(m->comm);
    m->comm = NULL;
}

static void *watchdog_main(void *arg)
{
    struct member *m = arg;
    struct watch w = {0, clock_now_us()};
    char why[sizeof(m->reason)];
    struct timespec until;

    pthread_mutex_lock(&m->mutex);
    while (!m->stop && !m->failed) {
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += LOOK_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        pthread_cond_timedwait(&m->wake, &m->mutex, &until);
        if (m->stop || m->failed)
            break;
        pthread_mutex_unlock(&m->mutex);
        if (look(m, &w, why, sizeof(why)))
            member_fail(m, why);
        pthread_mutex_lock(&m->mutex);
    }
    pthread_mutex_unlock(&m->mutex);
    if (m->failed)
        tear_down(m);
    return NULL;
}

/* ---- the collectives ---- */

/* @return false: the group has failed */
static bool begin(struct member *m, const char *what)
{
    m->n_inside++;
    if (m->failed) {
        m->n_inside--;
        return false;
    }
    m->device.enter(m->device.arg);
    atomic_store_explicit(&m->what, what, memory_order_relaxed);
    atomic_fetch_add_explicit(&m->n_queued, 1, memory_order_relaxed);
    return true;
}

static void end(struct member *m, int e)
{
    char why[200];

    if (e == NCCL_OK && !m->failed)
        m->device.mark(m->device.arg, m->n_queued);
    m->n_inside--;
    if (e == NCCL_OK || m->failed)
        return;
    snprintf(why, sizeof(why), "rank %d: NCCL: %s in %s", m->rank, m->nccl.error_string(e),
             atomic_load_explicit(&m->what, memory_order_relaxed));
    member_fail(m, why);
}

static void *ptr(struct dev_ptr p)
{
    return (void *)(uintptr_t)p.addr;
}

static int type_of(enum comm_type type)
{
    return type == COMM_F32 ? NCCL_F32 : NCCL_BF16;
}

static void nccl_all_reduce(struct comm *c, struct dev_ptr buf, size_t n, enum comm_type type)
{
    struct member *m = c->self;

    if (begin(m, "all-reduce"))
        end(m, m->nccl.all_reduce(ptr(buf), ptr(buf), n, type_of(type), NCCL_SUM, m->comm,
                                  m->device.stream));
}

static void nccl_barrier(struct comm *c)
{
    struct member *m = c->self;

    if (begin(m, "barrier"))
        end(m, m->nccl.all_reduce(ptr(m->device.scratch), ptr(m->device.scratch), 1, NCCL_F32,
                                  NCCL_SUM, m->comm, m->device.stream));
}

/* As many rows at a time as the scratch takes of all ranks; one row needs no reordering. */
static void nccl_all_gather_columns(struct comm *c, struct dev_ptr out, struct dev_ptr in,
                                    size_t n_rows, size_t row_bytes)
{
    struct member *m = c->self;
    size_t N = (size_t)m->n_ranks, fit = n_rows;
    bool direct = n_rows <= 1;

    if (!direct && N * n_rows * row_bytes > m->device.scratch_bytes)
        fit = m->device.scratch_bytes / (N * row_bytes);
    for (size_t t = 0; t < n_rows; t += fit) {
        size_t some = n_rows - t < fit ? n_rows - t : fit;
        struct dev_ptr to = direct ? out : m->device.scratch;

        if (fit == 0 || !begin(m, "all-gather")) {
            if (fit == 0)
                nccl_comm_fail(c, "a row to gather is larger than the scratch memory");
            return;
        }
        end(m, m->nccl.all_gather(ptr(dev_at(in, t * row_bytes)), ptr(to), some * row_bytes,
                                  NCCL_UINT8, m->comm, m->device.stream));
        if (!direct && !m->failed)
            m->device.columns(m->device.arg, dev_at(out, t * N * row_bytes), to, m->n_ranks, some,
                              row_bytes);
    }
}

static void nccl_reduce_scatter(struct comm *c, struct dev_ptr out, struct dev_ptr in, size_t n,
                                enum comm_type type)
{
    struct member *m = c->self;

    if (begin(m, "reduce-scatter"))
        end(m, m->nccl.reduce_scatter(ptr(in), ptr(out), n, type_of(type), NCCL_SUM, m->comm,
                                      m->device.stream));
}

static int exchange_all(struct member *m, struct dev_ptr out, struct dev_ptr in, size_t bytes)
{
    int e = m->nccl.group_start(), last;

    for (int r = 0; e == NCCL_OK && r < m->n_ranks; r++) {
        e = m->nccl.send(ptr(dev_at(in, (size_t)r * bytes)), bytes, NCCL_UINT8, r, m->comm,
                         m->device.stream);
        if (e == NCCL_OK)
            e = m->nccl.recv(ptr(dev_at(out, (size_t)r * bytes)), bytes, NCCL_UINT8, r, m->comm,
                             m->device.stream);
    }
    last = m->nccl.group_end(); /* in any case */
    return e != NCCL_OK ? e : last;
}

static void nccl_all_to_all(struct comm *c, struct dev_ptr out, struct dev_ptr in, size_t bytes)
{
    struct member *m = c->self;

    if (begin(m, "all-to-all"))
        end(m, exchange_all(m, out, in, bytes));
}

/* ---- making and freeing ---- */

static void nothing(struct comm *c)
{
    (void)c;
}

static void member_free(struct member *m)
{
    pthread_cond_destroy(&m->wake);
    pthread_mutex_destroy(&m->mutex);
    nccl_close(&m->nccl);
    free(m);
}

static void nccl_free(struct comm *c)
{
    struct member *m = c->self;

    pthread_mutex_lock(&m->mutex);
    m->stop = true;
    pthread_cond_broadcast(&m->wake);
    pthread_mutex_unlock(&m->mutex);
    pthread_join(m->watchdog, NULL);
    if (m->comm != NULL)
        m->nccl.destroy(m->comm);
    member_free(m);
    free(c);
}

static const struct comm_ops nccl_ops = {
    .name = "nccl",
    .free = nccl_free,
    .attach = nothing,
    .beat = nothing,
    .fail = nccl_comm_fail,
    .check = nccl_comm_check,
    .barrier = nccl_barrier,
    .all_reduce = nccl_all_reduce,
    .all_gather_columns = nccl_all_gather_columns,
    .reduce_scatter = nccl_reduce_scatter,
    .all_to_all = nccl_all_to_all,
};

/* Meeting the others, who may never come: on a thread of its own, which is left behind then. */
struct joining {
    struct member *m;
    nccl_id id;
    pthread_mutex_t mutex; /* the rest */
    pthread_cond_t done;
    bool ended, left; /* by the thread; by the one who waits: the thread frees this */
    int result;
};

static void joining_free(struct joining *j)
{
    pthread_cond_destroy(&j->done);
    pthread_mutex_destroy(&j->mutex);
    free(j);
}

static void *join_main(void *arg)
{
    struct joining *j = arg;
    void *comm = NULL;
    bool left;
    int e;

    j->m->device.enter(j->m->device.arg); /* NCCL takes the device that the thread has */
    e = j->m->nccl.init(&comm, j->m->n_ranks, j->id, j->m->rank);
    pthread_mutex_lock(&j->mutex);
    j->m->comm = comm;
    j->result = e;
    j->ended = true;
    left = j->left;
    pthread_cond_broadcast(&j->done);
    pthread_mutex_unlock(&j->mutex);
    if (left) { /* nobody wants it any more; the member was left to us */
        if (e == NCCL_OK)
            j->m->nccl.abort(comm);
        member_free(j->m);
        joining_free(j);
    }
    return NULL;
}

static void cond_init(pthread_cond_t *c)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attr);
    pthread_condattr_destroy(&attr);
}

/* @return ST_OK; else m is not the caller's any more when *left */
static enum status_code join_group(struct member *m, const uint8_t *id, uint64_t wait_ms,
                                   bool *left, struct status *st)
{
    struct joining *j = calloc(1, sizeof(*j));
    struct timespec until;
    pthread_t thread;
    bool ended;

    *left = false;
    if (j == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a rank");
    j->m = m;
    memcpy(&j->id, id, sizeof(j->id));
    pthread_mutex_init(&j->mutex, NULL);
    cond_init(&j->done);
    if (pthread_create(&thread, NULL, join_main, j) != 0) {
        joining_free(j);
        return status_set(st, ST_EXHAUSTED, "cannot start a thread (ulimit -u)");
    }
    pthread_detach(thread);
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)(wait_ms / 1000);
    until.tv_nsec += (long)(wait_ms % 1000) * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&j->mutex);
    while (!j->ended && pthread_cond_timedwait(&j->done, &j->mutex, &until) == 0)
        ;
    ended = j->ended;
    j->left = *left = !ended;
    if (!ended)
        status_set(st, ST_UNAVAILABLE,
                   "rank %d of %d waits %llu s for the others to join its group", m->rank,
                   m->n_ranks, (unsigned long long)wait_ms / 1000);
    else if (j->result != NCCL_OK)
        status_set(st, ST_UNAVAILABLE, "rank %d of %d: NCCL: %s", m->rank, m->n_ranks,
                   m->nccl.error_string(j->result));
    else
        status_ok(st);
    pthread_mutex_unlock(&j->mutex);
    if (ended)
        joining_free(j);
    return st->code;
}

enum status_code comm_nccl_new(const struct comm_options *opt, const char *library,
                               const uint8_t *id, int rank, const struct comm_nccl_device *device,
                               struct comm **out, struct status *st)
{
    uint64_t timeout_ms = (uint64_t)(opt->timeout_ms > 0 ? opt->timeout_ms : COMM_TIMEOUT_MS);
    struct comm *c;
    struct member *m;
    bool left = false;

    if (opt->n_ranks < 1 || opt->n_ranks > COMM_RANKS_MAX || rank < 0 || rank >= opt->n_ranks)
        return status_set(st, ST_INVALID, "rank %d of a group of %d: 1 to %d", rank, opt->n_ranks,
                          COMM_RANKS_MAX);
    c = calloc(1, sizeof(*c));
    m = calloc(1, sizeof(*m));
    if (c == NULL || m == NULL) {
        free(c);
        free(m);
        return status_set(st, ST_EXHAUSTED, "no memory for a rank");
    }
    m->device = *device;
    m->rank = rank;
    m->n_ranks = opt->n_ranks;
    m->timeout_us = 1000 * timeout_ms;
    m->on_failure = opt->on_failure;
    m->arg = opt->arg;
    m->what = "nothing";
    pthread_mutex_init(&m->mutex, NULL);
    cond_init(&m->wake);
    if (nccl_open(&m->nccl, library, st) == ST_OK &&
        join_group(m, id, opt->init_ms > 0 ? (uint64_t)opt->init_ms : COMM_NCCL_INIT_MS, &left,
                   st) == ST_OK &&
        pthread_create(&m->watchdog, NULL, watchdog_main, m) != 0) {
        m->nccl.abort(m->comm);
        status_set(st, ST_EXHAUSTED, "cannot start a thread (ulimit -u)");
    }
    if (st->code != ST_OK) {
        free(c);
        if (!left)
            member_free(m);
        return st->code;
    }
    *c = (struct comm){&nccl_ops, rank, opt->n_ranks, m};
    *out = c;
    return status_ok(st);
}
