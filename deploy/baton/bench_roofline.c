#include "deploy/baton/bench_roofline.h"

#include <math.h>

enum { INDEX_RATIO = 4 };

double roofline_weight_bytes(const struct model *m, int n_rows)
{
    const struct model_config *c = model_get_config(m);
    double unchosen = pow(1 - (double)c->n_active / c->n_experts, n_rows);
    uint64_t bytes[WEIGHT_CLASSES];
    double embed = 2.0 * c->vocab_size * c->hidden_size;
    double tables = 8.0 * c->n_hash_layers * c->vocab_size * c->n_active;

    model_weight_classes(m, bytes);
    return (double)bytes[WEIGHTS_EXPERTS] * (1 - unchosen) + (double)bytes[WEIGHTS_SHARED] +
           (double)bytes[WEIGHTS_ATTENTION] + (double)bytes[WEIGHTS_VOCABULARY] - embed +
           (double)bytes[WEIGHTS_OTHER] - tables;
}

static double least(double a, double b)
{
    return a < b ? a : b;
}

/* Entries that a row with n tokens up to itself attends to, beside its window. */
static double entries(const struct model_config *c, int ratio, double n)
{
    if (ratio == 0)
        return 0;
    return ratio == INDEX_RATIO ? least(c->index_topk, floor(n / ratio)) : floor(n / ratio);
}

double roofline_decode_bytes(const struct model *m, int batch, int64_t context)
{
    const struct model_config *c = model_get_config(m);
    const struct kv_geometry *g = model_get_geometry(m);
    double rows = 0, keys = 0, n = (double)context;

    for (int i = 0; i < c->n_layers; i++) {
        int ratio = c->compress_ratios[i];

        rows += least(c->window, n) + entries(c, ratio, n);
        keys += ratio == INDEX_RATIO ? floor(n / ratio) : 0;
    }
    return roofline_weight_bytes(m, batch) + batch * (rows * g->row_bytes + keys * g->key_bytes);
}

/* Elements of the matrices of a layer that every row meets. */
static double layer_elements(const struct model_config *c, int ratio)
{
    double d = c->hidden_size, HD = (double)c->n_heads * c->head_dim, ql = c->q_lora_rank;
    double GO = (double)c->o_groups * c->o_lora_rank, hc = c->hc_mult;
    double n = ql * d + HD * ql + c->head_dim * d + GO * HD / c->o_groups + d * GO;

    n += 2 * (2 + hc) * hc * hc * d;
    n += c->n_experts * d + 3.0 * (c->n_active + 1) * d * c->moe_inter;
    if (ratio > 0)
        n += 2.0 * (ratio == INDEX_RATIO ? 2 : 1) * c->head_dim * d;
    if (ratio == INDEX_RATIO)
        n += (double)c->index_n_heads * c->index_head_dim * ql + c->index_n_heads * d +
             4.0 * c->index_head_dim * d;
    return n;
}

double roofline_flops(const struct model_config *c, int64_t start, int n, int n_logits)
{
    double per_key = 4.0 * c->n_heads * c->head_dim;
    double per_score = 2.0 * c->index_n_heads * c->index_head_dim;
    double flops = 2.0 * n_logits * c->vocab_size * c->hidden_size;

    for (int i = 0; i < c->n_layers; i++) {
        int ratio = c->compress_ratios[i];

        flops += 2.0 * n * layer_elements(c, ratio);
        for (int64_t seen = start + 1; seen <= start + n; seen++) {
            double s = (double)seen;

            flops += per_key * (least(c->window, s) + entries(c, ratio, s));
            if (ratio == INDEX_RATIO)
                flops += per_score * floor(s / ratio);
        }
    }
    return flops;
}
