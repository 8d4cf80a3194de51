#include "common/model/checkpoint_make.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <openssl/sha.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/buf.h"
#include "common/base/json.h"
#include "common/model/random_stream.h"
#include "common/model/safetensors.h"
#include "kernels/ref/formats.h"

/*
 * Gains that make the network a good test subject: small additions to the residual streams, since
 * one flipped rounding grows from layer to layer; large keys, so that a wrong token or selection
 * shows.
 */
static const double attention_gain = 0.06, expert_gain = 0.02;
static const float key_gain = 2;

enum { LAYERS_MAX = 64, TENSORS_MAX = 4096, HC = 4, INDEX_HEAD_DIM = 128 };

/* What differs between the presets; the rest of config.json is the same for all. */
struct preset {
    const char *name;
    int hidden, n_layers, n_heads, head_dim, q_lora_rank, o_groups, o_lora_rank;
    int ratios[LAYERS_MAX]; /* [n_layers + 1] */
    int index_n_heads, index_topk, n_experts, n_active, moe_inter, n_hash_layers;
    double route_scale;
    int vocab, seed;
};

static const struct preset presets[] = {
    /* Small everything, head_dim other than 512, top-k that bites from 132 tokens on. */
    {"tiny",
     256,
     8,
     4,
     192,
     128,
     2,
     64,
     {0, 0, 4, 128, 4, 128, 4, 128, 0},
     4,
     32,
     16,
     4,
     128,
     3,
     1.5,
     512,
     11},
    /* As little as the architecture allows, a layer of each kind: for long contexts and many runs.
     */
    {"slim", 256, 3, 2, 128, 128, 1, 128, {0, 4, 128, 0}, 1, 32, 4, 2, 128, 1, 1.5, 512, 21},
    /* V4-Flash's head geometry and ratio pattern with few heads and layers. */
    {"flashlike",
     512,
     6,
     8,
     512,
     256,
     4,
     128,
     {0, 0, 4, 128, 4, 128, 0},
     8,
     64,
     16,
     6,
     256,
     3,
     1.5,
     1024,
     12},
    /* V4-Pro's ratio pattern (starts 128, 128), more groups, hidden size that is no power of two.
     */
    {"prolike",
     384,
     7,
     16,
     512,
     384,
     8,
     128,
     {128, 128, 4, 128, 4, 128, 4, 0},
     8,
     48,
     24,
     6,
     128,
     3,
     2.5,
     768,
     13},
    /* The releases' heads as they are, their ranks, groups and index heads; the rest is small. */
    {"flashheads",
     512,
     3,
     64,
     512,
     1024,
     8,
     1024,
     {0, 4, 128, 0},
     64,
     512,
     16,
     6,
     256,
     1,
     1.5,
     512,
     16},
    {"proheads",
     896,
     2,
     128,
     512,
     1536,
     16,
     1024,
     {128, 4, 0},
     64,
     1024,
     16,
     6,
     256,
     1,
     2.5,
     512,
     17},
    /* The releases' own geometry; ratios as release_ratios() says. */
    {"flash", 4096, 43, 64, 512, 1024, 8, 1024, {0}, 64, 512, 256, 6, 2048, 3, 1.5, 129280, 14},
    {"pro", 7168, 61, 128, 512, 1536, 16, 1024, {128}, 64, 1024, 384, 6, 3072, 3, 2.5, 129280, 15},
};

/* Two layers of the first one's ratio, then 4 and 128 in turn; the MTP block's is 0. */
static void release_ratios(struct preset *p)
{
    p->ratios[1] = p->ratios[0];
    for (int i = 2; i < p->n_layers; i++)
        p->ratios[i] = i % 2 == 0 ? 4 : 128;
    p->ratios[p->n_layers] = 0;
}

/* What the options change of a release's shape: fewer layers, fewer experts and a smaller
 * vocabulary; heads and each expert stay as they are. */
