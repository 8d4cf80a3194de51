/*
 * simd_attention: one token's attention over its window and its compressed entries, for a block of
 * heads.
 *
 * An item is (token, block of heads). Keys are decoded some at a time, from FP8 rows to elements
 * for products, twice: logits   s[key][head] = k . q, ascending over dims softmax  over the keys of
 * each head, the sink in the denominator only; p on the bf16 grid values   o[head][dim] += p . k,
 * ascending over keys simd_attention_vectors.h and simd_attention_tiles.h (AMX) have logits and
 * values. FLOPs: 4 * keys * heads * D. Beside them, per key and block: decoding it twice, about a
 * tenth of 64 heads' products on vectors.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/ref/ref.h"

#include <assert.h>

#if defined(SIMD_TILES)
#include "kernels/cpu/simd_attention_tiles.h"
#else
#include "kernels/cpu/simd_attention_vectors.h"
#endif

enum { AHEAD = 8 /* rows asked for in advance: they lie anywhere */ };

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
    w.k = w.q + w.stride * w.heads;
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

/* q of n heads, transposed; padding heads and dims are 0. */
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
    memset(w->q + w->D * w->heads, 0, (size_t)((w->stride - w->D) * w->heads) * sizeof(*w->q));
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

/* s becomes pairs of bf16(exp(s * scale - max)); total is the sum before rounding, plus the sink's.
 */
static void softmax(struct work *w, int m, float scale, const float *sink, int n)
{
    for (int block = 0; block < w->n_blocks; block++) {
        float *s = w->s + block * w->s_block;
        el *pairs = (el *)(void *)s; /* never ahead of what is read */
        vf top = vf_set1(-__builtin_inff()), total = vf_set1(0.f);
        float lane[VF_LANES] = {0};

        for (int j = 0; j < m; j++)
            top = vf_max(top, vf_load(s + j * VF_LANES) * vf_set1(scale));
        for (int j = 0; j < m; j += 2) {
            vf p[2] = {vf_set1(0.f), vf_set1(0.f)};

            for (int i = 0; i < 2 && j + i < m; i++) {
                p[i] = vf_exp(vf_load(s + (j + i) * VF_LANES) * vf_set1(scale) - top);
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
    products_begin();
    for (int j = 0; j < m; j += KEYS) {
        int some = m - j < KEYS ? m - j : KEYS;

        load_keys(job, &w, j, some);
        logits(&w, j, some);
    }
    softmax(&w, m, scale, job->sink + first, n);
    arrange(&w, m);
    memset(w.o, 0, (size_t)w.heads * (size_t)w.stride * sizeof(float));
    for (int j = 0; j < m; j += KEYS) {
        int some = m - j < KEYS ? m - j : KEYS;

        if (m > KEYS) /* else they still lie there */
            load_keys(job, &w, j, some);
        values(&w, j, some, n);
    }
    products_end();
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
