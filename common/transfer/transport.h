/*
 * transport: which of UCX's transports may carry KV, and which one does.
 *
 * The choice is a policy, not an accident: a plan is made from the options and the environment
 * before UCX starts, contradictions are refused with the reason, and what UCX took for an endpoint
 * is read back from UCX itself.
 *
 * Threads   transfer_start() and the transfer thread.
 */
#ifndef BATON_COMMON_TRANSFER_TRANSPORT_H
#define BATON_COMMON_TRANSFER_TRANSPORT_H

#include <ucp/api/ucp.h>

#include "common/base/status.h"
#include "common/transfer/transfer.h"

struct transport_plan {
    char tls[128];     /* UCX's TLS: "sm,self" */
    char devices[256]; /* UCX's NET_DEVICES and the socket lane's interfaces; "": all */
    bool ucx;          /* may UCX carry KV? (It runs in any case: it owns the slabs.) */
    bool sockets;      /* may the socket lane? */
};

/** "auto", "rdma", "nvlink", "shm", "tcp". */
const char *transport_kind_name(enum transfer_kind kind);

/** Starts a UCX context by the plan. @return ST_OK, or ST_UNAVAILABLE with UCX's reason */
enum status_code transport_context(const struct transport_plan *plan, ucp_context_h *out,
                                   struct status *st);

/** Makes the plan; see transfer_start() for what is refused. */
enum status_code transport_plan_make(const struct transfer_options *opt,
                                     struct transport_plan *plan, struct status *st);

/** Describes what the endpoint uses, as transfer_peer_transport() says it; "unknown" if UCX does
 * not tell. */
void transport_read_back(ucp_ep_h ep, char *buf, size_t n);

/** The same from the text of ucp_ep_print_info(), for UCX that cannot be asked otherwise. */
void transport_parse_info(const char *info, char *buf, size_t n);

#endif
