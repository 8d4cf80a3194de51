/*
 * request_note: what the router remembers of a request while it is answered, for the access log, a
 * key's account and traces. Stands in the exchange's note.
 */
#ifndef BATON_ROUTER_REQUEST_NOTE_H
#define BATON_ROUTER_REQUEST_NOTE_H

#include "router/http_server.h"
#include "router/keys.h"
#include "router/trace.h"

enum { REQUEST_NOTE_ID_MAX = 63 };

struct request_note {
    char request_id[REQUEST_NOTE_ID_MAX + 1];
    struct key_who who;
    struct trace_context trace; /* of the router's own span */
    uint64_t unix_ns;           /* when it was complete */
    uint32_t prompt_tokens, cached_tokens, completion_tokens;
    uint32_t ttft_us;
    char finish[16];
};
_Static_assert(sizeof(struct request_note) <= HTTP_NOTE_BYTES, "it stands in the exchange's note");

static inline struct request_note *request_note(struct http_exchange *x)
{
    return http_exchange_note(x);
}

#endif
