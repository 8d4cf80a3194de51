#include "common/model/rank_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- opening ---- */

/* Operations run through here: each is a beat of the rank's heart. */
static void run_pool(void *rank, void (*fn)(void *arg, int part, int n_parts), void *arg)
{
    struct rank *r = rank;

    if (r->comm != NULL)
        comm_beat(r->comm);
    pool_run(r->pool, fn, arg);
}

static int node_of(void *rank, int part)
{
    return pool_node(((struct rank *)rank)->pool, part);
}

static enum status_code pick_isa(const char *name, enum cpu_isa *out, struct status *st)
{
    *out = kernels_cpu_best();
    if (name == NULL || strcmp(name, "auto") == 0 || kernels_cpu_named(name, out))
        return status_ok(st);
    return status_set(st, ST_INVALID,
                      "instruction set '%s' is not one of auto, ref, avx2, avx512, amx", name);
}

/* A rank whose heads are cut is a model of fewer heads to its kernels. */
static struct kernel_dims dims_of(const struct model_config *c, const struct shard *s,
                                  const struct model_options *opt)
{
    return (struct kernel_dims){
        .hidden = c->hidden_size,
        .hc = c->hc_mult,
        .n_heads = s->heads ? c->n_heads / s->n_ranks : c->n_heads,
        .head_dim = c->head_dim,
        .rope_dim = c->rope_dim,
        .q_lora_rank = c->q_lora_rank,
        .o_groups = s->heads ? c->o_groups / s->n_ranks : c->o_groups,
        .o_lora_rank = c->o_lora_rank,
        .window = c->window,
        .index_n_heads = c->index_n_heads,
        .index_head_dim = c->index_head_dim,
        .index_topk = c->index_topk,
        .n_experts = c->n_experts,
        .n_active = c->n_active,
        .moe_inter = c->moe_inter,
        .vocab = c->vocab_size,
        .hc_iters = c->hc_iters,
        .hc_eps = c->hc_eps,
        .norm_eps = c->norm_eps,
        .route_scale = c->route_scale,
        .swiglu_limit = c->swiglu_limit,
        .max_rows = opt->max_batch_tokens,
        .max_seqs = opt->max_batch_seqs + 1, /* what fills up a recorded step is one */
        .max_context = opt->max_context,
    };
}

/* @return the GPU's number, -1: the CPU, -2: neither */
static int ordinal_of(const char *device)
{
    char *end;
    long n;

    if (device == NULL || strcmp(device, "cpu") == 0)
        return -1;
    if (strncmp(device, "cuda", 4) != 0)
        return -2;
    if (device[4] == '\0')
        return 0;
    if (device[4] != ':' || device[5] < '0' || device[5] > '9')
        return -2;
    n = strtol(device + 5, &end, 10);
    return *end == '\0' && n <= 1023 ? (int)n : -2;
}

static enum status_code open_cpu(struct rank *r, const struct model_options *opt,
                                 const struct kernel_dims *dims, const struct kernel_env *env,
                                 struct status *st)
{
    enum cpu_isa isa;

    if (pick_isa(opt->cpu_isa, &isa, st) != ST_OK)
        return st->code;
    if (kernels_open_cpu(&r->kernels, isa, dims, env) != 0)
        return status_set(st, ST_INVALID, "cpu backend: %s", r->kernels.error);
    return status_ok(st);
}

static enum status_code open_cuda(struct rank *r, const struct model_options *opt,
                                  const struct kernel_dims *dims, const struct kernel_env *env,
                                  struct status *st)
{
    int ordinal = ordinal_of(opt->device);

    if (ordinal == -2)
        return status_set(st, ST_INVALID, "device '%s' is not cpu or cuda:N", opt->device);
    ordinal += r->shard.rank;
    if ((opt->open_kernels != NULL ? opt->open_kernels : kernels_open_cuda)(&r->kernels, ordinal,
                                                                            dims, env) != 0)
        return status_set(st, ST_INVALID, "device cuda:%d: %s; --device cpu works without", ordinal,
                          r->kernels.error);
    return status_ok(st);
}

bool rank_on_device(const struct model_options *opt)
{
    return ordinal_of(opt->device) != -1 || opt->open_kernels != NULL;
}

