#include "common/model/weights.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"

/* What a tensor may be stored as. */
enum storage {
    PLAIN_BF16,
    TABLE_BF16 /* looked up by row */,
    PLAIN_F32,
    PLAIN_I64,
    QUANT_FP8,
    QUANT_EXPERT
};

struct loader {
    const struct safetensors *s;
    const struct model_config *c;
    const struct shard *shard;
    bool cut;          /* of the tensor being loaded: only this rank's rows */
    bool skip;         /* another rank's: only checked */
    struct kernels *k; /* NULL: check only */
    bool *used;        /* [tensors] */
    uint64_t bytes, class_bytes[WEIGHT_CLASSES];
    uint64_t total;           /* bytes of the checkpoint's tensors */
    uint64_t seen;            /* those of them that are done, used or not */
    uint64_t begun, reported; /* ns */
    struct status *st;
};

enum { REPORT_NS = 2000000000 };

/* A line every two seconds: loading a release takes minutes. */
static void report(struct loader *l)
{
    uint64_t now = clock_now_ns();
    double done = (double)l->seen * 1e-9, seconds = (double)(now - l->begun) * 1e-9;

    if (now - l->reported < REPORT_NS || l->shard->rank != 0)
        return;
    l->reported = now;
    log_info("weights: %.1f of %.1f GB (%.0f %%), %.2f GB/s", done, (double)l->total * 1e-9,
             1e11 * done / (double)l->total, done / seconds);
}

/* ---- one tensor ---- */

const char *const weight_class_names[WEIGHT_CLASSES] = {
    [WEIGHTS_EXPERTS] = "experts",
    [WEIGHTS_SHARED] = "shared experts",
    [WEIGHTS_ATTENTION] = "attention",
    [WEIGHTS_VOCABULARY] = "embedding and head",
    [WEIGHTS_MTP] = "MTP",
    [WEIGHTS_OTHER] = "other",
};

static enum weight_class class_of(const char *name)
{
    return strncmp(name, "mtp.", 4) == 0                                       ? WEIGHTS_MTP
           : strstr(name, ".shared_experts.") != NULL                          ? WEIGHTS_SHARED
           : strstr(name, ".experts.") != NULL                                 ? WEIGHTS_EXPERTS
           : strstr(name, ".attn.") != NULL                                    ? WEIGHTS_ATTENTION
           : strncmp(name, "embed.", 6) == 0 || strncmp(name, "head.", 5) == 0 ? WEIGHTS_VOCABULARY
                                                                               : WEIGHTS_OTHER;
}

static const struct tensor *find(struct loader *l, const char *name)
{
    const struct tensor *t = safetensors_find(l->s, name);
    size_t n;

    if (t == NULL) {
        status_set(l->st, ST_INVALID, "tensor %s is missing", name);
        return NULL;
    }
    l->used[t - safetensors_all(l->s, &n)] = true;
    uint64_t bytes = l->skip ? 0 : l->cut ? t->bytes / (uint64_t)l->shard->n_ranks : t->bytes;

    l->bytes += bytes;
    l->seen += t->bytes;
    report(l);
    l->class_bytes[class_of(name)] += bytes;
    return t;
}

static void shape_text(const struct tensor *t, char *out, size_t n)
{
    size_t at = (size_t)snprintf(out, n, "[");

    for (int i = 0; i < t->n_dims && at < n; i++)
        at += (size_t)snprintf(out + at, n - at, "%s%" PRId64, i > 0 ? ", " : "", t->shape[i]);
    if (at < n)
        snprintf(out + at, n - at, "]");
}

