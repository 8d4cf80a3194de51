/*
 * weights: every tensor of a checkpoint, checked against config.json and loaded to the device, in
 * the structure of the forward pass. tests/oracle/CHECKPOINT.md is the table.
 *
 * Lifetime  host backends may borrow the mapped bytes: the safetensors outlive the weights.
 * Threads   loaded by one thread; read-only afterwards.
 */
#ifndef BATON_COMMON_MODEL_WEIGHTS_H
#define BATON_COMMON_MODEL_WEIGHTS_H

#include "common/model/config.h"
#include "common/model/model.h"
#include "common/model/safetensors.h"
#include "common/model/shard.h"
#include "kernels/kernels.h"

/* A hyper-connection: reads one sublayer's input from the residual streams and writes its output
 * back. */
struct hc_weights {
    struct weight fn, base, scale;
};

struct attention_weights {
    struct weight sink, wq_a, q_norm, wq_b, wkv, kv_norm, wo_a, wo_b;
    struct compressor_weights comp;       /* ratio 4, 128 */
    struct weight index_wq_b, index_proj; /* ratio 4 */
    struct compressor_weights index_comp;
};

struct moe_weights {
    struct weight gate, bias, table; /* bias, or (hash layers) table */
    struct expert_weights shared;
    struct expert_weights *experts; /* [n_experts] */
};

struct layer_weights {
    int ratio;
    bool hashed;
    struct hc_weights hc_attn, hc_ffn;
    struct weight attn_norm, ffn_norm;
    struct attention_weights attn;
    struct moe_weights moe;
};

struct head_weights {
    struct hc_weights hc;
    struct weight norm;
};

struct mtp_weights {
    struct weight e_proj, h_proj, enorm, hnorm;
    struct head_weights head;
    struct layer_weights layer;
};

struct weights {
    struct kernels *k;
    struct weight embed, head;
    struct head_weights top;
    struct layer_weights *layers; /* [n_layers] */
    struct mtp_weights *mtp;      /* [n_mtp] */
    int n_layers, n_mtp, n_experts;
    uint64_t bytes; /* of the checkpoint's tensors in use: this rank's share of them */
    uint64_t class_bytes[WEIGHT_CLASSES];
};

/**
 * Checks and loads. Missing, extra, misshapen and wrongly typed tensors are errors that name file,
 * tensor, expected and found; unknown tensors under "mtp." are named in the log and skipped.
 * @param shard  what to load, NULL: all; all is checked
 * @param k      NULL: only checks, loads nothing
 */
enum status_code weights_load(const struct safetensors *s, const struct model_config *c,
                              const struct shard *shard, struct kernels *k, struct weights **out,
                              struct status *st);
void weights_free(struct weights *w);

/** 64-bit hash of the configuration and of name, type, shape and samples of the bytes of every
 * tensor. */
uint64_t weights_fingerprint(const struct safetensors *s, const struct model_config *c);

#endif
