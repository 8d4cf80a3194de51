/*
 * transport: which transports may carry KV, and which one does.
 *
 * The choice is a policy, not an accident: a plan is made from the options, the environment and the
 * hardware before UCX starts; contradictions and missing requirements are refused with the reason;
 * and what UCX took for an endpoint is read back from UCX itself.
 *
 * Threads   transfer_start() and the transfer thread.
 */
#ifndef BATON_COMMON_TRANSFER_TRANSPORT_H
#define BATON_COMMON_TRANSFER_TRANSPORT_H

#include <stdbool.h>
#include <ucp/api/ucp.h>

#include "common/base/status.h"
#include "common/transfer/rdma_probe.h"
#include "common/transfer/transfer.h"

/* What the plan depends on beside the options. */
struct transport_facts {
    const char *ucx_tls;         /* UCX_TLS of the environment, NULL: not set */
    const char *ucx_net_devices; /* UCX_NET_DEVICES, the same */
    const char *ucx_gid_index;   /* UCX_IB_GID_INDEX, the same */
    const struct rdma_verbs *verbs;
};

struct transport_plan {
    char tls[256];         /* UCX's TLS: "sm,self" */
    char ucx_devices[256]; /* UCX's NET_DEVICES */
    char devices[256];     /* interfaces of the socket lane, in which others may stand; "": all */
    bool ucx;              /* may UCX carry KV? (It runs in any case: it owns the slabs.) */
    bool rdma;             /* is RDMA among what UCX may use? */
    bool sockets;          /* may the socket lane? */
    struct rdma_report report;
};

/** "auto", "rdma", "nvlink", "shm", "tcp". */
const char *transport_kind_name(enum transfer_kind kind);

/** The facts of this process and machine. */
void transport_facts_read(struct transport_facts *out);

/**
 * Makes the plan.
 * @return ST_OK; ST_INVALID when the options contradict each other; ST_UNAVAILABLE when what they
 * ask for is not there or the environment forbids it, with the reason and what to do
 */
enum status_code transport_plan_make(const struct transfer_options *opt,
                                     const struct transport_facts *facts,
                                     struct transport_plan *plan, struct status *st);

/** Starts a UCX context by the plan. @return ST_OK, or ST_UNAVAILABLE with UCX's reason */
enum status_code transport_context(const struct transport_plan *plan, ucp_context_h *out,
                                   struct status *st);

/** Describes what the endpoint uses, as transfer_peer_transport() says it; "unknown" if UCX does
 * not tell. */
void transport_read_back(ucp_ep_h ep, char *buf, size_t n);

/** The same from the text of ucp_ep_print_info(), for UCX that cannot be asked otherwise. */
void transport_parse_info(const char *info, char *buf, size_t n);

#endif
