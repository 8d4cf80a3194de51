/* RMS norms and the rotation of positions. */
#include "kernels/ref/ref.h"

void ref_rms_norm_row(float *y, const float *x, const struct weight *w, int n, double eps)
{
    const uint16_t *gain = w != NULL ? ref_ptr(w->data) : NULL;
    double sum = 0, root;

    for (int i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    root = sqrt(sum / n + eps);
    for (int i = 0; i < n; i++)
        y[i] = gain == NULL ? bf16_grid((double)x[i])
                            : bf16_grid((double)bf16_decode(gain[i]) * (double)x[i] / root);
}

void ref_rotate(float *x, int n, int R, int64_t position, const float *freq, int sign)
{
    float *pair = x + n - R;

    for (int i = 0; i < R / 2; i++, pair += 2) {
        float angle = (float)position * freq[i]; /* in f32: at large positions part of the model */
        double c = (double)(float)cos((double)angle);
        double s = sign * (double)(float)sin((double)angle);
        double even = (double)pair[0], odd = (double)pair[1];

        pair[0] = bf16_grid(even * c - odd * s);
        pair[1] = bf16_grid(even * s + odd * c);
    }
}

void ref_hadamard(float *x, int n)
{
    double y[4096], scale = pow((double)n, -0.5);

    for (int i = 0; i < n; i++)
        y[i] = (double)x[i];
    for (int step = 1; step < n; step *= 2)
        for (int i = 0; i < n; i += 2 * step)
            for (int j = i; j < i + step; j++) {
                double a = y[j], b = y[j + step];

                y[j] = a + b;
                y[j + step] = a - b;
            }
    for (int i = 0; i < n; i++)
        x[i] = bf16_grid(y[i] * scale);
}

struct norm_job {
    const struct kernels *k;
    uint16_t *y;
    const uint16_t *x;
    const struct weight *w;
    int T, n;
};

enum { ROW_MAX = 32768 };

static void norm_part(void *arg, int part, int n_parts)
{
    const struct norm_job *job = arg;
    struct ref_range r = ref_share(job->T, part, n_parts);
    float x[ROW_MAX];

    for (int64_t t = r.begin; t < r.end; t++) {
        for (int i = 0; i < job->n; i++)
            x[i] = bf16_decode(job->x[t * job->n + i]);
        ref_rms_norm_row(x, x, job->w, job->n, job->k->dims.norm_eps);
        for (int i = 0; i < job->n; i++)
            job->y[t * job->n + i] = bf16_encode(x[i]);
    }
}

void ref_rms_norm(struct kernels *k, struct dev_ptr y, struct dev_ptr x, const struct weight *w,
                  int T, int n)
{
    struct norm_job job = {k, ref_ptr(y), ref_ptr(x), w, T, n};

    k->env.parallel(k->env.pool, norm_part, &job);
}

/* Weightless norm of one head; here every step is rounded to bf16. */
static void head_norm(float *q, int D, float eps)
{
    double sum = 0;
    float mean, scale;

    for (int i = 0; i < D; i++)
        sum += (double)bf16_grid((double)(q[i] * q[i]));
    mean = bf16_grid((double)(bf16_grid(sum / D) + eps));
    scale = bf16_grid(1 / sqrt((double)mean));
    for (int i = 0; i < D; i++)
        q[i] = bf16_grid((double)(q[i] * scale));
}

struct q_job {
    const struct kernels *k;
    uint16_t *q;
    const int32_t *pos;
    const float *freq;
    int T;
};

static void q_part(void *arg, int part, int n_parts)
{
    const struct q_job *job = arg;
    const struct kernel_dims *d = &job->k->dims;
    int H = d->n_heads, D = d->head_dim;
    struct ref_range r = ref_share((int64_t)job->T * H, part, n_parts);
    float q[ROW_MAX];

    for (int64_t i = r.begin; i < r.end; i++) {
        for (int j = 0; j < D; j++)
            q[j] = bf16_decode(job->q[i * D + j]);
        head_norm(q, D, (float)d->norm_eps);
        ref_rotate(q, D, d->rope_dim, job->pos[i / H], job->freq, 1);
        for (int j = 0; j < D; j++)
            job->q[i * D + j] = bf16_encode(q[j]);
    }
}

void ref_q_norm_rope(struct kernels *k, struct dev_ptr q, const struct kernel_batch *b,
                     struct dev_ptr freq)
{
    struct q_job job = {k, ref_ptr(q), ref_ptr(b->row_pos), ref_ptr(freq), b->n_rows};

    k->env.parallel(k->env.pool, q_part, &job);
}
