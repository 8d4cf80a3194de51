/*
 * rpc_message: protobuf-c messages to bytes.
 *
 * Threads   any.
 */
#ifndef BATON_COMMON_RPC_RPC_MESSAGE_H
#define BATON_COMMON_RPC_RPC_MESSAGE_H

#include <protobuf-c/protobuf-c.h>

#include "common/rpc/rpc.h"

/** Packs m into malloc memory of the caller's. @return ST_OK, ST_EXHAUSTED */
enum status_code rpc_message_pack(const ProtobufCMessage *m, void **out, size_t *len,
                                  struct status *st);

/** Packs and sends; codes as rpc_session_send(). */
enum status_code rpc_session_send_message(struct rpc_session *s, const ProtobufCMessage *m,
                                          struct status *st);

#endif
