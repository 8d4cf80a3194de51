/*
 * routers: the sessions of routers, and what a step has to say to each: one message per session and
 * step, whatever the number of requests.
 *
 * Threads   engine only.
 */
#ifndef BATON_DECODE_ROUTERS_H
#define BATON_DECODE_ROUTERS_H

#include "decode/request.h"
#include "decode/sessions.h"

struct router_list;
struct worker;

enum status_code router_list_new(struct worker *w, struct router_list **out, struct status *st);
void router_list_free(struct router_list *l); /* every session has closed */
bool router_list_empty(const struct router_list *l);

/** A session came. */
void router_list_open(struct router_list *l, struct session_link *link);

/** Checks who the router is and answers with our identity; refuses by closing the session. */
void router_list_hello(struct router_list *l, struct router *r,
                       const Baton__V1__Identity *identity);

/** The session has closed: no request may name it any more. Frees it and its link. */
void router_list_closed(struct router_list *l, struct session_link *link);

/** Notes the last n tokens of q, and how it ended, for the next flush; with its stats the first
 * time. */
void router_emit(struct router *r, struct request *q, uint32_t n);

/** Notes that a request is over without a finish. prefill: the prefill worker at fault, as the
 * request named it; NULL: none. */
void router_fail(struct router *r, uint64_t request_id, const struct status *error,
                 const char *prefill);

/**
 * Sends what was noted. A router that does not read (its queue is full) loses its session: it
 * resubmits elsewhere, or we drop its requests when the session's end arrives.
 */
void router_list_flush(struct router_list *l);

#endif
