#include "common/transfer/internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/base/log.h"

/* A call and the thread that waits for it; lives on that thread's stack. */
struct call_msg {
    struct msg base;
    transfer_call_fn fn;
    void *arg;
    struct status *st;
    sem_t ended;
};

bool transfer_on_thread(const struct transfer *t)
{
    return pthread_equal(pthread_self(), t->thread);
}

enum status_code transfer_call(struct transfer *t, transfer_call_fn fn, void *arg,
                               struct status *st)
{
    struct call_msg call = {.base.type = CMD_CALL, .fn = fn, .arg = arg, .st = st};

    if (transfer_on_thread(t))
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
                              const struct transfer_piece *pieces, size_t n, uint32_t n_groups,
                              struct status *st)
{
    if (n > PIECES_MAX || n_groups > GROUPS_MAX)
        return status_set(st, ST_INVALID, "%zu pieces in %u groups: at most %d and %d", n, n_groups,
                          PIECES_MAX, GROUPS_MAX);
    for (size_t i = 0; i < n; i++) {
        const struct transfer_piece *p = &pieces[i];

        if (p->slab < 0 || p->slab >= TRANSFER_SLABS_MAX || p->group >= n_groups)
            return status_set(st, ST_INVALID, "piece %zu: slab %d of 0..%d, group %u of %u", i,
                              p->slab, TRANSFER_SLABS_MAX - 1, p->group, n_groups);
        if (piece_check("our", t->slabs.at[p->slab].bytes, i, p->slab, p->local_off, p->bytes,
                        st) != ST_OK)
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

/* Sleeps until UCX or the mailbox has something. An armed worker signals its fd for anything that
 * happened since; when something already has, arming says busy and nobody sleeps. */
static void sleep_until_event(struct transfer *t, int timeout_ms)
{
    struct pollfd fds[2] = {
        {.fd = mailbox_fd(t->box), .events = POLLIN},
        {.fd = t->ucx_fd, .events = POLLIN},
    };

    if (ucp_worker_arm(t->worker) == UCS_OK)
        (void)poll(fds, 2, timeout_ms);
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
        busy |= puts_deliver(t);
        sleep_ms = peers_tend(t);
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

/* Everything but the threads; they have ended or never began. */
static void transfer_free(struct transfer *t)
{
    if (t->context != NULL)
        slabs_deinit(t);
    if (t->worker != NULL)
        ucp_worker_destroy(t->worker);
    if (t->context != NULL)
        ucp_cleanup(t->context);
    mailbox_free(t->box, put_drop);
    free(t);
}

static uint64_t random_incarnation(void)
{
    uint64_t v = 0;

    while (v == 0)
        if (getrandom(&v, sizeof(v), 0) != sizeof(v))
            v = (uint64_t)(uintptr_t)&v; /* no entropy source: still unlike another process's */
    return v;
}

enum status_code transfer_start(const struct transfer_options *opt, struct transfer **out,
                                struct status *st)
{
    struct transfer *t = calloc(1, sizeof(*t));

    if (t == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the transfer thread");
    t->incarnation = random_incarnation();
    if (mailbox_new(&t->box, st) != ST_OK) {
        free(t);
        return st->code;
    }
    if (transport_plan_make(opt, &t->plan, st) != ST_OK ||
        transport_context(&t->plan, &t->context, st) != ST_OK || start_worker(t, st) != ST_OK ||
        verifier_start(t, &t->verifier, st) != ST_OK)
        goto fail;
    if (pthread_create(&t->thread, NULL, run, t) != 0) {
        status_set(st, ST_EXHAUSTED, "cannot start the transfer thread");
        goto fail;
    }
    pthread_setname_np(t->thread, "transfer");
    log_info("transfer: transports allowed: %s%s%s", t->plan.tls,
             t->plan.devices[0] != '\0' ? " on " : "", t->plan.devices);
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
