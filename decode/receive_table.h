/*
 * receive_table: what a request's handoff does at each event in each state: one action for every
 * pair, also for messages that come late, twice or out of order.
 *
 * Promises  units leave a request whose prefill worker may still write them only into quarantine.
 * Threads   no state.
 */
#ifndef BATON_DECODE_RECEIVE_TABLE_H
#define BATON_DECODE_RECEIVE_TABLE_H

#include "decode/request.h"

enum receive_event {
    HE_READY,    /* the session with its prefill worker */
    HE_WRITTEN,  /* the prefill worker: some pages written */
    HE_DONE,     /* the prefill worker: all bytes written */
    HE_STOPPED,  /* the prefill worker: nothing is written any more; another one may try */
    HE_REFUSED,  /* the same; no other one would take it */
    HE_VERIFIED, /* our own thread: all is written and all checksums hold */
    HE_DIFFERS,  /* our own thread: all is written and compared, and one does not hold */
    HE_LOST,     /* the session with its prefill worker */
    HE_UNWANTED, /* cancelled, or failed for another reason */
    HE_N_EVENTS
};

enum receive_action {
    HA_UNDEFINED, /* no pair has it */
    HA_IGNORE,    /* late, twice, or somebody else's */
    HA_SUBMIT,
    HA_VERIFY_PART,
    HA_VERIFY,     /* the rest */
    HA_NEXT,       /* asks the next prefill worker; the units stay */
    HA_FAIL,       /* the units are free */
    HA_RUN,        /* the prefill worker is released */
    HA_RESEND,     /* once; after that, fails */
    HA_REQUEUE,    /* the units go into quarantine, the request back to the queue */
    HA_CANCEL,     /* drains until the prefill worker has stopped */
    HA_RELEASE,    /* the prefill worker is released, the units are free */
    HA_FREE,       /* the units are free: nobody was told of them, or all is over */
    HA_STOPPED,    /* draining: the prefill worker writes no more */
    HA_QUARANTINE, /* draining: the units go into quarantine */
    HA_BUG,        /* cannot happen: ours alone to cause */
    HA_N_ACTIONS
};

enum receive_action receive_action(enum request_state state, enum receive_event event);

#endif
