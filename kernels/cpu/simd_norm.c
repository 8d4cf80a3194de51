/*
 * simd_norm: RMS norms, and what norms are followed by: rotated queries, latents, indexer queries.
 * An item is one row, or some heads of one row.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd_math.h"

#include <assert.h>

/* ---- rms_norm ---- */

struct norm_job {
    uint16_t *y;
    const uint16_t *x, *w;
    int n;
    double eps;
};

static void norm_item(void *arg, int64_t t, struct cpu_part *part)
{
    struct norm_job *job = arg;
    const uint16_t *x = job->x + t * job->n;
    uint16_t *y = job->y + t * job->n;
    vf a = vf_set1(0.f), b = a;
    int n = job->n, i;

    (void)part;
    for (i = 0; i + 2 * VF_LANES <= n; i += 2 * VF_LANES) {
        vf u = vf_load_bf16(x + i), v = vf_load_bf16(x + i + VF_LANES);

        a = vf_fma(u, u, a);
        b = vf_fma(v, v, b);
    }
    for (; i < n; i += VF_LANES) {
        vf v = n - i >= VF_LANES ? vf_load_bf16(x + i) : vf_load_bf16_some(x + i, n - i);

        a = vf_fma(v, v, a);
    }
    vf r = vf_set1(inverse_root((double)vf_sum(a + b), n, job->eps));

    for (i = 0; i + VF_LANES <= n; i += VF_LANES)
        vf_store_bf16(y + i, vf_load_bf16(job->w + i) * (vf_load_bf16(x + i) * r));
    if (i < n)
        vf_store_bf16_some(
            y + i, vf_load_bf16_some(job->w + i, n - i) * (vf_load_bf16_some(x + i, n - i) * r),
            n - i);
}

static void rms_norm(struct kernels *k, struct dev_ptr y, struct dev_ptr x, const struct weight *w,
                     int T, int n)
{
    struct norm_job job = {cpu_ptr(y), cpu_ptr(x), cpu_ptr(w->data), n, k->dims.norm_eps};

    cpu_run(k, T, norm_item, &job);
}

/* ---- q_norm_rope ---- */

enum { HEADS_ITEM = 16 };

struct q_job {
    const struct kernel_dims *dims;
    uint16_t *q;
    const int32_t *pos;
    const float *freq;
    int n_blocks; /* blocks of HEADS_ITEM heads */
};

/* Weightless norm of one head; every step is rounded to bf16. */
SIMD void head_norm(float *q, int D, float eps)
{
    vf a = vf_set1(0.f);

    for (int i = 0; i < D; i += VF_LANES) {
        vf v = vf_load(q + i);

        a = a + vf_bf16(v * v);
    }
    float lane[VF_LANES];

    vf_store(lane, vf_bf16(vf_set1(vf_sum(a) / (float)D)));
    vf_store(lane, vf_bf16(vf_set1(lane[0] + eps)));
    vf scale = vf_bf16(vf_set1((float)(1 / sqrt((double)lane[0]))));

    for (int i = 0; i < D; i += VF_LANES)
        vf_store(q + i, vf_bf16(vf_load(q + i) * scale));
}

static void q_item(void *arg, int64_t item, struct cpu_part *part)
{
    struct q_job *job = arg;
    int64_t t = item / job->n_blocks;
    int H = job->dims->n_heads, D = job->dims->head_dim, R = job->dims->rope_dim;
    int first = (int)(item % job->n_blocks) * HEADS_ITEM;
    int end = first + HEADS_ITEM < H ? first + HEADS_ITEM : H;
    struct rotation rot;
    float x[HEAD_DIM_MAX];

    (void)part;
    rotation_of(&rot, job->pos[t], job->freq, R, 1);
    for (int h = first; h < end; h++) {
        uint16_t *q = job->q + (t * H + h) * D;

        load_row(x, q, D);
        head_norm(x, D, (float)job->dims->norm_eps);
        rotate_row(x, D, R, &rot);
        store_row(q, x, D);
    }
}

static void q_norm_rope(struct kernels *k, struct dev_ptr q, const struct kernel_batch *b,
                        struct dev_ptr freq)
{
    struct q_job job = {&k->dims, cpu_ptr(q), cpu_ptr(b->row_pos), cpu_ptr(freq),
                        (k->dims.n_heads + HEADS_ITEM - 1) / HEADS_ITEM};

