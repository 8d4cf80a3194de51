/*
 * handoff: one request on the prefill side, from its prompt to the last byte in the decode worker's
 * memory, and the peer (decode worker) it belongs to.
 *
 *   WAITING ─▶ COMPUTING ─▶ FLUSHING ─▶ SENT ─▶ GONE      SENT ─▶ FLUSHING: resend asked for
 *      │           │            │         │       ▲
 *      │           └─▶ STOPPING ◀┘        │       │        STOPPING: cancelled, failed or peer
 * lost; └──────────────────┬───────────────┘───────┘        ends when no transfer reads our pages
 *
 * Owns      its sequence, page lists and checksums.
 * Threads   engine only.
 */
#ifndef BATON_PREFILL_HANDOFF_STATE_H
#define BATON_PREFILL_HANDOFF_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "baton/v1/prefill.pb-c.h"
#include "common/engine/sequence.h"
#include "common/transfer/transfer.h"
#include "common/worker/sampling.h"
#include "prefill/messages.h"

enum handoff_state {
    HANDOFF_WAITING,   /* for pages and its turn */
    HANDOFF_COMPUTING, /* chunks run; finished pages are on their way */
    HANDOFF_FLUSHING,  /* all computed; the last transfers run */
    HANDOFF_SENT,      /* the peer was told; it may ask for a resend */
    HANDOFF_STOPPING,  /* no longer wanted; transfers that read our pages end */
    HANDOFF_GONE,
    HANDOFF_N_STATES
};

enum handoff_event {
    HANDOFF_ADMITTED,   /* the engine: it has pages */
    HANDOFF_COMPUTED,   /* the engine: its last chunk */
    HANDOFF_PUT_ENDED,  /* a transfer, well; others still run */
    HANDOFF_PUTS_ENDED, /* a transfer, and no other runs */
    HANDOFF_CANCEL,     /* the peer */
    HANDOFF_RESEND,     /* the peer: checksums differ */
    HANDOFF_RELEASE,    /* the peer: checksums hold */
    HANDOFF_FAILED,     /* a step or transfer failed, or the peer is lost; transfers may run */
    HANDOFF_N_EVENTS
};

enum handoff_action {
    HANDOFF_UNDEFINED, /* no pair has it */
    HANDOFF_IGNORE,    /* late, twice, or out of order */
    HANDOFF_COMPUTE,
    HANDOFF_FLUSH,
    HANDOFF_TELL_WRITTEN, /* the peer hears that some pages are there; later ones are still to come
                           */
    HANDOFF_TELL_DONE,
    HANDOFF_SEND_AGAIN,
    HANDOFF_STOP,         /* transfers are asked to end; at once when none runs */
    HANDOFF_END,          /* pages go back */
    HANDOFF_TELL_STOPPED, /* the same, and the peer hears that nothing is written any more */
    HANDOFF_BUG,          /* cannot happen: ours alone to cause */
    HANDOFF_N_ACTIONS
};

/** What to do at that event: one action for every pair. "Stopped" is never told, and pages never go
 * back, while a transfer may run. */
enum handoff_action handoff_action(enum handoff_state state, enum handoff_event event);

/* A decode worker with a session. */
struct prefill_peer {
    struct prefill_link *link;      /* lives as long as the peer */
    bool session_closed;            /* link->session is gone */
    struct transfer_peer *transfer; /* NULL before hello and after the close began */
    char name[96];
    uint32_t n_handoffs;   /* that point here */
    bool transfer_closing; /* PM_PEER_GONE is still to come */
};

struct handoff {
    struct handoff *next; /* in the loop's list, oldest first */
    enum handoff_state state;
    struct prefill_peer *peer;
    uint64_t id; /* the peer's */
    char rid[64];
    struct sampling_params sampling;
    struct sequence seq;         /* prompt and KV; the engine computes it, and draws one token */
    uint32_t n_prompt;           /* tokens */
    uint32_t *remote_pages;      /* [n_pages] */
    uint32_t n_pages, n_present; /* the first n_present are not sent */
    uint32_t n_groups_sent;      /* groups (common/worker/handoff.h) posted or present */
    uint32_t n_cached;           /* prompt tokens that the prefix cache gave */
    uint32_t remote_slot;
    uint32_t n_puts;     /* transfers that run now */
    uint32_t *crc;       /* of groups from n_present on: room for all */
    uint32_t n_told;     /* of crc that the peer was told before all were known */
    struct status error; /* why STOPPING; ST_CANCELLED when the peer asked */
    int32_t first_token;
    uint64_t kv_bytes, queued_us, start_us, compute_us, transfer_us;
    uint64_t computed_us;  /* when the last chunk had run; 0: it has not */
    uint64_t hidden_bytes; /* moved while chunks were still computed */
    uint64_t last_bytes;   /* posted with the last chunk */
    uint64_t tail_us;      /* from the last chunk's end to the last byte's */
    uint32_t n_resends;
    struct logprobs prompt_logprobs; /* when asked for */
};

/** Moves to the next state; asserts that the move is legal. */
void handoff_enter(struct handoff *h, enum handoff_state next, const char *why);

/**
 * Makes a handoff of a submit message.
 * @return ST_OK; ST_INVALID when the message contradicts itself; ST_EXHAUSTED
 */
enum status_code handoff_new(const Baton__V1__PrefillSubmit *m, struct prefill_peer *peer,
                             int32_t vocab, int32_t eos, struct handoff **out, struct status *st);

/** Frees the struct and lets go of the peer; its sequence is out of the engine. */
void handoff_free(struct handoff *h);

#endif