/* rows 0: a vector of cols. */
static bool has_shape(struct loader *l, const struct tensor *t, int64_t rows, int64_t cols)
{
    char found[128];

    if (rows == 0 ? t->n_dims == 1 && t->shape[0] == cols
                  : t->n_dims == 2 && t->shape[0] == rows && t->shape[1] == cols)
        return true;
    shape_text(t, found, sizeof(found));
    if (rows == 0)
        status_set(l->st, ST_INVALID,
                   "%s: tensor %s has shape %s, config.json asks [%" PRId64
                   "]: checkpoint and config are of different models",
                   t->file, t->name, found, cols);
    else
        status_set(l->st, ST_INVALID,
                   "%s: tensor %s has shape %s, config.json asks [%" PRId64 ", %" PRId64
                   "]: checkpoint and config are of different models",
                   t->file, t->name, found, rows, cols);
    return false;
}

static bool has_dtype(struct loader *l, const struct tensor *t, enum st_dtype a, enum st_dtype b)
{
    if (t->dtype == a || t->dtype == b)
        return true;
    status_set(l->st, ST_INVALID, "%s: tensor %s is %s, expected %s%s%s", t->file, t->name,
               dtype_name(t->dtype), dtype_name(a), a != b ? " or " : "",
               a != b ? dtype_name(b) : "");
    return false;
}

/* This rank's share of the rows (of a vector: of its elements). See shard.c for what divides. */
static struct weight_src share_of(const struct loader *l, const struct weight_src *src)
{
    static const int64_t bits[] = {[WEIGHT_BF16] = 16,
                                   [WEIGHT_F32] = 32,
                                   [WEIGHT_FP8] = 8,
                                   [WEIGHT_FP4] = 4,
                                   [WEIGHT_I64] = 64};
    struct weight_src s = *src;
    int64_t n = l->shard->n_ranks, first;

    if (s.rows == 1) {
        s.cols /= n;
        s.data = (const uint8_t *)s.data + l->shard->rank * s.cols * bits[s.type] / 8;
        return s;
    }
    s.rows /= n;
    first = l->shard->rank * s.rows;
    s.data = (const uint8_t *)s.data + first * s.cols * bits[s.type] / 8;
    if (s.scale != NULL) /* FP8: a row of scales per 128 rows */
        s.scale = (const uint8_t *)s.scale +
                  first / 128 * ((s.cols + 127) / 128) * (s.scale_is_f32 ? 4 : 1);
    return s;
}

/* The kernels have their own copy of these mapped bytes: this process lets go of the pages, so that
 * a checkpoint is not in memory twice. (They stay in the page cache while there is room; a later
 * read, as for the fingerprint, maps them again.) */
static void let_go(const void *data, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)data + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)data + bytes) / page * page;

    if (first < end)
        madvise((void *)first, end - first, MADV_DONTNEED); /* a hint: failing changes nothing */
}

static bool load(struct loader *l, const struct tensor *t, const struct weight_src *src,
                 struct weight *out)
{
    struct weight_src share;

    if (l->k == NULL || l->skip)
        return true;
    if (l->cut) {
        share = share_of(l, src);
        src = &share;
    }
    if (l->k->ops->weight_load(l->k, src, out) == 0) {
        if (out->bytes > 0)
            let_go(src->data, t->bytes / (l->cut ? (size_t)l->shard->n_ranks : 1));
        return true;
    }
    status_set(l->st, ST_EXHAUSTED, "tensor %s: %s", t->name, l->k->error);
    return false;
}

static bool plain(struct loader *l, const char *name, enum storage how, int64_t rows, int64_t cols,
                  struct weight *out)
{
    static const struct {
        enum st_dtype dtype;
        enum weight_type type;
    } types[] = {[PLAIN_BF16] = {DTYPE_BF16, WEIGHT_BF16},
                 [TABLE_BF16] = {DTYPE_BF16, WEIGHT_BF16},
                 [PLAIN_F32] = {DTYPE_F32, WEIGHT_F32},
                 [PLAIN_I64] = {DTYPE_I64, WEIGHT_I64}};
    const struct tensor *t = find(l, name);
    struct weight_src src = {.type = types[how].type,
                             .rows = rows == 0 ? 1 : rows,
                             .cols = cols,
                             .lookup = how == TABLE_BF16,
                             .vector = rows == 0};

