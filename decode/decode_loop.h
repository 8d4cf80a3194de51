/*
 * decode_loop: the decode engine: admits requests when their pages fit, has their prompts prefilled
 * into these pages, verifies what arrived, and steps all running ones together.
 *
 *   receive ─▶ admit ─▶ build batch ─▶ forward ─▶ sample ─▶ emit
 *
 * Promises  tokens depend on the request alone, never on its company; a page that a peer may still
 * write is never reused; after the last request every page is free or in quarantine. Threads   the
 * engine thread runs decode_loop_run(); others only push to its mailbox.
 */
#ifndef BATON_DECODE_DECODE_LOOP_H
#define BATON_DECODE_DECODE_LOOP_H

#include "common/base/status.h"

struct decode_loop;
struct worker;

enum status_code decode_loop_new(struct worker *w, struct decode_loop **out, struct status *st);

/** Runs until a drain was asked for and all requests have ended or its bound has passed. */
void decode_loop_run(struct decode_loop *l);

/** Asks for the drain; any thread, once. */
void decode_loop_drain(struct decode_loop *l);

/** Ends all sessions, waits for their last messages, frees. The engine thread has ended and the
 * server is freed. */
void decode_loop_free(struct decode_loop *l);

#endif
