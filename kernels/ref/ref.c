#include "kernels/ref/ref.h"

#include <stdio.h>
#include <stdlib.h>

const struct kernel_ops kernels_ref_ops = {
    .name = "cpu-ref",
    .dev_alloc = ref_dev_alloc,
    .dev_free = ref_dev_free,
    .dev_write = ref_dev_write,
    .dev_read = ref_dev_read,
    .dev_copy = ref_dev_copy,
    .sync = ref_sync,
    .dev_host = ref_dev_host,
    .weight_load = ref_weight_load,
    .weight_unload = ref_weight_unload,
    .act_quant_bytes = ref_act_quant_bytes,
    .act_quant = ref_act_quant,
    .linear_q = ref_linear_q,
    .linear = ref_linear,
    .linear_grouped = ref_linear_grouped,
    .rms_norm = ref_rms_norm,
    .embed = ref_embed,
    .hc_read = ref_hc_read,
    .hc_write = ref_hc_write,
    .hc_head = ref_hc_head,
    .mtp_join = ref_mtp_join,
    .q_norm_rope = ref_q_norm_rope,
    .kv_latent = ref_kv_latent,
    .compress = ref_compress,
    .index_query = ref_index_query,
    .index_select = ref_index_select,
    .attention = ref_attention,
    .window_commit = ref_window_commit,
    .gate = ref_gate,
    .moe = ref_moe,
    .moe_parts = ref_moe_parts,
    .moe_sum = ref_moe_sum,
    .close = kernels_ref_close,
};

/* Keys that one token can attend to: its window, and the chosen or all compressed entries. */
static size_t max_keys(const struct kernel_dims *d)
{
    size_t all = (size_t)d->max_context / 128 + 1, topk = (size_t)d->index_topk;

    return (size_t)d->window + (all > topk ? all : topk);
}

static bool scratch_init(struct ref_scratch *s, const struct kernel_dims *d)
{
    size_t entries = (size_t)d->max_context / 4 + 1;

    s->keys = malloc(max_keys(d) * (size_t)d->head_dim * sizeof(*s->keys));
    s->probs = malloc(max_keys(d) * sizeof(*s->probs));
    s->scores = malloc(entries * sizeof(*s->scores));
    s->order = malloc(entries * sizeof(*s->order));
    return s->keys != NULL && s->probs != NULL && s->scores != NULL && s->order != NULL;
}

static bool moe_init(struct ref_moe *m, const struct kernel_dims *d)
{
    m->token = malloc(REF_MOE_ROWS * sizeof(*m->token));
    m->weight = malloc(REF_MOE_ROWS * sizeof(*m->weight));
    m->part = malloc(REF_MOE_ROWS * sizeof(*m->part));
    m->hidden = malloc(REF_MOE_ROWS * (size_t)d->moe_inter * sizeof(*m->hidden));
    m->sum = malloc(REF_MOE_ROWS * (size_t)d->hidden * sizeof(*m->sum));
    return m->token != NULL && m->weight != NULL && m->part != NULL && m->hidden != NULL &&
           m->sum != NULL;
}

int kernels_ref_open(struct kernels *k)
{
    struct ref *r = calloc(1, sizeof(*r));
    bool ok = r != NULL;

    k->ops = &kernels_ref_ops;
    k->self = r;
    if (ok)
        r->scratch = calloc((size_t)k->env.n_threads, sizeof(*r->scratch));
    ok = ok && r->scratch != NULL && moe_init(&r->moe, &k->dims);
    for (int i = 0; ok && i < k->env.n_threads; i++) {
        r->n_scratch = i + 1;
        ok = scratch_init(&r->scratch[i], &k->dims);
    }
    if (ok)
        return 0;
    kernels_ref_close(k);
    snprintf(k->error, sizeof(k->error), "no memory for the workspace of %d threads",
             k->env.n_threads);
    return -1;
}

void kernels_ref_close(struct kernels *k)
{
    struct ref *r = k->self;

    if (r == NULL)
        return;
    for (int i = 0; i < r->n_scratch; i++) {
        free(r->scratch[i].keys);
        free(r->scratch[i].probs);
        free(r->scratch[i].scores);
        free(r->scratch[i].order);
    }
    free(r->scratch);
    free(r->moe.token);
    free(r->moe.weight);
    free(r->moe.part);
    free(r->moe.hidden);
    free(r->moe.sum);
    free(r);
    k->self = NULL;
}