    if (t == NULL || !has_dtype(l, t, types[how].dtype, types[how].dtype) ||
        !has_shape(l, t, rows, cols))
        return false;
    src.data = t->data;
    return load(l, t, &src, out);
}

/* name.weight with name.scale: FP8 in 128 x 128 tiles, or (experts) FP4 with a scale per 32
 * columns. */
static bool quantised(struct loader *l, const char *base, enum storage how, int64_t rows,
                      int64_t cols, struct weight *out)
{
    char name[512];
    const struct tensor *t, *scale;
    struct weight_src src = {.type = WEIGHT_FP8, .rows = rows, .cols = cols};
    bool fp4;

    snprintf(name, sizeof(name), "%.200s.weight", base);
    t = find(l, name);
    if (t == NULL ||
        !has_dtype(l, t, DTYPE_F8_E4M3, how == QUANT_EXPERT ? DTYPE_I8 : DTYPE_F8_E4M3))
        return false;
    fp4 = t->dtype == DTYPE_I8;
    snprintf(name, sizeof(name), "%.200s.scale", base);
    scale = find(l, name);
    if (scale == NULL || !has_dtype(l, scale, DTYPE_F8_E8M0, DTYPE_F32) ||
        !has_shape(l, t, rows, fp4 ? cols / 2 : cols) ||
        !has_shape(l, scale, fp4 ? rows : (rows + 127) / 128, fp4 ? cols / 32 : (cols + 127) / 128))
        return false;
    src.type = fp4 ? WEIGHT_FP4 : WEIGHT_FP8;
    src.data = t->data;
    src.scale = scale->data;
    src.scale_is_f32 = scale->dtype == DTYPE_F32;
    return load(l, t, &src, out);
}

/* Loads PREFIX + SUFFIX. */
static bool at(struct loader *l, const char *prefix, const char *suffix, enum storage how,
               int64_t rows, int64_t cols, struct weight *out)
{
    char name[512];

    snprintf(name, sizeof(name), "%.300s%.200s", prefix, suffix);
    return how == QUANT_FP8 || how == QUANT_EXPERT ? quantised(l, name, how, rows, cols, out)
                                                   : plain(l, name, how, rows, cols, out);
}

/* The same, cut by rows when `cut`. */
static bool at_cut(struct loader *l, bool cut, const char *prefix, const char *suffix,
                   enum storage how, int64_t rows, int64_t cols, struct weight *out)
{
    bool fine;

    l->cut = cut;
    fine = at(l, prefix, suffix, how, rows, cols, out);
    l->cut = false;
    return fine;
}

/* ---- the parts of a layer, as CHECKPOINT.md lists them ---- */

static bool load_hc(struct loader *l, const char *prefix, int64_t rows, int64_t scales,
                    struct hc_weights *w)
{
    const struct model_config *c = l->c;

    return at(l, prefix, "_fn", PLAIN_F32, rows, (int64_t)c->hc_mult * c->hidden_size, &w->fn) &&
           at(l, prefix, "_base", PLAIN_F32, 0, rows, &w->base) &&
           at(l, prefix, "_scale", PLAIN_F32, 0, scales, &w->scale);
}

static bool load_compressor(struct loader *l, const char *prefix, int ratio, int dim,
                            struct compressor_weights *w)
{
    int64_t cols = ratio == 4 ? 2 * dim : dim, d = l->c->hidden_size;

    return at(l, prefix, ".wkv.weight", PLAIN_BF16, cols, d, &w->wkv) &&
           at(l, prefix, ".wgate.weight", PLAIN_BF16, cols, d, &w->wgate) &&
           at(l, prefix, ".ape", PLAIN_F32, ratio, cols, &w->ape) &&
           at(l, prefix, ".norm.weight", PLAIN_BF16, 0, dim, &w->norm);
}

static bool load_attention(struct loader *l, const char *prefix, int ratio,
                           struct attention_weights *w)
{
    const struct model_config *c = l->c;
    int64_t d = c->hidden_size, HD = (int64_t)c->n_heads * c->head_dim;
    int64_t GO = (int64_t)c->o_groups * c->o_lora_rank, ql = c->q_lora_rank;
    char name[256];

