/*
 * rank: one rank of a model on its device: kernels, its share of the weights, workspace, and the
 * steps of a forward as this rank runs them. A model on one device is one rank.
 *
 * All ranks of a group run the same step with the same arguments; the logits come out on each.
 *
 * Threads   opened by one thread; then the rank's.
 */
#ifndef BATON_COMMON_MODEL_RANK_H
#define BATON_COMMON_MODEL_RANK_H

#include "common/base/pool.h"
#include "common/comm/comm.h"
#include "common/kv/geometry.h"
#include "common/model/forward.h"
#include "common/model/model.h"
#include "common/model/safetensors.h"
#include "common/model/shard.h"
#include "common/model/weights.h"
#include "common/model/workspace.h"

/* A step of so many rows, kept. */
struct recording {
    int n_rows;       /* all give logits */
    int n_mtp_logits; /* rows of logits of its MTP block */
    void *forward, *mtp;
};

struct recordings {
    struct recording *list; /* [n] by rows, ascending */
    int n;
    struct kv_memory kv;       /* what they work on */
    size_t bytes;              /* of the driver's memory */
    struct model_span *padded; /* [dims.max_seqs + 1] scratch */
};

struct rank {
    const struct model_config *config; /* the model's */
    const struct kv_geometry *geometry;
    struct shard shard;
    struct comm *comm; /* NULL: one rank; the model's */
    bool own_kv;       /* of a group whose ranks have a KV each: devices */
    struct pool *pool;
    struct kernels kernels;
    bool kernels_open;
    struct weights *weights;
    struct workspace ws;
    int32_t *staging; /* [staging_len()]: the batch before it goes to the device */
    /* Of the last step: rows and logits that were asked for; its batch, which may have more rows,
     * for rank_mtp(). */
    int n_rows, n_logits;
    struct kernel_batch last;
    const struct recording *recording; /* what it was a replay of; NULL: of none */
    struct recordings recordings;
    uint64_t n_replays;
};

/**
 * Opens a rank whose config, geometry and shard are set, and, on hosts, comm. On devices rank i has
 * the i-th GPU from the one that is named on.
 * @param n_threads  of its pool; 0: one per CPU
 */
enum status_code rank_open(struct rank *r, const struct model_options *opt, int n_threads,
                           const struct safetensors *files, struct status *st);
void rank_close(struct rank *r); /* half-open ones too */

/** Whether ranks run on devices with memory of their own. */
bool rank_on_device(const struct model_options *opt);

/* The steps. Arguments are as in model.h, and checked. */

void rank_forward(struct rank *r, const struct kv_memory *kv, const struct model_span *spans,
                  int n_spans);
void rank_mtp(struct rank *r, const struct kv_memory *kv, const int32_t *next_tokens,
              const int32_t *rows, int n);
void rank_mtp_next(struct rank *r, const struct kv_memory *kv, const struct model_span *spans,
                   const int32_t *from, int n);
void rank_layer(struct rank *r, const struct kv_memory *kv, int layer,
                const struct model_span *span, const uint16_t *in);

/** As model_record(). */
enum status_code rank_record(struct rank *r, const struct kv_memory *kv, int max_seqs, int max_rows,
                             struct status *st);

/** How many rows of logits a span gives. */
int rank_logit_rows(const struct model_span *s);

#endif
