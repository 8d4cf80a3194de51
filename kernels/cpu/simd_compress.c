/*
 * simd_compress: compressors. Lanes are channels; an item is one finished entry, then one row of a
 * ring. Entries read the rings before rows are stored into them: two passes.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/ref/ref.h"

#include <assert.h>

enum { TOKENS_MAX = 256 }; /* tokens pooled into one entry */

struct compress_job {
    const struct kernel_dims *dims;
    const float *kv, *score; /* [T][cols]; score without ape */
    const float *ape;        /* [ratio][cols] */
    const uint16_t *norm;
    const struct kernel_batch *b;
    const struct kernel_kv *v;
    const float *freq;
    bool for_index;
    int cols, dim;
};

/* One sequence of the batch. */
struct span {
    int seq;
    int64_t n, first_row, start;
    uint8_t *ring; /* this compressor's, in the sequence's slot */
};

static struct span span_of(const struct compress_job *job, int seq)
{
    const struct kernel_kv *v = job->v;
    const int32_t *seq_row = cpu_ptr(job->b->seq_row), *slot = cpu_ptr(job->b->seq_slot);
    size_t off = job->for_index ? v->index_comp_off : v->comp_off;

    return (struct span){
        .seq = seq,
        .n = seq_row[seq + 1] - seq_row[seq],
        .first_row = seq_row[seq],
        .start = ((const int32_t *)cpu_ptr(job->b->seq_start))[seq],
        .ring = (uint8_t *)cpu_ptr(v->states) + (size_t)slot[seq] * v->slot_stride + off,
    };
}

static float *ring_row(const struct compress_job *job, const struct span *s, int64_t position)
{
    return (float *)(void *)(s->ring + (size_t)(position % job->v->comp_rows) * 2 *
                                           (size_t)job->cols * sizeof(float));
}

/* Where kv and score of a token lie; ape NULL: already added. Each points at column `col`. */
struct token {
    const float *kv, *score, *ape;
};

static struct token token_at(const struct compress_job *job, const struct span *s, int64_t position,
                             int col)
{
    if (position >= s->start) {
        int64_t row = s->first_row + position - s->start;

        return (struct token){job->kv + row * job->cols + col, job->score + row * job->cols + col,
                              job->ape + position % job->v->ratio * job->cols + col};
    }
    const float *ring = ring_row(job, s, position);

    return (struct token){ring + col, ring + job->cols + col, NULL};
}

SIMD vf score_of(const struct token *t, int c)
{
    vf s = vf_load(t->score + c);

    if (t->ape != NULL)
        s = s + vf_load(t->ape + c);
    return s;
}

/* x[c] = bf16(sum of softmax(score) * kv over the tokens), each channel by itself. */
static void pool(float *x, const struct token *tokens, int n, int dim)
{
    for (int c = 0; c < dim; c += VF_LANES) {
        vf top = vf_set1(-__builtin_inff()), total = vf_set1(0.f), sum = total;

        for (int i = 0; i < n; i++)
            top = vf_max(top, score_of(&tokens[i], c));
        for (int i = 0; i < n; i++) {
            vf p = vf_exp(score_of(&tokens[i], c) - top);

            total = total + p;
            sum = vf_fma(p, vf_load(tokens[i].kv + c), sum);
        }
        vf_store(x + c, vf_bf16(sum / total));
    }
}

static void emit(const struct compress_job *job, const struct span *s, int64_t g)
{
    const struct kernel_dims *d = job->dims;
    int64_t ratio = job->v->ratio, first = g * ratio;
    uint8_t *row = ref_entry(job->b, job->v, s->seq, g, job->for_index);
    struct token tokens[TOKENS_MAX];
    struct rotation rot;
    float x[HEAD_DIM_MAX];
    int n = 0;

    if (ratio == 4 && first >= 4) /* the group before, in its role; the first group has none */
        for (; n < 4; n++)
            tokens[n] = token_at(job, s, first - 4 + n, 0);
    for (int64_t i = 0; i < ratio; i++)
        tokens[n++] = token_at(job, s, first + i, ratio == 4 ? job->dim : 0);
    pool(x, tokens, n, job->dim);
    norm_row(x, job->norm, job->dim, d->norm_eps);
    rotation_of(&rot, (int32_t)first, job->freq, d->rope_dim, 1);
    rotate_row(x, job->dim, d->rope_dim, &rot);
    if (job->for_index) {
        hadamard_row(x, job->dim);
        key_row_pack(row, x, job->dim);
    } else {
        kv_row_store(row, x, job->dim, d->rope_dim, job->v->row_bytes);
    }
}

/* Entries that the span finishes: [begin, end). */
static int64_t first_entry(const struct compress_job *job, const struct span *s)
{
    return s->start / job->v->ratio;
}

static int64_t n_entries(const struct compress_job *job, const struct span *s)
{
    return (s->start + s->n) / job->v->ratio - first_entry(job, s);
}

/* Rows that stay in the ring: earlier ones would be overwritten at once. */
static int64_t n_stored(const struct compress_job *job, const struct span *s)
{
    return s->n < job->v->comp_rows ? s->n : job->v->comp_rows;
}

static void emit_item(void *arg, int64_t item, struct cpu_part *part)
{
    struct compress_job *job = arg;

    (void)part;
    for (int seq = 0; seq < job->b->n_seqs; seq++) {
        struct span s = span_of(job, seq);
        int64_t n = n_entries(job, &s);

        if (item < n) {
            emit(job, &s, first_entry(job, &s) + item);
            return;
        }
        item -= n;
    }
}

static void store_item(void *arg, int64_t item, struct cpu_part *part)
{
    struct compress_job *job = arg;

    (void)part;
    for (int seq = 0; seq < job->b->n_seqs; seq++) {
        struct span s = span_of(job, seq);
        int64_t n = n_stored(job, &s);

        if (item < n) {
            int64_t position = s.start + s.n - n + item;
            struct token t = token_at(job, &s, position, 0);
            float *ring = ring_row(job, &s, position);

            memcpy(ring, t.kv, (size_t)job->cols * sizeof(float));
            for (int c = 0; c < job->cols; c += VF_LANES)
                vf_store(ring + job->cols + c, score_of(&t, c));
            return;
        }
        item -= n;
    }
}

static void compress(struct kernels *k, struct dev_ptr kv, struct dev_ptr score,
                     const struct compressor_weights *w, const struct kernel_batch *b,
                     const struct kernel_kv *kv_view, struct dev_ptr freq, bool for_index)
{
    struct compress_job job = {
        .dims = &k->dims,
        .kv = cpu_ptr(kv),
        .score = cpu_ptr(score),
        .ape = cpu_ptr(w->ape.data),
        .norm = cpu_ptr(w->norm.data),
        .b = b,
        .v = kv_view,
        .freq = cpu_ptr(freq),
        .for_index = for_index,
        .cols = (int)w->ape.cols,
        .dim = for_index ? k->dims.index_head_dim : k->dims.head_dim,
    };
    int64_t n_emit = 0, n_store = 0;

    assert(kv_view->ratio <= TOKENS_MAX && job.dim <= HEAD_DIM_MAX);
    for (int seq = 0; seq < b->n_seqs; seq++) {
        struct span s = span_of(&job, seq);

        n_emit += n_entries(&job, &s);
        n_store += n_stored(&job, &s);
    }
    cpu_run(k, n_emit, emit_item, &job);
    cpu_run(k, n_store, store_item, &job);
}

void SIMD_NAME(cpu_compress_fill)(struct kernel_ops *ops)
{
    ops->compress = compress;
}
