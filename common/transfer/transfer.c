#include "common/transfer/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common/base/hash.h"
#include "common/base/log.h"

/* A call and the thread that waits for it; lives on that thread's stack. */
struct call_msg {
    struct msg base;
    transfer_call_fn fn;
    void *arg;
    struct status *st;
    sem_t ended;
};

enum status_code transfer_call(struct transfer *t, transfer_call_fn fn, void *arg,
                               struct status *st)
{
    struct call_msg call = {.base.type = CMD_CALL, .fn = fn, .arg = arg, .st = st};

    if (pthread_equal(pthread_self(), t->thread))
        return fn(t, arg, st);
    sem_init(&call.ended, 0, 0);
    mailbox_push(t->box, &call.base);
    while (sem_wait(&call.ended) != 0 && errno == EINTR)
        ;
    sem_destroy(&call.ended);
    return st->code;
}

static enum status_code piece_check(const char *whose, uint64_t slab_bytes, size_t i, int slab,
                                    uint64_t off, uint64_t bytes, struct status *st)
{
    if (bytes <= slab_bytes && off <= slab_bytes - bytes)
        return ST_OK;
    return status_set(st, ST_INVALID,
                      "piece %zu: %llu bytes at offset %llu do not lie in %s slab %d of %llu bytes",
                      i, (unsigned long long)bytes, (unsigned long long)off, whose, slab,
                      (unsigned long long)slab_bytes);
}

enum status_code pieces_check(const struct transfer *t, const struct descriptor_slab *remote,
                              int n_slabs, const struct transfer_piece *pieces, size_t n,
                              uint32_t n_groups, struct status *st)
{
    if (n > PIECES_MAX || n_groups > GROUPS_MAX)
        return status_set(st, ST_INVALID, "%zu pieces in %u groups: at most %d and %d", n, n_groups,
                          PIECES_MAX, GROUPS_MAX);
    for (size_t i = 0; i < n; i++) {
        const struct transfer_piece *p = &pieces[i];

        if (p->slab < 0 || p->slab >= n_slabs || p->group >= n_groups)
            return status_set(st, ST_INVALID, "piece %zu: slab %d of 0..%d, group %u of %u", i,
                              p->slab, n_slabs - 1, p->group, n_groups);
        if (piece_check("our", t->slabs[p->slab].bytes, i, p->slab, p->local_off, p->bytes, st) !=
            ST_OK)
            return st->code;
        if (remote != NULL && piece_check("the peer's", remote[p->slab].bytes, i, p->slab,
                                          p->remote_off, p->bytes, st) != ST_OK)
            return st->code;
    }
    return status_ok(st);
}

static void handle(struct transfer *t, struct msg *m)
{
    switch ((enum transfer_cmd)m->type) {
    case CMD_CALL: {
        struct call_msg *call = (struct call_msg *)m;

        call->fn(t, call->arg, call->st);
        sem_post(&call->ended); /* the caller's stack is gone from here on */
        break;
    }
    case CMD_PUT:
        put_accept(m);
        break;
    case CMD_HURRY:
        put_hurry(m);
        break;
    case CMD_CANCEL:
        put_cancel(m);
        break;
    case CMD_CLOSE:
        peer_begin_close(m);
        break;
    case CMD_STOP:
        t->stopping = true;
        break;
    }
}

static bool handle_commands(struct transfer *t)
{
    struct msg *m = mailbox_pop(t->box);

    if (m == NULL)
        return false;
    for (; m != NULL; m = mailbox_pop(t->box))
        handle(t, m);
    return true;
}

bool watch_add(struct transfer *t, int fd, uint32_t events, struct watch *w)
{
    struct epoll_event e = {.events = events, .data.ptr = w};

    if (epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, fd, &e) != 0)
        return false;
    t->n_watches++;
    return true;
}

void watch_change(struct transfer *t, int fd, uint32_t events, struct watch *w)
{
    struct epoll_event e = {.events = events, .data.ptr = w};

    (void)epoll_ctl(t->epoll_fd, EPOLL_CTL_MOD, fd, &e);
}

