#include "kernels/cuda/ops.h"

#include "kernels/cuda/attention.h"
#include "kernels/cuda/compress.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/gate.h"
#include "kernels/cuda/index.h"
#include "kernels/cuda/latent.h"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/streams.h"

static void ops_rms_norm(struct kernels *k, struct dev_ptr y, struct dev_ptr x,
                         const struct weight *w, int T, int n)
{
    struct rms_norm_args a = {DEV(uint16_t, y), DEV(const uint16_t, x),
                              w != 0 ? DEV(const uint16_t, w->data) : 0, n,
                              (float)k->dims.norm_eps};

    cuda_rms_norm(cuda_ops_of(k)->stream, a, T);
}

static void ops_embed(struct kernels *k, struct dev_ptr streams, const struct weight *table,
                      struct dev_ptr tokens, int T, int copies)
{
    struct embed_args a = {DEV(uint16_t, streams), DEV(const uint16_t, table->data),
                           DEV(const int32_t, tokens), (int)table->cols, copies};

    cuda_embed(cuda_ops_of(k)->stream, a, T);
}

static struct hc_read_args read_args(struct kernels *k, struct dev_ptr x, struct dev_ptr streams,
                                     const struct weight *fn, const struct weight *scale,
                                     const struct weight *base, const struct weight *norm)
{
    struct hc_read_args a;

    a.post = a.comb = 0; /* the callers' */
    a.rows = 0;
    a.n_fn = 0;
    a.x = DEV(uint16_t, x);
    a.streams = DEV(const uint16_t, streams);
    a.fn = DEV(const float, fn->data);
    a.scale = DEV(const float, scale->data);
    a.base = DEV(const float, base->data);
    a.norm = norm != 0 ? DEV(const uint16_t, norm->data) : 0;
    a.partial = (float *)cuda_ops_of(k)->work;
    a.hidden = k->dims.hidden;
    a.iters = k->dims.hc_iters;
    a.hc_eps = (float)k->dims.hc_eps;
    a.norm_eps = (float)k->dims.norm_eps;
    return a;
}

static void ops_hc_read(struct kernels *k, struct dev_ptr x, struct dev_ptr post,
                        struct dev_ptr comb, struct dev_ptr streams, const struct weight *fn,
                        const struct weight *scale, const struct weight *base,
                        const struct weight *norm, int T)
{
    struct hc_read_args a = read_args(k, x, streams, fn, scale, base, norm);

    a.post = DEV(float, post);
    a.comb = DEV(float, comb);
    cuda_hc_read(cuda_ops_of(k)->stream, a, T);
}

static void ops_hc_head(struct kernels *k, struct dev_ptr x, struct dev_ptr streams,
                        struct dev_ptr rows, const struct weight *fn, const struct weight *scale,
                        const struct weight *base, const struct weight *norm, int n)
{
    struct hc_read_args a = read_args(k, x, streams, fn, scale, base, norm);

    a.rows = DEV(const int32_t, rows);
    cuda_hc_head(cuda_ops_of(k)->stream, a, n);
}

static void ops_hc_write(struct kernels *k, struct dev_ptr out, struct dev_ptr y,
                         struct dev_ptr streams, struct dev_ptr post, struct dev_ptr comb, int T)
{
    struct hc_write_args a = {DEV(uint16_t, out),           DEV(const uint16_t, y),
                              DEV(const uint16_t, streams), DEV(const float, post),
                              DEV(const float, comb),       k->dims.hidden};

    cuda_hc_write(cuda_ops_of(k)->stream, a, T);
}

static void ops_mtp_join(struct kernels *k, struct dev_ptr out, struct dev_ptr e, struct dev_ptr h,
                         int T)
{
    struct mtp_join_args a = {DEV(uint16_t, out), DEV(const uint16_t, e), DEV(const uint16_t, h),
                              k->dims.hidden};

    cuda_mtp_join(cuda_ops_of(k)->stream, a, T);
}

static void ops_q_norm_rope(struct kernels *k, struct dev_ptr q, const struct kernel_batch *b,
                            struct dev_ptr freq)
{
    const struct kernel_dims *d = &k->dims;
    struct q_norm_rope_args a = {DEV(uint16_t, q),
                                 DEV(const int32_t, b->row_pos),
                                 DEV(const float, freq),
                                 d->n_heads,
                                 d->head_dim,
                                 d->rope_dim,
                                 b->n_rows,
                                 (float)d->norm_eps};

    cuda_q_norm_rope(cuda_ops_of(k)->stream, a);
}

