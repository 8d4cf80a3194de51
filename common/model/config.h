/*
 * config: config.json of a DeepSeek-V4 checkpoint, read and checked.
 */
#ifndef BATON_COMMON_MODEL_CONFIG_H
#define BATON_COMMON_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/kv/geometry.h"

/* Names as in config.json, shortened where it is wordy; tests/oracle/CHECKPOINT.md explains each.
 */
struct model_config {
    int vocab_size, hidden_size;
    int n_layers, n_mtp, n_hash_layers;
    int n_heads, head_dim, rope_dim, q_lora_rank, o_groups, o_lora_rank, window;
    int compress_ratios[KV_LAYERS_MAX]; /* [n_layers + n_mtp] */
    int index_n_heads, index_head_dim, index_topk;
    int n_experts, n_active, moe_inter;
    double route_scale, swiglu_limit, norm_eps;
    int hc_mult, hc_iters;
    double hc_eps;
    double rope_theta, compress_rope_theta;
    double yarn_factor, yarn_beta_fast, yarn_beta_slow;
    int yarn_original;
    int max_position;
    int bos_token, eos_token;
};

/**
 * Reads DIR/config.json. Every key of an official file is read or known to be without effect;
 * others are named in the log.
 * @return ST_OK; ST_INVALID naming the key, what was found and what is supported
 */
enum status_code model_config_read(const char *dir, struct model_config *out, struct status *st);

#endif