void watch_close(struct transfer *t, int fd)
{
    (void)epoll_ctl(t->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    close(fd);
    t->n_watches--;
}

/* Handles what the sockets have, after a sleep of at most timeout_ms. Mailbox and UCX only wake:
 * their watch is NULL. A handler closes no file descriptor but its own, so that the events fetched
 * together stay good. */
static bool handle_sockets(struct transfer *t, int timeout_ms)
{
    struct epoll_event events[16];
    int n = epoll_wait(t->epoll_fd, events, 16, timeout_ms);
    bool any = false;

    for (int i = 0; i < n; i++) {
        struct watch *w = events[i].data.ptr;

        if (w != NULL) {
            w->ready(w, events[i].events);
            any = true;
        }
    }
    return any;
}

/* An armed worker signals its fd for anything that happened since; when something already has,
 * arming says busy and nobody sleeps. */
static void sleep_until_event(struct transfer *t, int timeout_ms)
{
    if (ucp_worker_arm(t->worker) == UCS_OK)
        (void)handle_sockets(t, timeout_ms);
}

static void *run(void *arg)
{
    struct transfer *t = arg;
    int idle = 0;

    for (;;) {
        bool busy = handle_commands(t);
        int sleep_ms;

        if (t->stopping)
            peers_close_all(t);
        busy |= puts_pump(t);
        busy |= ucp_worker_progress(t->worker) != 0;
        if (t->n_watches > 0)
            busy |= handle_sockets(t, 0);
        busy |= puts_deliver(t);
        sleep_ms = sooner(sooner(peers_tend(t), tcp_server_tend(t->server)), puts_held(t));
        if (t->stopping && t->peers == NULL)
            return NULL;
        idle = busy ? 0 : idle + 1;
        if (idle > IDLE_SPINS) {
            sleep_until_event(t, sleep_ms);
            idle = 0;
        }
    }
}

static enum status_code start_worker(struct transfer *t, struct status *st)
{
    ucp_worker_params_t params = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                  .thread_mode = UCS_THREAD_MODE_SERIALIZED};
    ucs_status_t rc = ucp_worker_create(t->context, &params, &t->worker);

    if (rc == UCS_OK)
        rc = ucp_worker_get_efd(t->worker, &t->ucx_fd);
    if (rc != UCS_OK)
        return status_set(st, ST_UNAVAILABLE, "UCX worker with transports %s: %s", t->plan.tls,
                          ucs_status_string(rc));
    return status_ok(st);
}

static enum status_code start_epoll(struct transfer *t, struct status *st)
{
    struct epoll_event e = {.events = EPOLLIN};

    t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (t->epoll_fd < 0 || epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, mailbox_fd(t->box), &e) != 0 ||
        epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, t->ucx_fd, &e) != 0)
        return status_set(st, ST_EXHAUSTED,
                          "no epoll set: raise the limit of open files (ulimit -n)");
    return status_ok(st);
}

/* Everything but the threads; they have ended or never began. */
static void transfer_free(struct transfer *t)
{
    tcp_server_stop(t->server);
    if (t->epoll_fd >= 0)
        close(t->epoll_fd);
    if (t->context != NULL)
        slabs_deinit(t);
    if (t->worker != NULL)
        ucp_worker_destroy(t->worker);
    if (t->context != NULL)
        ucp_cleanup(t->context);
    mailbox_free(t->box, put_drop);
    free(t);
}

static enum status_code start_server(struct transfer *t, const struct transfer_options *opt,
                                     struct status *st)
{
    return tcp_server_start(t, opt->tcp_port, &t->server, st);
}

enum status_code transfer_start(const struct transfer_options *opt, struct transfer **out,
                                struct status *st)
{
    struct transfer *t = calloc(1, sizeof(*t));
    struct transport_facts facts;

    if (t == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the transfer thread");
    t->incarnation = hash_seed();
    t->ended_end = &t->ended;
    t->rate_limit = opt->rate_limit;
    t->epoll_fd = -1;
    if (mailbox_new(&t->box, st) != ST_OK) {
        free(t);
        return st->code;
    }
    transport_facts_read(&facts);
    if (transport_plan_make(opt, &facts, &t->plan, st) != ST_OK ||
        transport_context(&t->plan, &t->context, st) != ST_OK || start_worker(t, st) != ST_OK ||
        start_epoll(t, st) != ST_OK || start_server(t, opt, st) != ST_OK ||
        verifier_start(t, &t->verifier, st) != ST_OK)
        goto fail;
    if (pthread_create(&t->thread, NULL, run, t) != 0) {
        status_set(st, ST_EXHAUSTED, "cannot start the transfer thread");
        goto fail;
    }
    pthread_setname_np(t->thread, "transfer");
    if (slab_probe_alloc(t, st) != ST_OK) {
        transfer_stop(t);
        return st->code;
    }
    log_info("transfer: KV may go by %s%s%s", t->plan.ucx ? t->plan.tls : "",
             t->plan.ucx && t->plan.sockets ? " or " : "", t->plan.sockets ? "a TCP socket" : "");
    *out = t;
    return status_ok(st);
fail:
    verifier_stop(t->verifier);
    transfer_free(t);
    return st->code;
}

void transfer_stop(struct transfer *t)
{
    if (t == NULL)
        return;
    verifier_stop(t->verifier);
    t->stop.type = CMD_STOP;
    mailbox_push(t->box, &t->stop);
    pthread_join(t->thread, NULL);
    transfer_free(t);
}

void transfer_inject_flips(struct transfer *t, int n)
{
    atomic_store(&t->flips, n);
}
