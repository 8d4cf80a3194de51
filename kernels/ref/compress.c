/*
 * Compressors: pool `ratio` tokens into one entry, each channel with its own softmax weights over
 * the tokens. Ratio 4 overlaps: an entry sees the 4 tokens of its group through columns [D, 2D) and
 * the 4 before them through columns [0, D).
 */
#include "kernels/ref/ref.h"

enum { D_MAX = 4096 };

struct compress_job {
    const struct kernels *k;
    const float *kv, *score; /* [T][cols]; score without ape */
    const struct compressor_weights *w;
    const struct kernel_batch *b;
    const struct kernel_kv *v;
    const float *freq;
    bool for_index;
    int cols, dim;
};

/* One sequence of the batch. */
struct span {
    int seq, n, first_row;
    int64_t start;
    uint8_t *ring; /* this compressor's, in the sequence's slot */
    size_t ring_row_bytes;
};

static struct span span_of(const struct compress_job *job, int seq)
{
    const struct kernel_kv *v = job->v;
    const int32_t *seq_row = ref_ptr(job->b->seq_row), *slot = ref_ptr(job->b->seq_slot);
    size_t off = job->for_index ? v->index_comp_off : v->comp_off;

    return (struct span){
        .seq = seq,
        .n = seq_row[seq + 1] - seq_row[seq],
        .first_row = seq_row[seq],
        .start = ((const int32_t *)ref_ptr(job->b->seq_start))[seq],
        .ring = (uint8_t *)ref_ptr(v->states) + (size_t)slot[seq] * v->slot_stride + off,
        .ring_row_bytes = 2 * (size_t)job->cols * sizeof(float),
    };
}

static float score_with_ape(const struct compress_job *job, int64_t row, int64_t position, int col)
{
    const float *ape = ref_ptr(job->w->ape.data);

    return (float)((double)job->score[row * job->cols + col] +
                   (double)ape[position % job->v->ratio * job->cols + col]);
}

/* Value and score of a token, from this batch or from the ring. */
static void token(const struct compress_job *job, const struct span *s, int64_t position, int col,
                  float *kv, float *score)
{
    const float *ring;

    if (position >= s->start) {
        int64_t row = s->first_row + position - s->start;

        *kv = job->kv[row * job->cols + col];
        *score = score_with_ape(job, row, position, col);
        return;
    }
    ring = (const float *)(s->ring + (size_t)(position % job->v->comp_rows) * s->ring_row_bytes);
    *kv = ring[col];
    *score = ring[job->cols + col];
}

/* Channel c of the entry whose group begins at `first`: sum of softmax(score) * kv over its tokens.
 */
static float pool_channel(const struct compress_job *job, const struct span *s, int64_t first,
                          int c)
{
    int ratio = job->v->ratio, n = 0;
    float kv[256], score[256];
    double top = -INFINITY, total = 0, sum = 0;

    if (ratio == 4 && first >= 4) /* the first group has no predecessor */
        for (; n < 4; n++)
            token(job, s, first - 4 + n, c, &kv[n], &score[n]);
    for (int i = 0; i < ratio; i++, n++)
        token(job, s, first + i, ratio == 4 ? job->dim + c : c, &kv[n], &score[n]);
    for (int i = 0; i < n; i++)
        top = (double)score[i] > top ? (double)score[i] : top;
    for (int i = 0; i < n; i++)
        total += exp((double)score[i] - top);
    for (int i = 0; i < n; i++)
        sum += (double)kv[i] * (exp((double)score[i] - top) / total);
    return bf16_grid(sum);
}

static void emit(const struct compress_job *job, const struct span *s, int64_t g)
{
    const struct kernel_dims *d = &job->k->dims;
    int64_t first = g * job->v->ratio;
    uint8_t *row = ref_entry(job->b, job->v, s->seq, g, job->for_index);
    float x[D_MAX];

    for (int c = 0; c < job->dim; c++)
        x[c] = pool_channel(job, s, first, c);
    ref_rms_norm_row(x, x, &job->w->norm, job->dim, d->norm_eps);
    ref_rotate(x, job->dim, d->rope_dim, first, job->freq, 1);
    if (job->for_index) {
        ref_hadamard(x, job->dim);
        key_row_pack(row, x, job->dim);
    } else {
        kv_row_pack(row, x, job->dim, d->rope_dim, job->v->row_bytes);
    }
}

static void emit_part(void *arg, int part, int n_parts)
{
    const struct compress_job *job = arg;
    int64_t turn = 0;

    for (int seq = 0; seq < job->b->n_seqs; seq++) {
        struct span s = span_of(job, seq);
        int64_t end = (s.start + s.n) / job->v->ratio;

        for (int64_t g = s.start / job->v->ratio; g < end; g++)
            if (turn++ % n_parts == part)
                emit(job, &s, g);
    }
}

/* The last rows of each sequence into its ring; earlier ones would be overwritten at once. */
static void store_part(void *arg, int part, int n_parts)
{
    const struct compress_job *job = arg;

    for (int seq = part; seq < job->b->n_seqs; seq += n_parts) {
        struct span s = span_of(job, seq);
        int first = s.n > job->v->comp_rows ? s.n - job->v->comp_rows : 0;

        for (int i = first; i < s.n; i++) {
            int64_t position = s.start + i, row = s.first_row + i;
            float *ring =
                (float *)(s.ring + (size_t)(position % job->v->comp_rows) * s.ring_row_bytes);

            memcpy(ring, job->kv + row * job->cols, (size_t)job->cols * sizeof(float));
            for (int c = 0; c < job->cols; c++)
                ring[job->cols + c] = score_with_ape(job, row, position, c);
        }
    }
}

void ref_compress(struct kernels *k, struct dev_ptr kv, struct dev_ptr score,
                  const struct compressor_weights *w, const struct kernel_batch *b,
                  const struct kernel_kv *kv_view, struct dev_ptr freq, bool for_index)
{
    struct compress_job job = {
        .k = k,
        .kv = ref_ptr(kv),
        .score = ref_ptr(score),
        .w = w,
        .b = b,
        .v = kv_view,
        .freq = ref_ptr(freq),
        .for_index = for_index,
        .cols = (int)w->ape.cols,
        .dim = for_index ? k->dims.index_head_dim : k->dims.head_dim,
    };

    k->env.parallel(k->env.pool, emit_part, &job); /* reads the rings before they change */
    k->env.parallel(k->env.pool, store_part, &job);
}
