/*
 * prefill_loop: the prefill engine: takes handoffs first come first served, computes their prompts
 * in chunks, and writes finished pages to the decode worker while it goes on computing.
 *
 * Owns      peers, handoffs, and (through struct worker) the model, pages and slots.
 * Promises  a page is never freed while a transfer reads it; every submit is answered by done or
 *           stopped as long as its session lives; after the last handoff every page is free again.
 * Threads   the engine thread runs prefill_loop_run(); others only push to its mailbox.
 */
#ifndef BATON_PREFILL_PREFILL_LOOP_H
#define BATON_PREFILL_PREFILL_LOOP_H

#include "common/base/status.h"

struct prefill_loop;
struct worker;

enum status_code prefill_loop_new(struct worker *w, struct prefill_loop **out, struct status *st);

/** Runs until a drain was asked for and all handoffs have ended or its bound has passed. */
void prefill_loop_run(struct prefill_loop *l);

/** Asks for the drain; any thread, once. */
void prefill_loop_drain(struct prefill_loop *l);

/** Handles what the closing server still pushes, closes peers, frees. The engine thread has ended
 * and the server is freed. */
void prefill_loop_free(struct prefill_loop *l);

#endif
