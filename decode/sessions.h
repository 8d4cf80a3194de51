/*
 * sessions: the rpc thread's side of the decode worker: callbacks become messages for the engine.
 */
#ifndef BATON_DECODE_SESSIONS_H
#define BATON_DECODE_SESSIONS_H

#include "common/base/mailbox.h"
#include "common/rpc/rpc.h"
#include "decode/messages.h"

/** The Decode service's one method: sessions of routers; messages go to `engine` (borrowed). */
struct rpc_method decode_session_method(struct mailbox *engine);

/**
 * Opens a session with a prefill worker; its replies and its end go to `engine`.
 * @param owner  stands in the link for the engine
 * @param out    the link; freed with session_link_free() after DM_PREFILL_CLOSED
 */
enum status_code decode_open_prefill(struct rpc_client *client, struct mailbox *engine, void *owner,
                                     struct session_link **out, struct status *st);

void session_link_free(struct session_link *link);

#endif
