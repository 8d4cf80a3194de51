/*
 * model_debug: looks inside a forward, for tests against golden vectors.
 */
#ifndef BATON_COMMON_MODEL_MODEL_DEBUG_H
#define BATON_COMMON_MODEL_MODEL_DEBUG_H

#include "common/model/model.h"

/**
 * Runs one layer of the main model alone, from given streams.
 * @param in, out  host, bf16 [span->n_tokens][hc][d]
 */
enum status_code model_debug_layer(struct model *m, const struct kv_memory *kv, int layer,
                                   const struct model_span *span, const uint16_t *in, uint16_t *out,
                                   struct status *st);

/** The streams after the last layer (or after the MTP block) of the last forward; out as above. */
enum status_code model_debug_streams(struct model *m, bool mtp, uint16_t *out, struct status *st);

/** How many forwards and MTP blocks were replays of recordings. */
uint64_t model_debug_replays(const struct model *m);

/** How many rows of logits have come to the host. */
uint64_t model_debug_rows_read(const struct model *m);

#endif
