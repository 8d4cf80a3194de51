/* The CUDA kernels, emulated on the host: ref's table with the launches of kernels/cuda in it. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/compress.h"
#include "kernels/cuda/index.h"
#include "kernels/cuda/latent.h"
#include "kernels/cuda/streams.h"
#include "kernels/ref/ref.h"
#include "tests/unit/kernels/rows_levels.h"

#include <math.h>
#include <stdlib.h>

const int rows_n_levels = 1;

/* Workspace of one call. */
static void *work(size_t bytes)
{
    static void *memory;

    free(memory);
    memory = malloc(bytes + 1);
    if (memory == NULL)
        abort();
    return memory;
}

static void *at(const struct weight *w)
{
    return ref_ptr(w->data);
}

static void embed(struct kernels *k, struct dev_ptr streams, const struct weight *table,
                  struct dev_ptr tokens, int T, int copies)
{
    struct embed_args a = {ref_ptr(streams), at(table), ref_ptr(tokens), (int)table->cols, copies};

    (void)k;
    cuda_embed(0, a, T);
}

static struct hc_read_args read_args(struct kernels *k, struct dev_ptr x, struct dev_ptr streams,
                                     const struct weight *fn, const struct weight *scale,
                                     const struct weight *base, const struct weight *norm, int T)
{
    return (struct hc_read_args){.x = ref_ptr(x),
                                 .streams = ref_ptr(streams),
                                 .fn = at(fn),
                                 .scale = at(scale),
                                 .base = at(base),
                                 .norm = norm != NULL ? at(norm) : NULL,
                                 .partial = work(cuda_hc_partial_bytes(k->dims.hidden, T)),
                                 .hidden = k->dims.hidden,
                                 .iters = k->dims.hc_iters,
                                 .hc_eps = (float)k->dims.hc_eps,
                                 .norm_eps = (float)k->dims.norm_eps};
}

static void hc_read(struct kernels *k, struct dev_ptr x, struct dev_ptr post, struct dev_ptr comb,
                    struct dev_ptr streams, const struct weight *fn, const struct weight *scale,
                    const struct weight *base, const struct weight *norm, int T)
{
    struct hc_read_args a = read_args(k, x, streams, fn, scale, base, norm, T);

    a.post = ref_ptr(post);
    a.comb = ref_ptr(comb);
    cuda_hc_read(0, a, T);
}

static void hc_head(struct kernels *k, struct dev_ptr x, struct dev_ptr streams,
                    struct dev_ptr rows, const struct weight *fn, const struct weight *scale,
                    const struct weight *base, const struct weight *norm, int n)
{
    struct hc_read_args a = read_args(k, x, streams, fn, scale, base, norm, n);

    a.rows = ref_ptr(rows);
    cuda_hc_head(0, a, n);
}

static void hc_write(struct kernels *k, struct dev_ptr out, struct dev_ptr y,
                     struct dev_ptr streams, struct dev_ptr post, struct dev_ptr comb, int T)
{
    struct hc_write_args a = {ref_ptr(out),  ref_ptr(y),    ref_ptr(streams),
                              ref_ptr(post), ref_ptr(comb), k->dims.hidden};

    cuda_hc_write(0, a, T);
}

static void mtp_join(struct kernels *k, struct dev_ptr out, struct dev_ptr e, struct dev_ptr h,
                     int T)
{
    cuda_mtp_join(0, (struct mtp_join_args){ref_ptr(out), ref_ptr(e), ref_ptr(h), k->dims.hidden},
                  T);
}

static void q_norm_rope(struct kernels *k, struct dev_ptr q, const struct kernel_batch *b,
                        struct dev_ptr freq)
{
    const struct kernel_dims *d = &k->dims;

    cuda_q_norm_rope(0, (struct q_norm_rope_args){ref_ptr(q), ref_ptr(b->row_pos), ref_ptr(freq),
                                                  d->n_heads, d->head_dim, d->rope_dim, b->n_rows,
                                                  (float)d->norm_eps});
}

static void kv_latent(struct kernels *k, struct dev_ptr rows, struct dev_ptr kv,
                      const struct weight *norm, const struct kernel_batch *b, struct dev_ptr freq,
                      const struct kernel_kv *v)
{
    const struct kernel_dims *d = &k->dims;

    cuda_kv_latent(0, (struct kv_latent_args){
                          ref_ptr(rows), ref_ptr(kv), at(norm), ref_ptr(b->row_pos), ref_ptr(freq),
                          d->head_dim, d->rope_dim, v->row_bytes, b->n_rows, (float)d->norm_eps});
}

static void window_commit(struct kernels *k, struct dev_ptr rows, const struct kernel_batch *b,
                          const struct kernel_kv *v)
{
    cuda_window_commit(0, (struct window_commit_args){ref_ptr(rows), *b, *v, k->dims.window});
}

