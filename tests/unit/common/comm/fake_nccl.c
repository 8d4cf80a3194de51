/*
 * fake_nccl: as much of NCCL's ABI as comm_nccl calls, for ranks that are threads of one process
 * and buffers in host memory. A collective blocks until all ranks are in it, as one on a stream
 * would block its stream; ncclCommAbort() lets them go with an error.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { RANKS_MAX = 16, GROUPS_MAX = 64, OK = 0, INTERNAL = 3, REMOTE = 6 };
enum { UINT8 = 1, F32 = 7, BF16 = 9 };

typedef struct {
    char internal[128];
} fake_id;

struct rank;

struct group {
    struct rank *made[RANKS_MAX]; /* what an abort leaves behind is not lost */
    int n_ranks, n_in, n_here;
    uint64_t round;
    int broken; /* a result: from now on every call returns it */
    const uint8_t *in[RANKS_MAX];
    uint8_t *out[RANKS_MAX];
};

struct rank {
    struct group *g;
    int rank;
    const uint8_t *sends[RANKS_MAX]; /* of a group of calls */
    uint8_t *receives[RANKS_MAX];
    size_t bytes;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* everything */
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;
static struct group groups[GROUPS_MAX];
static uint32_t n_groups;
static _Thread_local struct rank *grouped; /* between ncclGroupStart() and its end */
static _Thread_local int in_group;

EXPORT int ncclGetUniqueId(fake_id *id)
{
    memset(id, 0, sizeof(*id));
    pthread_mutex_lock(&mutex);
    memcpy(id, &n_groups, sizeof(n_groups));
    n_groups = (n_groups + 1) % GROUPS_MAX;
    pthread_mutex_unlock(&mutex);
    return OK;
}

EXPORT int ncclCommInitRank(void **comm, int n_ranks, fake_id id, int rank)
{
    struct rank *r = calloc(1, sizeof(*r));
    uint32_t i;

    memcpy(&i, &id, sizeof(i));
    r->g = &groups[i];
    r->rank = rank;
    pthread_mutex_lock(&mutex);
    r->g->made[rank] = r;
    r->g->n_ranks = n_ranks;
    r->g->n_in++;
    pthread_cond_broadcast(&moved);
    while (r->g->n_in < n_ranks)
        pthread_cond_wait(&moved, &mutex);
    pthread_mutex_unlock(&mutex);
    *comm = r;
    return OK;
}

EXPORT int ncclCommDestroy(void *comm)
{
    struct rank *r = comm;

    r->g->made[r->rank] = NULL;
    free(r);
    return OK;
}

EXPORT int ncclCommAbort(void *comm)
{
    struct rank *r = comm;

    pthread_mutex_lock(&mutex);
    if (r->g->broken == OK)
        r->g->broken = REMOTE;
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&mutex);
    return OK; /* r is leaked: a call of its rank may still be inside */
}

EXPORT int ncclCommGetAsyncError(void *comm, int *error)
{
    pthread_mutex_lock(&mutex);
    *error = ((struct rank *)comm)->g->broken;
    pthread_mutex_unlock(&mutex);
    return OK;
}

EXPORT const char *ncclGetErrorString(int result)
{
    return result == REMOTE ? "fake: remote error" : result == OK ? "fake: ok" : "fake: internal";
}

/* For tests: what the network would do to the group of a rank. */
EXPORT void fake_nccl_break(void *id_bytes)
{
    uint32_t i;

    memcpy(&i, id_bytes, sizeof(i));
    pthread_mutex_lock(&mutex);
    groups[i].broken = INTERNAL;
    pthread_cond_broadcast(&moved);
    pthread_mutex_unlock(&mutex);
}

/* Until all are here. The mutex is held. */
static int meet(struct group *g)
{
    uint64_t round = g->round;

    if (++g->n_here == g->n_ranks) {
        g->n_here = 0;
        g->round++;
        pthread_cond_broadcast(&moved);
    }
    while (g->round == round && g->broken == OK)
        pthread_cond_wait(&moved, &mutex);
    return g->broken;
}

