/* The indexer: which compressed entries a token attends to. Every step of its score is rounded to
 * bf16. */
#include <stdlib.h>

#include "kernels/ref/ref.h"

enum { D_MAX = 4096 };

struct query_job {
    const struct kernels *k;
    uint16_t *q, *weights;
    const int32_t *pos;
    const float *freq;
    int T;
};

static void query_part(void *arg, int part, int n_parts)
{
    const struct query_job *job = arg;
    const struct kernel_dims *d = &job->k->dims;
    int Hi = d->index_n_heads, Di = d->index_head_dim;
    float scale = (float)(pow(Di, -0.5) * pow(Hi, -0.5)), x[D_MAX];
    struct ref_range r = ref_share((int64_t)job->T * Hi, part, n_parts);

    for (int64_t i = r.begin; i < r.end; i++) {
        uint8_t key[D_MAX];

        for (int j = 0; j < Di; j++)
            x[j] = bf16_decode(job->q[i * Di + j]);
        ref_rotate(x, Di, d->rope_dim, job->pos[i / Hi], job->freq, 1);
        ref_hadamard(x, Di);
        key_row_pack(key, x, Di);
        key_row_unpack(x, key, Di);
        for (int j = 0; j < Di; j++)
            job->q[i * Di + j] = bf16_encode(x[j]);
        job->weights[i] = bf16_encode(bf16_decode(job->weights[i]) * scale);
    }
}

void ref_index_query(struct kernels *k, struct dev_ptr q, struct dev_ptr weights,
                     const struct kernel_batch *b, struct dev_ptr freq)
{
    struct query_job job = {
        k, ref_ptr(q), ref_ptr(weights), ref_ptr(b->row_pos), ref_ptr(freq), b->n_rows};

    k->env.parallel(k->env.pool, query_part, &job);
}

struct select_job {
    const struct kernels *k;
    int32_t *chosen;
    const uint16_t *q, *weights;
    const struct kernel_batch *b;
    const struct kernel_kv *v;
};

float ref_index_score(const uint16_t *q, const uint16_t *weights, const float *key, int Hi, int Di)
{
    double sum = 0;

    for (int h = 0; h < Hi; h++) {
        float dot = bf16_grid(ref_dot_bf16(key, q + (int64_t)h * Di, Di));
        float relu = dot < 0 ? 0 : dot; /* a NaN stays one */

        sum += (double)bf16_grid((double)(relu * bf16_decode(weights[h])));
    }
    return bf16_grid(sum);
}

/* Best first; equal: lower entry first; NaN: last. */
static int by_score(const void *a, const void *b, void *scores)
{
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    float x = ((const float *)scores)[i], y = ((const float *)scores)[j];

    if (x > y || (isnan(y) && !isnan(x)))
        return -1;
    if (x < y || (isnan(x) && !isnan(y)))
        return 1;
    return i < j ? -1 : 1;
}

static void select_part(void *arg, int part, int n_parts)
{
    const struct select_job *job = arg;
    const struct kernel_dims *d = &job->k->dims;
    const int32_t *pos = ref_ptr(job->b->row_pos), *seq = ref_ptr(job->b->row_seq);
    struct ref_scratch *s = &((struct ref *)job->k->self)->scratch[part];
    struct ref_range r = ref_share(job->b->n_rows, part, n_parts);
    int Hi = d->index_n_heads, Di = d->index_head_dim;

    for (int64_t t = r.begin; t < r.end; t++) {
        int n = (pos[t] + 1) / job->v->ratio;

        for (int g = 0; g < n; g++) {
            float key[D_MAX];

            key_row_unpack(key, ref_entry(job->b, job->v, seq[t], g, true), Di);
            s->scores[g] =
                ref_index_score(job->q + t * Hi * Di, job->weights + t * Hi, key, Hi, Di);
            s->order[g] = g;
        }
        qsort_r(s->order, (size_t)n, sizeof(*s->order), by_score, s->scores);
        for (int i = 0; i < d->index_topk; i++)
            job->chosen[t * d->index_topk + i] = i < n ? s->order[i] : -1;
    }
}

void ref_index_select(struct kernels *k, struct dev_ptr chosen, struct dev_ptr q,
                      struct dev_ptr weights, const struct kernel_batch *b,
                      const struct kernel_kv *kv_view)
{
    struct select_job job = {k, ref_ptr(chosen), ref_ptr(q), ref_ptr(weights), b, kv_view};

    k->env.parallel(k->env.pool, select_part, &job);
}
