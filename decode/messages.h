/*
 * messages: everything that reaches the decode engine's mailbox.
 *
 *   rpc thread ──DM_ROUTER_*──▶ engine      sessions that routers opened with us
 *   rpc thread ──DM_PREFILL_*──▶ engine     sessions that we opened with prefill workers
 *   verify thread ──DM_VERIFIED──▶ engine
 *   transfer thread ──DM_WRITER_ENDED──▶ engine
 *   main ──DM_DRAIN──▶ engine
 *
 * The mailbox owns a message in flight, the engine frees it (decode_msg_free) after handling.
 * Messages of one session arrive in order; its closed message is the last.
 */
#ifndef BATON_DECODE_MESSAGES_H
#define BATON_DECODE_MESSAGES_H

#include <stdbool.h>

#include "baton/v1/decode.pb-c.h"
#include "baton/v1/prefill.pb-c.h"
#include "common/base/mailbox.h"
#include "common/rpc/rpc.h"

enum decode_msg_type {
    DM_ROUTER_OPENED,
    DM_ROUTER_REQUEST,
    DM_ROUTER_CLOSED,
    DM_PREFILL_REPLY,
    DM_PREFILL_CLOSED,
    DM_VERIFIED,
    DM_WRITER_ENDED,
    DM_DRAIN
};

/* One session as the rpc thread knows it; the engine frees it after its closed message. */
struct session_link {
    struct rpc_session *session; /* a reference of ours */
    struct mailbox *engine;
    void *owner; /* the engine's: struct router or struct prefill_worker */
};

/* DM_ROUTER_OPENED, DM_ROUTER_CLOSED, DM_PREFILL_CLOSED, DM_DRAIN (link NULL) */
struct msg_link {
    struct msg base;
    struct session_link *link;
    struct status why; /* closed */
};

/* DM_ROUTER_REQUEST, DM_PREFILL_REPLY */
struct msg_unpacked {
    struct msg base;
    struct session_link *link;
    union {
        Baton__V1__DecodeRequest *request;
        Baton__V1__PrefillReply *reply;
    }; /* the message's */
};

/* DM_VERIFIED: the checksums of some of a request's units were compared. It is made before they
 * are, and has a reference of each unit until the engine has handled it: whatever becomes of the
 * request meanwhile, nobody else gets what is still read. */
struct msg_verified {
    struct msg base;
    struct mailbox *engine;
    uint64_t name;    /* the request's */
    uint32_t attempt; /* of the request, the results of earlier ones are nobody's any more */
    struct status status;
    bool with_slot;
    uint32_t slot;
    uint32_t n_groups; /* compared */
    uint32_t n_pages;
    uint32_t pages[];
};

/* DM_WRITER_ENDED: the prefill worker that had that name for the transfer writes no more, or is out
 * of reach; see transfer_end_fn */
struct msg_writer_ended {
    struct msg base;
    uint64_t writer;
    bool proven;
};

void decode_msg_free(struct msg *m);

#endif