static enum status_code open_kernels(struct rank *r, const struct model_options *opt, int n_threads,
                                     struct status *st)
{
    struct kernel_dims dims = dims_of(r->config, &r->shard, opt);
    struct kernel_env env;

    if (pool_new_pinned(n_threads, opt->pin_threads, &r->pool, st) != ST_OK)
        return st->code;
    env = (struct kernel_env){.parallel = run_pool,
                              .pool = r,
                              .n_threads = pool_threads(r->pool),
                              .n_nodes = pool_nodes(r->pool),
                              .node_of = node_of,
                              .as_mapped = opt->no_repack};
    if ((rank_on_device(opt) ? open_cuda : open_cpu)(r, opt, &dims, &env, st) != ST_OK)
        return st->code;
    r->kernels_open = true;
    if (r->shard.n_ranks > 1 &&
        (r->kernels.ops->moe_parts == NULL || r->kernels.ops->moe_sum == NULL))
        return status_set(st, ST_INVALID, "%s runs on one rank only: take --tp-size 1",
                          r->kernels.ops->name);
    return status_ok(st);
}

/* Ints of a whole batch; see upload(). */
static size_t staging_len(const struct rank *r, const struct model_options *opt)
{
    size_t rows = (size_t)opt->max_batch_tokens, table = (size_t)r->ws.table_stride;
    size_t most = rows > table ? rows : table;

    if (most < (size_t)opt->max_logit_rows)
        most = (size_t)opt->max_logit_rows;
    return most + (size_t)opt->max_batch_seqs + 2;
}

/* On a device: whether weights and workspace fit, before minutes are spent on reading them. The
 * bytes are the checkpoint's: what panels and scales add is little, and refused when it is met. */
static enum status_code check_room(struct rank *r, const struct model_options *opt,
                                   const struct safetensors *files, struct status *st)
{
    static const double MIB = 1 << 20;
    size_t ws, at = 0;
    struct kernel_room room;
    struct weights *w;
    char classes[160];

    if (r->kernels.ops->room == NULL)
        return status_ok(st);
    if (weights_load(files, r->config, &r->shard, NULL, &w, st) != ST_OK)
        return st->code;
    r->kernels.ops->room(&r->kernels, &room);
    ws = workspace_bytes(&r->kernels, r->config, (int)r->geometry->row_bytes, opt->max_logit_rows,
                         r->shard.n_ranks);
    for (int i = 0; i < WEIGHT_CLASSES; i++)
        at += (size_t)snprintf(classes + at, sizeof(classes) - at, "%s%s %.1f", i > 0 ? ", " : "",
                               weight_class_names[i], (double)w->class_bytes[i] / MIB);
    status_ok(st);
    if (w->bytes + ws > room.left)
        status_set(st, ST_EXHAUSTED,
                   "cuda:%d: weights of %.1f MiB (%s) and a workspace of %.1f MiB, %.1f MiB left: "
                   "raise --tp-size or lower --chunked-prefill-size",
                   r->shard.rank + ordinal_of(opt->device), (double)w->bytes / MIB, classes,
                   (double)ws / MIB, (double)room.left / MIB);
    weights_free(w);
    return st->code;
}

