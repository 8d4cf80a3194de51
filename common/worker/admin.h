/*
 * admin: how operators look into a worker: the Admin service on its gRPC port, and /health, /ready,
 * /metrics over HTTP on its admin port.
 *
 * Threads   HTTP on main's event loop; the Admin methods on the rpc thread. Both only read what is
 * const after start or atomic.
 */
#ifndef BATON_COMMON_WORKER_ADMIN_H
#define BATON_COMMON_WORKER_ADMIN_H

#include "common/worker/worker.h"

enum { ADMIN_METHODS = 4 };

/** @param out  [ADMIN_METHODS]: Describe, Stats, FlushCache and Watch */
void admin_methods(struct worker *w, struct rpc_method *out);

/** Opens the admin HTTP port (w->opt.admin_port or port + WORKER_ADMIN_PORT_OFFSET) on w->base. */
enum status_code admin_http_open(struct worker *w, struct status *st);
void admin_http_close(struct worker *w);

#endif