    if (!at_cut(l, l->shard->heads, prefix, ".attn_sink", PLAIN_F32, 0, c->n_heads, &w->sink) ||
        !at(l, prefix, ".wq_a", QUANT_FP8, ql, d, &w->wq_a) ||
        !at(l, prefix, ".q_norm.weight", PLAIN_BF16, 0, ql, &w->q_norm) ||
        !at_cut(l, l->shard->heads, prefix, ".wq_b", QUANT_FP8, HD, ql, &w->wq_b) ||
        !at(l, prefix, ".wkv", QUANT_FP8, c->head_dim, d, &w->wkv) ||
        !at(l, prefix, ".kv_norm.weight", PLAIN_BF16, 0, c->head_dim, &w->kv_norm) ||
        !at_cut(l, l->shard->heads, prefix, ".wo_a", QUANT_FP8, GO, HD / c->o_groups, &w->wo_a) ||
        !at_cut(l, l->shard->out, prefix, ".wo_b", QUANT_FP8, d, GO, &w->wo_b))
        return false;
    snprintf(name, sizeof(name), "%.200s.compressor", prefix);
    if (ratio != 0 && !load_compressor(l, name, ratio, c->head_dim, &w->comp))
        return false;
    if (ratio != 4)
        return true;
    snprintf(name, sizeof(name), "%.200s.indexer.compressor", prefix);
    return at_cut(l, l->shard->index, prefix, ".indexer.wq_b", QUANT_FP8,
                  (int64_t)c->index_n_heads * c->index_head_dim, ql, &w->index_wq_b) &&
           at(l, prefix, ".indexer.weights_proj.weight", PLAIN_BF16, c->index_n_heads, d,
              &w->index_proj) &&
           load_compressor(l, name, ratio, c->index_head_dim, &w->index_comp);
}

static bool load_expert(struct loader *l, const char *prefix, enum storage how,
                        struct expert_weights *w)
{
    int64_t d = l->c->hidden_size, f = l->c->moe_inter;

    return at(l, prefix, ".w1", how, f, d, &w->w1) && at(l, prefix, ".w2", how, d, f, &w->w2) &&
           at(l, prefix, ".w3", how, f, d, &w->w3);
}

/* An expert of this rank, or of another. */
static bool load_expert_of(struct loader *l, bool mine, const char *prefix, enum storage how,
                           struct expert_weights *w)
{
    bool fine;

    l->skip = !mine;
    fine = load_expert(l, prefix, how, w);
    l->skip = false;
    return fine;
}

static bool load_moe(struct loader *l, const char *prefix, int layer, bool hashed,
                     struct moe_weights *w)
{
    const struct model_config *c = l->c;
    const struct shard *s = l->shard;
    char name[256];

    w->experts = calloc((size_t)c->n_experts, sizeof(*w->experts));
    if (w->experts == NULL) {
        status_set(l->st, ST_EXHAUSTED, "no memory for %d experts", c->n_experts);
        return false;
    }
    if (!at(l, prefix, ".gate.weight", PLAIN_BF16, c->n_experts, c->hidden_size, &w->gate))
        return false;
    if (hashed ? !at(l, prefix, ".gate.tid2eid", PLAIN_I64, c->vocab_size, c->n_active, &w->table)
               : !at(l, prefix, ".gate.bias", PLAIN_F32, 0, c->n_experts, &w->bias))
        return false;
    for (int e = 0; e < c->n_experts; e++) {
        snprintf(name, sizeof(name), "%.200s.experts.%d", prefix, e);
        if (!load_expert_of(l, e >= s->first_expert && e < s->first_expert + s->n_experts, name,
                            QUANT_EXPERT, &w->experts[e]))
            return false;
    }
    if (l->k != NULL && l->k->ops->experts_load != NULL &&
        l->k->ops->experts_load(l->k, w->experts) != 0) {
        status_set(l->st, ST_EXHAUSTED, "%s: %s", prefix, l->k->error);
        return false;
    }
    snprintf(name, sizeof(name), "%.200s.shared_experts", prefix);
    return load_expert_of(l, shard_has_shared(s, layer), name, QUANT_FP8, &w->shared);
}

