/*
 * messages: everything that reaches the prefill engine's mailbox.
 *
 *   rpc thread ──PM_OPENED, PM_REQUEST, PM_CLOSED──▶ engine ◀──PM_PUT_DONE, PM_PEER_GONE── transfer
 * thread main ──PM_DRAIN──▶ engine
 *
 * The mailbox owns a message in flight, the engine frees it (prefill_msg_free) after handling.
 * Messages of one session arrive in order: opened, requests, closed.
 */
#ifndef BATON_PREFILL_MESSAGES_H
#define BATON_PREFILL_MESSAGES_H

#include "baton/v1/prefill.pb-c.h"
#include "common/base/mailbox.h"
#include "common/rpc/rpc.h"
#include "common/transfer/transfer.h"

enum prefill_msg_type { PM_OPENED, PM_REQUEST, PM_CLOSED, PM_PUT_DONE, PM_PEER_GONE, PM_DRAIN };

struct handoff;
struct prefill_peer;

/* One session as the rpc thread knows it. Made at on_open; freed with its peer, after PM_CLOSED. */
struct prefill_link {
    struct rpc_session *session; /* a reference of ours */
    struct mailbox *engine;
    struct prefill_peer *peer; /* the engine's */
};

/* PM_OPENED, PM_CLOSED, PM_DRAIN (link NULL) */
struct msg_link {
    struct msg base;
    struct prefill_link *link;
};

/* PM_REQUEST */
struct msg_request {
    struct msg base;
    struct prefill_link *link;
    Baton__V1__PrefillRequest *request; /* unpacked; the message's */
};

/* PM_PUT_DONE: one transfer_put() of a handoff has ended */
struct msg_put_done {
    struct msg base;
    struct handoff *handoff;
    struct status status;
    uint64_t bytes, elapsed_us, ended_us;
    uint32_t first_group; /* index into the handoff's checksums */
    uint32_t n_groups;
    uint32_t crc[]; /* [n_groups] */
};

/* PM_PEER_GONE: transfer_peer_close() has ended, nothing more is written to that peer */
struct msg_peer_gone {
    struct msg base;
    struct prefill_peer *peer;
};

void prefill_msg_free(struct msg *m);

#endif