static void compress(struct kernels *k, struct dev_ptr kv, struct dev_ptr score,
                     const struct compressor_weights *w, const struct kernel_batch *b,
                     const struct kernel_kv *v, struct dev_ptr freq, bool for_index)
{
    const struct kernel_dims *d = &k->dims;
    int dim = for_index ? d->index_head_dim : d->head_dim;
    struct compress_args a = {.kv = ref_ptr(kv),
                              .score = ref_ptr(score),
                              .ape = at(&w->ape),
                              .norm = at(&w->norm),
                              .freq = ref_ptr(freq),
                              .b = *b,
                              .v = *v,
                              .pooled = work((size_t)b->n_rows * (size_t)dim * 2),
                              .for_index = for_index,
                              .cols = (int)w->ape.cols,
                              .dim = dim,
                              .rope_dim = d->rope_dim,
                              .eps = (float)d->norm_eps};

    cuda_compress(0, a);
}

static void index_query(struct kernels *k, struct dev_ptr q, struct dev_ptr weights,
                        const struct kernel_batch *b, struct dev_ptr freq)
{
    const struct kernel_dims *d = &k->dims;
    struct index_query_args a = {
        .q = ref_ptr(q),
        .weights = ref_ptr(weights),
        .row_pos = ref_ptr(b->row_pos),
        .freq = ref_ptr(freq),
        .n_heads = d->index_n_heads,
        .rope_dim = d->rope_dim,
        .n_rows = b->n_rows,
        .scale = (float)(pow(d->index_head_dim, -0.5) * pow(d->index_n_heads, -0.5))};

    cuda_index_query(0, a);
}

/* In rounds, as where the scores of all rows do not fit. */
static void index_select(struct kernels *k, struct dev_ptr chosen, struct dev_ptr q,
                         struct dev_ptr weights, const struct kernel_batch *b,
                         const struct kernel_kv *v)
{
    const struct kernel_dims *d = &k->dims;
    struct index_select_args a = {.chosen = ref_ptr(chosen),
                                  .q = ref_ptr(q),
                                  .weights = ref_ptr(weights),
                                  .b = *b,
                                  .v = *v,
                                  .n_heads = d->index_n_heads,
                                  .topk = d->index_topk,
                                  .stride = cuda_index_stride(v->ratio, d->max_context),
                                  .round_rows = 150};

    a.scores = work((size_t)a.round_rows * (size_t)a.stride * 2);
    cuda_index_select(0, a);
}

/* Few rows are split over blocks, as in decode; many are not. */
static void attention(struct kernels *k, struct dev_ptr o, struct dev_ptr q, struct dev_ptr rows,
                      struct dev_ptr chosen, const struct weight *sink,
                      const struct kernel_batch *b, const struct kernel_kv *v, struct dev_ptr freq)
{
    const struct kernel_dims *d = &k->dims;
    struct attention_args a = {.o = ref_ptr(o),
                               .q = ref_ptr(q),
                               .rows = ref_ptr(rows),
                               .chosen = ref_ptr(chosen),
                               .sink = at(sink),
                               .freq = ref_ptr(freq),
                               .b = *b,
                               .kv = *v,
                               .n_heads = d->n_heads,
                               .head_dim = d->head_dim,
                               .rope_dim = d->rope_dim,
                               .window = d->window,
                               .index_topk = d->index_topk};

    a.n_splits = cuda_attention_splits(v->ratio, d->window, d->index_topk, d->max_context);
    if (b->n_rows <= 64)
        a.partial =
            work(cuda_attention_partial_bytes(d->n_heads, d->head_dim, a.n_splits, b->n_rows));
    cuda_attention(0, a);
}

bool rows_open(int level, struct rig *r, const struct kernel_dims *dims, int n_threads)
{
    static struct kernel_ops ops;

    (void)level;
    if (!rig_open(r, CPU_ISA_REF, dims, n_threads))
        return false;
    ops = *r->k.ops;
    ops.name = "cuda, emulated";
    ops.embed = embed;
    ops.hc_read = hc_read;
    ops.hc_write = hc_write;
    ops.hc_head = hc_head;
    ops.mtp_join = mtp_join;
    ops.q_norm_rope = q_norm_rope;
    ops.kv_latent = kv_latent;
    ops.attention = attention;
    ops.compress = compress;
    ops.index_query = index_query;
    ops.index_select = index_select;
    ops.window_commit = window_commit;
    r->k.ops = &ops;
    return true;
}

void rows_close(struct rig *r)
{
    r->k.ops = &kernels_ref_ops; /* what was opened */
    rig_close(r);
}
