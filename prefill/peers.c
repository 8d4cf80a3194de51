#include "prefill/peers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/worker/worker.h"
#include "prefill/replies.h"

struct peer_node {
    struct prefill_peer peer; /* first: a peer's pointer is its node's */
    struct peer_node *next;
    uint64_t incarnation; /* of the decode process; 0 before hello */
    bool hello_pending;   /* checked and connected, answered when earlier sessions are gone */
};

struct peer_list {
    struct worker *w;
    struct peer_node *first;
    void (*lost)(void *arg, struct prefill_peer *peer);
    void *arg;
};

enum status_code peer_list_new(struct worker *w, void (*lost)(void *arg, struct prefill_peer *peer),
                               void *arg, struct peer_list **out, struct status *st)
{
    struct peer_list *l = calloc(1, sizeof(*l));

    if (l == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the list of peers");
    *l = (struct peer_list){.w = w, .lost = lost, .arg = arg};
    *out = l;
    return status_ok(st);
}

void peer_list_free(struct peer_list *l)
{
    free(l);
}

bool peer_list_empty(const struct peer_list *l)
{
    return l->first == NULL;
}

void peer_list_open(struct peer_list *l, struct prefill_link *link)
{
    struct peer_node *n = calloc(1, sizeof(*n));

    if (n == NULL)
        abort();
    n->peer.link = link;
    link->peer = &n->peer;
    snprintf(n->peer.name, sizeof(n->peer.name), "%s", rpc_session_peer(link->session));
    n->next = l->first;
    l->first = n;
}

static void on_transfer_closed(void *arg)
{
    struct msg_peer_gone *m = malloc(sizeof(*m));
    struct peer_node *n = arg;

    if (m == NULL)
        abort();
    *m = (struct msg_peer_gone){.base.type = PM_PEER_GONE, .peer = &n->peer};
    mailbox_push(n->peer.link->engine, &m->base);
}

/* Stops everything towards a peer; its session may live on a little (it closes by itself). */
static void cut(struct peer_list *l, struct prefill_peer *peer)
{
    l->lost(l->arg, peer);
    if (peer->transfer == NULL)
        return;
    peer->transfer_closing = true;
    transfer_peer_close(peer->transfer, on_transfer_closed, peer);
    peer->transfer = NULL;
}

static bool has_earlier_session(const struct peer_node *n)
{
    for (const struct peer_node *o = n->next; o != NULL; o = o->next) /* the list is newest first */
        if (o->incarnation == n->incarnation && o->peer.transfer_closing)
            return true;
    return false;
}

static void answer_hellos(struct peer_list *l)
{
    for (struct peer_node *n = l->first; n != NULL; n = n->next) {
        if (!n->hello_pending || has_earlier_session(n))
            continue;
        n->hello_pending = false;
        reply_hello(&n->peer, l->w);
    }
}

static enum status_code connect_peer(struct peer_list *l, struct peer_node *n,
                                     const Baton__V1__PrefillHello *hello, struct status *st)
{
    if (n->incarnation != 0)
        return status_set(st, ST_INVALID, "a second hello on one session");
    if (worker_check_peer(l->w, hello->identity, st) != ST_OK)
        return st->code;
    if (hello->identity->incarnation == 0)
        return status_set(st, ST_INVALID, "hello without an incarnation number");
    return transfer_peer_open(l->w->transfer, n->peer.name, hello->transfer.data,
                              hello->transfer.len, &n->peer.transfer, st);
}

void peer_list_hello(struct peer_list *l, struct prefill_peer *peer,
                     const Baton__V1__PrefillHello *hello)
{
    struct peer_node *n = (struct peer_node *)peer;
    struct status st;

    if (connect_peer(l, n, hello, &st) != ST_OK) {
        log_error("decode worker %s refused: %s", peer->name, st.msg);
        rpc_session_close(peer->link->session, &st);
        return;
    }
    n->incarnation = hello->identity->incarnation;
    log_info("decode worker %s connected (incarnation %016llx)", peer->name,
             (unsigned long long)n->incarnation);
    for (struct peer_node *o = n->next; o != NULL; o = o->next)
        if (o->incarnation == n->incarnation)
            cut(l, &o->peer);
    n->hello_pending = true;
    answer_hellos(l);
}

void peer_list_closed(struct peer_list *l, struct prefill_link *link)
{
    struct prefill_peer *peer = link->peer;

    log_info("decode worker %s: session ended", peer->name);
    cut(l, peer);
    rpc_session_unref(link->session);
    peer->link->session = NULL;
    peer->session_closed = true;
}

static enum transfer_kind kind_of(struct transfer_peer *p)
{
    static const char *const names[] = {
        [TRANSFER_RDMA] = "rdma", [TRANSFER_NVLINK] = "nvlink", [TRANSFER_SHM] = "shm"};
    char via[128];

    transfer_peer_transport(p, via, sizeof(via));
    for (int k = TRANSFER_RDMA; k <= TRANSFER_SHM; k++)
        if (strncmp(via, names[k], strlen(names[k])) == 0)
            return (enum transfer_kind)k;
    return TRANSFER_TCP;
}

void peer_list_links(const struct peer_list *l, struct peer_links *out)
{
    *out = (struct peer_links){.n_slow = 0};
    for (const struct peer_node *n = l->first; n != NULL; n = n->next) {
        struct transfer_link link;
        uint64_t *slowest;

        if (n->peer.transfer == NULL || !transfer_peer_link(n->peer.transfer, &link))
            continue;
        slowest = &out->slowest[kind_of(n->peer.transfer)];
        if (*slowest == 0 || link.bytes_per_s < *slowest)
            *slowest = link.bytes_per_s;
        out->n_slow += link.slow;
    }
}

void peer_list_transfer_gone(struct peer_list *l, struct prefill_peer *peer)
{
    peer->transfer_closing = false;
    answer_hellos(l);
}

void peer_list_collect(struct peer_list *l)
{
    for (struct peer_node **p = &l->first; *p != NULL;) {
        struct peer_node *n = *p;

        if (!n->peer.session_closed || n->peer.transfer_closing || n->peer.n_handoffs > 0) {
            p = &n->next;
            continue;
        }
        *p = n->next;
        free(n->peer.link);
        free(n);
    }
}