/* The ids of a hash layer index the experts: they are input too. */
/* Every token's experts exist and differ. */
static bool check_table(struct loader *l, const char *prefix)
{
    const struct tensor *t;
    char name[256];

    snprintf(name, sizeof(name), "%.200s.ffn.gate.tid2eid", prefix);
    t = safetensors_find(l->s, name);
    for (uint64_t i = 0; i < t->bytes / 8; i++) {
        int64_t id;

        memcpy(&id, t->data + 8 * i, 8);
        if (id < 0 || id >= l->c->n_experts) {
            status_set(l->st, ST_INVALID, "%s: tensor %s holds expert %" PRId64 " of %d", t->file,
                       name, id, l->c->n_experts);
            return false;
        }
        for (uint64_t k = i - i % (uint64_t)l->c->n_active; k < i; k++)
            if (memcmp(t->data + 8 * k, t->data + 8 * i, 8) == 0) {
                status_set(l->st, ST_INVALID,
                           "%s: tensor %s names expert %" PRId64 " twice for token %" PRIu64,
                           t->file, name, id, i / (uint64_t)l->c->n_active);
                return false;
            }
    }
    return true;
}

static bool load_layer(struct loader *l, const char *prefix, int layer, struct layer_weights *w)
{
    const struct model_config *c = l->c;
    int64_t mix = (2 + c->hc_mult) * (int64_t)c->hc_mult;
    char name[256];

    w->ratio = c->compress_ratios[layer];
    w->hashed = layer < c->n_hash_layers;
    snprintf(name, sizeof(name), "%.200s.hc_attn", prefix);
    if (!load_hc(l, name, mix, 3, &w->hc_attn))
        return false;
    snprintf(name, sizeof(name), "%.200s.hc_ffn", prefix);
    if (!load_hc(l, name, mix, 3, &w->hc_ffn) ||
        !at(l, prefix, ".attn_norm.weight", PLAIN_BF16, 0, c->hidden_size, &w->attn_norm) ||
        !at(l, prefix, ".ffn_norm.weight", PLAIN_BF16, 0, c->hidden_size, &w->ffn_norm))
        return false;
    snprintf(name, sizeof(name), "%.200s.attn", prefix);
    if (!load_attention(l, name, w->ratio, &w->attn))
        return false;
    snprintf(name, sizeof(name), "%.200s.ffn", prefix);
    return load_moe(l, name, layer, w->hashed, &w->moe) && (!w->hashed || check_table(l, prefix));
}

static bool load_head(struct loader *l, const char *prefix, struct head_weights *w)
{
    char name[256];

    snprintf(name, sizeof(name), "%shc_head", prefix);
    return load_hc(l, name, l->c->hc_mult, 1, &w->hc) &&
           at(l, prefix, "norm.weight", PLAIN_BF16, 0, l->c->hidden_size, &w->norm);
}

static bool load_mtp(struct loader *l, int i, struct mtp_weights *w)
{
    int64_t d = l->c->hidden_size;
    char name[64];

    snprintf(name, sizeof(name), "mtp.%d", i);
    if (!load_layer(l, name, l->c->n_layers + i, &w->layer) ||
        !at(l, name, ".e_proj", QUANT_FP8, d, d, &w->e_proj) ||
        !at(l, name, ".h_proj", QUANT_FP8, d, d, &w->h_proj) ||
        !at(l, name, ".enorm.weight", PLAIN_BF16, 0, d, &w->enorm) ||
        !at(l, name, ".hnorm.weight", PLAIN_BF16, 0, d, &w->hnorm))
        return false;
    snprintf(name, sizeof(name), "mtp.%d.", i);
    return load_head(l, name, &w->head);
}

