/*
 * peers: the decode workers that have a session, their hello, and the end of their transfers.
 *
 * Promises  a peer's hello is answered only when no transfer to an earlier session of the same
 * decode process can write any more: a new hello proves to it that old pages are safe to reuse.
 * Threads   engine only.
 */
#ifndef BATON_PREFILL_PEERS_H
#define BATON_PREFILL_PEERS_H

#include "prefill/handoff_state.h"

struct peer_list;
struct worker;

/** @param lost  called when a peer's session has ended (or its hello failed): its handoffs must
 * stop */
enum status_code peer_list_new(struct worker *w, void (*lost)(void *arg, struct prefill_peer *peer),
                               void *arg, struct peer_list **out, struct status *st);
void peer_list_free(struct peer_list *l);
bool peer_list_empty(const struct peer_list *l);

/** A session came: makes its peer. */
void peer_list_open(struct peer_list *l, struct prefill_link *link);

/** Checks who the peer is and connects the transfer; refuses by closing the session with the
 * reason. */
void peer_list_hello(struct peer_list *l, struct prefill_peer *peer,
                     const Baton__V1__PrefillHello *hello);

/** The session has closed: `lost` is called, the transfer closed, the link freed. */
void peer_list_closed(struct peer_list *l, struct prefill_link *link);

/* The ways to the peers of now, as they were probed. */
struct peer_links {
    uint64_t slowest[TRANSFER_TCP + 1]; /* bytes per second, by kind; 0: none */
    uint32_t n_slow;                    /* far below what they ought to give */
};
void peer_list_links(const struct peer_list *l, struct peer_links *out);

/** PM_PEER_GONE. */
void peer_list_transfer_gone(struct peer_list *l, struct prefill_peer *peer);

/** Frees peers that nothing points to any more. */
void peer_list_collect(struct peer_list *l);

#endif
