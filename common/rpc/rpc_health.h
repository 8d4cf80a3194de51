/*
 * rpc_health: grpc.health.v1.Health for a server: one state for all services.
 *
 * Threads   rpc_health_set: any; the methods run on the rpc thread.
 */
#ifndef BATON_COMMON_RPC_RPC_HEALTH_H
#define BATON_COMMON_RPC_RPC_HEALTH_H

#include <stdbool.h>

#include "common/rpc/rpc.h"

enum { RPC_HEALTH_METHODS = 2 };

struct rpc_health;

/** Not serving at first. @param methods  out, [RPC_HEALTH_METHODS]: Check and Watch. Aborts without
 * memory. */
struct rpc_health *rpc_health_new(struct rpc_method *methods);

/** All its sessions have ended. */
void rpc_health_free(struct rpc_health *h);

/** Changes the state; watchers are told. */
void rpc_health_set(struct rpc_health *h, bool serving);

#endif
