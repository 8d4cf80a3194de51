#include "common/model/config.h"

#include <stdio.h>
#include <stddef.h>
#include <string.h>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/log.h"

/* What a key fills, and what it may be. */
enum kind { INT, REAL, IGNORED };

struct key {
    const char *name;
    enum kind kind;
    size_t offset; /* in struct model_config */
    double min, max;
};

#define INT_KEY(name, field, lo, hi)                                                               \
    {                                                                                              \
        name, INT, offsetof(struct model_config, field), lo, hi                                    \
    }
#define REAL_KEY(name, field, lo, hi)                                                              \
    {                                                                                              \
        name, REAL, offsetof(struct model_config, field), lo, hi                                   \
    }

/* Keys that are numbers; the rest is read by hand below or has no effect on the computation. */
static const struct key keys[] = {
    INT_KEY("vocab_size", vocab_size, 1, 1 << 24),
    INT_KEY("hidden_size", hidden_size, 128, 16384),
    INT_KEY("num_hidden_layers", n_layers, 1, KV_LAYERS_MAX - 1),
    INT_KEY("num_nextn_predict_layers", n_mtp, 0, 8),
    INT_KEY("num_hash_layers", n_hash_layers, 0, KV_LAYERS_MAX),
    INT_KEY("num_attention_heads", n_heads, 1, 1024),
    INT_KEY("head_dim", head_dim, 64, 4096),
    INT_KEY("qk_rope_head_dim", rope_dim, 2, 4096),
    INT_KEY("q_lora_rank", q_lora_rank, 128, 16384),
    INT_KEY("o_groups", o_groups, 1, 1024),
    INT_KEY("o_lora_rank", o_lora_rank, 1, 16384),
    INT_KEY("sliding_window", window, 1, 65536),
    INT_KEY("index_n_heads", index_n_heads, 1, 1024),
    INT_KEY("index_head_dim", index_head_dim, 32, 4096),
    INT_KEY("index_topk", index_topk, 1, 65536),
    INT_KEY("n_routed_experts", n_experts, 1, 4096),
    INT_KEY("num_experts_per_tok", n_active, 1, 32),
    INT_KEY("moe_intermediate_size", moe_inter, 128, 16384),
    INT_KEY("hc_mult", hc_mult, 1, 8),
    INT_KEY("hc_sinkhorn_iters", hc_iters, 1, 1000),
    INT_KEY("max_position_embeddings", max_position, 1, 1 << 24),
    INT_KEY("bos_token_id", bos_token, 0, 1 << 24),
    INT_KEY("eos_token_id", eos_token, 0, 1 << 24),
    REAL_KEY("routed_scaling_factor", route_scale, 0, 1e6),
    REAL_KEY("swiglu_limit", swiglu_limit, 0, 1e6),
    REAL_KEY("rms_norm_eps", norm_eps, 0, 1),
    REAL_KEY("hc_eps", hc_eps, 0, 1),
    REAL_KEY("rope_theta", rope_theta, 1, 1e12),
    REAL_KEY("compress_rope_theta", compress_rope_theta, 1, 1e12),
};

static const struct key yarn_keys[] = {
    REAL_KEY("factor", yarn_factor, 1, 1e6),
    REAL_KEY("beta_fast", yarn_beta_fast, 0, 1e6),
    REAL_KEY("beta_slow", yarn_beta_slow, 0, 1e6),
    INT_KEY("original_max_position_embeddings", yarn_original, 0, 1 << 24),
};

/* Read by hand, or without effect here. */
static const char *const other_keys[] = {
    "architectures",
    "attention_bias",
    "attention_dropout",
    "compress_ratios",
    "expert_dtype",
    "hidden_act",
    "initializer_range",
    "model_type",
    "n_shared_experts",
    "norm_topk_prob",
    "num_key_value_heads",
    "pad_token_id",
    "quantization_config",
    "rope_scaling",
    "scoring_func",
    "tie_word_embeddings",
    "topk_method",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "use_cache",
};