static void ops_kv_latent(struct kernels *k, struct dev_ptr rows, struct dev_ptr kv,
                          const struct weight *norm, const struct kernel_batch *b,
                          struct dev_ptr freq, const struct kernel_kv *v)
{
    const struct kernel_dims *d = &k->dims;
    struct kv_latent_args a = {DEV(uint8_t, rows),
                               DEV(const uint16_t, kv),
                               DEV(const uint16_t, norm->data),
                               DEV(const int32_t, b->row_pos),
                               DEV(const float, freq),
                               d->head_dim,
                               d->rope_dim,
                               v->row_bytes,
                               b->n_rows,
                               (float)d->norm_eps};

    cuda_kv_latent(cuda_ops_of(k)->stream, a);
}

static void ops_window_commit(struct kernels *k, struct dev_ptr rows, const struct kernel_batch *b,
                              const struct kernel_kv *v)
{
    struct window_commit_args a = {DEV(const uint8_t, rows), *b, *v, k->dims.window};

    cuda_window_commit(cuda_ops_of(k)->stream, a);
}

static void ops_compress(struct kernels *k, struct dev_ptr kv, struct dev_ptr score,
                         const struct compressor_weights *w, const struct kernel_batch *b,
                         const struct kernel_kv *v, struct dev_ptr freq, bool for_index)
{
    const struct kernel_dims *d = &k->dims;
    struct compress_args a;

    a.kv = DEV(const float, kv);
    a.score = DEV(const float, score);
    a.ape = DEV(const float, w->ape.data);
    a.norm = DEV(const uint16_t, w->norm.data);
    a.freq = DEV(const float, freq);
    a.b = *b;
    a.v = *v;
    a.pooled = (uint16_t *)cuda_ops_of(k)->work;
    a.for_index = for_index;
    a.cols = (int)w->ape.cols;
    a.dim = for_index ? d->index_head_dim : d->head_dim;
    a.rope_dim = d->rope_dim;
    a.eps = (float)d->norm_eps;
    cuda_compress(cuda_ops_of(k)->stream, a);
}

static void ops_index_query(struct kernels *k, struct dev_ptr q, struct dev_ptr weights,
                            const struct kernel_batch *b, struct dev_ptr freq)
{
    const struct kernel_dims *d = &k->dims;
    struct index_query_args a = {
        DEV(uint16_t, q),
        DEV(uint16_t, weights),
        DEV(const int32_t, b->row_pos),
        DEV(const float, freq),
        d->index_n_heads,
        d->rope_dim,
        b->n_rows,
        (float)(pow(d->index_head_dim, -0.5) * pow(d->index_n_heads, -0.5))};

    cuda_index_query(cuda_ops_of(k)->stream, a);
}

/* In as many rounds as the workspace makes of the rows. */
static void ops_index_select(struct kernels *k, struct dev_ptr chosen, struct dev_ptr q,
                             struct dev_ptr weights, const struct kernel_batch *b,
                             const struct kernel_kv *v)
{
    const struct kernel_dims *d = &k->dims;
    struct cuda_ops *o = cuda_ops_of(k);
    struct index_select_args a;
    size_t fit;

    a.chosen = DEV(int32_t, chosen);
    a.q = DEV(const uint16_t, q);
    a.weights = DEV(const uint16_t, weights);
    a.b = *b;
    a.v = *v;
    a.n_heads = d->index_n_heads;
    a.topk = d->index_topk;
    a.work = (unsigned char *)o->work;
    a.max_context = d->max_context;
    fit = o->work_bytes / cuda_index_row_bytes(v->ratio, d->max_context);
    a.round_rows = fit < (size_t)b->n_rows ? (int)fit : b->n_rows;
    a.row0 = a.phase = 0;
    cuda_index_select(o->stream, a);
}

/* Split over blocks where the rows alone do not fill the GPU and the workspace has room. */
static void ops_attention(struct kernels *k, struct dev_ptr o, struct dev_ptr q,
                          struct dev_ptr rows, struct dev_ptr chosen, const struct weight *sink,
                          const struct kernel_batch *b, const struct kernel_kv *v,
                          struct dev_ptr freq)
{
    const struct kernel_dims *d = &k->dims;
    struct cuda_ops *at = cuda_ops_of(k);
    int blocks = (d->n_heads + ATTENTION_HEADS - 1) / ATTENTION_HEADS;
    struct attention_args a;

