/*
 * ids: random names for requests and tool calls.
 *
 * Threads   any.
 */
#ifndef BATON_ROUTER_IDS_H
#define BATON_ROUTER_IDS_H

#include <stddef.h>
#include <stdint.h>

/** Writes n random letters and digits and a NUL to out, [n + 1]; n <= 64. */
void ids_random(char *out, size_t n);

/** Draws a seed. */
uint64_t ids_seed(void);

/** Writes "call_" and 24 random letters and digits, and a NUL, to out, [30]. */
void ids_call(char *out);

#endif
