#include "common/model/rank.h"

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
    static const char *const names[] = {"ref", "avx2", "avx512"};

    *out = kernels_cpu_best();
    if (name == NULL || strcmp(name, "auto") == 0)
        return status_ok(st);
    for (int i = CPU_ISA_REF; i <= CPU_ISA_AVX512; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (enum cpu_isa)i;
            return status_ok(st);
        }
    return status_set(st, ST_INVALID, "instruction set '%s' is not one of auto, ref, avx2, avx512",
                      name);
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
        .max_seqs = opt->max_batch_seqs,
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
    return most + (size_t)opt->max_batch_seqs + 1;
}

enum status_code rank_open(struct rank *r, const struct model_options *opt, int n_threads,
                           const struct safetensors *files, struct status *st)
{
    if (open_kernels(r, opt, n_threads, st) != ST_OK ||
        weights_load(files, r->config, &r->shard, &r->kernels, &r->weights, st) != ST_OK ||
        workspace_init(&r->ws, &r->kernels, r->config, (int)r->geometry->row_bytes,
                       opt->max_logit_rows, r->shard.n_ranks, st) != ST_OK)
        return st->code;
    r->staging = malloc(staging_len(r, opt) * sizeof(*r->staging));
    if (r->staging == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a batch");
    return status_ok(st);
}

static void forget(struct rank *r, void **recordings)
{
    for (int i = 0; recordings != NULL && i < r->n_recordings; i++)
        if (recordings[i] != NULL)
            r->kernels.ops->forget(&r->kernels, recordings[i]);
    free(recordings);
}

void rank_close(struct rank *r)
{
    if (r->kernels_open) {
        forget(r, r->forwards);
        forget(r, r->mtps);
    }
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

static int upload_logit_rows(struct rank *r, const struct model_span *spans, int n)
{
    int row = 0, count = 0;

    for (int s = 0; s < n; s++) {
        for (int i = spans[s].n_tokens - rank_logit_rows(&spans[s]); i < spans[s].n_tokens; i++)
            r->staging[count++] = row + i;
        row += spans[s].n_tokens;
    }
    write_ints(r, r->ws.logit_rows, count);
    return count;
}

/* A batch of n sequences as the kernels see it. */
static struct kernel_batch batch_of(const struct rank *r, int n_rows, int n)
{
    const struct workspace *ws = &r->ws;

    return (struct kernel_batch){
        .n_rows = n_rows,
        .n_seqs = n,
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

static struct kernel_batch upload(struct rank *r, const struct model_span *spans, int n)
{
    const struct workspace *ws = &r->ws;
    int n_rows = 0;

    for (int s = 0; s < n; s++)
        n_rows += spans[s].n_tokens;
    upload_rows(r, spans, n, 0, ws->row_seq);
    upload_rows(r, spans, n, 1, ws->row_pos);
    upload_rows(r, spans, n, 2, ws->tokens);
    upload_sequences(r, spans, n);
    r->n_logits = upload_logit_rows(r, spans, n);
    return batch_of(r, n_rows, n);
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

/* Waits for the device. Its failure is the group's. */
static void finish(struct rank *r)
{
    char why[400];

    if (r->kernels.ops->sync(&r->kernels) == 0 || r->comm == NULL)
        return;
    snprintf(why, sizeof(why), "rank %d: device: %s", r->shard.rank, r->kernels.error);
    comm_fail(r->comm, why);
}

static void run_main(struct rank *r, struct forward *f)
{
    forward_main(f);
    if (r->n_logits > 0)
        forward_head(f, &r->weights->top, r->ws.streams, r->n_logits);
}

/* The block over the rows of r->last, whose streams are in place. */
static void run_block(struct rank *r, struct forward *f)
{
    forward_mtp(f, 0);
    if (r->n_logits > 0)
        forward_head(f, &r->weights->mtp[0].head, r->ws.mtp_streams, r->n_logits);
}

/* The recording of the present step, or NULL. */
static void *recording_of(const struct rank *r, void **recordings, const struct kv_memory *kv)
{
    int n = r->last.n_rows;

    if (recordings == NULL || n > r->n_recordings || r->last.n_seqs != n || r->n_logits != n ||
        kv->pages.addr != r->recorded_kv.pages.addr || kv->slots.addr != r->recorded_kv.slots.addr)
        return NULL;
    return recordings[n - 1];
}

static void run(struct rank *r, const struct kv_memory *kv, void **recordings,
                void (*step)(struct rank *, struct forward *))
{
    void *recording = recording_of(r, recordings, kv);
    struct forward f = forward_of(r, kv);

    if (recording != NULL)
        r->kernels.ops->replay(&r->kernels, recording);
    else
        step(r, &f);
    finish(r);
}

void rank_forward(struct rank *r, const struct kv_memory *kv, const struct model_span *spans,
                  int n_spans)
{
    r->last = upload(r, spans, n_spans);
    run(r, kv, r->forwards, run_main);
}

/* Logits of the rows in staging. */
static void run_mtp(struct rank *r, const struct kv_memory *kv, int n_logits)
{
    write_ints(r, r->ws.logit_rows, n_logits);
    r->n_logits = n_logits;
    run(r, kv, r->mtps, run_block);
}

void rank_mtp(struct rank *r, const struct kv_memory *kv, const int32_t *next_tokens,
              const int32_t *rows, int n)
{
    r->kernels.ops->dev_write(&r->kernels, r->ws.next_tokens, next_tokens,
                              (size_t)r->last.n_rows * sizeof(*next_tokens));
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
    r->last = upload(r, spans, n);
    upload_rows(r, spans, n, 2, r->ws.next_tokens);
    for (int i = 0; i < n; i++)
        r->staging[i] = i;
    run_mtp(r, kv, n);
}

void rank_layer(struct rank *r, const struct kv_memory *kv, int layer,
                const struct model_span *span, const uint16_t *in)
{
    struct forward f;

    r->last = upload(r, span, 1);
    f = forward_of(r, kv);
    r->kernels.ops->dev_write(&r->kernels, r->ws.streams, in,
                              (size_t)span->n_tokens * (size_t)r->config->hc_mult *
                                  (size_t)r->config->hidden_size * sizeof(*in));
    forward_layer(&f, &r->weights->layers[layer], layer, r->ws.streams);
    finish(r);
}

/* ---- recording ---- */

static enum status_code record(struct rank *r, const struct kv_memory *kv, int n,
                               void (*step)(struct rank *, struct forward *), void **out,
                               struct status *st)
{
    struct kernels *k = &r->kernels;
    struct forward f;

    r->last = batch_of(r, n, n);
    r->n_logits = n;
    f = forward_of(r, kv);
    k->ops->record(k);
    step(r, &f);
    *out = k->ops->recorded(k);
    if (*out == NULL)
        return status_set(st, ST_EXHAUSTED, "cannot keep the launches of a step of %d: %s", n,
                          k->error);
    return status_ok(st);
}

/* A step of n first tokens, all in slot 0 and page 0, for nothing: what is recorded must have run,
 * because a device may load a kernel when it is first launched, which no recording can hold. */
static void warm(struct rank *r, const struct kv_memory *kv, int n, struct model_span *spans,
                 int32_t *rows)
{
    static const int32_t token;
    static const uint32_t page;

    for (int i = 0; i < n; i++) {
        spans[i] = (struct model_span){
            .tokens = &token, .n_tokens = 1, .pages = &page, .logits = MODEL_LOGITS_LAST};
        rows[i] = 0;
    }
    rank_forward(r, kv, spans, n);
    if (r->weights->n_mtp > 0)
        rank_mtp(r, kv, rows, rows, n);
}

enum status_code rank_record(struct rank *r, const struct kv_memory *kv, int max_seqs,
                             struct status *st)
{
    bool mtp = r->weights->n_mtp > 0;
    struct model_span *spans;
    int32_t *rows;

    if (r->kernels.ops->record == NULL || max_seqs < 1 || r->comm != NULL)
        return status_ok(st);
    spans = calloc((size_t)max_seqs, sizeof(*spans));
    rows = calloc((size_t)max_seqs, sizeof(*rows));
    if (spans != NULL && rows != NULL) {
        warm(r, kv, 1, spans, rows);
        warm(r, kv, max_seqs, spans, rows);
    }
    free(spans);
    free(rows);
    r->forwards = calloc((size_t)max_seqs, sizeof(*r->forwards));
    r->mtps = calloc((size_t)max_seqs, sizeof(*r->mtps));
    if (r->forwards == NULL || r->mtps == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for recordings");
    r->n_recordings = max_seqs;
    r->recorded_kv = *kv;
    for (int n = 1; n <= max_seqs; n++)
        if (record(r, kv, n, run_main, &r->forwards[n - 1], st) != ST_OK ||
            (mtp && record(r, kv, n, run_block, &r->mtps[n - 1], st) != ST_OK))
            return st->code;
    return status_ok(st);
}
