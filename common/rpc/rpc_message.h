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

/* Memory for unpacked messages that live for one call: one block, kept from message to message. */
struct rpc_arena {
    ProtobufCAllocator allocator; /* for the generated _unpack functions */
    char *block;
    size_t used, cap; /* bytes of block */
    size_t beyond;    /* asked for since the last reset, and got from malloc */
};

void rpc_arena_init(struct rpc_arena *a);
void rpc_arena_deinit(struct rpc_arena *a);

/** Ends the life of m (NULL: of none), the only message that was unpacked into a. */
void rpc_arena_drop(struct rpc_arena *a, ProtobufCMessage *m);

#endif
