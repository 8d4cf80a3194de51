/*
 * lifeline: a connection that a writer keeps to its receiver for as long as it may write, whatever
 * carries the bytes.
 *
 * The writer closes it after its last request has ended; if it dies, its kernel does, after all of
 * its threads have left their address space. So the end of a lifeline within one host proves to the
 * receiver that nothing is written any more, which no mapped memory and no RDMA write can tell by
 * itself. Between hosts a broken connection is no proof (the writer may live behind a cut cable),
 * only its goodbye is.
 *
 * It is also how each side learns that the other is gone: at once where the kernel says so, within
 * 2 s where the network is silent: both send a beat, and TCP gives up when none is acknowledged. A
 * frozen process is not told that way (its kernel acknowledges): that is for the session's
 * keepalive.
 *
 * Promises  no put has a turn before the lifeline stands; the peer is lost when it breaks.
 * Threads   transfer.
 */
#ifndef BATON_COMMON_TRANSFER_LIFELINE_H
#define BATON_COMMON_TRANSFER_LIFELINE_H

#include "common/transfer/internal.h"

/** Makes p's, to the receiver of d. ST_UNAVAILABLE: there is no address to dial. */
enum status_code lifeline_new(struct transfer_peer *p, const struct descriptor *d,
                              struct status *st);

/** Dials; p has its lane. */
void lifeline_start(struct lifeline *l);

/** May puts go? */
bool lifeline_stands(const struct lifeline *l);

/** Sends beats. @return how long the thread may sleep, in ms; LANE_FOREVER */
int lifeline_tend(struct lifeline *l);

/** Nothing more is written: says so and hangs up. */
void lifeline_bye(struct lifeline *l);

/** Takes NULL. */
void lifeline_free(struct lifeline *l);

#endif
