#include "decode/prefill_workers.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/log.h"
#include "common/rpc/rpc_message.h"
#include "common/worker/worker.h"

/* Units that a lost session's peer may still write. */
struct quarantine {
    struct quarantine *next;
    uint64_t writer; /* whom the transfer knows by that name, see transfer_describe_to() */
    uint32_t slot, n_pages;
    uint32_t pages[];
};

struct prefill_worker {
    struct prefill_worker *next;
    char *address;
    enum prefill_worker_state state;
    struct rpc_client *client;
    struct session_link *link; /* NULL while CLOSED */
    uint64_t writer;           /* this session's, towards the transfer; 0: none described */
    uint64_t lost_writer;      /* of the session that ended last */
    struct quarantine *held;
};

struct prefill_workers {
    struct worker *w;
    struct prefill_worker_events events;
    struct prefill_worker *first;
};

enum status_code prefill_workers_new(struct worker *w, const struct prefill_worker_events *events,
                                     struct prefill_workers **out, struct status *st)
{
    struct prefill_workers *l = calloc(1, sizeof(*l));

    if (l == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the list of prefill workers");
    *l = (struct prefill_workers){.w = w, .events = *events};
    *out = l;
    return status_ok(st);
}

enum { ANY_WRITER = 0 };

/* Units held because of that writer. */
static void release(struct prefill_workers *l, struct prefill_worker *p, uint64_t writer)
{
    for (struct quarantine **q = &p->held; *q != NULL;) {
        struct quarantine *held = *q;

        if (writer != ANY_WRITER && held->writer != writer) {
            q = &held->next;
            continue;
        }
        slab_release(l->w->pages, held->pages, held->n_pages);
        slab_release(l->w->slots, &held->slot, 1);
        *q = held->next;
        free(held);
    }
}

void prefill_workers_free(struct prefill_workers *l)
{
    if (l == NULL)
        return;
    while (l->first != NULL) {
        struct prefill_worker *p = l->first;

        l->first = p->next;
        release(l, p, ANY_WRITER);
        rpc_client_free(p->client);
        free(p->address);
        free(p);
    }
    free(l);
}

static void on_writer_end(void *arg, uint64_t writer, bool proven)
{
    struct msg_writer_ended *m = malloc(sizeof(*m));

    if (m == NULL)
        abort(); /* the units in quarantine would stay there for ever */
    *m =
        (struct msg_writer_ended){.base.type = DM_WRITER_ENDED, .writer = writer, .proven = proven};
    mailbox_push(arg, &m->base);
}

static enum status_code send_hello(struct prefill_workers *l, struct prefill_worker *p,
                                   struct status *st)
{
    Baton__V1__PrefillRequest m = BATON__V1__PREFILL_REQUEST__INIT;
    Baton__V1__PrefillHello hello = BATON__V1__PREFILL_HELLO__INIT;
    Baton__V1__Identity identity;
    struct buf desc = {0};

    if (transfer_describe_to(l->w->transfer, on_writer_end, l->w->engine, &p->writer, &desc, st) ==
        ST_OK) {
        worker_identity(l->w, &identity);
        hello.identity = &identity;
        hello.transfer.data = (uint8_t *)desc.data;
        hello.transfer.len = desc.len;
        m.hello = &hello;
        rpc_session_send_message(p->link->session, &m.base, st);
    }
    buf_deinit(&desc);
    return st->code;
}

static enum status_code greet(struct prefill_workers *l, struct prefill_worker *p,
                              struct status *st)
{
    if (p->client == NULL && rpc_client_new(l->w->rpc, p->address, &p->client, st) != ST_OK)
        return st->code;
    if (decode_open_prefill(p->client, l->w->engine, p, &p->link, st) != ST_OK)
        return st->code;
    p->state = PREFILL_GREETING;
    if (send_hello(l, p, st) != ST_OK)
        rpc_session_close(p->link->session, st); /* its closed message follows */
    return status_ok(st);
}

static struct prefill_worker *find(struct prefill_workers *l, const char *address)
{
    struct prefill_worker *p;

