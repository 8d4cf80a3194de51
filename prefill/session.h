/*
 * session: the Prefill service's end on the rpc thread: turns callbacks into messages for the
 * engine.
 */
#ifndef BATON_PREFILL_SESSION_H
#define BATON_PREFILL_SESSION_H

#include "common/base/mailbox.h"
#include "common/rpc/rpc.h"

/** The service's one method; sessions push to the mailbox `engine` (borrowed). */
struct rpc_method prefill_session_method(struct mailbox *engine);

#endif
