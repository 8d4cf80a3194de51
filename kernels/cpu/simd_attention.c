/*
 * simd_attention: one token's attention over its window and its compressed entries, for a block of
 * heads.
 *
 * An item is (token, block of heads). Keys are decoded 16 at a time, from FP8 rows to f32 in L1,
 * twice: logits  lanes are heads: s[key][head] = sum over dims, ascending, of k[key][dim]
 * (broadcast) times q transposed [dim][head] softmax over the keys of each lane, the sink in the
 * denominator only values  lanes are dims: o[head][dim] += p[key][head] (broadcast, bf16 grid)
 * times k[key][dim], keys ascending FLOPs: 4 * keys * heads * D; decoding costs two of its passes
 * over keys * D, shared by the block.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/ref/ref.h"

#include <assert.h>

enum {
    KEYS = 16,                           /* decoded at a time */
    LOGIT_KEYS = VF_LANES == 16 ? 8 : 4, /* keys of a tile of logits */
    LOGIT_HEADS = 2,                     /* vectors of heads of one */
    VALUE_HEADS = 6,                     /* heads of a tile of values */
    VALUE_DIMS = VF_LANES == 16 ? 4 : 2  /* vectors of dims of one */
};

struct attention_job {
    const struct kernel_dims *dims;
    uint16_t *o;
    const uint16_t *q;
    const uint8_t *rows;
    const int32_t *chosen;
    const float *sink;
    const struct kernel_batch *b;
    const struct kernel_kv *v;
    const float *freq;
    int block, n_blocks; /* heads of a block; blocks of a token */
    int max_keys;
};

/* What an item works with, in part->keys. Heads are padded to whole vectors. */
struct work {
    float *q;            /* [D][heads] */
    float *o;            /* [heads][D] */
    float *k;            /* [KEYS][D] */
    float *s;            /* [max_keys][heads]: logits, then probabilities */
    const uint8_t **row; /* [max_keys] */
    float total[CPU_HEADS_BLOCK];
    int heads, D;
};

size_t SIMD_NAME(cpu_attention_bytes)(const struct kernel_dims *d)
{
    size_t heads = CPU_HEADS_BLOCK, D = (size_t)d->head_dim, keys = (size_t)cpu_max_keys(d);

    return (2 * heads * D + KEYS * D + (keys + KEYS) * heads) * sizeof(float) +
           (keys + 2 * KEYS) * sizeof(void *);
}

static struct work work_of(const struct attention_job *job, struct cpu_part *part)
{
    struct work w = {.heads = (job->block + VF_LANES - 1) / VF_LANES * VF_LANES,
                     .D = job->dims->head_dim};
    float *at = (float *)(void *)part->keys;

    w.q = at;
    w.o = w.q + w.D * w.heads;
    w.k = w.o + w.D * w.heads;
    w.s = w.k + KEYS * w.D;
    w.row = (const uint8_t **)(void *)(w.s + (size_t)(job->max_keys + KEYS) * (size_t)w.heads);
    return w;
}

/* Rows of the keys of token t, window first; returns how many. */
static int find_keys(const struct attention_job *job, int64_t t, const uint8_t **row)
{
    const struct kernel_dims *d = job->dims;
    const struct kernel_kv *v = job->v;
    int64_t pos = ((const int32_t *)cpu_ptr(job->b->row_pos))[t];
    int seq = ((const int32_t *)cpu_ptr(job->b->row_seq))[t];
    int64_t start = ((const int32_t *)cpu_ptr(job->b->seq_start))[seq];
    int64_t first_row = ((const int32_t *)cpu_ptr(job->b->seq_row))[seq];
    int32_t slot = ((const int32_t *)cpu_ptr(job->b->seq_slot))[seq];
    const uint8_t *ring =
        (const uint8_t *)cpu_ptr(v->states) + (size_t)slot * v->slot_stride + v->window_off;
    int64_t p = pos + 1 > d->window ? pos + 1 - d->window : 0;
    int m = 0;

    for (; p <= pos; p++)
        row[m++] = p >= start ? job->rows + (first_row + p - start) * v->row_bytes
                              : ring + p % v->window_rows * v->row_bytes;
    if (v->ratio == 0)
        return m;
    int64_t n = v->ratio == 4 ? d->index_topk : (pos + 1) / v->ratio;

    for (int64_t i = 0; i < n; i++) {
        int32_t g = v->ratio == 4 ? job->chosen[t * d->index_topk + i] : (int32_t)i;

        if (g < 0)
            break;
        row[m++] = ref_entry(job->b, v, seq, g, false);
    }
    return m;
}

