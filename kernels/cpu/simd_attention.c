/*
 * simd_attention: one token's attention over its window and its compressed entries, for a block of
 * heads.
 *
 * An item is (token, block of heads). Keys are decoded 64 at a time, from FP8 rows to elements for
 * dot products (bf16 pairs, or f32 where the ISA has none), twice:
 *   logits   lanes are heads: s[key][head] = sum over pairs of dims, ascending, of k (broadcast)
 *            times q transposed, 128 dims at a time so that q stays in L1
 *   softmax  over the keys of each lane, the sink in the denominator only
 *   values   lanes are dims: o[head][dim] += sum over pairs of keys, ascending, of p (broadcast,
 *            bf16 grid) times k, two keys zipped
 * FLOPs: 4 * keys * heads * D. Beside them, per key and block: decoding it twice, about a tenth of
 * 64 heads' products.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/ref/ref.h"

#include <assert.h>

enum {
    KEYS = 64,                           /* decoded at a time */
    AHEAD = 8,                           /* rows asked for in advance: they lie anywhere */
    LOGIT_KEYS = VF_LANES == 16 ? 8 : 4, /* keys of a tile of logits */
    LOGIT_HEADS = 2,                     /* vectors of heads of one */
    LOGIT_DIMS = 128,                    /* dims of a pass */
    VALUE_HEADS = 6,                     /* heads of a tile of values */
    VALUE_DIMS = VF_LANES == 16 ? 4 : 2, /* vectors of dims of one */
    DIMS = VALUE_DIMS * VF_LANES,
    PAIRS = 2 * VF_LANES /* elements of a vector of pairs */
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

/* What an item works with, in part->keys. Heads are padded to whole vectors, rows to whole vectors
 * of pairs. A lane block is VF_LANES heads. */
struct work {
    el *q;               /* [D/2][lane blocks][PAIRS]: pairs of dims */
    el *k;               /* [KEYS][stride] */
    el *zipped;          /* [dims/DIMS][KEYS/2][DIMS][2]: pairs of keys. What a tile reads lies
                          * together: rows 2^k bytes apart would all fall into the same sets of L1 */
    float *o;            /* [heads][stride] */
    float *s;            /* [lane blocks][max_keys + KEYS][VF_LANES]: logits; then, from the start
                          * of each block, pairs of probabilities, elements [keys/2][PAIRS] */
    const uint8_t **row; /* [max_keys + KEYS] */
    float total[CPU_HEADS_BLOCK];
    int heads, n_blocks, D, stride;
    int64_t s_block; /* floats of one lane block of s */
};

static int row_stride(int D)
{
    return (D + PAIRS - 1) / PAIRS * PAIRS;
}

static size_t zipped_size(int stride)
{
    return (size_t)((stride + DIMS - 1) / DIMS * DIMS) * KEYS;
}

size_t SIMD_NAME(cpu_attention_bytes)(const struct kernel_dims *d)
{
    size_t heads = CPU_HEADS_BLOCK, stride = (size_t)row_stride(d->head_dim),
           keys = (size_t)cpu_max_keys(d) + KEYS;

    return ((heads + KEYS) * stride + zipped_size((int)stride)) * sizeof(el) +
           heads * (stride + keys) * sizeof(float) + keys * sizeof(void *);
}

static struct work work_of(const struct attention_job *job, struct cpu_part *part)
{
    struct work w = {.n_blocks = (job->block + VF_LANES - 1) / VF_LANES,
                     .D = job->dims->head_dim,
                     .stride = row_stride(job->dims->head_dim),
                     .s_block = (int64_t)(job->max_keys + KEYS) * VF_LANES};

