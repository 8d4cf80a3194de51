#include "common/model/forward.h"

static struct kernel_kv kv_view(const struct forward *f, int layer)
{
    const struct kv_geometry *g = f->g;
    const struct kv_layer *l = &g->layers[layer];

    return (struct kernel_kv){
        .ratio = l->ratio,
        .pages = f->kv->pages,
        .page_stride = g->page_bytes,
        .entry_off = l->entry_off,
        .key_off = l->key_off,
        .entries_per_page = (int)l->entries,
        .states = f->kv->slots,
        .slot_stride = g->slot_bytes,
        .window_off = l->window_off,
        .comp_off = l->comp_off,
        .index_comp_off = l->index_comp_off,
        .window_rows = (int)g->window_rows,
        .comp_rows = (int)l->comp_rows,
        .row_bytes = (int)g->row_bytes,
        .key_bytes = (int)g->key_bytes,
    };
}

/* ---- several ranks ---- */

/* Whether this rank writes the KV. */
static bool writes_kv(const struct forward *f)
{
    return f->comm == NULL || !f->kv_shared || f->shard->rank == 0;
}

/* Between one rank's writing of the KV and the others' reading, or the reverse. */
static void settle_kv(struct forward *f)
{
    if (f->comm != NULL && f->kv_shared)
        comm_barrier(f->comm);
}

/* y = xq . W^T with all n_cols columns, of which this rank's W may hold a share. */
static void project(struct forward *f, struct dev_ptr y, struct dev_ptr xq, const struct weight *w,
                    int64_t n_cols)
{
    bool cut = w->rows != n_cols;

    f->k->ops->linear_q(f->k, cut ? f->ws->share : y, xq, w, f->batch.n_rows);
    if (cut)
        comm_all_gather_columns(f->comm, y, f->ws->share, (size_t)f->batch.n_rows,
                                (size_t)w->rows * 2);
}

/* ws->o -> ws->o_low, by groups, of which this rank may hold a share. */
static void project_groups(struct forward *f, const struct weight *w)
{
    struct workspace *ws = f->ws;
    bool cut = f->shard->heads;
    int groups = cut ? f->c->o_groups / f->shard->n_ranks : f->c->o_groups;

    f->k->ops->linear_grouped(f->k, cut ? ws->share : ws->o_low, ws->o, w, f->batch.n_rows, groups);
    if (cut)
        comm_all_gather_columns(f->comm, ws->o_low, ws->share, (size_t)f->batch.n_rows,
                                (size_t)w->rows * 2);
}

/* ---- a layer ---- */

static void compress(struct forward *f, const struct compressor_weights *w,
                     const struct kernel_kv *view, bool for_index)
{
    struct kernels *k = f->k;
    struct workspace *ws = f->ws;

    if (!writes_kv(f))
        return;
    k->ops->linear(k, ws->comp_kv, ws->x, &w->wkv, f->batch.n_rows, true);
    k->ops->linear(k, ws->comp_score, ws->x, &w->wgate, f->batch.n_rows, true);
    k->ops->compress(k, ws->comp_kv, ws->comp_score, w, &f->batch, view, ws->freq[1], for_index);
}

/* Which compressed entries each row attends to, into ws->chosen. */
static void choose_entries(struct forward *f, const struct attention_weights *w,
                           const struct kernel_kv *view)
{
    struct kernels *k = f->k;
    struct workspace *ws = f->ws;
    int T = f->batch.n_rows;

    project(f, ws->index_q, ws->q_latent_q, &w->index_wq_b,
            (int64_t)f->c->index_n_heads * f->c->index_head_dim);
    k->ops->linear(k, ws->index_w, ws->x, &w->index_proj, T, false);
    k->ops->index_query(k, ws->index_q, ws->index_w, &f->batch, ws->freq[1]);
    k->ops->index_select(k, ws->chosen, ws->index_q, ws->index_w, &f->batch, view);
}

/* ws->x -> ws->y */
static void attention(struct forward *f, const struct attention_weights *w, int layer)
{
    struct kernels *k = f->k;
    struct workspace *ws = f->ws;
    struct kernel_kv view = kv_view(f, layer);
    struct dev_ptr freq = ws->freq[view.ratio > 0];
    int T = f->batch.n_rows, ql = f->c->q_lora_rank;

    k->ops->act_quant(k, ws->xq, ws->x, T, f->c->hidden_size);
    k->ops->linear_q(k, ws->q_latent, ws->xq, &w->wq_a, T);
    k->ops->rms_norm(k, ws->q_latent, ws->q_latent, &w->q_norm, T, ql);
    k->ops->act_quant(k, ws->q_latent_q, ws->q_latent, T, ql);
    k->ops->linear_q(k, ws->q, ws->q_latent_q, &w->wq_b, T);
    k->ops->q_norm_rope(k, ws->q, &f->batch, freq);

    k->ops->linear_q(k, ws->kv, ws->xq, &w->wkv, T);
    k->ops->kv_latent(k, ws->rows, ws->kv, &w->kv_norm, &f->batch, freq, &view);
    if (view.ratio == 4)
        compress(f, &w->index_comp, &view, true);
    if (view.ratio > 0)
        compress(f, &w->comp, &view, false);
    settle_kv(f);
    if (view.ratio == 4)
        choose_entries(f, w, &view);
    k->ops->attention(k, ws->o, ws->q, ws->rows, ws->chosen, &w->sink, &f->batch, &view, freq);
    settle_kv(f);
    if (writes_kv(f))
        k->ops->window_commit(k, ws->rows, &f->batch, &view);

    project_groups(f, &w->wo_a);
    k->ops->act_quant(k, ws->xq, ws->o_low, T, f->c->o_groups * f->c->o_lora_rank);
    project(f, ws->y, ws->xq, &w->wo_b, f->c->hidden_size);
}