/* q of heads [first, first + n) as f32 [D][heads]; padding heads are 0. */
static void transpose_q(const struct work *w, const uint16_t *q, int n)
{
    float x[HEAD_DIM_MAX];

    for (int h = 0; h < w->heads; h++) {
        if (h < n)
            load_row(x, q + (int64_t)h * w->D, w->D);
        else
            memset(x, 0, sizeof(x));
        for (int i = 0; i < w->D; i++)
            w->q[i * w->heads + h] = x[i];
    }
}

/* Keys [j, j + n) into w->k; asks for the rows of the next ones, which lie anywhere. */
static void load_keys(const struct attention_job *job, const struct work *w, int j, int n)
{
    for (int i = 0; i < n; i++) {
        const char *next = (const char *)w->row[j + i + KEYS];

        for (int line = 0; line < job->v->row_bytes; line += 64)
            _mm_prefetch(next + line, _MM_HINT_T0);
        kv_row_load(w->k + i * w->D, w->row[j + i], w->D, job->dims->rope_dim);
    }
}

/* s[key][lane] = k . q for n_keys keys and n_vecs vectors of heads. */
SIMD void logit_tile(float *s, const float *k, const float *q, int D, int heads, float scale,
                     const int n_keys, const int n_vecs)
{
    vf sum[LOGIT_KEYS][LOGIT_HEADS];

#pragma GCC unroll 8
    for (int i = 0; i < n_keys; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            sum[i][j] = vf_set1(0.f);
    for (int c = 0; c < D; c++) {
        vf qc[LOGIT_HEADS];

#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            qc[j] = vf_load(q + c * heads + j * VF_LANES);
#pragma GCC unroll 8
        for (int i = 0; i < n_keys; i++) {
            vf kc = vf_set1(k[i * D + c]);

#pragma GCC unroll 8
            for (int j = 0; j < n_vecs; j++)
                sum[i][j] = vf_fma(kc, qc[j], sum[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < n_keys; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            vf_store(s + i * heads + j * VF_LANES, sum[i][j] * vf_set1(scale));
}

/* Logits of the n <= KEYS keys in w->k; rows beyond n are written too, and never read. */
static void logits(const struct work *w, float *s, int n, float scale)
{
    for (int i = 0; i < n; i += LOGIT_KEYS)
        for (int h = 0; h < w->heads;) {
            const float *k = w->k + i * w->D;
            int left = (w->heads - h) / VF_LANES;
            float *at = s + i * w->heads + h;

            if (left >= LOGIT_HEADS) {
                logit_tile(at, k, w->q + h, w->D, w->heads, scale, LOGIT_KEYS, LOGIT_HEADS);
                h += LOGIT_HEADS * VF_LANES;
            } else {
                logit_tile(at, k, w->q + h, w->D, w->heads, scale, LOGIT_KEYS, 1);
                h += VF_LANES;
            }
        }
}

/* s becomes bf16(exp(s - max)); total is the sum before rounding, plus the sink's. */
static void softmax(struct work *w, int m, const float *sink, int n)
{
    for (int h = 0; h < w->heads; h += VF_LANES) {
        vf top = vf_set1(-__builtin_inff()), total = vf_set1(0.f);
        float lane[VF_LANES] = {0};

        for (int j = 0; j < m; j++)
            top = vf_max(top, vf_load(w->s + j * w->heads + h));
        for (int j = 0; j < m; j++) {
            vf p = vf_exp(vf_load(w->s + j * w->heads + h) - top);

            total = total + p;
            vf_store(w->s + j * w->heads + h, vf_bf16(p));
        }
        for (int i = 0; i < VF_LANES && h + i < n; i++)
            lane[i] = sink[h + i];
        vf_store(w->total + h, total + vf_exp(vf_load(lane) - top));
    }
}

/* o[head][dims] += sum over n keys of p[key][head] * k[key][dims]. */
SIMD void value_tile(float *o, const float *p, const float *k, int D, int heads, int n,
                     const int n_heads, const int n_vecs)
{
    vf sum[VALUE_HEADS][VALUE_DIMS];

#pragma GCC unroll 8
    for (int i = 0; i < n_heads; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            sum[i][j] = vf_load(o + i * D + j * VF_LANES);
    for (int key = 0; key < n; key++) {
        vf v[VALUE_DIMS];

#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            v[j] = vf_load(k + key * D + j * VF_LANES);
#pragma GCC unroll 8
        for (int i = 0; i < n_heads; i++) {
            vf pi = vf_set1(p[key * heads + i]);

#pragma GCC unroll 8
            for (int j = 0; j < n_vecs; j++)
                sum[i][j] = vf_fma(pi, v[j], sum[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < n_heads; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            vf_store(o + i * D + j * VF_LANES, sum[i][j]);
}

static void values(const struct work *w, const float *p, int n, int n_heads)
{
    enum { DIMS = VALUE_DIMS * VF_LANES };
    int c = 0;

    for (; c + DIMS <= w->D; c += DIMS) {
        int h = 0;

        for (; h + VALUE_HEADS <= n_heads; h += VALUE_HEADS)
            value_tile(w->o + h * w->D + c, p + h, w->k + c, w->D, w->heads, n, VALUE_HEADS,
                       VALUE_DIMS);
        for (; h + 2 <= n_heads; h += 2)
            value_tile(w->o + h * w->D + c, p + h, w->k + c, w->D, w->heads, n, 2, VALUE_DIMS);
        for (; h < n_heads; h++)
            value_tile(w->o + h * w->D + c, p + h, w->k + c, w->D, w->heads, n, 1, VALUE_DIMS);
    }
    for (; c < w->D; c += VF_LANES)
        for (int h = 0; h < n_heads; h++)
            value_tile(w->o + h * w->D + c, p + h, w->k + c, w->D, w->heads, n, 1, 1);
}

static void attention_item(void *arg, int64_t item, struct cpu_part *part)
{
    struct attention_job *job = arg;
    const struct kernel_dims *d = job->dims;
    int64_t t = item / job->n_blocks;
    int first = (int)(item % job->n_blocks) * job->block;
    int n = d->n_heads - first < job->block ? d->n_heads - first : job->block;
    int64_t at = (t * d->n_heads + first) * d->head_dim;
    float scale = (float)pow(d->head_dim, -0.5);
    struct work w = work_of(job, part);
    int m = find_keys(job, t, w.row);
    struct rotation rot;

    for (int i = 0; i < KEYS; i++) /* load_keys() looks ahead */
        w.row[m + i] = w.row[0];

    transpose_q(&w, job->q + at, n);
    for (int j = 0; j < m; j += KEYS) {
        int some = m - j < KEYS ? m - j : KEYS;

        load_keys(job, &w, j, some);
        logits(&w, w.s + (int64_t)j * w.heads, some, scale);
    }
    softmax(&w, m, job->sink + first, n);
    memset(w.o, 0, (size_t)w.heads * (size_t)w.D * sizeof(float));
    for (int j = 0; j < m; j += KEYS) {
        int some = m - j < KEYS ? m - j : KEYS;

        load_keys(job, &w, j, some);
        values(&w, w.s + (int64_t)j * w.heads, some, n);
    }
    rotation_of(&rot, ((const int32_t *)cpu_ptr(job->b->row_pos))[t], job->freq, d->rope_dim, -1);
    for (int h = 0; h < n; h++) {
        float *o = w.o + h * w.D;
        vf total = vf_set1(w.total[h]);

        for (int i = 0; i < w.D; i += VF_LANES)
            vf_store(o + i, vf_bf16(vf_load(o + i) / total));
        rotate_row(o, w.D, d->rope_dim, &rot);
        store_row(job->o + at + (int64_t)h * w.D, o, w.D);
    }
}

/* The largest block of heads that still gives every thread a few items; bits do not depend on it.
 */
static int choose_block(int n_heads, int T, int n_threads)
{
    int block = CPU_HEADS_BLOCK;

    while (block > 16 && (int64_t)T * ((n_heads + block - 1) / block) < 2 * (int64_t)n_threads)
        block /= 2;
    return block < n_heads ? block : n_heads;
}

static void attention(struct kernels *k, struct dev_ptr o, struct dev_ptr q, struct dev_ptr rows,
                      struct dev_ptr chosen, const struct weight *sink,
                      const struct kernel_batch *b, const struct kernel_kv *kv_view,
                      struct dev_ptr freq)
{
    struct attention_job job = {
        .dims = &k->dims,
        .o = cpu_ptr(o),
        .q = cpu_ptr(q),
        .rows = cpu_ptr(rows),
        .chosen = cpu_ptr(chosen),
        .sink = cpu_ptr(sink->data),
        .b = b,
        .v = kv_view,
        .freq = cpu_ptr(freq),
        .block = choose_block(k->dims.n_heads, b->n_rows, cpu_of(k)->n_parts),
        .max_keys = cpu_max_keys(&k->dims),
    };

    assert(k->dims.head_dim <= HEAD_DIM_MAX && k->dims.head_dim % 16 == 0);
    job.n_blocks = (k->dims.n_heads + job.block - 1) / job.block;
    cpu_run(k, (int64_t)b->n_rows * job.n_blocks, attention_item, &job);
}

void SIMD_NAME(cpu_attention_fill)(struct kernel_ops *ops)
{
    ops->attention = attention;
}
