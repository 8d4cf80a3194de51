/*
 * bench_roofline: what a step of the model must read and compute, from config.json and the
 * checkpoint's bytes: what `baton bench-engine` divides by.
 *
 * Bytes   Every weight that a step uses is read once, as the checkpoint stores it: all but the
 *         embedding, the tables of hash layers, the MTP block and the routed experts; of these as
 *         many as n rows choose on average when each draws n_active of n_experts evenly. Each
 *         sequence reads its window, and per compressed layer the entries it attends to and
 *         all index keys. Activations are taken to stay in the cache.
 * FLOPs   2 for each element of a matrix that a row is multiplied with (n_active + 1 experts), 4 H
 * D for each key that a row attends to, 2 Hi Di for each index key that it scores; the head for the
 * rows with logits. Threads any.
 */
#ifndef BATON_DEPLOY_BATON_BENCH_ROOFLINE_H
#define BATON_DEPLOY_BATON_BENCH_ROOFLINE_H

#include "common/model/model.h"

/** Bytes of one step that decodes one token for each of `batch` sequences of `context` tokens. */
double roofline_decode_bytes(const struct model *m, int batch, int64_t context);

/** FLOPs of rows at positions [start, start + n) of one sequence, logits for n_logits of them. */
double roofline_flops(const struct model_config *c, int64_t start, int n, int n_logits);

/** Bytes of weights that n rows read, the head included. */
double roofline_weight_bytes(const struct model *m, int n_rows);

#endif