    for (p = l->first; p != NULL; p = p->next)
        if (strcmp(p->address, address) == 0)
            return p;
    p = calloc(1, sizeof(*p));
    if (p == NULL || (p->address = strdup(address)) == NULL)
        abort(); /* a few bytes: the process is beyond help */
    p->next = l->first;
    l->first = p;
    return p;
}

enum status_code prefill_workers_get(struct prefill_workers *l, const char *address,
                                     struct prefill_worker **out, struct status *st)
{
    struct prefill_worker *p = find(l, address);

    if (p->state == PREFILL_CLOSED && greet(l, p, st) != ST_OK)
        return status_wrap(st, "prefill worker %s", address);
    *out = p;
    return status_ok(st);
}

enum prefill_worker_state prefill_worker_state(const struct prefill_worker *p)
{
    return p->state;
}

const char *prefill_worker_address(const struct prefill_worker *p)
{
    return p->address;
}

enum status_code prefill_worker_send(struct prefill_worker *p, const Baton__V1__PrefillRequest *m,
                                     struct status *st)
{
    if (p->state != PREFILL_READY)
        return status_set(st, ST_UNAVAILABLE, "prefill worker %s has no session", p->address);
    return rpc_session_send_message(p->link->session, &m->base, st);
}

void prefill_worker_hello(struct prefill_workers *l, struct prefill_worker *p,
                          const Baton__V1__Identity *identity)
{
    struct status st;

    if (p->state != PREFILL_GREETING)
        return;
    if (worker_check_peer(l->w, identity, &st) != ST_OK) {
        log_error("prefill worker %s refused: %s", p->address, st.msg);
        rpc_session_close(p->link->session, &st);
        return;
    }
    log_info("prefill worker %s connected (incarnation %016llx)", p->address,
             (unsigned long long)identity->incarnation);
    p->state = PREFILL_READY;
    l->events.ready(l->events.arg, p);
}

void prefill_worker_closed(struct prefill_workers *l, struct session_link *link,
                           const struct status *why)
{
    struct prefill_worker *p = link->owner;
    bool proven = p->writer != 0 && transfer_revoke(l->w->transfer, p->writer);
    uint64_t writer = p->writer;
    struct status lost;

    p->state = PREFILL_CLOSED;
    p->link = NULL;
    p->writer = 0;
    p->lost_writer = writer;
    session_link_free(link);
    status_set(&lost, ST_UNAVAILABLE, "prefill worker %s: %s", p->address,
               why->code == ST_OK ? "it ended the session" : why->msg);
    log_warn("%s", lost.msg);
    l->events.lost(l->events.arg, p, &lost);
    if (proven)
        release(l, p, writer);
}

void prefill_worker_quarantine(struct prefill_workers *l, struct prefill_worker *p,
                               const uint32_t *pages, uint32_t n_pages, uint32_t slot)
{
    struct quarantine *q = malloc(sizeof(*q) + n_pages * sizeof(*pages));

    if (q == NULL)
        abort(); /* the pages could never be proven safe again */
    q->writer = p->lost_writer;
    q->slot = slot;
    q->n_pages = n_pages;
    memcpy(q->pages, pages, n_pages * sizeof(*pages));
    q->next = p->held;
    p->held = q;
    slab_quarantine(l->w->pages, pages, n_pages);
    slab_quarantine(l->w->slots, &slot, 1);
    slab_give(l->w->pages, pages, n_pages);
    slab_give(l->w->slots, &slot, 1);
}

void prefill_workers_writer_ended(struct prefill_workers *l, uint64_t writer, bool proven)
{
    struct status why;

    for (struct prefill_worker *p = l->first; p != NULL; p = p->next) {
        if (p->writer == writer && p->link != NULL) {
            status_set(&why, ST_UNAVAILABLE, "its KV connection has ended");
            rpc_session_close(p->link->session, &why); /* its closed message follows */
        }
        if (proven)
            release(l, p, writer);
    }
}

void prefill_workers_close(struct prefill_workers *l)
{
    struct status bye;

    status_set(&bye, ST_CANCELLED, "decode worker is shutting down");
    for (struct prefill_worker *p = l->first; p != NULL; p = p->next)
        if (p->link != NULL)
            rpc_session_close(p->link->session, &bye);
}

bool prefill_workers_all_closed(const struct prefill_workers *l)
{
    for (const struct prefill_worker *p = l->first; p != NULL; p = p->next)
        if (p->link != NULL)
            return false;
    return true;
}
