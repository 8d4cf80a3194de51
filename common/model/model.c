#include "common/model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/forward.h"
#include "common/model/model_debug.h"
#include "common/model/safetensors.h"
#include "common/model/weights.h"
#include "common/model/workspace.h"

struct model {
    struct model_config config;
    struct kv_geometry geometry;
    struct safetensors *files;
    struct pool *pool;
    struct kernels kernels;
    bool kernels_open;
    struct weights *weights;
    struct workspace ws;
    uint64_t fingerprint;
    int max_seqs, max_logit_rows;
    int32_t *staging;         /* [staging_len]: the batch before it goes to the device */
    float *host_logits;       /* where the device's cannot be read in place; else NULL */
    int n_logits;             /* of the last forward */
    struct kernel_batch last; /* its batch, for model_mtp() */
};

/* ---- opening ---- */

static void run_pool(void *pool, void (*fn)(void *arg, int part, int n_parts), void *arg)
{
    pool_run(pool, fn, arg);
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

static struct kernel_dims dims_of(const struct model_config *c, const struct model_options *opt)
{
    return (struct kernel_dims){
        .hidden = c->hidden_size,
        .hc = c->hc_mult,
        .n_heads = c->n_heads,
        .head_dim = c->head_dim,
        .rope_dim = c->rope_dim,
        .q_lora_rank = c->q_lora_rank,
        .o_groups = c->o_groups,
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

static enum status_code open_kernels(struct model *m, const struct model_options *opt,
                                     struct status *st)
{
    struct kernel_dims dims = dims_of(&m->config, opt);
    struct kernel_env env;
    enum cpu_isa isa;

    if (opt->device != NULL && strcmp(opt->device, "cpu") != 0)
        return status_set(st, ST_INVALID, "device '%s': this build has cpu", opt->device);
    if (pick_isa(opt->cpu_isa, &isa, st) != ST_OK ||
        pool_new(opt->n_threads, &m->pool, st) != ST_OK)
        return st->code;
    env = (struct kernel_env){run_pool, m->pool, pool_threads(m->pool)};
    if (kernels_open_cpu(&m->kernels, isa, &dims, &env) != 0)
        return status_set(st, ST_INVALID, "cpu backend: %s", m->kernels.error);
    m->kernels_open = true;
    return status_ok(st);
}

enum status_code model_geometry_of(const struct model_config *c, struct kv_geometry *out,
                                   struct status *st)
{
    struct kv_geometry_params p = {
        c->n_layers + c->n_mtp, c->compress_ratios, c->head_dim, c->rope_dim,
        c->index_head_dim,      c->window};

    return kv_geometry_init(out, &p, st);
}

/* Ints of a whole batch; see upload(). */
static size_t staging_len(const struct model *m)
{
    size_t rows = (size_t)m->kernels.dims.max_rows, table = (size_t)m->ws.table_stride;
    size_t most = rows > table ? rows : table;

    if (most < (size_t)m->max_logit_rows)
        most = (size_t)m->max_logit_rows;
    return most + (size_t)m->max_seqs + 1;
}

static enum status_code open_parts(struct model *m, const struct model_options *opt,
                                   struct status *st)
{
    if (model_config_read(opt->path, &m->config, st) != ST_OK ||
        model_geometry_of(&m->config, &m->geometry, st) != ST_OK ||
        safetensors_open(opt->path, &m->files, st) != ST_OK || open_kernels(m, opt, st) != ST_OK)
        return st->code;
    if (weights_load(m->files, &m->config, &m->kernels, &m->weights, st) != ST_OK)
        return status_wrap(st, "checkpoint %s", opt->path);
    m->fingerprint = weights_fingerprint(m->files, &m->config);
    if (workspace_init(&m->ws, &m->kernels, &m->config, (int)m->geometry.row_bytes,
                       m->max_logit_rows, st) != ST_OK)
        return st->code;
    m->staging = malloc(staging_len(m) * sizeof(*m->staging));
    if (m->staging == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a batch");
    if (m->kernels.ops->dev_host(&m->kernels, m->ws.logits) == NULL) {
        m->host_logits =
            malloc((size_t)m->max_logit_rows * (size_t)m->config.vocab_size * sizeof(float));
        if (m->host_logits == NULL)
            return status_set(st, ST_EXHAUSTED, "no memory for logits");
    }
    return status_ok(st);
}

enum status_code model_open(const struct model_options *opt, struct model **out, struct status *st)
{
    struct model *m = calloc(1, sizeof(*m));

    if (m == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a model");
    m->max_seqs = opt->max_batch_seqs;
    m->max_logit_rows = opt->max_logit_rows;
    if (open_parts(m, opt, st) != ST_OK)
        model_free(m);
    else
        *out = m;
    return st->code;
}

void model_free(struct model *m)
{
    if (m == NULL)
        return;
    if (m->kernels_open)
        workspace_deinit(&m->ws, &m->kernels);
    weights_free(m->weights);
    if (m->kernels_open)
        kernels_close(&m->kernels);
    pool_free(m->pool);
    safetensors_close(m->files);
    free(m->staging);
    free(m->host_logits);
    free(m);
}

/* ---- getters ---- */

const struct model_config *model_get_config(const struct model *m)
{
    return &m->config;
}

const struct kv_geometry *model_get_geometry(const struct model *m)
{
    return &m->geometry;
}

uint64_t model_fingerprint(const struct model *m)
{
    return m->fingerprint;
}

uint64_t model_weight_bytes(const struct model *m)
{
    return m->weights->bytes;
}

void model_weight_classes(const struct model *m, uint64_t *out)
{
    memcpy(out, m->weights->class_bytes, sizeof(m->weights->class_bytes));
}

uint64_t model_workspace_bytes(const struct model *m)
{
    return m->ws.bytes;
}

const char *model_backend_name(const struct model *m)
{
    return m->kernels.ops->name;
}

/* ---- KV memory ---- */

enum status_code model_kv_alloc(struct model *m, uint32_t n_pages, uint32_t n_slots,
                                struct kv_memory *out, struct status *st)
{
    struct kernels *k = &m->kernels;
    struct kv_memory kv = {.n_pages = n_pages, .n_slots = n_slots};

    kv.pages = k->ops->dev_alloc(k, n_pages * m->geometry.page_bytes);
    kv.slots = k->ops->dev_alloc(k, n_slots * m->geometry.slot_bytes);
    if (dev_is_null(kv.pages) || dev_is_null(kv.slots)) {
        model_kv_free(m, &kv);
        return status_set(st, ST_EXHAUSTED, "no memory for %u KV pages and %u state slots", n_pages,
                          n_slots);
    }
    *out = kv;
    return status_ok(st);
}

void model_kv_free(struct model *m, struct kv_memory *kv)
{
    m->kernels.ops->dev_free(&m->kernels, kv->pages);
    m->kernels.ops->dev_free(&m->kernels, kv->slots);
    *kv = (struct kv_memory){0};
}

void *model_host_address(struct model *m, struct dev_ptr p)
{
    return m->kernels.ops->dev_host(&m->kernels, p);
}

/* ---- a batch ---- */

static enum status_code check_span(const struct model *m, const struct model_span *s,
                                   struct status *st)
{
    if (s->n_tokens < 1 || s->start < 0 || s->start + s->n_tokens > m->kernels.dims.max_context)
        return status_set(st, ST_INVALID, "a span of %d tokens at position %lld, the context is %d",
                          s->n_tokens, (long long)s->start, m->kernels.dims.max_context);
    for (int i = 0; i < s->n_tokens; i++)
        if (s->tokens[i] < 0 || s->tokens[i] >= m->config.vocab_size)
            return status_set(st, ST_INVALID, "token %d is outside the vocabulary of %d",
                              s->tokens[i], m->config.vocab_size);
    return status_ok(st);
}

static int logit_rows(const struct model_span *s)
{
    return s->logits == MODEL_LOGITS_ALL ? s->n_tokens : s->logits == MODEL_LOGITS_LAST;
}

static enum status_code check_batch(const struct model *m, const struct model_span *spans, int n,
                                    struct status *st)
{
    int64_t rows = 0, logits = 0;

    for (int i = 0; i < n; i++) {
        if (check_span(m, &spans[i], st) != ST_OK)
            return st->code;
        rows += spans[i].n_tokens;
        logits += logit_rows(&spans[i]);
    }
    if (n < 1 || n > m->max_seqs || rows > m->kernels.dims.max_rows || logits > m->max_logit_rows)
        return status_set(
            st, ST_INVALID,
            "a batch of %d sequences, %lld tokens, %lld rows of logits; at most %d, %d, %d", n,
            (long long)rows, (long long)logits, m->max_seqs, m->kernels.dims.max_rows,
            m->max_logit_rows);
    return status_ok(st);
}

static void write_ints(struct model *m, struct dev_ptr dst, int n)
{
    m->kernels.ops->dev_write(&m->kernels, dst, m->staging, (size_t)n * sizeof(int32_t));
}

/* One int per row: its sequence, its position, its token. */
static void upload_rows(struct model *m, const struct model_span *spans, int n, int what,
                        struct dev_ptr dst)
{
    int t = 0;

    for (int s = 0; s < n; s++)
        for (int i = 0; i < spans[s].n_tokens; i++)
            m->staging[t++] = what == 0   ? s
                              : what == 1 ? (int32_t)(spans[s].start + i)
                                          : spans[s].tokens[i];
    write_ints(m, dst, t);
}

static void upload_sequences(struct model *m, const struct model_span *spans, int n)
{
    struct workspace *ws = &m->ws;
    int32_t *at = m->staging;

    at[0] = 0;
    for (int s = 0; s < n; s++)
        at[s + 1] = at[s] + spans[s].n_tokens;
    write_ints(m, ws->seq_row, n + 1);
    for (int s = 0; s < n; s++)
        at[s] = (int32_t)spans[s].start;
    write_ints(m, ws->seq_start, n);
    for (int s = 0; s < n; s++)
        at[s] = (int32_t)spans[s].slot;
    write_ints(m, ws->seq_slot, n);
    for (int s = 0; s < n; s++) {
        int n_pages = (int)kv_pages_for((uint64_t)(spans[s].start + spans[s].n_tokens));

        memcpy(at, spans[s].pages, (size_t)n_pages * sizeof(*at));
        write_ints(m, dev_at(ws->block_table, (size_t)(s * ws->table_stride) * sizeof(*at)),
                   n_pages);
    }
}

static int upload_logit_rows(struct model *m, const struct model_span *spans, int n)
{
    int row = 0, count = 0;

    for (int s = 0; s < n; s++) {
        for (int i = spans[s].n_tokens - logit_rows(&spans[s]); i < spans[s].n_tokens; i++)
            m->staging[count++] = row + i;
        row += spans[s].n_tokens;
    }
    write_ints(m, m->ws.logit_rows, count);
    return count;
}

static struct kernel_batch upload(struct model *m, const struct model_span *spans, int n)
{
    struct workspace *ws = &m->ws;
    struct kernel_batch b = {
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

    for (int s = 0; s < n; s++)
        b.n_rows += spans[s].n_tokens;
    upload_rows(m, spans, n, 0, ws->row_seq);
    upload_rows(m, spans, n, 1, ws->row_pos);
    upload_rows(m, spans, n, 2, ws->tokens);
    upload_sequences(m, spans, n);
    m->n_logits = upload_logit_rows(m, spans, n);
    return b;
}

static struct forward forward_of(struct model *m, const struct kv_memory *kv)
{
    return (struct forward){&m->kernels, &m->config, &m->geometry, kv, m->weights, &m->ws, m->last};
}

/* Waits for the step and hands out its logits. */
static enum status_code finish(struct model *m, const float **logits, struct status *st)
{
    struct kernels *k = &m->kernels;
    size_t bytes = (size_t)m->n_logits * (size_t)m->config.vocab_size * sizeof(float);

    if (m->host_logits != NULL) {
        if (k->ops->dev_read(k, m->host_logits, m->ws.logits, bytes) != 0)
            return status_set(st, ST_INTERNAL, "device: %s", k->error);
        *logits = m->host_logits;
        return status_ok(st);
    }
    if (k->ops->sync(k) != 0)
        return status_set(st, ST_INTERNAL, "device: %s", k->error);
    *logits = k->ops->dev_host(k, m->ws.logits);
    return status_ok(st);
}

enum status_code model_forward(struct model *m, const struct kv_memory *kv,
                               const struct model_span *spans, int n_spans, const float **logits,
                               struct status *st)
{
    struct forward f;

    if (check_batch(m, spans, n_spans, st) != ST_OK)
        return st->code;
    m->last = upload(m, spans, n_spans);
    f = forward_of(m, kv);
    forward_main(&f);
    if (m->n_logits > 0)
        forward_head(&f, &m->weights->top, m->ws.streams, m->n_logits);
    return finish(m, logits, st);
}

static enum status_code check_next(const struct model *m, const int32_t *tokens, int n,
                                   struct status *st)
{
    if (m->weights->n_mtp == 0)
        return status_set(st, ST_INVALID, "the checkpoint has no MTP block");
    for (int i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= m->config.vocab_size)
            return status_set(st, ST_INVALID, "token %d is outside the vocabulary of %d", tokens[i],
                              m->config.vocab_size);
    return status_ok(st);
}

/* The block over the rows of m->last, whose streams are in place; logits of the rows in staging. */
static enum status_code run_mtp(struct model *m, const struct kv_memory *kv, int n_logits,
                                const float **logits, struct status *st)
{
    struct forward f = forward_of(m, kv);

    write_ints(m, m->ws.logit_rows, n_logits);
    m->n_logits = n_logits;
    forward_mtp(&f, 0);
    if (n_logits > 0)
        forward_head(&f, &m->weights->mtp[0].head, m->ws.mtp_streams, n_logits);
    return finish(m, logits, st);
}

enum status_code model_mtp(struct model *m, const struct kv_memory *kv, const int32_t *next_tokens,
                           const int32_t *rows, int n, const float **logits, struct status *st)
{
    if (check_next(m, next_tokens, m->last.n_rows, st) != ST_OK)
        return st->code;
    if (n < 0 || n > m->max_logit_rows)
        return status_set(st, ST_INVALID, "%d rows of MTP logits, at most %d", n,
                          m->max_logit_rows);
    for (int i = 0; i < n; i++)
        if (rows[i] < 0 || rows[i] >= m->last.n_rows)
            return status_set(st, ST_INVALID, "row %d of a batch of %d", rows[i], m->last.n_rows);
    m->kernels.ops->dev_write(&m->kernels, m->ws.next_tokens, next_tokens,
                              (size_t)m->last.n_rows * sizeof(*next_tokens));
    if (n > 0)
        memcpy(m->staging, rows, (size_t)n * sizeof(*rows));
    return run_mtp(m, kv, n, logits, st);
}

enum status_code model_mtp_next(struct model *m, const struct kv_memory *kv,
                                const struct model_span *spans, const int32_t *from, int n,
                                const float **logits, struct status *st)
{
    struct kernels *k = &m->kernels;
    size_t bytes = (size_t)m->config.hc_mult * (size_t)m->config.hidden_size * sizeof(uint16_t);
    int last_rows = m->last.n_rows;

    if (check_next(m, NULL, 0, st) != ST_OK || check_batch(m, spans, n, st) != ST_OK)
        return st->code;
    for (int i = 0; i < n; i++)
        if (from[i] < 0 || from[i] >= last_rows || spans[i].n_tokens != 1)
            return status_set(st, ST_INVALID, "a draft from row %d of %d with %d tokens", from[i],
                              last_rows, spans[i].n_tokens);
    for (int i = 0; i < n; i++)
        k->ops->dev_copy(k, dev_at(m->ws.streams, (size_t)i * bytes),
                         dev_at(m->ws.mtp_streams, (size_t)from[i] * bytes), bytes);
    m->last = upload(m, spans, n);
    upload_rows(m, spans, n, 2, m->ws.next_tokens);
    for (int i = 0; i < n; i++)
        m->staging[i] = i;
    return run_mtp(m, kv, n, logits, st);
}

bool model_has_mtp(const struct model *m)
{
    return m->weights->n_mtp > 0;
}

struct dev_ptr model_memory_alloc(struct model *m, size_t bytes)
{
    return m->kernels.ops->dev_alloc(&m->kernels, bytes);
}

void model_memory_free(struct model *m, struct dev_ptr p)
{
    m->kernels.ops->dev_free(&m->kernels, p);
}

void model_memory_copy(struct model *m, struct dev_ptr dst, struct dev_ptr src, size_t bytes)
{
    m->kernels.ops->dev_copy(&m->kernels, dst, src, bytes);
}

/* ---- for tests ---- */

enum status_code model_debug_layer(struct model *m, const struct kv_memory *kv, int layer,
                                   const struct model_span *span, const uint16_t *in, uint16_t *out,
                                   struct status *st)
{
    struct kernels *k = &m->kernels;
    size_t bytes = (size_t)span->n_tokens * (size_t)m->config.hc_mult *
                   (size_t)m->config.hidden_size * sizeof(*in);
    struct forward f;

    if (check_batch(m, span, 1, st) != ST_OK)
        return st->code;
    if (layer < 0 || layer >= m->weights->n_layers)
        return status_set(st, ST_INVALID, "layer %d of %d", layer, m->weights->n_layers);
    m->last = upload(m, span, 1);
    f = forward_of(m, kv);
    k->ops->dev_write(k, m->ws.streams, in, bytes);
    forward_layer(&f, &m->weights->layers[layer], layer, m->ws.streams);
    if (k->ops->dev_read(k, out, m->ws.streams, bytes) != 0)
        return status_set(st, ST_INTERNAL, "device: %s", k->error);
    return status_ok(st);
}

enum status_code model_debug_streams(struct model *m, bool mtp, uint16_t *out, struct status *st)
{
    struct kernels *k = &m->kernels;
    size_t bytes = (size_t)m->last.n_rows * (size_t)m->config.hc_mult *
                   (size_t)m->config.hidden_size * sizeof(*out);

    if (k->ops->dev_read(k, out, mtp ? m->ws.mtp_streams : m->ws.streams, bytes) != 0)
        return status_set(st, ST_INTERNAL, "device: %s", k->error);
    return status_ok(st);
}