static bool load_all(struct loader *l, struct weights *w)
{
    const struct model_config *c = l->c;
    char name[64];

    if (!at(l, "", "embed.weight", TABLE_BF16, c->vocab_size, c->hidden_size, &w->embed) ||
        !at_cut(l, l->shard->vocab, "", "head.weight", PLAIN_BF16, c->vocab_size, c->hidden_size,
                &w->head) ||
        !load_head(l, "", &w->top))
        return false;
    for (int i = 0; i < c->n_layers; i++) {
        snprintf(name, sizeof(name), "layers.%d", i);
        if (!load_layer(l, name, i, &w->layers[i]))
            return false;
    }
    for (int i = 0; i < c->n_mtp; i++)
        if (!load_mtp(l, i, &w->mtp[i]))
            return false;
    return true;
}

/* Base releases repeat embedding and head under the MTP block; later ones bring more drafters. */
static bool check_extra(struct loader *l)
{
    size_t n;
    const struct tensor *t = safetensors_all(l->s, &n);

    for (size_t i = 0; i < n; i++) {
        if (l->used[i])
            continue;
        if (strncmp(t[i].name, "mtp.", 4) != 0) {
            status_set(l->st, ST_INVALID,
                       "%s: tensor %s is not part of this model: checkpoint and config.json are of "
                       "different models",
                       t[i].file, t[i].name);
            return false;
        }
        if (l->shard->rank == 0)
            log_info("tensor %s is not used", t[i].name);
    }
    return true;
}

enum status_code weights_load(const struct safetensors *s, const struct model_config *c,
                              const struct shard *shard, struct kernels *k, struct weights **out,
                              struct status *st)
{
    struct shard whole = shard_make(c, 0, 1);
    struct weights *w = calloc(1, sizeof(*w));
    struct loader l = {.s = s, .c = c, .shard = shard != NULL ? shard : &whole, .k = k, .st = st};
    const struct tensor *all;
    size_t n;

    all = safetensors_all(s, &n);
    for (size_t i = 0; i < n; i++)
        l.total += all[i].bytes;
    l.begun = l.reported = clock_now_ns();
    l.used = calloc(n + 1, sizeof(*l.used));
    if (w != NULL) {
        w->k = k;
        w->n_layers = c->n_layers;
        w->n_mtp = c->n_mtp;
        w->n_experts = c->n_experts;
        w->layers = calloc((size_t)c->n_layers, sizeof(*w->layers));
        w->mtp = calloc((size_t)c->n_mtp + 1, sizeof(*w->mtp));
    }
    if (w == NULL || l.used == NULL || w->layers == NULL || w->mtp == NULL) {
        status_set(st, ST_EXHAUSTED, "no memory for the table of weights");
        goto done;
    }
    if (!load_all(&l, w) || !check_extra(&l))
        goto done;
    w->bytes = l.bytes;
    memcpy(w->class_bytes, l.class_bytes, sizeof(w->class_bytes));
    *out = w;
    w = NULL;
    status_ok(st);
done:
    weights_free(w);
    free(l.used);
    return st->code;
}

/* ---- freeing ---- */

static void unload_expert(struct kernels *k, struct expert_weights *e)
{
    k->ops->weight_unload(k, &e->w1);
    k->ops->weight_unload(k, &e->w2);
    k->ops->weight_unload(k, &e->w3);
}

static void unload_range(struct kernels *k, void *first, size_t bytes)
{
    struct weight *w = first;

    for (size_t i = 0; i < bytes / sizeof(*w); i++)
        k->ops->weight_unload(k, &w[i]);
}

static void unload_layer(struct weights *w, struct layer_weights *l)
{
    struct kernels *k = w->k;

    /* These structs hold nothing but weights. */
    unload_range(k, &l->hc_attn, sizeof(l->hc_attn));
    unload_range(k, &l->hc_ffn, sizeof(l->hc_ffn));
    unload_range(k, &l->attn, sizeof(l->attn));
    k->ops->weight_unload(k, &l->attn_norm);
    k->ops->weight_unload(k, &l->ffn_norm);
    k->ops->weight_unload(k, &l->moe.gate);
    k->ops->weight_unload(k, &l->moe.bias);
    k->ops->weight_unload(k, &l->moe.table);
    unload_expert(k, &l->moe.shared);
    if (l->moe.experts != NULL && k->ops->experts_unload != NULL)
        k->ops->experts_unload(k, l->moe.experts);
    for (int e = 0; l->moe.experts != NULL && e < w->n_experts; e++)
        unload_expert(k, &l->moe.experts[e]);
}

