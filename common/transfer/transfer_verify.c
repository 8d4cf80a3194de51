#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/crc32c.h"
#include "common/transfer/internal.h"

/* Checksumming is memory-bound work that would hold up UCX's progress, so it has a thread. */

enum { VERIFY_SLICE = 1 << 20 /* bytes of one verification before the next has its turn */ };

enum verify_cmd { VERIFY_JOB, VERIFY_STOP };

struct job {
    struct msg base;
    struct job *next;
    size_t n, at;
    uint64_t at_bytes, bytes;
    uint64_t started_us;
    uint32_t n_groups;
    void (*done)(void *arg, const struct transfer_result *r);
    void *arg;
    uint32_t *crc;      /* [n_groups], computed; behind the pieces */
    uint32_t *expected; /* [n_groups], behind that */
    struct transfer_piece pieces[];
};

struct verifier {
    struct transfer *t;
    struct mailbox *box;
    pthread_t thread;
    struct msg stop;
    struct job *head, *tail; /* turns; the verify thread's */
    bool stopping;
};

static void job_compare(const struct job *j, struct status *st)
{
    uint32_t bad = 0, first = 0;

    for (uint32_t g = j->n_groups; g-- > 0;) {
        if (j->crc[g] != j->expected[g]) {
            first = g;
            bad++;
        }
    }
    if (bad == 0)
        status_ok(st);
    else
        status_set(st, ST_CORRUPT,
                   "checksum of group %u: %08x arrived, the sender's memory gives %08x (%u of %u "
                   "groups differ)",
                   first, j->crc[first], j->expected[first], bad, j->n_groups);
}

static void job_end(struct job *j, bool finished)
{
    struct transfer_result r = {.bytes = j->bytes, .n_groups = j->n_groups, .crc = j->crc};

    if (finished)
        job_compare(j, &r.status);
    else
        status_set(&r.status, ST_CANCELLED, "verification: this worker stops");
    r.elapsed_us = clock_now_us() - j->started_us;
    j->done(j->arg, &r);
    free(j);
}

static void drop(struct msg *m)
{
    if (m->type == VERIFY_JOB)
        job_end((struct job *)m, false);
}

/* One turn; true when all pieces are through. */
static bool job_turn(const struct transfer *t, struct job *j)
{
    uint64_t had = 0;

    while (j->at < j->n && had < VERIFY_SLICE) {
        const struct transfer_piece *p = &j->pieces[j->at];
        const uint8_t *base = t->slabs[p->slab].base;
        uint64_t n = p->bytes - j->at_bytes;

        if (n > VERIFY_SLICE)
            n = VERIFY_SLICE;
        if (n > 0)
            j->crc[p->group] = crc32c(j->crc[p->group], base + p->local_off + j->at_bytes, n);
        j->at_bytes += n;
        j->bytes += n;
        had += n;
        if (j->at_bytes == p->bytes) {
            j->at++;
            j->at_bytes = 0;
        }
    }
    return j->at == j->n;
}

static void append(struct verifier *v, struct job *j)
{
    j->next = NULL;
    if (v->head == NULL)
        v->head = j;
    else
        v->tail->next = j;
    v->tail = j;
}

static struct job *take(struct verifier *v)
{
    struct job *j = v->head;

    if (j != NULL)
        v->head = j->next;
    return j;
}

static void *run(void *arg)
{
    struct verifier *v = arg;

    while (!v->stopping) {
        struct msg *m;
        struct job *j;

        if (v->head == NULL)
            mailbox_wait(v->box, -1);
        while ((m = mailbox_pop(v->box)) != NULL) {
            if (m->type == VERIFY_STOP)
                v->stopping = true;
            else
                append(v, (struct job *)m);
        }
        j = v->stopping ? NULL : take(v);
        if (j == NULL)
            continue;
        if (job_turn(v->t, j))
            job_end(j, true);
        else
            append(v, j);
    }
    for (struct job *j = take(v); j != NULL; j = take(v))
        job_end(j, false);
    return NULL;
}

enum status_code verifier_start(struct transfer *t, struct verifier **out, struct status *st)
{
    struct verifier *v = calloc(1, sizeof(*v));

    if (v == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the verify thread");
    v->t = t;
    v->stop.type = VERIFY_STOP;
    if (mailbox_new(&v->box, st) != ST_OK) {
        free(v);
        return st->code;
    }
    if (pthread_create(&v->thread, NULL, run, v) != 0) {
        mailbox_free(v->box, NULL);
        free(v);
        return status_set(st, ST_EXHAUSTED, "cannot start the verify thread");
    }
    pthread_setname_np(v->thread, "verify");
    *out = v;
    return status_ok(st);
}

void verifier_stop(struct verifier *v)
{
    if (v == NULL)
        return;
    mailbox_push(v->box, &v->stop);
    pthread_join(v->thread, NULL);
    mailbox_free(v->box, drop);
    free(v);
}

enum status_code transfer_verify(struct transfer *t, const struct transfer_piece *pieces, size_t n,
                                 const uint32_t *expected, uint32_t n_groups,
                                 void (*done)(void *arg, const struct transfer_result *r),
                                 void *arg, struct status *st)
{
    struct job *j;

    if (pieces_check(t, NULL, TRANSFER_SLABS_MAX, pieces, n, n_groups, st) != ST_OK)
        return status_wrap(st, "verification");
    j = calloc(1, sizeof(*j) + n * sizeof(*pieces) + 2 * (size_t)n_groups * sizeof(uint32_t));
    if (j == NULL)
        return status_set(st, ST_EXHAUSTED, "verification: no memory for %zu pieces", n);
    j->base.type = VERIFY_JOB;
    j->n = n;
    j->n_groups = n_groups;
    j->done = done;
    j->arg = arg;
    j->started_us = clock_now_us();
    j->crc = (uint32_t *)(j->pieces + n);
    j->expected = j->crc + n_groups;
    if (n > 0)
        memcpy(j->pieces, pieces, n * sizeof(*pieces));
    if (n_groups > 0)
        memcpy(j->expected, expected, n_groups * sizeof(uint32_t));
    mailbox_push(t->verifier->box, &j->base);
    return status_ok(st);
}