    w.heads = w.n_blocks * VF_LANES;
    w.q = (el *)(void *)part->keys;
    w.k = w.q + w.D * w.heads;
    w.zipped = w.k + KEYS * w.stride;
    w.o = (float *)(void *)(w.zipped + zipped_size(w.stride));
    w.s = w.o + w.stride * w.heads;
    w.row = (const uint8_t **)(void *)(w.s + w.n_blocks * w.s_block);
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

/* q of n heads, transposed; padding heads are 0. */
static void transpose_q(const struct work *w, const uint16_t *q, int n)
{
    for (int block = 0; block < w->n_blocks; block++) {
        uint16_t padded[VF_LANES][HEAD_DIM_MAX];
        const uint16_t *rows = q + (int64_t)block * VF_LANES * w->D;
        int some = n - block * VF_LANES, stride = w->D;

        if (some < VF_LANES) {
            memset(padded, 0, sizeof(padded));
            for (int h = 0; h < some; h++)
                memcpy(padded[h], rows + h * w->D, (size_t)w->D * sizeof(*rows));
            rows = padded[0];
            stride = HEAD_DIM_MAX;
        }
        for (int i = 0; i < w->D; i += 2)
            vp_gather(w->q + i / 2 * 2 * w->heads + block * PAIRS, rows + i, stride);
    }
}

/* Keys [j, j + n) into w->k. An odd number is made even by a key of zeros. */
static void load_keys(const struct attention_job *job, const struct work *w, int j, int n)
{
    for (int i = 0; i < n; i++) {
        const char *next = (const char *)w->row[j + i + AHEAD];
        el *k = w->k + i * w->stride;

        for (int line = 0; line < job->v->row_bytes; line += 64)
            _mm_prefetch(next + line, _MM_HINT_T0);
        kv_row_load(k, w->row[j + i], w->D, job->dims->rope_dim);
        memset(k + w->D, 0, (size_t)(w->stride - w->D) * sizeof(*k));
    }
    if (n % 2 != 0)
        memset(w->k + n * w->stride, 0, (size_t)w->stride * sizeof(*w->k));
}

/* s[block][key][lane] += k . q over n_pairs pairs of dims, times scale; from 0 if `first`. */
SIMD void logit_tile(float *s, int64_t s_block, const el *k, int stride, const el *q, int n_pairs,
                     int heads, bool first, float scale, const int n_keys, const int n_vecs)
{
    vf sum[LOGIT_KEYS][LOGIT_HEADS];

#pragma GCC unroll 8
    for (int i = 0; i < n_keys; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            sum[i][j] = first ? vf_set1(0.f) : vf_load(s + j * s_block + i * VF_LANES);
    for (int c = 0; c < n_pairs; c++) {
        vp qc[LOGIT_HEADS];

#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            qc[j] = vp_load(q + c * 2 * heads + j * PAIRS);
#pragma GCC unroll 8
        for (int i = 0; i < n_keys; i++) {
            vp kc = vp_set1(k + i * stride + 2 * c);

#pragma GCC unroll 8
            for (int j = 0; j < n_vecs; j++)
                sum[i][j] = vf_dot(sum[i][j], kc, qc[j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < n_keys; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            vf_store(s + j * s_block + i * VF_LANES, sum[i][j] * vf_set1(scale));
}

/* Logits of the n <= KEYS keys in w->k, of which the first is key j; some beyond n are written too,
 * and never read. */
static void logits(const struct work *w, int j, int n, float scale)
{
    for (int c = 0; c < w->D; c += LOGIT_DIMS) {
        int n_pairs = (w->D - c < LOGIT_DIMS ? w->D - c : LOGIT_DIMS) / 2;
        float by = c + LOGIT_DIMS >= w->D ? scale : 1;

        for (int i = 0; i < n; i += LOGIT_KEYS)
            for (int block = 0; block < w->n_blocks; block += LOGIT_HEADS) {
                const el *k = w->k + i * w->stride + c, *q = w->q + c * w->heads + block * PAIRS;
                float *s = w->s + block * w->s_block + (int64_t)(j + i) * VF_LANES;

                if (w->n_blocks - block >= LOGIT_HEADS)
                    logit_tile(s, w->s_block, k, w->stride, q, n_pairs, w->heads, c == 0, by,
                               LOGIT_KEYS, LOGIT_HEADS);
                else
                    logit_tile(s, w->s_block, k, w->stride, q, n_pairs, w->heads, c == 0, by,
                               LOGIT_KEYS, 1);
            }
    }
}

/* s becomes pairs of bf16(exp(s - max)); total is the sum before rounding, plus the sink's. */
static void softmax(struct work *w, int m, const float *sink, int n)
{
    for (int block = 0; block < w->n_blocks; block++) {
        float *s = w->s + block * w->s_block;
        el *pairs = (el *)(void *)s; /* never ahead of what is read */
        vf top = vf_set1(-__builtin_inff()), total = vf_set1(0.f);
        float lane[VF_LANES] = {0};

        for (int j = 0; j < m; j++)
            top = vf_max(top, vf_load(s + j * VF_LANES));
        for (int j = 0; j < m; j += 2) {
            vf p[2] = {vf_set1(0.f), vf_set1(0.f)};

            for (int i = 0; i < 2 && j + i < m; i++) {
                p[i] = vf_exp(vf_load(s + (j + i) * VF_LANES) - top);
                total = total + p[i];
                p[i] = vf_bf16(p[i]);
            }
            vp_store(pairs + j / 2 * PAIRS, p[0], p[1]);
        }
        for (int i = 0; i < VF_LANES && block * VF_LANES + i < n; i++)
            lane[i] = sink[block * VF_LANES + i];
        vf_store(w->total + block * VF_LANES, total + vf_exp(vf_load(lane) - top));
    }
}

/* o[head][dims] += sum over n_pairs pairs of keys of p[pair][head] * k[pair][dims]. p[i], lane[i]:
 * where the pairs of head i are; stride: of o. */
SIMD void value_tile(float *o, const el *const *p, const int *lane, const el *k, int stride,
                     int n_pairs, const int n_heads, const int n_vecs)
{
    vf sum[VALUE_HEADS][VALUE_DIMS];

#pragma GCC unroll 8
    for (int i = 0; i < n_heads; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            sum[i][j] = vf_load(o + i * stride + j * VF_LANES);
    for (int pair = 0; pair < n_pairs; pair++) {
        vp v[VALUE_DIMS];

#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            v[j] = vp_load(k + pair * 2 * DIMS + j * PAIRS);
#pragma GCC unroll 8
        for (int i = 0; i < n_heads; i++) {
            vp pi = vp_lane(p[i] + pair * PAIRS, lane[i]);

#pragma GCC unroll 8
            for (int j = 0; j < n_vecs; j++)
                sum[i][j] = vf_dot(sum[i][j], pi, v[j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < n_heads; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            vf_store(o + i * stride + j * VF_LANES, sum[i][j]);
}

/* Adds the n <= KEYS keys in w->k, of which the first is key j (even), for n_heads heads. */
static void values(const struct work *w, int j, int n, int n_heads)
{
    int n_pairs = (n + 1) / 2;

    for (int pair = 0; pair < n_pairs; pair++) {
        const el *k = w->k + 2 * pair * w->stride;

        for (int c = 0; c < w->stride; c += PAIRS)
            vp_zip(w->zipped + c / DIMS * DIMS * KEYS + 2 * (pair * DIMS + c % DIMS), k + c,
                   k + w->stride + c);
    }
    for (int c = 0; c < w->stride; c += DIMS)
        for (int h = 0, n_tile; h < n_heads; h += n_tile) {
            const el *p[VALUE_HEADS], *k = w->zipped + c * KEYS;
            float *o = w->o + h * w->stride + c;
            int lane[VALUE_HEADS];
            bool whole = c + DIMS <= w->stride;

            n_tile = n_heads - h >= VALUE_HEADS ? VALUE_HEADS : n_heads - h >= 4 ? 4 : 1;
            for (int i = 0; i < n_tile; i++) {
                const float *block = w->s + (h + i) / VF_LANES * w->s_block;

                p[i] = (const el *)(const void *)block + j / 2 * PAIRS;
                lane[i] = (h + i) % VF_LANES;
            }
            if (whole && n_tile == VALUE_HEADS)
                value_tile(o, p, lane, k, w->stride, n_pairs, VALUE_HEADS, VALUE_DIMS);
            else if (whole && n_tile == 4)
                value_tile(o, p, lane, k, w->stride, n_pairs, 4, VALUE_DIMS);
            else
                for (int i = 0; i < n_tile; i++)
                    for (int v = 0; v < VALUE_DIMS && c + v * VF_LANES < w->stride; v++)
                        value_tile(o + i * w->stride + v * VF_LANES, p + i, lane + i, k + v * PAIRS,
                                   w->stride, n_pairs, 1, 1);
        }
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

    for (int i = 0; i < AHEAD; i++) /* load_keys() looks ahead */
        w.row[m + i] = w.row[0];

    transpose_q(&w, job->q + at, n);
    for (int j = 0; j < m; j += KEYS) {
        int some = m - j < KEYS ? m - j : KEYS;

        load_keys(job, &w, j, some);
        logits(&w, j, some, scale);
    }
    softmax(&w, m, job->sink + first, n);
    memset(w.o, 0, (size_t)w.heads * (size_t)w.stride * sizeof(float));
    for (int j = 0; j < m; j += KEYS) {
        int some = m - j < KEYS ? m - j : KEYS;

        if (m > KEYS) /* else they still lie there */
            load_keys(job, &w, j, some);
        values(&w, j, some, n);
    }
    rotation_of(&rot, ((const int32_t *)cpu_ptr(job->b->row_pos))[t], job->freq, d->rope_dim, -1);
    for (int h = 0; h < n; h++) {
        float *o = w.o + h * w.stride;
        vf total = vf_set1(w.total[h]);

        for (int i = 0; i < w.D; i += VF_LANES)
            vf_store(o + i, vf_bf16(vf_load(o + i) / total));
        rotate_row(o, w.D, d->rope_dim, &rot);
        store_row(job->o + at + (int64_t)h * w.D, o, w.D);
    }
}

/* The largest block of heads that still gives every thread as much as the others, or a few items;
 * bits do not depend on it. */
static int choose_block(int n_heads, int T, int n_threads)
{
    int block = CPU_HEADS_BLOCK;

    while (block > 16) {
        int64_t n = (int64_t)T * ((n_heads + block - 1) / block);

        if (n >= 4 * (int64_t)n_threads || n % n_threads == 0)
            break;
        block /= 2;
    }
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