enum status_code rank_open(struct rank *r, const struct model_options *opt, int n_threads,
                           const struct safetensors *files, struct status *st)
{
    if (open_kernels(r, opt, n_threads, st) != ST_OK || check_room(r, opt, files, st) != ST_OK ||
        weights_load(files, r->config, &r->shard, &r->kernels, &r->weights, st) != ST_OK ||
        workspace_init(&r->ws, &r->kernels, r->config, (int)r->geometry->row_bytes,
                       opt->max_logit_rows, r->shard.n_ranks, st) != ST_OK)
        return st->code;
    r->staging = malloc(staging_len(r, opt) * sizeof(*r->staging));
    if (r->staging == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a batch");
    return status_ok(st);
}

void rank_close(struct rank *r)
{
    if (r->kernels_open)
        recordings_deinit(&r->recordings, &r->kernels);
    if (r->kernels_open)
        workspace_deinit(&r->ws, &r->kernels);
    weights_free(r->weights);
    if (r->kernels_open)
        kernels_close(&r->kernels);
    pool_free(r->pool);
    free(r->staging);
    *r = (struct rank){0};
}

/* ---- a batch ---- */

int rank_logit_rows(const struct model_span *s)
{
    return s->logits == MODEL_LOGITS_ALL ? s->n_tokens : s->logits == MODEL_LOGITS_LAST;
}

static void write_ints(struct rank *r, struct dev_ptr dst, int n)
{
    r->kernels.ops->dev_write(&r->kernels, dst, r->staging, (size_t)n * sizeof(int32_t));
}

/* The same of the first n ints, and zeros after them up to n_all: rows that fill up a recording. */
static void write_filled(struct rank *r, struct dev_ptr dst, int n, int n_all)
{
    for (int i = n; i < n_all; i++)
        r->staging[i] = 0;
    write_ints(r, dst, n_all);
}

/* One int per row: its sequence, its position, its token. */
static void upload_rows(struct rank *r, const struct model_span *spans, int n, int what,
                        struct dev_ptr dst)
{
    int t = 0;

    for (int s = 0; s < n; s++)
        for (int i = 0; i < spans[s].n_tokens; i++)
            r->staging[t++] = what == 0   ? s
                              : what == 1 ? (int32_t)(spans[s].start + i)
                                          : spans[s].tokens[i];
    write_ints(r, dst, t);
}

static void upload_sequences(struct rank *r, const struct model_span *spans, int n)
{
    struct workspace *ws = &r->ws;
    int32_t *at = r->staging;

    at[0] = 0;
    for (int s = 0; s < n; s++)
        at[s + 1] = at[s] + spans[s].n_tokens;
    write_ints(r, ws->seq_row, n + 1);
    for (int s = 0; s < n; s++)
        at[s] = (int32_t)spans[s].start;
    write_ints(r, ws->seq_start, n);
    for (int s = 0; s < n; s++)
        at[s] = (int32_t)spans[s].slot;
    write_ints(r, ws->seq_slot, n);
    for (int s = 0; s < n; s++) {
        int n_pages = (int)kv_pages_for((uint64_t)(spans[s].start + spans[s].n_tokens));

        memcpy(at, spans[s].pages, (size_t)n_pages * sizeof(*at));
        write_ints(r, dev_at(ws->block_table, (size_t)(s * ws->table_stride) * sizeof(*at)),
                   n_pages);
    }
}

/* The rows that give logits, and then the first of them again up to n_least. @return how many they
 * are */
static int upload_logit_rows(struct rank *r, const struct model_span *spans, int n, int n_least)
{
    int row = 0, count = 0;

    for (int s = 0; s < n; s++) {
        for (int i = spans[s].n_tokens - rank_logit_rows(&spans[s]); i < spans[s].n_tokens; i++)
            r->staging[count++] = row + i;
        row += spans[s].n_tokens;
    }
    write_filled(r, r->ws.logit_rows, count, count < n_least ? n_least : count);
    return count;
}

struct kernel_batch rank_batch(const struct rank *r, int n_rows, int n_seqs)
{
    const struct workspace *ws = &r->ws;

    return (struct kernel_batch){
        .n_rows = n_rows,
        .n_seqs = n_seqs,
        .row_seq = ws->row_seq,
        .row_pos = ws->row_pos,
        .tokens = ws->tokens,
        .seq_row = ws->seq_row,
        .seq_start = ws->seq_start,
        .seq_slot = ws->seq_slot,
        .block_table = ws->block_table,
        .table_stride = ws->table_stride,
    };
}

/* Filled up where there is a recording of more rows. */
static void upload(struct rank *r, const struct kv_memory *kv, const struct model_span *spans,
                   int n)
{
    const struct workspace *ws = &r->ws;
    int n_rows = 0, n_least = 0;

    r->recording = recordings_find(&r->recordings, kv, spans, n);
    for (int s = 0; s < n; s++)
        n_rows += spans[s].n_tokens;
    r->n_rows = n_rows;
    if (r->recording != NULL)
        n_least = r->recording->n_rows;
    if (n_least > n_rows) {
        spans = recordings_pad(&r->recordings, spans, n++, n_least - n_rows);
        n_rows = n_least;
    }
    upload_rows(r, spans, n, 0, ws->row_seq);
    upload_rows(r, spans, n, 1, ws->row_pos);
    upload_rows(r, spans, n, 2, ws->tokens);
    upload_sequences(r, spans, n);
    r->n_logits = upload_logit_rows(r, spans, n, n_least);
    r->last = rank_batch(r, n_rows, n);
}

static struct forward forward_of(struct rank *r, const struct kv_memory *kv)
{
    return (struct forward){
        .k = &r->kernels,
        .c = r->config,
        .g = r->geometry,
        .kv = kv,
        .w = r->weights,
        .ws = &r->ws,
        .batch = r->last,
        .shard = &r->shard,
        .comm = r->comm,
        .kv_shared = !r->own_kv,
    };
}

/* ---- the steps ---- */

static void replay(struct rank *r, void *recording)
{
    r->kernels.ops->replay(&r->kernels, recording);
    r->n_replays++;
}

/* Waits for the device. Its failure is the group's. */
static void finish(struct rank *r)
{
    char why[400];

    if (r->kernels.ops->sync(&r->kernels) == 0 || r->comm == NULL)
        return;
    snprintf(why, sizeof(why), "rank %d: device: %s", r->shard.rank, r->kernels.error);
    comm_fail(r->comm, why);
}

void rank_run_main(struct rank *r, const struct kv_memory *kv, int n_logits)
{
    struct forward f = forward_of(r, kv);

    forward_main(&f);
    if (n_logits > 0)
        forward_head(&f, &r->weights->top, r->ws.streams, n_logits);
}

/* The rows of r->last, whose streams are in place. */
void rank_run_block(struct rank *r, const struct kv_memory *kv, int n_logits)
{
    struct forward f = forward_of(r, kv);

    forward_mtp(&f, 0);
    if (n_logits > 0)
        forward_head(&f, &r->weights->mtp[0].head, r->ws.mtp_streams, n_logits);
}

void rank_forward(struct rank *r, const struct kv_memory *kv, const struct model_span *spans,
                  int n_spans)
{
    upload(r, kv, spans, n_spans);
    if (r->recording != NULL)
        replay(r, r->recording->forward);
    else
        rank_run_main(r, kv, r->n_logits);
    finish(r);
}

/* Logits of the rows in staging. */
static void run_mtp(struct rank *r, const struct kv_memory *kv, int n_logits)
{
    bool recorded = r->recording != NULL && n_logits <= r->recording->n_mtp_logits;
    int n = recorded ? r->recording->n_mtp_logits : n_logits;

    write_filled(r, r->ws.logit_rows, n_logits, n);
    r->n_logits = n_logits;
    if (recorded)
        replay(r, r->recording->mtp);
    else
        rank_run_block(r, kv, n_logits);
    finish(r);
}

void rank_mtp(struct rank *r, const struct kv_memory *kv, const int32_t *next_tokens,
              const int32_t *rows, int n)
{
    memcpy(r->staging, next_tokens, (size_t)r->n_rows * sizeof(*next_tokens));
    write_filled(r, r->ws.next_tokens, r->n_rows, r->last.n_rows);
    if (n > 0)
        memcpy(r->staging, rows, (size_t)n * sizeof(*rows));
    run_mtp(r, kv, n);
}

void rank_mtp_next(struct rank *r, const struct kv_memory *kv, const struct model_span *spans,
                   const int32_t *from, int n)
{
    struct kernels *k = &r->kernels;
    size_t bytes = (size_t)r->config->hc_mult * (size_t)r->config->hidden_size * sizeof(uint16_t);

    for (int i = 0; i < n; i++)
        k->ops->dev_copy(k, dev_at(r->ws.streams, (size_t)i * bytes),
                         dev_at(r->ws.mtp_streams, (size_t)from[i] * bytes), bytes);
    upload(r, kv, spans, n);
    for (int s = 0; s < n; s++)
        r->staging[s] = spans[s].tokens[0];
    write_filled(r, r->ws.next_tokens, n, r->last.n_rows);
    for (int i = 0; i < n; i++)
        r->staging[i] = i;
    run_mtp(r, kv, n);
}

void rank_layer(struct rank *r, const struct kv_memory *kv, int layer,
                const struct model_span *span, const uint16_t *in)
{
    struct forward f;

    upload(r, kv, span, 1);
    f = forward_of(r, kv);
    r->kernels.ops->dev_write(&r->kernels, r->ws.streams, in,
                              (size_t)span->n_tokens * (size_t)r->config->hc_mult *
                                  (size_t)r->config->hidden_size * sizeof(*in));
    forward_layer(&f, &r->weights->layers[layer], layer, r->ws.streams);
    finish(r);
}