    a.o = DEV(uint16_t, o);
    a.q = DEV(const uint16_t, q);
    a.rows = DEV(const uint8_t, rows);
    a.chosen = DEV(const int32_t, chosen);
    a.sink = DEV(const float, sink->data);
    a.freq = DEV(const float, freq);
    a.b = *b;
    a.kv = *v;
    a.n_heads = d->n_heads;
    a.head_dim = d->head_dim;
    a.rope_dim = d->rope_dim;
    a.window = d->window;
    a.index_topk = d->index_topk;
    a.n_splits = cuda_attention_splits(v->ratio, d->window, d->index_topk, d->max_context);
    a.partial = 0;
    if (a.n_splits > 1 && b->n_rows * blocks < at->n_sms &&
        cuda_attention_partial_bytes(d->n_heads, d->head_dim, a.n_splits, b->n_rows) <=
            at->work_bytes)
        a.partial = (float *)at->work;
    cuda_attention(at->stream, a);
}

static void ops_gate(struct kernels *k, struct dev_ptr ids, struct dev_ptr weights,
                     struct dev_ptr x, const struct weight *gate, const struct weight *bias,
                     const struct weight *table, struct dev_ptr tokens, int T)
{
    struct cuda_ops *o = cuda_ops_of(k);
    struct dev_ptr logits = {(uint64_t)(uintptr_t)o->work};
    struct gate_args a = {DEV(int32_t, ids),
                          DEV(float, weights),
                          DEV(const float, logits),
                          bias != 0 ? DEV(const float, bias->data) : 0,
                          table != 0 ? DEV(const int64_t, table->data) : 0,
                          DEV(const int32_t, tokens),
                          k->dims.n_experts,
                          k->dims.n_active,
                          k->dims.route_scale};

    k->ops->linear(k, logits, x, gate, T, true);
    cuda_gate(o->stream, a, T);
}

CUDA_API void cuda_ops_fill(struct kernel_ops *ops)
{
    ops->rms_norm = ops_rms_norm;
    ops->embed = ops_embed;
    ops->hc_read = ops_hc_read;
    ops->hc_write = ops_hc_write;
    ops->hc_head = ops_hc_head;
    ops->mtp_join = ops_mtp_join;
    ops->q_norm_rope = ops_q_norm_rope;
    ops->kv_latent = ops_kv_latent;
    ops->compress = ops_compress;
    ops->index_query = ops_index_query;
    ops->index_select = ops_index_select;
    ops->attention = ops_attention;
    ops->window_commit = ops_window_commit;
    ops->gate = ops_gate;
    cuda_products_fill(ops);
}

CUDA_API size_t cuda_ops_work_bytes(const struct kernel_dims *d)
{
    size_t wide = (size_t)(d->head_dim > d->index_head_dim ? d->head_dim : d->index_head_dim);
    size_t needs[5] = {cuda_products_work_bytes(d),
                       cuda_hc_partial_bytes(d->hidden, d->max_rows),
                       (size_t)d->max_rows * wide * sizeof(uint16_t),
                       cuda_index_row_bytes(4, d->max_context),
                       (size_t)d->max_rows * (size_t)d->n_experts * sizeof(float)};
    size_t most = 0;

    for (int i = 0; i < 5; i++)
        most = needs[i] > most ? needs[i] : most;
    return most;
}

CUDA_API const char *cuda_ops_refuse(const struct kernel_dims *d)
{
    if (d->hc != STREAMS_HC)
        return "hc_mult is not 4";
    if (d->hidden % 128 != 0 || d->hidden > STREAMS_HIDDEN_MAX)
        return "hidden_size is above 8192 or no multiple of 128";
    if (d->q_lora_rank % 128 != 0 || d->moe_inter % 128 != 0 ||
        d->o_groups * d->o_lora_rank % 128 != 0)
        return "q_lora_rank, moe_intermediate_size or o_groups * o_lora_rank is no multiple of 128";
    if (d->o_lora_rank % 16 != 0 || d->n_heads / d->o_groups * d->head_dim % 32 != 0)
        return "o_lora_rank is no multiple of 16, or the heads of a group are none of 32 dims";
    if (d->head_dim % 64 != 0 || d->head_dim > 512 || d->rope_dim != 64)
        return "head_dim is above 512 or no multiple of 64, or qk_rope_head_dim is not 64";
    if (d->index_head_dim != INDEX_DIM || d->index_n_heads > INDEX_HEADS_MAX)
        return "index_head_dim is not 128 or index_n_heads above 128";
    if (d->index_topk > INDEX_TOPK_MAX)
        return "index_topk is above 2048";
    if (d->n_experts > GATE_EXPERTS_MAX || d->n_active > GATE_ACTIVE_MAX)
        return "there are more than 1024 experts, or more than 32 of a token";
    if (d->max_context / 4 > INDEX_PART * INDEX_PARTS_MAX)
        return "a context is longer than 2,097,152 tokens";
    if (d->max_rows > 65535) /* a grid's y */
        return "a step has more than 65535 rows";
    return 0;
}
