/*
 * dial: makes a connection to a peer's server in the background: one address after another, then
 * the greeting. For the socket lane and the lifeline.
 *
 * Promises  `ended` comes exactly once, unless dial_stop() comes before.
 * Threads   transfer.
 */
#ifndef BATON_COMMON_TRANSFER_DIAL_H
#define BATON_COMMON_TRANSFER_DIAL_H

#include "common/transfer/internal.h"
#include "common/transfer/tcp_wire.h"

struct dial {
    struct watch watch;
    struct transfer *t;
    struct tcp_offer offer;
    enum tcp_hello_kind kind;
    struct tcp_address to[TCP_ADDRESSES_MAX];
    uint32_t n_to, at_to;
    int fd;
    bool greeted;         /* our hello is out */
    char tried[256];      /* addresses and what became of them */
    uint64_t deadline_us; /* of this address */
    uint64_t give_up_us;  /* of all addresses together; 0: not under way */
    struct tcp_greeting in;
    size_t in_len;
    /* fd: greeted and welcomed, the callee's, in the epoll set with this dial's watch, which the
     * callee changes; -1: there is no way there, why says what was tried. */
    void (*ended)(struct dial *d, int fd, const char *why);
};

/**
 * Begins with the addresses in d->to; d->t, offer, kind, to, n_to and ended are set. May call ended
 * at once.
 */
void dial_start(struct dial *d);

bool dial_is_under_way(const struct dial *d);

/** Bounds. @return how long the thread may sleep, in ms; LANE_FOREVER */
int dial_tend(struct dial *d);

/** Gives up without a word. Takes one that has ended. */
void dial_stop(struct dial *d);

#endif