void weights_free(struct weights *w)
{
    if (w == NULL)
        return;
    for (int i = 0; w->layers != NULL && i < w->n_layers; i++) {
        if (w->k != NULL)
            unload_layer(w, &w->layers[i]);
        free(w->layers[i].moe.experts);
    }
    for (int i = 0; w->mtp != NULL && i < w->n_mtp; i++) {
        struct mtp_weights *m = &w->mtp[i];

        if (w->k != NULL) {
            unload_layer(w, &m->layer);
            unload_range(w->k, &m->head, sizeof(m->head));
            unload_range(w->k, &m->e_proj, 4 * sizeof(struct weight));
        }
        free(m->layer.moe.experts);
    }
    if (w->k != NULL) {
        unload_range(w->k, &w->embed, 2 * sizeof(struct weight));
        unload_range(w->k, &w->top, sizeof(w->top));
    }
    free(w->layers);
    free(w->mtp);
    free(w);
}

/* ---- fingerprint ---- */

enum { SAMPLES = 16, SAMPLE_BYTES = 64, SAMPLED_TENSORS = 64 };

static uint64_t hash(uint64_t h, const void *data, size_t n)
{
    const uint8_t *p = data;

    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001B3u; /* FNV-1a */
    return h;
}

static uint64_t hash_tensor(uint64_t h, const struct tensor *t)
{
    h = hash(h, t->name, strlen(t->name) + 1);
    h = hash(h, &t->dtype, sizeof(t->dtype));
    return hash(h, t->shape, sizeof(t->shape));
}

/* Samples are spread over the tensor, both ends included: reading all bytes would read the disk
 * twice. A small tensor is one sample. */
static int n_samples(const struct tensor *t)
{
    return t->bytes <= (uint64_t)SAMPLES * SAMPLE_BYTES ? 1 : SAMPLES;
}

static const uint8_t *sample(const struct tensor *t, int i, size_t *bytes)
{
    bool whole = n_samples(t) == 1;

    *bytes = whole ? t->bytes : SAMPLE_BYTES;
    return whole ? t->data : t->data + (t->bytes - SAMPLE_BYTES) / (SAMPLES - 1) * (uint64_t)i;
}

/* Asks for the pages of all samples: the disk then brings them at once, not one after the other. */
static void ask_for_samples(const struct tensor *t)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);

    for (int i = 0; i < n_samples(t); i++) {
        size_t bytes;
        uintptr_t at = (uintptr_t)sample(t, i, &bytes), first = at / page * page;

        madvise((void *)first, at - first + bytes, MADV_WILLNEED); /* a hint */
    }
}

static uint64_t hash_samples(uint64_t h, const struct tensor *t)
{
    for (int i = 0; i < n_samples(t); i++) {
        size_t bytes;
        const uint8_t *at = sample(t, i, &bytes);

        h = hash(h, at, bytes);
    }
    return h;
}

uint64_t weights_fingerprint(const struct safetensors *s, const struct model_config *c)
{
    uint64_t h = hash(0xCBF29CE484222325u, c, sizeof(*c));
    size_t n;
    const struct tensor *t = safetensors_all(s, &n);
    size_t step = n / SAMPLED_TENSORS + 1; /* some of many tensors: a release has 70,000 */

    for (size_t i = 0; i < n; i += step)
        ask_for_samples(&t[i]);
    for (size_t i = 0; i < n; i++)
        h = hash_tensor(h, &t[i]);
    for (size_t i = 0; i < n; i += step)
        h = hash_samples(h, &t[i]);
    return h;
}