static enum status_code cut_release(struct preset *p, const struct checkpoint_options *opt,
                                    struct status *st)
{
    if (opt->n_layers > p->n_layers || opt->scale < 0 || opt->scale > 1)
        return status_set(st, ST_INVALID,
                          "%d layers at scale %g: %s has %d layers, and scale is "
                          "0 to 1",
                          opt->n_layers, opt->scale, p->name, p->n_layers);
    if (opt->n_layers > 0)
        p->n_layers = opt->n_layers;
    if (p->n_hash_layers > p->n_layers)
        p->n_hash_layers = p->n_layers;
    if (opt->scale > 0) {
        p->n_experts = (int)(p->n_experts * opt->scale + 0.5);
        p->n_experts = p->n_experts < 2 * p->n_active ? 2 * p->n_active : p->n_experts;
        p->vocab = (int)(p->vocab * opt->scale / 128 + 0.5) * 128;
        p->vocab = p->vocab < 1024 ? 1024 : p->vocab;
    }
    release_ratios(p);
    return status_ok(st);
}

uint64_t random_stream_key(int64_t seed, const char *name)
{
    char text[24 + 256]; /* a seed, a name */
    unsigned char digest[SHA256_DIGEST_LENGTH];
    uint64_t key = 0;

    snprintf(text, sizeof(text), "%" PRId64 "/%s", seed, name);
    SHA256((const unsigned char *)text, strlen(text), digest);
    for (int i = 7; i >= 0; i--)
        key = key << 8 | digest[i];
    return key;
}

/* ---- the tensors of one shard ---- */

struct maker {
    const char *dir;
    struct preset p;
    enum checkpoint_experts experts;
    int64_t seed;
    struct tensor_out tensors[TENSORS_MAX]; /* of the present shard; names and data are malloc */
    size_t n;
    int shard, n_shards;
    struct buf map; /* weight_map, unsorted lines */
    uint64_t total;
    struct status *st;
};

static void *allocate(size_t n)
{
    void *p = malloc(n > 0 ? n : 1);

    if (p == NULL)
        abort(); /* a tool that writes a file: nothing is lost */
    return p;
}

/* Appends a tensor and returns its zeroless memory. */
static void *put(struct maker *m, const char *name, const char *suffix, enum st_dtype dtype,
                 size_t element, int64_t rows, int64_t cols)
{
    struct tensor_out *t = &m->tensors[m->n++];
    size_t len = strlen(name) + strlen(suffix) + 1;
    char *full = allocate(len);
    void *data = allocate((size_t)(rows * (cols > 0 ? cols : 1)) * element);

    if (m->n > TENSORS_MAX)
        abort();
    snprintf(full, len, "%s%s", name, suffix);
    *t =
        (struct tensor_out){.name = full, .dtype = dtype, .n_dims = cols > 0 ? 2 : 1, .data = data};
    t->shape[0] = rows;
    t->shape[1] = cols;
    m->total += (uint64_t)(rows * (cols > 0 ? cols : 1)) * element;
    return data;
}

static uint64_t key_of(const struct maker *m, const char *name, const char *suffix)
{
    char full[256];

    snprintf(full, sizeof(full), "%s%s", name, suffix);
    return random_stream_key(m->seed, full);
}

/* name = offset + factor * normal, f32 throughout. */
static void put_f32(struct maker *m, const char *name, const char *suffix, int64_t rows,
                    int64_t cols, float offset, float factor)
{
    float *out = put(m, name, suffix, DTYPE_F32, sizeof(*out), rows, cols);
    uint64_t key = key_of(m, name, suffix);

    for (int64_t i = 0; i < rows * (cols > 0 ? cols : 1); i++)
        out[i] = offset + factor * random_stream_normal(key, (uint64_t)i);
}

static void put_bf16(struct maker *m, const char *name, const char *suffix, int64_t rows,
                     int64_t cols, float factor)
{
    uint16_t *out = put(m, name, suffix, DTYPE_BF16, sizeof(*out), rows, cols);
    uint64_t key = key_of(m, name, suffix);

    for (int64_t i = 0; i < rows * cols; i++)
        out[i] = bf16_encode(factor * random_stream_normal(key, (uint64_t)i));
}

static void put_norm(struct maker *m, const char *name, const char *suffix, int n, float gain)
{
    uint16_t *out = put(m, name, suffix, DTYPE_BF16, sizeof(*out), n, 0);
    uint64_t key = key_of(m, name, suffix);

    for (int i = 0; i < n; i++)
        out[i] = bf16_encode(gain * (1.0f + 0.1f * random_stream_normal(key, (uint64_t)i)));
}

