/*
 * shard: which part of the model one rank of a group holds.
 *
 *   split by output rows, results gathered    attention heads with their o groups (wq_b, sink,
 *                                             wo_a), wo_b, indexer queries, vocabulary of the head
 *   split by expert, results exchanged        routed experts by id; the shared expert of layer l is
 *                                             rank l mod n's
 *   on every rank                             embedding (looked up, not computed), wq_a, wkv,
 *                                             compressors, indexer selection, gate, norms,
 *                                             hyper-connections, MTP projections
 *
 * No inner dimension is ever cut: each output is one dot product on one rank, and the sum over
 * experts runs in the order of one rank. So the bits are those of one rank, with every backend
 * whose rows do not depend on each other. What that costs on GPUs, against cutting wo_b and w2 by
 * columns with one all-reduce each: a layer gathers T * (G * ol + d) bf16 for attention (one
 * all-reduce of T * d moves twice T * d), and all-reduces T * (n_active + 1) * d bf16 for the
 * experts instead of T * d: Flash 56 KiB a token and layer instead of 8 KiB: noise in a decode
 * step, about half a millisecond a layer of a 2048-token chunk over NVLink.
 *
 * The KV is the same for every number of ranks: one latent serves all heads, so it is not cut.
 * Ranks of one process (cpu) share it and rank 0 writes it; ranks with memories of their own each
 * keep a copy and compute the same entries.
 *
 * What cannot be cut evenly, at whole tiles of FP8 scales, stays on every rank: right, only larger.
 */
#ifndef BATON_COMMON_MODEL_SHARD_H
#define BATON_COMMON_MODEL_SHARD_H

#include <stdbool.h>
#include <stdint.h>

#include "common/model/config.h"

struct shard {
    int rank, n_ranks;
    bool heads, out, index, vocab; /* whether these are cut; else whole on every rank */
    int first_expert, n_experts;   /* routed experts held */
};

/** @param n_ranks  >= 1 */
struct shard shard_make(const struct model_config *c, int rank, int n_ranks);

/** Whether this rank holds the shared expert of a layer (MTP blocks after the main ones). */
bool shard_has_shared(const struct shard *s, int layer);

#endif
