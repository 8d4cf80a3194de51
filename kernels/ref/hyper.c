/* The residual streams: embedding, hyper-connections, the head's read, the MTP join. */
#include "kernels/ref/ref.h"

enum { HC_MAX = 8, ROW_MAX = 65536, D_MAX = 16384 };

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

void ref_embed(struct kernels *k, struct dev_ptr streams, const struct weight *table,
               struct dev_ptr tokens, int T, int copies)
{
    const int32_t *ids = ref_ptr(tokens);
    uint16_t *out = ref_ptr(streams);
    int64_t d = table->cols;

    (void)k;
    for (int64_t t = 0; t < T; t++)
        for (int c = 0; c < copies; c++)
            memcpy(out + (t * copies + c) * d, (const uint16_t *)ref_ptr(table->data) + ids[t] * d,
                   (size_t)d * sizeof(*out));
}

struct hc_job {
    const struct kernels *k;
    uint16_t *x;
    float *post, *comb;
    const uint16_t *streams;
    const int32_t *rows; /* head: which rows; else NULL */
    const float *fn, *scale, *base;
    int n_fn; /* rows of fn */
    const struct weight *norm;
    int T;
};

/* mix[i] = f32(s . fn[i] / sqrt(mean(s^2) + eps)): the data-dependent part. */
static void mix_row(float *mix, const uint16_t *s, const struct hc_job *job)
{
    const struct kernel_dims *d = &job->k->dims;
    int n = d->hc * d->hidden;
    double sum = 0, root;

    for (int i = 0; i < n; i++)
        sum += (double)bf16_decode(s[i]) * (double)bf16_decode(s[i]);
    root = sqrt(sum / n + d->norm_eps);
    for (int i = 0; i < job->n_fn; i++)
        mix[i] = (float)(ref_dot_bf16(job->fn + (int64_t)i * n, s, n) / root);
}

static void normalise(double c[HC_MAX][HC_MAX], int hc, double eps, bool rows)
{
    for (int a = 0; a < hc; a++) {
        double sum = 0;

        for (int b = 0; b < hc; b++)
            sum += rows ? c[a][b] : c[b][a];
        for (int b = 0; b < hc; b++)
            *(rows ? &c[a][b] : &c[b][a]) /= sum + eps;
    }
}

/* The matrix that carries the streams past a sublayer: nearly doubly stochastic, columns last. */
static void sinkhorn(float *comb, const float *mix, double scale, const float *base,
                     const struct kernel_dims *d)
{
    double c[HC_MAX][HC_MAX];
    int hc = d->hc;

    for (int a = 0; a < hc; a++) {
        double top = -INFINITY, sum = 0;

        for (int b = 0; b < hc; b++) {
            c[a][b] = (double)mix[a * hc + b] * scale + (double)base[a * hc + b];
            top = c[a][b] > top ? c[a][b] : top;
        }
        for (int b = 0; b < hc; b++)
            sum += c[a][b] = exp(c[a][b] - top);
        for (int b = 0; b < hc; b++)
            c[a][b] = c[a][b] / sum + d->hc_eps;
    }
    normalise(c, hc, d->hc_eps, false);
    for (int i = 1; i < d->hc_iters; i++) {
        normalise(c, hc, d->hc_eps, true);
        normalise(c, hc, d->hc_eps, false);
    }
    for (int a = 0; a < hc; a++)
        for (int b = 0; b < hc; b++)
            comb[a * hc + b] = (float)c[a][b];
}

/* x = rms_norm(bf16(sum_h pre[h] * s[h])) */
static void weighted_sum(uint16_t *out, const uint16_t *s, const float *pre,
                         const struct hc_job *job)
{
    const struct kernel_dims *d = &job->k->dims;
    float x[D_MAX];

    for (int i = 0; i < d->hidden; i++) {
        double sum = 0;

        for (int h = 0; h < d->hc; h++)
            sum += (double)pre[h] * (double)bf16_decode(s[h * d->hidden + i]);
        x[i] = bf16_grid(sum);
    }
    ref_rms_norm_row(x, x, job->norm, d->hidden, d->norm_eps);
    for (int i = 0; i < d->hidden; i++)
        out[i] = bf16_encode(x[i]);
}

static void read_part(void *arg, int part, int n_parts)
{
    const struct hc_job *job = arg;
    const struct kernel_dims *d = &job->k->dims;
    struct ref_range r = ref_share(job->T, part, n_parts);
    int hc = d->hc;

    for (int64_t t = r.begin; t < r.end; t++) {
        const uint16_t *s = job->streams + t * hc * d->hidden;
        float mix[(2 + HC_MAX) * HC_MAX], pre[HC_MAX];

        mix_row(mix, s, job);
        for (int h = 0; h < hc; h++) {
            double a = (double)mix[h] * (double)job->scale[0] + (double)job->base[h];
            double b = (double)mix[hc + h] * (double)job->scale[1] + (double)job->base[hc + h];

            pre[h] = (float)(sigmoid(a) + d->hc_eps);
            job->post[t * hc + h] = (float)(2 * sigmoid(b));
        }
        sinkhorn(job->comb + t * hc * hc, mix + 2 * hc, (double)job->scale[2], job->base + 2 * hc,
                 d);
        weighted_sum(job->x + t * d->hidden, s, pre, job);
    }
}

