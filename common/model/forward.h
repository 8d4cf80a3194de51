/*
 * forward: one layer, the head and the MTP block, as sequences of operations. Reads like
 * tests/oracle/dsv4.py; every arithmetic detail stands in kernels/kernels.h.
 *
 * Threads   engine.
 */
#ifndef BATON_COMMON_MODEL_FORWARD_H
#define BATON_COMMON_MODEL_FORWARD_H

#include "common/comm/comm.h"
#include "common/kv/geometry.h"
#include "common/model/model.h"
#include "common/model/weights.h"
#include "common/model/workspace.h"

/* What every step of a forward needs. */
struct forward {
    struct kernels *k;
    const struct model_config *c;
    const struct kv_geometry *g;
    const struct kv_memory *kv;
    const struct weights *w;
    struct workspace *ws;
    struct kernel_batch batch;
    const struct shard *shard;
    struct comm *comm; /* NULL: one rank */
    bool kv_shared;    /* all ranks use one KV memory, which rank 0 writes */
};

/** Layer `layer` of the geometry (MTP blocks after the main ones) over the rows of the batch:
 * streams in place, KV advanced. */
void forward_layer(struct forward *f, const struct layer_weights *w, int layer,
                   struct dev_ptr streams);

/** Embeds the batch's tokens and runs all layers of the main model; result in ws->streams. */
void forward_main(struct forward *f);

/** MTP block i over the batch whose main streams are in ws->streams; next tokens in
 * ws->next_tokens; result in ws->mtp_streams. */
void forward_mtp(struct forward *f, int i);

/** Logits of n rows (ws->logit_rows) of `streams`, into ws->logits. */
void forward_head(struct forward *f, const struct head_weights *w, struct dev_ptr streams, int n);

#endif