/* Keys whose only supported value is known. */
static const struct {
    const char *name, *value; /* as JSON spells it; strings without quotes */
} fixed[] = {
    {"scoring_func", "sqrtsoftplus"}, {"topk_method", "noaux_tc"}, {"hidden_act", "silu"},
    {"model_type", "deepseek_v4"},    {"n_shared_experts", "1"},   {"num_key_value_heads", "1"},
};

static enum status_code read_number(const struct json *object, const struct key *key,
                                    struct model_config *out, struct status *st)
{
    const struct json *v = json_get(object, key->name);
    double d;
    int64_t i;

    if (v == NULL)
        return status_set(st, ST_INVALID, "%s is missing", key->name);
    if (!json_double(v, &d) || (key->kind == INT && !json_int(v, &i)))
        return status_set(st, ST_INVALID, "%s is not a %snumber", key->name,
                          key->kind == INT ? "whole " : "");
    if (d < key->min || d > key->max)
        return status_set(st, ST_INVALID, "%s is %s, supported are %.15g..%.15g", key->name,
                          v->text, key->min, key->max);
    if (key->kind == INT)
        *(int *)((char *)out + key->offset) = (int)i;
    else
        *(double *)((char *)out + key->offset) = d;
    return status_ok(st);
}

static enum status_code read_numbers(const struct json *object, const struct key *list, size_t n,
                                     struct model_config *out, struct status *st)
{
    for (size_t i = 0; i < n; i++)
        if (read_number(object, &list[i], out, st) != ST_OK)
            return st->code;
    return status_ok(st);
}

static enum status_code check_fixed(const struct json *root, struct status *st)
{
    const struct json *quant = json_get(root, "quantization_config");
    const struct json *fmt = json_get(quant, "fmt");

    for (size_t i = 0; i < sizeof(fixed) / sizeof(fixed[0]); i++) {
        const struct json *v = json_get(root, fixed[i].name);

        if (v == NULL)
            continue;
        if ((v->type != JSON_STRING && v->type != JSON_NUMBER) ||
            strcmp(v->text, fixed[i].value) != 0)
            return status_set(st, ST_INVALID, "%s is %s, only %s is supported", fixed[i].name,
                              v->type == JSON_STRING || v->type == JSON_NUMBER ? v->text
                                                                               : "no text",
                              fixed[i].value);
    }
    if (fmt != NULL && !json_is(fmt, "e4m3"))
        return status_set(st, ST_INVALID, "quantization_config.fmt: only e4m3 is supported");
    return status_ok(st);
}

static enum status_code read_ratios(const struct json *root, struct model_config *out,
                                    struct status *st)
{
    const struct json *v = json_get(root, "compress_ratios");
    int n = out->n_layers + out->n_mtp;

    if (v == NULL || v->type != JSON_ARRAY)
        return status_set(st, ST_INVALID, "compress_ratios is not a list");
    if (n > KV_LAYERS_MAX || (int)v->len != n)
        return status_set(st, ST_INVALID,
                          "compress_ratios has %u entries for %d layers and %d MTP blocks", v->len,
                          out->n_layers, out->n_mtp);
    for (int i = 0; i < n; i++) {
        int64_t ratio;

        if (!json_int(&v->items[i], &ratio) || (ratio != 0 && ratio != 4 && ratio != 128))
            return status_set(st, ST_INVALID, "compress_ratios[%d]: supported are 0, 4 and 128", i);
        out->compress_ratios[i] = (int)ratio;
    }
    for (int i = out->n_layers; i < n; i++)
        if (out->compress_ratios[i] != 0)
            return status_set(st, ST_INVALID,
                              "compress_ratios[%d]: MTP blocks with compression are not known", i);
    return status_ok(st);
}