void ref_hc_read(struct kernels *k, struct dev_ptr x, struct dev_ptr post, struct dev_ptr comb,
                 struct dev_ptr streams, const struct weight *fn, const struct weight *scale,
                 const struct weight *base, const struct weight *norm, int T)
{
    struct hc_job job = {
        .k = k,
        .x = ref_ptr(x),
        .post = ref_ptr(post),
        .comb = ref_ptr(comb),
        .streams = ref_ptr(streams),
        .fn = ref_ptr(fn->data),
        .scale = ref_ptr(scale->data),
        .base = ref_ptr(base->data),
        .n_fn = (int)fn->rows,
        .norm = norm,
        .T = T,
    };

    k->env.parallel(k->env.pool, read_part, &job);
}

static void head_part(void *arg, int part, int n_parts)
{
    const struct hc_job *job = arg;
    const struct kernel_dims *d = &job->k->dims;
    struct ref_range r = ref_share(job->T, part, n_parts);

    for (int64_t i = r.begin; i < r.end; i++) {
        const uint16_t *s = job->streams + (int64_t)job->rows[i] * d->hc * d->hidden;
        float mix[HC_MAX], pre[HC_MAX];

        mix_row(mix, s, job);
        for (int h = 0; h < d->hc; h++)
            pre[h] =
                (float)(sigmoid((double)mix[h] * (double)job->scale[0] + (double)job->base[h]) +
                        d->hc_eps);
        weighted_sum(job->x + i * d->hidden, s, pre, job);
    }
}

void ref_hc_head(struct kernels *k, struct dev_ptr x, struct dev_ptr streams, struct dev_ptr rows,
                 const struct weight *fn, const struct weight *scale, const struct weight *base,
                 const struct weight *norm, int n)
{
    struct hc_job job = {
        .k = k,
        .x = ref_ptr(x),
        .streams = ref_ptr(streams),
        .rows = ref_ptr(rows),
        .fn = ref_ptr(fn->data),
        .scale = ref_ptr(scale->data),
        .base = ref_ptr(base->data),
        .n_fn = k->dims.hc,
        .norm = norm,
        .T = n,
    };

    k->env.parallel(k->env.pool, head_part, &job);
}

struct write_job {
    const struct kernels *k;
    uint16_t *out;
    const uint16_t *y, *streams;
    const float *post, *comb;
    int T;
};

static void write_part(void *arg, int part, int n_parts)
{
    const struct write_job *job = arg;
    int hc = job->k->dims.hc, d = job->k->dims.hidden;
    struct ref_range r = ref_share(job->T, part, n_parts);

    for (int64_t t = r.begin; t < r.end; t++)
        for (int i = 0; i < d; i++) {
            double in[HC_MAX], y = (double)bf16_decode(job->y[t * d + i]);

            for (int h = 0; h < hc; h++)
                in[h] = (double)bf16_decode(job->streams[(t * hc + h) * d + i]);
            for (int to = 0; to < hc; to++) {
                double carried = 0;

                for (int from = 0; from < hc; from++)
                    carried += (double)job->comb[(t * hc + from) * hc + to] * in[from];
                job->out[(t * hc + to) * d + i] =
                    bf16_round((double)job->post[t * hc + to] * y + carried);
            }
        }
}

void ref_hc_write(struct kernels *k, struct dev_ptr out, struct dev_ptr y, struct dev_ptr streams,
                  struct dev_ptr post, struct dev_ptr comb, int T)
{
    struct write_job job = {
        k, ref_ptr(out), ref_ptr(y), ref_ptr(streams), ref_ptr(post), ref_ptr(comb), T};

    k->env.parallel(k->env.pool, write_part, &job);
}

void ref_mtp_join(struct kernels *k, struct dev_ptr out, struct dev_ptr e, struct dev_ptr h, int T)
{
    const uint16_t *ep = ref_ptr(e), *hp = ref_ptr(h);
    uint16_t *op = ref_ptr(out);
    int hc = k->dims.hc, d = k->dims.hidden;

    for (int64_t t = 0; t < T; t++)
        for (int s = 0; s < hc; s++)
            for (int i = 0; i < d; i++) {
                int64_t at = (t * hc + s) * d + i;

                op[at] = bf16_encode(bf16_decode(ep[t * d + i]) + bf16_decode(hp[at]));
            }
}
