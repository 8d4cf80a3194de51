#include "common/model/workspace.h"

#include <string.h>

#include "common/kv/geometry.h"
#include "common/model/rope.h"

/* First pass: adds up; second pass: hands out. */
struct cutter {
    uint64_t base; /* 0 in the first pass */
    size_t at;
};

static void cut(struct cutter *c, struct dev_ptr *out, size_t bytes)
{
    out->addr = c->base == 0 ? 0 : c->base + c->at;
    c->at += (bytes + 255) / 256 * 256;
}

static size_t max2(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* The widest product that is cut by columns. */
static size_t share_bytes(const struct model_config *c, size_t T, size_t n_logits, size_t n_ranks)
{
    size_t widest = max2((size_t)c->o_groups * (size_t)c->o_lora_rank,
                         (size_t)c->index_n_heads * (size_t)c->index_head_dim);

    widest = T * max2(widest, (size_t)c->hidden_size) * 2;
    return (max2(widest, n_logits * (size_t)c->vocab_size * 4) + n_ranks - 1) / n_ranks;
}

static void lay_out(struct cutter *u, struct workspace *ws, struct kernels *k,
                    const struct model_config *c, size_t row_bytes, size_t n_logits, size_t n_ranks)
{
    size_t T = (size_t)k->dims.max_rows, S = (size_t)k->dims.max_seqs, d = (size_t)c->hidden_size;
    size_t hc = (size_t)c->hc_mult, HD = (size_t)k->dims.n_heads * (size_t)c->head_dim;
    size_t GO = (size_t)c->o_groups * (size_t)c->o_lora_rank, D = (size_t)c->head_dim;
    size_t quant_d = k->ops->act_quant_bytes(k, c->hidden_size);

    cut(u, &ws->streams, T * hc * d * 2);
    cut(u, &ws->mtp_streams, c->n_mtp > 0 ? T * hc * d * 2 : 0);
    cut(u, &ws->x, T * hc * d * 2); /* the MTP block normalises all streams here */
    cut(u, &ws->y, T * d * 2);
    cut(u, &ws->xq, T * max2(hc * quant_d, k->ops->act_quant_bytes(k, (int)GO)));
    cut(u, &ws->q_latent, T * (size_t)c->q_lora_rank * 2);
    cut(u, &ws->q_latent_q, T * k->ops->act_quant_bytes(k, c->q_lora_rank));
    cut(u, &ws->q, T * HD * 2);
    cut(u, &ws->o, T * HD * 2);
    cut(u, &ws->o_low, T * GO * 2);
    cut(u, &ws->kv, T * D * 2);
    cut(u, &ws->rows, T * row_bytes);
    cut(u, &ws->comp_kv, T * 2 * max2(D, (size_t)c->index_head_dim) * 4);
    cut(u, &ws->comp_score, T * 2 * max2(D, (size_t)c->index_head_dim) * 4);
    cut(u, &ws->index_q, T * (size_t)c->index_n_heads * (size_t)c->index_head_dim * 2);
    cut(u, &ws->index_w, T * (size_t)c->index_n_heads * 2);
    cut(u, &ws->chosen, T * (size_t)c->index_topk * 4);
    cut(u, &ws->post, T * hc * 4);
    cut(u, &ws->comb, T * hc * hc * 4);
    cut(u, &ws->ids, T * (size_t)c->n_active * 4);
    cut(u, &ws->gate_w, T * (size_t)c->n_active * 4);
    cut(u, &ws->logits, n_logits * (size_t)c->vocab_size * 4);
    cut(u, &ws->logit_rows, n_logits * 4);
    cut(u, &ws->share, n_ranks > 1 ? share_bytes(c, T, n_logits, n_ranks) : 0);
    cut(u, &ws->parts, n_ranks > 1 ? T * (size_t)(c->n_active + 1) * d * 2 : 0);
    cut(u, &ws->row_seq, T * 4);
    cut(u, &ws->row_pos, T * 4);
    cut(u, &ws->tokens, T * 4);
    cut(u, &ws->next_tokens, T * 4);
    cut(u, &ws->seq_row, (S + 1) * 4);
    cut(u, &ws->seq_start, S * 4);
    cut(u, &ws->seq_slot, S * 4);
    cut(u, &ws->block_table, S * (size_t)ws->table_stride * 4);
    cut(u, &ws->freq[0], (size_t)c->rope_dim * 2);
    cut(u, &ws->freq[1], (size_t)c->rope_dim * 2);
}

static void write_frequencies(struct workspace *ws, struct kernels *k, const struct model_config *c)
{
    float freq[2048];

    for (int compressed = 0; compressed < 2; compressed++) {
        rope_frequencies(c, compressed, freq);
        k->ops->dev_write(k, ws->freq[compressed], freq, (size_t)c->rope_dim / 2 * sizeof(float));
    }
}

size_t workspace_bytes(struct kernels *k, const struct model_config *c, int row_bytes,
                       int max_logit_rows, int n_ranks)
{
    struct workspace ws = {.table_stride = (int)kv_pages_for((uint64_t)k->dims.max_context)};
    struct cutter u = {0};

    lay_out(&u, &ws, k, c, (size_t)row_bytes, (size_t)max_logit_rows, (size_t)n_ranks);
    return u.at;
}

enum status_code workspace_init(struct workspace *ws, struct kernels *k,
                                const struct model_config *c, int row_bytes, int max_logit_rows,
                                int n_ranks, struct status *st)
{
    struct cutter u;

    memset(ws, 0, sizeof(*ws));
    ws->table_stride = (int)kv_pages_for((uint64_t)k->dims.max_context);
    ws->bytes = workspace_bytes(k, c, row_bytes, max_logit_rows, n_ranks);
    ws->base = k->ops->dev_alloc(k, ws->bytes);
    if (dev_is_null(ws->base))
        return status_set(
            st, ST_EXHAUSTED,
            "no memory for a workspace of %zu bytes (%d rows a step, %d rows of logits)", ws->bytes,
            k->dims.max_rows, max_logit_rows);
    u = (struct cutter){.base = ws->base.addr};
    lay_out(&u, ws, k, c, (size_t)row_bytes, (size_t)max_logit_rows, (size_t)n_ranks);
    write_frequencies(ws, k, c);
    return status_ok(st);
}

void workspace_deinit(struct workspace *ws, struct kernels *k)
{
    if (!dev_is_null(ws->base))
        k->ops->dev_free(k, ws->base);
    memset(ws, 0, sizeof(*ws));
}