static enum status_code check_relations(const struct model_config *c, struct status *st)
{
    if (c->rope_dim % 2 != 0 || c->rope_dim > c->head_dim || c->rope_dim > c->index_head_dim)
        return status_set(st, ST_INVALID,
                          "qk_rope_head_dim %d does not fit head_dim %d and index_head_dim %d",
                          c->rope_dim, c->head_dim, c->index_head_dim);
    if (c->n_heads % c->o_groups != 0)
        return status_set(st, ST_INVALID, "num_attention_heads %d is no multiple of o_groups %d",
                          c->n_heads, c->o_groups);
    if (c->hidden_size % 128 != 0 || c->q_lora_rank % 128 != 0 || c->moe_inter % 128 != 0 ||
        c->o_groups * c->o_lora_rank % 128 != 0)
        return status_set(st, ST_INVALID,
                          "hidden_size %d, q_lora_rank %d, moe_intermediate_size %d and o_groups * "
                          "o_lora_rank %d must be multiples of 128, the block of activation scales",
                          c->hidden_size, c->q_lora_rank, c->moe_inter,
                          c->o_groups * c->o_lora_rank);
    if ((c->index_head_dim & (c->index_head_dim - 1)) != 0)
        return status_set(st, ST_INVALID,
                          "index_head_dim %d is no power of two (Hadamard transform)",
                          c->index_head_dim);
    if (c->n_active > c->n_experts)
        return status_set(st, ST_INVALID, "num_experts_per_tok %d of n_routed_experts %d",
                          c->n_active, c->n_experts);
    if (c->n_hash_layers > c->n_layers)
        return status_set(st, ST_INVALID, "num_hash_layers %d of num_hidden_layers %d",
                          c->n_hash_layers, c->n_layers);
    if (c->bos_token >= c->vocab_size || c->eos_token >= c->vocab_size)
        return status_set(st, ST_INVALID,
                          "bos_token_id %d or eos_token_id %d is outside vocab_size %d",
                          c->bos_token, c->eos_token, c->vocab_size);
    return status_ok(st);
}

static bool is_known(const char *name)
{
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        if (strcmp(keys[i].name, name) == 0)
            return true;
    for (size_t i = 0; i < sizeof(other_keys) / sizeof(other_keys[0]); i++)
        if (strcmp(other_keys[i], name) == 0)
            return true;
    return false;
}

static enum status_code read_root(const struct json *root, struct model_config *out,
                                  struct status *st)
{
    if (root->type != JSON_OBJECT)
        return status_set(st, ST_INVALID, "not a JSON object");
    if (check_fixed(root, st) != ST_OK ||
        read_numbers(root, keys, sizeof(keys) / sizeof(keys[0]), out, st) != ST_OK ||
        read_ratios(root, out, st) != ST_OK)
        return st->code;
    if (json_get(root, "rope_scaling") == NULL)
        return status_set(st, ST_INVALID, "rope_scaling is missing");
    if (read_numbers(json_get(root, "rope_scaling"), yarn_keys,
                     sizeof(yarn_keys) / sizeof(yarn_keys[0]), out, st) != ST_OK)
        return status_wrap(st, "rope_scaling");
    for (uint32_t i = 0; i < root->len; i++)
        if (!is_known(root->members[i].key))
            log_warn("config.json: key '%s' is not known, it has no effect", root->members[i].key);
    return check_relations(out, st);
}

enum status_code model_config_read(const char *dir, struct model_config *out, struct status *st)
{
    char path[4096];
    struct buf text = {0};
    struct json_doc *doc = NULL;

    memset(out, 0, sizeof(*out));
    snprintf(path, sizeof(path), "%s/config.json", dir);
    if (file_read(path, 16 << 20, &text, st) == ST_OK &&
        json_parse(text.data, text.len, 0, &doc, st) == ST_OK)
        read_root(json_root(doc), out, st);
    if (doc != NULL)
        json_free(doc);
    buf_deinit(&text);
    if (st->code != ST_OK)
        status_wrap(st, "%s", path);
    return st->code;
}