/* Scales are powers of two, given by their E8M0 byte; Base checkpoints store them as F32. */
static void put_scales(struct maker *m, const char *name, const uint8_t *e, int64_t rows,
                       int64_t cols)
{
    if (m->experts == EXPERTS_FP8) {
        float *out = put(m, name, ".scale", DTYPE_F32, sizeof(*out), rows, cols);

        for (int64_t i = 0; i < rows * cols; i++)
            out[i] = e8m0_decode(e[i]);
    } else {
        memcpy(put(m, name, ".scale", DTYPE_F8_E8M0, 1, rows, cols), e, (size_t)(rows * cols));
    }
}

/* Real-valued weights: normal * gain / sqrt(cols), times 1/2, 1 or 2 per 128 x 128 tile. */
static float *matrix(const struct maker *m, const char *name, int64_t rows, int64_t cols,
                     double gain)
{
    float *w = allocate((size_t)(rows * cols) * sizeof(*w));
    float factor = (float)(gain / sqrt((double)cols));
    uint64_t key = key_of(m, name, ""), tiles = key_of(m, name, "/tiles");
    int64_t per_row = (cols + 127) / 128;

    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            uint64_t tile = (uint64_t)(r / 128 * per_row + c / 128);

            w[r * cols + c] = random_stream_normal(key, (uint64_t)(r * cols + c)) * factor *
                              ldexpf(1, (int)random_stream_below(tiles, tile, 3) - 1);
        }
    return w;
}

/* Codes of a matrix under given tile scales. */
static void put_fp8_codes(struct maker *m, const char *name, const float *w, const uint8_t *e,
                          int64_t rows, int64_t cols)
{
    uint8_t *out = put(m, name, ".weight", DTYPE_F8_E4M3, 1, rows, cols);
    int64_t per_row = (cols + 127) / 128;

    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            out[r * cols + c] =
                e4m3_encode(w[r * cols + c] / e8m0_decode(e[r / 128 * per_row + c / 128]));
    put_scales(m, name, e, (rows + 127) / 128, per_row);
}

static void put_fp8(struct maker *m, const char *name, int64_t rows, int64_t cols, double gain)
{
    float *w = matrix(m, name, rows, cols, gain);
    int64_t nr = (rows + 127) / 128, nc = (cols + 127) / 128;
    uint8_t *e = allocate((size_t)(nr * nc));

    for (int64_t a = 0; a < nr; a++)
        for (int64_t b = 0; b < nc; b++) {
            float amax = 0;

            for (int64_t r = a * 128; r < rows && r < a * 128 + 128; r++)
                for (int64_t c = b * 128; c < cols && c < b * 128 + 128; c++)
                    amax = fmaxf(amax, fabsf(w[r * cols + c]));
            e[a * nc + b] = e8m0_ceil(amax / 448.0f);
        }
    put_fp8_codes(m, name, w, e, rows, cols);
    free(w);
    free(e);
}

/* The FP4 values as FP8 without loss: the tile's scale is its largest group scale / 64. */
static void put_fp4_as_fp8(struct maker *m, const char *name, const float *values,
                           const uint8_t *groups, int64_t rows, int64_t cols)
{
    int64_t nr = rows / 128, nc = cols / 128, per_row = cols / 32;
    uint8_t *e = allocate((size_t)(nr * nc));

    for (int64_t a = 0; a < nr; a++)
        for (int64_t b = 0; b < nc; b++) {
            uint8_t largest = 0;

            for (int64_t r = a * 128; r < a * 128 + 128; r++)
                for (int64_t g = b * 4; g < b * 4 + 4; g++)
                    largest = groups[r * per_row + g] > largest ? groups[r * per_row + g] : largest;
            e[a * nc + b] = (uint8_t)(largest - 6);
        }
    put_fp8_codes(m, name, values, e, rows, cols);
    free(e);
}