    assert(k->dims.head_dim <= HEAD_DIM_MAX && k->dims.rope_dim <= ROPE_DIM_MAX);
    cpu_run(k, (int64_t)b->n_rows * job.n_blocks, q_item, &job);
}

/* ---- kv_latent ---- */

struct latent_job {
    const struct kernel_dims *dims;
    uint8_t *rows;
    const uint16_t *kv, *norm;
    const int32_t *pos;
    const float *freq;
    int row_bytes;
};

static void latent_item(void *arg, int64_t t, struct cpu_part *part)
{
    struct latent_job *job = arg;
    int D = job->dims->head_dim, R = job->dims->rope_dim;
    struct rotation rot;
    float x[HEAD_DIM_MAX];

    (void)part;
    rotation_of(&rot, job->pos[t], job->freq, R, 1);
    load_row(x, job->kv + t * D, D);
    norm_row(x, job->norm, D, job->dims->norm_eps);
    rotate_row(x, D, R, &rot);
    kv_row_store(job->rows + t * job->row_bytes, x, D, R, job->row_bytes);
}

static void kv_latent(struct kernels *k, struct dev_ptr rows, struct dev_ptr kv,
                      const struct weight *norm, const struct kernel_batch *b, struct dev_ptr freq,
                      const struct kernel_kv *kv_view)
{
    struct latent_job job = {
        .dims = &k->dims,
        .rows = cpu_ptr(rows),
        .kv = cpu_ptr(kv),
        .norm = cpu_ptr(norm->data),
        .pos = cpu_ptr(b->row_pos),
        .freq = cpu_ptr(freq),
        .row_bytes = kv_view->row_bytes,
    };

    cpu_run(k, b->n_rows, latent_item, &job);
}

/* ---- index_query ---- */

struct query_job {
    const struct kernel_dims *dims;
    uint16_t *q, *weights;
    const int32_t *pos;
    const float *freq;
    int n_blocks;
    float scale;
};

static void query_item(void *arg, int64_t item, struct cpu_part *part)
{
    struct query_job *job = arg;
    int64_t t = item / job->n_blocks;
    int Hi = job->dims->index_n_heads, Di = job->dims->index_head_dim, R = job->dims->rope_dim;
    int first = (int)(item % job->n_blocks) * HEADS_ITEM;
    int end = first + HEADS_ITEM < Hi ? first + HEADS_ITEM : Hi;
    uint16_t *weights = job->weights + t * Hi;
    struct rotation rot;
    float x[HEAD_DIM_MAX];

    (void)part;
    rotation_of(&rot, job->pos[t], job->freq, R, 1);
    for (int h = first; h < end; h++) {
        uint16_t *q = job->q + (t * Hi + h) * Di;

        load_row(x, q, Di);
        rotate_row(x, Di, R, &rot);
        hadamard_row(x, Di);
        fp4_row(x, Di);
        store_row(q, x, Di);
        vf w = vf_load_bf16_some(weights + h, 1) * vf_set1(job->scale);

        vf_store_bf16_some(weights + h, w, 1);
    }
}

static void index_query(struct kernels *k, struct dev_ptr q, struct dev_ptr weights,
                        const struct kernel_batch *b, struct dev_ptr freq)
{
    const struct kernel_dims *d = &k->dims;
    struct query_job job = {
        .dims = d,
        .q = cpu_ptr(q),
        .weights = cpu_ptr(weights),
        .pos = cpu_ptr(b->row_pos),
        .freq = cpu_ptr(freq),
        .n_blocks = (d->index_n_heads + HEADS_ITEM - 1) / HEADS_ITEM,
        .scale = (float)(pow(d->index_head_dim, -0.5) * pow(d->index_n_heads, -0.5)),
    };

    assert(d->index_head_dim <= HEAD_DIM_MAX);
    cpu_run(k, (int64_t)b->n_rows * job.n_blocks, query_item, &job);
}

void SIMD_NAME(cpu_norm_fill)(struct kernel_ops *ops)
{
    ops->rms_norm = rms_norm;
    ops->q_norm_rope = q_norm_rope;
    ops->kv_latent = kv_latent;
    ops->index_query = index_query;
}
