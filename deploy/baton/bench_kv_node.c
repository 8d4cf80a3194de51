#include "deploy/baton/bench_kv.h"

#include <errno.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/clock.h"

enum { PIECES_MAX = 1 << 22, SLAB_BYTES_MAX_LOG2 = 38 };

static bool read_all(int fd, void *data, size_t n)
{
    for (char *p = data; n > 0;) {
        ssize_t got = recv(fd, p, n, 0);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        p += got;
        n -= (size_t)got;
    }
    return true;
}

static bool write_all(int fd, const void *data, size_t n)
{
    for (const char *p = data; n > 0;) {
        ssize_t put = send(fd, p, n, MSG_NOSIGNAL);

        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return false;
        p += put;
        n -= (size_t)put;
    }
    return true;
}

double kv_cpu_seconds(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

/* What the receiving process holds. */
struct node {
    struct transfer *transfer;
    uint8_t *slab;
    uint64_t slab_bytes;
    int raw_listen; /* -1: not yet */
    sem_t verified;
    struct status verdict;
};

static void start(struct node *n, const struct kv_request *q, struct kv_reply *a, struct buf *out)
{
    struct transfer_options opt = {.transport = (enum transfer_kind)q->transport,
                                   .devices = q->devices[0] != '\0' ? q->devices : NULL};
    void *slab;

    transfer_stop(n->transfer);
    n->transfer = NULL;
    if (q->slab_bytes >> SLAB_BYTES_MAX_LOG2 != 0) {
        status_set(&a->st, ST_INVALID, "a slab of %llu bytes", (unsigned long long)q->slab_bytes);
        return;
    }
    if (transfer_start(&opt, &n->transfer, &a->st) != ST_OK ||
        transfer_slab_alloc(n->transfer, 0, q->slab_bytes, &slab, &a->st) != ST_OK ||
        transfer_describe(n->transfer, out, &a->st) != ST_OK)
        return;
    n->slab = slab;
    n->slab_bytes = q->slab_bytes;
}

static void on_verified(void *arg, const struct transfer_result *r)
{
    struct node *n = arg;

    n->verdict = r->status;
    sem_post(&n->verified);
}

static void verify(struct node *n, const struct kv_set *set, const uint32_t *crc,
                   struct kv_reply *a)
{
    uint64_t from = clock_now_ns();

    for (size_t i = 0; i < set->n_pieces; i++)
        set->pieces[i].local_off = set->pieces[i].remote_off;
    if (transfer_verify(n->transfer, set->pieces, set->n_pieces, crc, set->n_groups, on_verified, n,
                        &a->st) != ST_OK)
        return;
    while (sem_wait(&n->verified) != 0)
        ;
    a->st = n->verdict;
    a->value = (double)(clock_now_ns() - from) * 1e-9;
}

/* Answers with the port, then takes the pieces from whoever connects. */
static bool raw(struct node *n, int control, const struct kv_set *set)
{
    struct kv_reply a = {.st = {.code = ST_OK}};
    uint16_t port = 0;
    int listener = kv_raw_listen(&port), fd;
    bool ok;

    a.value = port;
    if (listener < 0)
        status_set(&a.st, ST_UNAVAILABLE, "cannot listen: %s", strerror(errno));
    for (size_t i = 0; i < set->n_pieces; i++) {
        const struct transfer_piece *p = &set->pieces[i];

        if (p->bytes > n->slab_bytes || p->remote_off > n->slab_bytes - p->bytes)
            status_set(&a.st, ST_INVALID, "piece %zu does not lie in the slab", i);
    }
    if (!write_all(control, &a, sizeof(a)) || a.st.code != ST_OK) {
        close(listener);
        return a.st.code != ST_OK;
    }
    fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    close(listener);
    ok = fd >= 0 && kv_raw_receive(fd, set, n->slab);
    close(fd);
    return ok;
}

/* One request; false when the other side is gone. */
static bool serve_one(struct node *n, int fd, const struct kv_request *q)
{
    size_t piece_bytes = q->n_pieces * sizeof(struct transfer_piece);
    struct kv_set set = {.n_pieces = q->n_pieces, .n_groups = q->n_groups};
    uint32_t *crc = calloc(q->n_groups + 1, sizeof(*crc));
    struct kv_reply a = {.st = {.code = ST_OK}};
    struct buf out = {0};
    bool ok = crc != NULL;

    set.pieces = calloc(q->n_pieces + 1, sizeof(*set.pieces));
    ok = ok && set.pieces != NULL && read_all(fd, set.pieces, piece_bytes) &&
         (q->op != KV_OP_VERIFY || read_all(fd, crc, q->n_groups * sizeof(*crc)));
    if (ok && q->op == KV_OP_RAW) {
        ok = raw(n, fd, &set);
    } else if (ok) {
        if (q->op == KV_OP_START)
            start(n, q, &a, &out);
        else if (q->op == KV_OP_VERIFY)
            verify(n, &set, crc, &a);
        else
            a.value = kv_cpu_seconds();
        a.len = out.len;
        ok = write_all(fd, &a, sizeof(a)) && write_all(fd, out.data, out.len);
    }
    buf_deinit(&out);
    free(crc);
    kv_set_deinit(&set);
    return ok;
}

int kv_node_serve(int fd)
{
    struct node n = {0};
    struct kv_request q;

    sem_init(&n.verified, 0, 0);
    while (read_all(fd, &q, sizeof(q))) {
        q.devices[sizeof(q.devices) - 1] = '\0';
        if (q.n_pieces > PIECES_MAX || q.n_groups > PIECES_MAX || !serve_one(&n, fd, &q))
            break;
    }
    transfer_stop(n.transfer);
    sem_destroy(&n.verified);
    return 0;
}

bool kv_node_send(int fd, const struct kv_request *q, const struct kv_set *set, const uint32_t *crc)
{
    struct kv_request full = *q;

    full.n_pieces = set != NULL ? (uint32_t)set->n_pieces : 0;
    full.n_groups = set != NULL ? set->n_groups : 0;
    return write_all(fd, &full, sizeof(full)) &&
           (set == NULL || write_all(fd, set->pieces, set->n_pieces * sizeof(*set->pieces))) &&
           (crc == NULL || write_all(fd, crc, set->n_groups * sizeof(*crc)));
}

enum status_code kv_node_reply(int fd, double *value, struct buf *out, struct status *st)
{
    struct kv_reply a;

    if (!read_all(fd, &a, sizeof(a)))
        return status_set(st, ST_UNAVAILABLE, "the other process hung up");
    if (a.len > 0) {
        size_t at = out->len;

        buf_reserve(out, a.len);
        if (!read_all(fd, out->data + at, a.len))
            return status_set(st, ST_UNAVAILABLE, "the other process hung up");
        out->len += a.len;
    }
    if (value != NULL)
        *value = a.value;
    *st = a.st;
    st->msg[sizeof(st->msg) - 1] = '\0';
    return st->code;
}

enum status_code kv_node_ask(int fd, const struct kv_request *q, const struct kv_set *set,
                             const uint32_t *crc, double *value, struct buf *out, struct status *st)
{
    if (!kv_node_send(fd, q, set, crc))
        return status_set(st, ST_UNAVAILABLE, "the other process hung up");
    return kv_node_reply(fd, value, out, st);
}