/* Experts: two FP4 values a byte with a scale per 32 columns; or the same values cast to FP8. */
static void put_fp4(struct maker *m, const char *name, int64_t rows, int64_t cols, double gain)
{
    float *w = matrix(m, name, rows, cols, gain);
    int64_t groups = rows * cols / 32;
    uint8_t *e = allocate((size_t)groups), *pairs = allocate((size_t)(rows * cols / 2));
    uint64_t key = key_of(m, name, "/groups");

    for (int64_t g = 0; g < groups; g++) {
        float *x = w + g * 32, half = ldexpf(1, (int)random_stream_below(key, (uint64_t)g, 2) - 1);
        float scale;

        for (int i = 0; i < 32; i++)
            x[i] *= half;
        e[g] = e8m0_ceil(block_amax(x, 32) / 6.0f);
        scale = e8m0_decode(e[g]);
        for (int i = 0; i < 32; i++) {
            unsigned code = e2m1_encode(x[i] / scale);

            if (i % 2 == 0)
                pairs[g * 16 + i / 2] = (uint8_t)code;
            else
                pairs[g * 16 + i / 2] |= (uint8_t)(code << 4);
            x[i] = e2m1_decode(code) * scale + 0.0f; /* the official cast has no negative zero */
        }
    }
    if (m->experts == EXPERTS_FP4) {
        memcpy(put(m, name, ".weight", DTYPE_I8, 1, rows, cols / 2), pairs,
               (size_t)(rows * cols / 2));
        put_scales(m, name, e, rows, cols / 32);
    } else {
        put_fp4_as_fp8(m, name, w, e, rows, cols);
    }
    free(w);
    free(e);
    free(pairs);
}

/* ---- the parts of a layer ---- */

static const char *join(char out[256], const char *prefix, const char *suffix)
{
    snprintf(out, 256, "%.120s%.120s", prefix, suffix);
    return out;
}

static void put_hc(struct maker *m, const char *name, int rows)
{
    int64_t n = (int64_t)HC * m->p.hidden;

    put_f32(m, name, "_fn", rows, n, 0, (float)(1 / sqrt((double)n)));
    put_f32(m, name, "_base", rows, 0, 0, 1.5f);
    put_f32(m, name, "_scale", rows == HC ? 1 : 3, 0, 0.5f, 0.2f);
}

static void put_compressor(struct maker *m, const char *name, int ratio, int dim)
{
    int64_t cols = ratio == 4 ? 2 * dim : dim, d = m->p.hidden;

    put_f32(m, name, ".ape", ratio, cols, 0, 0.5f);
    put_bf16(m, name, ".wkv.weight", cols, d, (float)(1 / sqrt((double)d)));
    put_bf16(m, name, ".wgate.weight", cols, d, (float)(1 / sqrt((double)d)));
    put_norm(m, name, ".norm.weight", dim, key_gain);
}

static void put_attention(struct maker *m, const char *name, int ratio)
{
    const struct preset *p = &m->p;
    int64_t HD = (int64_t)p->n_heads * p->head_dim, GO = (int64_t)p->o_groups * p->o_lora_rank;
    char sub[256];

    put_f32(m, name, ".attn_sink", p->n_heads, 0, 0, 1);
    put_fp8(m, join(sub, name, ".wq_a"), p->q_lora_rank, p->hidden, 1);
    put_norm(m, name, ".q_norm.weight", p->q_lora_rank, 1);
    put_fp8(m, join(sub, name, ".wq_b"), HD, p->q_lora_rank, 1);
    put_fp8(m, join(sub, name, ".wkv"), p->head_dim, p->hidden, 1);
    put_norm(m, name, ".kv_norm.weight", p->head_dim, key_gain);
    put_fp8(m, join(sub, name, ".wo_a"), GO, HD / p->o_groups, 2);
    put_fp8(m, join(sub, name, ".wo_b"), p->hidden, GO, attention_gain);
    if (ratio != 0)
        put_compressor(m, join(sub, name, ".compressor"), ratio, p->head_dim);
    if (ratio != 4)
        return;
    put_fp8(m, join(sub, name, ".indexer.wq_b"), (int64_t)p->index_n_heads * INDEX_HEAD_DIM,
            p->q_lora_rank, 1);
    put_bf16(m, name, ".indexer.weights_proj.weight", p->index_n_heads, p->hidden,
             (float)(1 / sqrt((double)p->hidden)));
    put_compressor(m, join(sub, name, ".indexer.compressor"), ratio, INDEX_HEAD_DIM);
}

static void put_expert(struct maker *m, const char *name, bool fp8)
{
    void (*make)(struct maker *, const char *, int64_t, int64_t, double) = fp8 ? put_fp8 : put_fp4;
    char sub[256];

    make(m, join(sub, name, ".w1"), m->p.moe_inter, m->p.hidden,
         2); /* the clamp acts now and then */
    make(m, join(sub, name, ".w2"), m->p.hidden, m->p.moe_inter, expert_gain);
    make(m, join(sub, name, ".w3"), m->p.moe_inter, m->p.hidden, 2);
}

