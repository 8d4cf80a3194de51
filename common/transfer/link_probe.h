/*
 * link_probe: how fast the way to a peer really is, found out when it is opened: a card in a slow
 * slot, a cable at a tenth of its rate, or a path by the wrong interface show before the first
 * request, not as a slow service.
 *
 * It writes into a slab that every transfer has for this and nobody reads (SLAB_PROBE). Small puts
 * give the latency, large ones the rate; the best of each counts, since others may be in the way.
 *
 * Threads   transfer.
 */
#ifndef BATON_COMMON_TRANSFER_LINK_PROBE_H
#define BATON_COMMON_TRANSFER_LINK_PROBE_H

#include "common/transfer/internal.h"

enum { LINK_PROBE_BYTES = 1 << 20 };

/** Begins, unless a rate limit would make it long. What it finds is logged and kept in p->link. */
void link_probe_start(struct transfer_peer *p);

/**
 * What the way ought to give.
 * @param via  as transfer_peer_transport() says it
 * @return bytes per second; 0: not known
 */
uint64_t link_rate_expected(const struct rdma_report *report, const char *via);

/** Is rate far below what is expected (which may be 0: not known)? */
bool link_is_slow(uint64_t rate, uint64_t expected);

#endif
