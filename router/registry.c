#include "router/registry.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "router/messages.h"

struct registry {
    struct rpc *rpc;
    pthread_mutex_t lock; /* guards all below, and the entries' refs */
    struct registry_entry **entries;
    size_t n, cap;
    struct registry_entry *all; /* also those that were removed and are still in use */
    struct mailbox *mailboxes[REGISTRY_THREADS_MAX];
    size_t n_mailboxes;
    bool closed;
};

bool registry_address_ok(const char *address)
{
    const char *colon = strrchr(address, ':');
    char *end = NULL;
    long port = colon == NULL ? 0 : strtol(colon + 1, &end, 10);

    return colon != NULL && colon != address && colon[1] >= '0' && colon[1] <= '9' && port >= 1 &&
           port <= 65535 && *end == '\0' && strlen(address) < 256;
}

static void entry_free(struct registry_entry *e)
{
    if (e->client != NULL)
        rpc_client_free(e->client);
    free(e->address);
    free(e);
}

void registry_ref(struct registry *r, struct registry_entry *e)
{
    pthread_mutex_lock(&r->lock);
    e->refs++;
    pthread_mutex_unlock(&r->lock);
}

void registry_unref(struct registry *r, struct registry_entry *e)
{
    struct registry_entry **at = &r->all;
    bool last;

    pthread_mutex_lock(&r->lock);
    last = --e->refs == 0;
    while (last && *at != e)
        at = &(*at)->all_next;
    if (last)
        *at = e->all_next;
    pthread_mutex_unlock(&r->lock);
    if (last)
        entry_free(e);
}

/* Locked; the entry gets a reference for the message. */
static bool tell(struct registry *r, struct mailbox *mailbox, enum worker_change change,
                 struct registry_entry *e)
{
    struct msg_worker *m = calloc(1, sizeof(*m));

    if (m == NULL)
        return false;
    *m = (struct msg_worker){.base.type = RM_WORKER, .change = change, .registry = r, .entry = e};
    e->refs++;
    mailbox_push(mailbox, &m->base);
    return true;
}

static enum status_code tell_all(struct registry *r, enum worker_change change,
                                 struct registry_entry *e, struct status *st)
{
    bool told = true;

    for (size_t i = 0; i < r->n_mailboxes; i++)
        told &= tell(r, r->mailboxes[i], change, e);
    return told ? status_ok(st)
                : status_set(st, ST_EXHAUSTED, "no memory: not every thread was told; try again");
}

static size_t find(const struct registry *r, const char *address)
{
    size_t i = 0;

    while (i < r->n && strcmp(r->entries[i]->address, address) != 0)
        i++;
    return i;
}

static enum status_code make_room(struct registry *r, struct status *st)
{
    size_t cap = r->cap == 0 ? 16 : r->cap * 2;
    struct registry_entry **more;

    if (r->n < r->cap)
        return status_ok(st);
    if (r->n >= REGISTRY_WORKERS_MAX)
        return status_set(st, ST_EXHAUSTED, "there are %zu workers already, the limit", r->n);
    more = realloc(r->entries, cap * sizeof(struct registry_entry *));
    if (more == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for another worker");
    r->entries = more;
    r->cap = cap;
    return status_ok(st);
}

static enum status_code add_locked(struct registry *r, enum worker_role role, const char *address,
                                   struct status *st)
{
    struct registry_entry *e;

    if (r->closed)
        return status_set(st, ST_UNAVAILABLE, "the router is ending");
    if (find(r, address) < r->n)
        return status_set(st, ST_INVALID, "worker %s is known already", address);
    if (make_room(r, st) != ST_OK)
        return st->code;
    e = calloc(1, sizeof(*e));
    if (e == NULL || (e->address = strdup(address)) == NULL) {
        free(e);
        return status_set(st, ST_EXHAUSTED, "no memory for another worker");
    }
    e->role = role;
    e->refs = 1;
    if (rpc_client_new(r->rpc, address, &e->client, st) != ST_OK) {
        entry_free(e);
        return st->code;
    }
    r->entries[r->n++] = e;
    e->all_next = r->all;
    r->all = e;
    return tell_all(r, WORKER_ADD, e, st);
}

enum status_code registry_add(struct registry *r, enum worker_role role, const char *address,
                              struct status *st)
{
    if (!registry_address_ok(address))
        return status_set(st, ST_INVALID, "worker address '%.256s': expected HOST:PORT", address);
    pthread_mutex_lock(&r->lock);
    add_locked(r, role, address, st);
    pthread_mutex_unlock(&r->lock);
    return st->code;
}

enum status_code registry_change(struct registry *r, const char *address, enum worker_change change,
                                 struct status *st)
{
    struct registry_entry *e;
    size_t at;

    pthread_mutex_lock(&r->lock);
    at = find(r, address);
    if (at == r->n) {
        pthread_mutex_unlock(&r->lock);
        return status_set(st, ST_INVALID, "no worker has the address '%.256s'", address);
    }
    e = r->entries[at];
    tell_all(r, change, e, st);
    if (change == WORKER_REMOVE && st->code == ST_OK)
        r->entries[at] = r->entries[--r->n];
    else
        e = NULL;
    pthread_mutex_unlock(&r->lock);
    if (e != NULL)
        registry_unref(r, e);
    return st->code;
}

enum status_code registry_attach(struct registry *r, struct mailbox *mailbox, struct status *st)
{
    bool told = true;

    pthread_mutex_lock(&r->lock);
    if (r->n_mailboxes == REGISTRY_THREADS_MAX) {
        pthread_mutex_unlock(&r->lock);
        return status_set(st, ST_EXHAUSTED, "more than %d router threads", REGISTRY_THREADS_MAX);
    }
    r->mailboxes[r->n_mailboxes++] = mailbox;
    for (size_t i = 0; i < r->n; i++)
        told &= tell(r, mailbox, WORKER_ADD, r->entries[i]);
    pthread_mutex_unlock(&r->lock);
    return told ? status_ok(st) : status_set(st, ST_EXHAUSTED, "no memory for the workers");
}

enum status_code registry_broadcast(struct registry *r, struct msg *(*make)(const void *arg),
                                    const void *arg, struct status *st)
{
    size_t i = 0;

    pthread_mutex_lock(&r->lock);
    for (; i < r->n_mailboxes; i++) {
        struct msg *m = make(arg);

        if (m == NULL)
            break;
        mailbox_push(r->mailboxes[i], m);
    }
    status_ok(st);
    if (i < r->n_mailboxes)
        status_set(st, ST_EXHAUSTED, "no memory: not every thread was told; try again");
    pthread_mutex_unlock(&r->lock);
    return st->code;
}

enum status_code registry_new(struct rpc *rpc, struct registry **out, struct status *st)
{
    struct registry *r = calloc(1, sizeof(*r));

    if (r == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the registry");
    r->rpc = rpc;
    pthread_mutex_init(&r->lock, NULL);
    *out = r;
    return status_ok(st);
}

void registry_close(struct registry *r)
{
    if (r == NULL)
        return;
    pthread_mutex_lock(&r->lock);
    r->closed = true;
    r->n_mailboxes = 0;
    pthread_mutex_unlock(&r->lock);
    for (struct registry_entry *e = r->all; e != NULL; e = e->all_next) {
        rpc_client_free(e->client);
        e->client = NULL;
    }
}

void registry_free(struct registry *r)
{
    if (r == NULL)
        return;
    for (size_t i = 0; i < r->n; i++)
        registry_unref(r, r->entries[i]);
    pthread_mutex_destroy(&r->lock);
    free(r->entries);
    free(r);
}