static int gcd(int a, int b)
{
    return b == 0 ? a : gcd(b, a % b);
}

/* n_active different experts per token: a start and a step coprime to their number. */
static void put_table(struct maker *m, const char *name)
{
    int n = m->p.n_experts, k = m->p.n_active, steps[4096], n_steps = 0;
    int64_t *out = put(m, name, ".gate.tid2eid", DTYPE_I64, sizeof(*out), m->p.vocab, k);
    uint64_t key = key_of(m, name, ".gate.tid2eid");

    for (int x = 1; x < n; x++)
        if (gcd(x, n) == 1)
            steps[n_steps++] = x;
    for (int64_t t = 0; t < m->p.vocab; t++) {
        int64_t start = (int64_t)random_stream_below(key, (uint64_t)(2 * t), 1ull << 32);
        uint64_t step = random_stream_below(key, (uint64_t)(2 * t + 1), 1ull << 32);

        for (int i = 0; i < k; i++)
            out[t * k + i] = (start + (int64_t)steps[step % (uint64_t)n_steps] * i) % n;
    }
}

static void put_moe(struct maker *m, const char *name, bool hashed)
{
    char sub[256];

    put_bf16(m, name, ".gate.weight", m->p.n_experts, m->p.hidden,
             (float)(1 / sqrt((double)m->p.hidden)));
    if (hashed)
        put_table(m, name);
    else
        put_f32(m, name, ".gate.bias", m->p.n_experts, 0, 0, 0.5f);
    for (int e = 0; e < m->p.n_experts; e++) {
        snprintf(sub, sizeof(sub), "%.120s.experts.%d", name, e);
        put_expert(m, sub, m->experts == EXPERTS_FP8);
    }
    put_expert(m, join(sub, name, ".shared_experts"), true);
}

static void put_block(struct maker *m, const char *name, int layer)
{
    char sub[256];

    put_hc(m, join(sub, name, ".hc_attn"), (2 + HC) * HC);
    put_hc(m, join(sub, name, ".hc_ffn"), (2 + HC) * HC);
    put_norm(m, name, ".attn_norm.weight", m->p.hidden, 1);
    put_norm(m, name, ".ffn_norm.weight", m->p.hidden, 1);
    put_attention(m, join(sub, name, ".attn"), m->p.ratios[layer]);
    put_moe(m, join(sub, name, ".ffn"), layer < m->p.n_hash_layers);
}

static void put_top(struct maker *m, const char *prefix)
{
    char sub[256];

    put_hc(m, join(sub, prefix, "hc_head"), HC);
    put_norm(m, prefix, "norm.weight", m->p.hidden, 1);
}

/* ---- shards ---- */

static size_t element_bytes(enum st_dtype t)
{
    return t == DTYPE_I64 ? 8 : t == DTYPE_F32 ? 4 : t == DTYPE_BF16 ? 2 : 1;
}

/* Wide types first, so that every tensor is naturally aligned; then by name. */
static int in_file_order(const void *a, const void *b)
{
    const struct tensor_out *x = a, *y = b;
    size_t n = element_bytes(x->dtype), k = element_bytes(y->dtype);

    return n != k ? (n > k ? -1 : 1) : strcmp(x->name, y->name);
}

static bool write_shard(struct maker *m)
{
    char file[64], path[4096];

    snprintf(file, sizeof(file), "model-%05d-of-%05d.safetensors", ++m->shard, m->n_shards);
    snprintf(path, sizeof(path), "%s/%s", m->dir, file);
    qsort(m->tensors, m->n, sizeof(*m->tensors), in_file_order);
    safetensors_write(path, m->tensors, m->n, m->st);
    for (size_t i = 0; i < m->n; i++) {
        buf_printf(&m->map, "    \"%s\": \"%s\"\n", m->tensors[i].name, file);
        free((char *)m->tensors[i].name);
        free((void *)m->tensors[i].data);
    }
    m->n = 0;
    return m->st->code == ST_OK;
}