/* ws->x -> ws->y */
static void experts(struct forward *f, const struct moe_weights *w, int layer, bool hashed)
{
    struct kernels *k = f->k;
    struct workspace *ws = f->ws;
    int T = f->batch.n_rows;

    k->ops->gate(k, ws->ids, ws->gate_w, ws->x, &w->gate, hashed ? NULL : &w->bias,
                 hashed ? &w->table : NULL, f->batch.tokens, T);
    k->ops->act_quant(k, ws->xq, ws->x, T, f->c->hidden_size);
    if (f->comm == NULL) {
        k->ops->moe(k, ws->y, ws->xq, ws->ids, ws->gate_w, w->experts, &w->shared, T);
        return;
    }
    /* Each part has one owner, so that the sum over ranks has one term: exact in any order. */
    k->ops->moe_parts(k, ws->parts, ws->xq, ws->ids, ws->gate_w, w->experts,
                      shard_has_shared(f->shard, layer) ? &w->shared : NULL, f->shard->first_expert,
                      f->shard->n_experts, T);
    comm_all_reduce(f->comm, ws->parts,
                    (size_t)T * (size_t)(f->c->n_active + 1) * (size_t)f->c->hidden_size,
                    COMM_BF16);
    k->ops->moe_sum(k, ws->y, ws->parts, ws->ids, T);
}

void forward_layer(struct forward *f, const struct layer_weights *w, int layer,
                   struct dev_ptr streams)
{
    struct kernels *k = f->k;
    struct workspace *ws = f->ws;
    int T = f->batch.n_rows;

    k->ops->hc_read(k, ws->x, ws->post, ws->comb, streams, &w->hc_attn.fn, &w->hc_attn.scale,
                    &w->hc_attn.base, &w->attn_norm, T);
    attention(f, &w->attn, layer);
    k->ops->hc_write(k, streams, ws->y, streams, ws->post, ws->comb, T);
    k->ops->hc_read(k, ws->x, ws->post, ws->comb, streams, &w->hc_ffn.fn, &w->hc_ffn.scale,
                    &w->hc_ffn.base, &w->ffn_norm, T);
    experts(f, &w->moe, layer, w->hashed);
    k->ops->hc_write(k, streams, ws->y, streams, ws->post, ws->comb, T);
}

void forward_main(struct forward *f)
{
    struct kernels *k = f->k;

    k->ops->embed(k, f->ws->streams, &f->w->embed, f->batch.tokens, f->batch.n_rows, f->c->hc_mult);
    for (int i = 0; i < f->w->n_layers; i++)
        forward_layer(f, &f->w->layers[i], i, f->ws->streams);
}

void forward_mtp(struct forward *f, int i)
{
    struct kernels *k = f->k;
    struct workspace *ws = f->ws;
    const struct mtp_weights *w = &f->w->mtp[i];
    int T = f->batch.n_rows, hc = f->c->hc_mult, d = f->c->hidden_size;
    struct dev_ptr tokens = f->batch.tokens;

    k->ops->rms_norm(k, ws->x, ws->streams, &w->hnorm, T * hc, d); /* each stream by itself */
    k->ops->act_quant(k, ws->xq, ws->x, T * hc, d);
    k->ops->linear_q(k, ws->mtp_streams, ws->xq, &w->h_proj, T * hc);
    k->ops->embed(k, ws->x, &f->w->embed, ws->next_tokens, T, 1);
    k->ops->rms_norm(k, ws->x, ws->x, &w->enorm, T, d);
    k->ops->act_quant(k, ws->xq, ws->x, T, d);
    k->ops->linear_q(k, ws->y, ws->xq, &w->e_proj, T);
    k->ops->mtp_join(k, ws->mtp_streams, ws->y, ws->mtp_streams, T);
    f->batch.tokens = ws->next_tokens;
    forward_layer(f, &w->layer, f->w->n_layers + i, ws->mtp_streams);
    f->batch.tokens = tokens;
}

void forward_head(struct forward *f, const struct head_weights *w, struct dev_ptr streams, int n)
{
    struct kernels *k = f->k;
    struct workspace *ws = f->ws;

    k->ops->hc_head(k, ws->x, streams, ws->logit_rows, &w->hc.fn, &w->hc.scale, &w->hc.base,
                    &w->norm, n);
    k->ops->linear(k, f->shard->vocab ? ws->share : ws->logits, ws->x, &f->w->head, n, true);
    if (f->shard->vocab)
        comm_all_gather_columns(f->comm, ws->logits, ws->share, (size_t)n,
                                (size_t)f->w->head.rows * sizeof(float));
}
