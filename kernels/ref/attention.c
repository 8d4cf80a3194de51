/* Attention over one latent per token: the window, and compressed entries of the past. */
#include "kernels/ref/ref.h"

enum { D_MAX = 4096 };

void ref_attend(float *o, const float *q, const float *keys, int m, int D, double sink, double *p)
{
    double acc[D_MAX] = {0}, top = -INFINITY, total = 0, scale = pow((double)D, -0.5);

    for (int j = 0; j < m; j++) {
        p[j] = ref_dot(q, keys + (int64_t)j * D, D) * scale;
        top = p[j] > top ? p[j] : top;
    }
    for (int j = 0; j < m; j++) {
        double e = exp(p[j] - top),
               weight = (double)bf16_grid(e); /* rounded when it weighs, not when summed */

        total += e;
        for (int i = 0; i < D; i++)
            acc[i] += weight * (double)keys[(int64_t)j * D + i];
    }
    total += exp(sink - top);
    for (int i = 0; i < D; i++)
        o[i] = bf16_grid(acc[i] / total);
}

struct attention_job {
    const struct kernels *k;
    uint16_t *o;
    const uint16_t *q;
    const uint8_t *rows;
    const int32_t *chosen;
    const float *sink;
    const struct kernel_batch *b;
    const struct kernel_kv *v;
    const float *freq;
};

/* Decodes the keys of row t, window first; returns how many. */
static int gather(const struct attention_job *job, int64_t t, float *keys)
{
    const struct kernel_dims *d = &job->k->dims;
    const struct kernel_kv *v = job->v;
    int64_t pos = ((const int32_t *)ref_ptr(job->b->row_pos))[t];
    int seq = ((const int32_t *)ref_ptr(job->b->row_seq))[t];
    int64_t start = ((const int32_t *)ref_ptr(job->b->seq_start))[seq];
    int64_t first_row = ((const int32_t *)ref_ptr(job->b->seq_row))[seq];
    int32_t slot = ((const int32_t *)ref_ptr(job->b->seq_slot))[seq];
    const uint8_t *ring =
        (const uint8_t *)ref_ptr(v->states) + (size_t)slot * v->slot_stride + v->window_off;
    int64_t p = pos + 1 > d->window ? pos + 1 - d->window : 0;
    int D = d->head_dim, m = 0, n;

    for (; p <= pos; p++, m++) {
        const uint8_t *row = p >= start ? job->rows + (first_row + p - start) * v->row_bytes
                                        : ring + p % v->window_rows * v->row_bytes;

        kv_row_unpack(keys + (int64_t)m * D, row, D, d->rope_dim);
    }
    if (v->ratio == 0)
        return m;
    n = v->ratio == 4 ? d->index_topk : (int)((pos + 1) / v->ratio);
    for (int i = 0; i < n; i++) {
        int32_t g = v->ratio == 4 ? job->chosen[t * d->index_topk + i] : i;

        if (g < 0)
            break;
        kv_row_unpack(keys + (int64_t)m++ * D, ref_entry(job->b, v, seq, g, false), D, d->rope_dim);
    }
    return m;
}

static void attention_part(void *arg, int part, int n_parts)
{
    const struct attention_job *job = arg;
    const struct kernel_dims *d = &job->k->dims;
    const int32_t *pos = ref_ptr(job->b->row_pos);
    struct ref_scratch *s = &((struct ref *)job->k->self)->scratch[part];
    struct ref_range r = ref_share(job->b->n_rows, part, n_parts);
    int H = d->n_heads, D = d->head_dim;

    for (int64_t t = r.begin; t < r.end; t++) {
        int m = gather(job, t, s->keys);

        for (int h = 0; h < H; h++) {
            int64_t at = (t * H + h) * D;
            float q[D_MAX], o[D_MAX];

            for (int i = 0; i < D; i++)
                q[i] = bf16_decode(job->q[at + i]);
            ref_attend(o, q, s->keys, m, D, (double)job->sink[h], s->probs);
            ref_rotate(o, D, d->rope_dim, pos[t], job->freq, -1);
            for (int i = 0; i < D; i++)
                job->o[at + i] = bf16_encode(o[i]);
        }
    }
}

void ref_attention(struct kernels *k, struct dev_ptr o, struct dev_ptr q, struct dev_ptr rows,
                   struct dev_ptr chosen, const struct weight *sink, const struct kernel_batch *b,
                   const struct kernel_kv *kv_view, struct dev_ptr freq)
{
    struct attention_job job = {
        k, ref_ptr(o), ref_ptr(q),   ref_ptr(rows), ref_ptr(chosen), ref_ptr(sink->data),
        b, kv_view,    ref_ptr(freq)};

    k->env.parallel(k->env.pool, attention_part, &job);
}