static void put_vocabulary(struct maker *m, const char *prefix, const char *name, float gain,
                           const char *stream)
{
    uint16_t *out = put(m, prefix, name, DTYPE_BF16, sizeof(*out), m->p.vocab, m->p.hidden);
    uint64_t key = key_of(m, stream, "");

    for (int64_t i = 0; i < (int64_t)m->p.vocab * m->p.hidden; i++)
        out[i] = bf16_encode(gain * random_stream_normal(key, (uint64_t)i));
}

static void put_mtp(struct maker *m, float head_gain)
{
    put_block(m, "mtp.0", m->p.n_layers);
    put_top(m, "mtp.0.");
    put_fp8(m, "mtp.0.e_proj", m->p.hidden, m->p.hidden, 1);
    put_norm(m, "mtp.0", ".enorm.weight", m->p.hidden, 1);
    put_fp8(m, "mtp.0.h_proj", m->p.hidden, m->p.hidden, 1);
    put_norm(m, "mtp.0", ".hnorm.weight", m->p.hidden, 1);
    if (m->experts == EXPERTS_FP8) { /* Base checkpoints repeat the shared matrices here */
        put_vocabulary(m, "mtp.0", ".emb.tok_emb.weight", 1, "embed.weight");
        put_vocabulary(m, "mtp.0", ".head.weight", head_gain, "head.weight");
    }
}

static bool write_shards(struct maker *m)
{
    float head_gain = (float)(2 / sqrt((double)m->p.hidden));
    char name[64];

    put_vocabulary(m, "", "embed.weight", 1, "embed.weight");
    if (!write_shard(m))
        return false;
    for (int i = 0; i < m->p.n_layers; i++) {
        snprintf(name, sizeof(name), "layers.%d", i);
        put_block(m, name, i);
        if (!write_shard(m))
            return false;
    }
    put_vocabulary(m, "", "head.weight", head_gain, "head.weight");
    put_top(m, "");
    if (!write_shard(m))
        return false;
    put_mtp(m, head_gain);
    return write_shard(m);
}

/* ---- config.json and the index ---- */

static enum status_code write_file(const char *dir, const char *name, struct buf *text,
                                   struct status *st)
{
    char path[4096];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "wb");
    if (f == NULL || fwrite(text->data, 1, text->len, f) != text->len || fflush(f) != 0)
        status_set(st, ST_INVALID, "%s: %s", path, strerror(errno));
    else
        status_ok(st);
    if (f != NULL)
        fclose(f);
    return st->code;
}

static enum status_code write_config(const struct maker *m, struct status *st)
{
    const struct preset *p = &m->p;
    struct buf b = {0};

