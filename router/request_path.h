/*
 * request_path: what the workers said about the way of a request: which ones, what moved, how long.
 */
#ifndef BATON_ROUTER_REQUEST_PATH_H
#define BATON_ROUTER_REQUEST_PATH_H

#include "baton/v1/common.pb-c.h"
#include "common/base/buf.h"

/* Sums over all handoffs of a request: there are more after a failover, and with n > 1. */
struct request_path {
    unsigned n_handoffs;
    char prefill[128], decode[128], transport[64]; /* of the latest */
    uint64_t kv_bytes, prefill_us, transfer_us;
    uint32_t kv_pages, pages_reused, checksums_verified, retries;
    uint32_t cached_tokens; /* of the first */
};

void request_path_add(struct request_path *p, const Baton__V1__HandoffStats *s);

/** Appends its members to a JSON object that is open: `"prefill":"...",...`. */
void request_path_json(const struct request_path *p, struct buf *out);

#endif
