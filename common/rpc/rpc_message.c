#include "common/rpc/rpc_message.h"

#include <stdlib.h>

enum status_code rpc_message_pack(const ProtobufCMessage *m, void **out, size_t *len,
                                  struct status *st)
{
    size_t n = protobuf_c_message_get_packed_size(m);
    void *bytes;

    if (n > RPC_MESSAGE_MAX)
        return status_set(st, ST_INVALID, "a message of %zu bytes, at most %d travel", n,
                          RPC_MESSAGE_MAX);
    bytes = malloc(n + 1);
    if (bytes == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a message of %zu bytes", n);
    *len = protobuf_c_message_pack(m, bytes);
    *out = bytes;
    return status_ok(st);
}

enum status_code rpc_session_send_message(struct rpc_session *s, const ProtobufCMessage *m,
                                          struct status *st)
{
    void *bytes;
    size_t len;

    if (rpc_message_pack(m, &bytes, &len, st) != ST_OK)
        return st->code;
    rpc_session_send(s, bytes, len, st);
    free(bytes);
    return st->code;
}