    buf_puts(&b,
             "{\n  \"architectures\": [\"DeepseekV4ForCausalLM\"],\n  \"attention_bias\": false,\n"
             "  \"attention_dropout\": 0.0,\n  \"bos_token_id\": 0,\n  \"eos_token_id\": 1,\n");
    if (m->experts !=
        EXPERTS_FP8_CONVERTED) /* absent from some revisions: readers decide by dtype */
        buf_printf(&b, "  \"expert_dtype\": \"%s\",\n", m->experts == EXPERTS_FP8 ? "fp8" : "fp4");
    buf_puts(
        &b,
        "  \"hc_eps\": 1e-06,\n  \"hc_mult\": 4,\n  \"hc_sinkhorn_iters\": 20,\n"
        "  \"hidden_act\": \"silu\",\n  \"index_head_dim\": 128,\n  \"initializer_range\": 0.02,\n"
        "  \"max_position_embeddings\": 1048576,\n  \"model_type\": \"deepseek_v4\",\n"
        "  \"n_shared_experts\": 1,\n  \"norm_topk_prob\": true,\n  \"num_key_value_heads\": 1,\n"
        "  \"num_nextn_predict_layers\": 1,\n  \"qk_rope_head_dim\": 64,\n"
        "  \"quantization_config\": {\"activation_scheme\": \"dynamic\", \"fmt\": \"e4m3\", "
        "\"quant_method\": \"fp8\", \"scale_fmt\": \"ue8m0\", \"weight_block_size\": [128, 128]},\n"
        "  \"rms_norm_eps\": 1e-06,\n"
        "  \"rope_scaling\": {\"beta_fast\": 32, \"beta_slow\": 1, \"factor\": 16, "
        "\"original_max_position_embeddings\": 65536, \"type\": \"yarn\"},\n"
        "  \"rope_theta\": 10000,\n  \"scoring_func\": \"sqrtsoftplus\",\n"
        "  \"sliding_window\": 128,\n  \"swiglu_limit\": 10.0,\n"
        "  \"tie_word_embeddings\": false,\n  \"topk_method\": \"noaux_tc\",\n"
        "  \"torch_dtype\": \"bfloat16\",\n  \"transformers_version\": \"4.57.1\",\n"
        "  \"use_cache\": true,\n  \"compress_rope_theta\": 160000,\n");
    buf_printf(
        &b,
        "  \"hidden_size\": %d,\n  \"num_hidden_layers\": %d,\n  \"num_attention_heads\": %d,\n",
        p->hidden, p->n_layers, p->n_heads);
    buf_printf(&b, "  \"head_dim\": %d,\n  \"q_lora_rank\": %d,\n  \"o_groups\": %d,\n",
               p->head_dim, p->q_lora_rank, p->o_groups);
    buf_printf(&b, "  \"o_lora_rank\": %d,\n  \"compress_ratios\": [", p->o_lora_rank);
    for (int i = 0; i <= p->n_layers; i++)
        buf_printf(&b, "%s%d", i > 0 ? ", " : "", p->ratios[i]);
    buf_printf(&b, "],\n  \"index_n_heads\": %d,\n  \"index_topk\": %d,\n", p->index_n_heads,
               p->index_topk);
    buf_printf(&b, "  \"n_routed_experts\": %d,\n  \"num_experts_per_tok\": %d,\n", p->n_experts,
               p->n_active);
    buf_printf(&b, "  \"moe_intermediate_size\": %d,\n  \"num_hash_layers\": %d,\n", p->moe_inter,
               p->n_hash_layers);
    buf_printf(&b, "  \"routed_scaling_factor\": %g,\n  \"vocab_size\": %d\n}\n", p->route_scale,
               p->vocab);
    write_file(m->dir, "config.json", &b, st);
    buf_deinit(&b);
    return st->code;
}

static int by_line(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static enum status_code write_index(struct maker *m, struct status *st)
{
    char *text = (char *)buf_cstr(&m->map), **lines;
    size_t n = 0, most = 1;
    struct buf b = {0};

    for (const char *p = text; *p != '\0'; p++)
        most += *p == '\n';
    lines = allocate(most * sizeof(*lines));
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n"))
        lines[n++] = line;
    qsort(lines, n, sizeof(*lines), by_line);
    buf_printf(&b,
               "{\n  \"metadata\": {\n    \"total_size\": %" PRIu64 "\n  },\n  \"weight_map\": {\n",
               m->total);
    for (size_t i = 0; i < n; i++)
        buf_printf(&b, "%s%s\n", lines[i], i + 1 < n ? "," : "");
    buf_puts(&b, "  }\n}\n");
    free(lines);
    write_file(m->dir, "model.safetensors.index.json", &b, st);
    buf_deinit(&b);
    return st->code;
}

enum status_code checkpoint_make(const char *dir, const struct checkpoint_options *opt,
                                 struct status *st)
{
    struct maker *m = NULL;

    for (size_t i = 0; i < sizeof(presets) / sizeof(presets[0]); i++) {
        if (strcmp(presets[i].name, opt->preset) != 0)
            continue;
        m = allocate(sizeof(*m));
        *m = (struct maker){.dir = dir, .p = presets[i], .experts = opt->experts, .st = st};
    }
    if (m == NULL)
        return status_set(st, ST_INVALID,
                          "no preset '%s': there are tiny, slim, flashlike, prolike, flashheads, "
                          "proheads, flash and pro",
                          opt->preset);
    if (m->p.hidden >= 4096 && cut_release(&m->p, opt, st) != ST_OK) {
        free(m);
        return st->code;
    }
    m->seed = opt->seed >= 0 ? opt->seed : m->p.seed;
    m->n_shards = m->p.n_layers + 3;
    if (opt->vocab_size > 0)
        m->p.vocab = opt->vocab_size;
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        status_set(st, ST_INVALID, "%s: %s", dir, strerror(errno));
    else if (write_shards(m) && write_index(m, st) == ST_OK)
        write_config(m, st);
    buf_deinit(&m->map);
    free(m);
    return st->code;
}