/* Says what I bring, runs do_it when all have, and leaves when all have run it. */
static int together(struct rank *r, const void *in, void *out,
                    void (*do_it)(struct rank *r, size_t n, int type), size_t n, int type)
{
    int e;

    pthread_mutex_lock(&mutex);
    r->g->in[r->rank] = in;
    r->g->out[r->rank] = out;
    e = meet(r->g);
    if (e == OK) {
        do_it(r, n, type);
        e = meet(r->g);
    }
    pthread_mutex_unlock(&mutex);
    return e;
}

static float value(const uint8_t *at, size_t i, int type)
{
    uint32_t bits = 0;
    uint16_t half;
    float x;

    if (type == F32) {
        memcpy(&x, at + i * 4, 4);
        return x;
    }
    memcpy(&half, at + i * 2, 2);
    bits = (uint32_t)half << 16;
    memcpy(&x, &bits, 4);
    return x;
}

/* Backwards, so that nothing relies on the order of ranks. bf16 results are exact in the tests. */
static float sum_of(const struct group *g, size_t i, int type)
{
    float sum = 0;

    for (int r = g->n_ranks - 1; r >= 0; r--)
        sum += value(g->in[r], i, type);
    return sum;
}

static void store(uint8_t *at, size_t i, float x, int type)
{
    uint32_t bits;

    memcpy(&bits, &x, 4);
    if (type == F32)
        memcpy(at + i * 4, &x, 4);
    else
        memcpy(at + i * 2, (uint8_t *)&bits + 2, 2);
}

/* In place: the last rank that comes does it for all. */
static void do_reduce(struct rank *r, size_t n, int type)
{
    if (r->rank != 0)
        return;
    for (size_t i = 0; i < n; i++) {
        float x = sum_of(r->g, i, type);

        for (int to = 0; to < r->g->n_ranks; to++)
            store(r->g->out[to], i, x, type);
    }
}

static void do_gather(struct rank *r, size_t n, int type)
{
    (void)type;
    for (int from = 0; from < r->g->n_ranks; from++)
        memcpy(r->g->out[r->rank] + (size_t)from * n, r->g->in[from], n);
}

static void do_scatter(struct rank *r, size_t n, int type)
{
    for (size_t i = 0; i < n; i++)
        store(r->g->out[r->rank], i, sum_of(r->g, (size_t)r->rank * n + i, type), type);
}

EXPORT int ncclAllReduce(const void *in, void *out, size_t n, int type, int op, void *comm, void *s)
{
    (void)op;
    (void)s;
    return together(comm, in, out, do_reduce, n, type);
}

EXPORT int ncclAllGather(const void *in, void *out, size_t n, int type, void *comm, void *s)
{
    (void)s;
    return type == UINT8 ? together(comm, in, out, do_gather, n, type) : INTERNAL;
}

EXPORT int ncclReduceScatter(const void *in, void *out, size_t n, int type, int op, void *comm,
                             void *s)
{
    (void)op;
    (void)s;
    return together(comm, in, out, do_scatter, n, type);
}

EXPORT int ncclGroupStart(void)
{
    in_group = 1;
    return OK;
}

EXPORT int ncclSend(const void *p, size_t n, int type, int peer, void *comm, void *s)
{
    (void)s;
    grouped = comm;
    grouped->sends[peer] = p;
    grouped->bytes = n;
    return in_group && type == UINT8 ? OK : INTERNAL;
}

EXPORT int ncclRecv(void *p, size_t n, int type, int peer, void *comm, void *s)
{
    (void)n;
    (void)s;
    grouped = comm;
    grouped->receives[peer] = p;
    return in_group && type == UINT8 ? OK : INTERNAL;
}

/* in[] carries the struct rank of each: its sends lie there. */
static void do_exchange(struct rank *r, size_t n, int type)
{
    (void)type;
    for (int from = 0; from < r->g->n_ranks; from++)
        memcpy(r->receives[from],
               ((const struct rank *)(const void *)r->g->in[from])->sends[r->rank], n);
}

EXPORT int ncclGroupEnd(void)
{
    struct rank *r = grouped;

    in_group = 0;
    grouped = NULL;
    return r != NULL ? together(r, r, NULL, do_exchange, r->bytes, UINT8) : OK;
}
