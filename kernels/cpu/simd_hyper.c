/*
 * simd_hyper: hyper-connections, in two passes over threads.
 *
 *   mix    item = (64 tokens, all rows of fn or 6): dot products with the concatenated streams, and
 *          of those with themselves. fn is 1.5 MB for Flash, read once an item.
 *   read   item = token: Sinkhorn in double (a 4 x 4 matrix), weighted sum, norm.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd_math.h"

#include <assert.h>

enum { HC_MAX = 8, MIX_MAX = (2 + HC_MAX) * HC_MAX, TOKENS = 4, FN_ROWS = 6 };

/* Tokens of an item, and columns at a time: 24 rows of fn and TOKENS streams, both f32, stay in L1.
 * Fewer tokens read fn where it lies, in longer runs. */
enum { ITEM_TOKENS = 64, CHUNK = 256, RUN = TOKENS * CHUNK };

struct hc_job {
    const struct kernel_dims *dims;
    uint16_t *x;
    float *post, *comb; /* NULL: the head's read */
    const uint16_t *streams;
    const int32_t *rows; /* the head's: which rows; else NULL */
    const float *fn, *scale, *base;
    const uint16_t *norm; /* NULL: none */
    float *mix;           /* [T][n_fn + 1]: s . fn[i], then s . s */
    int n_fn, T;
    int item_rows, n_row_items; /* rows of fn that an item of the first pass takes */
};

static const uint16_t *stream(const struct hc_job *job, int64_t t)
{
    int64_t row = job->rows != NULL ? job->rows[t] : t;

    return job->streams + row * job->dims->hc * job->dims->hidden;
}

/* sum[i][j] += x[i] * fn[j] over n columns, in VF_LANES lanes, in order. x [n_tokens][CHUNK]. */
SIMD void mix_tile(float (*sum)[FN_ROWS][VF_LANES], const float *x, const float *fn, int64_t stride,
                   int64_t n, const int n_tokens, const int n_rows)
{
    vf acc[TOKENS][FN_ROWS];

#pragma GCC unroll 8
    for (int i = 0; i < n_tokens; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n_rows; j++)
            acc[i][j] = vf_load(sum[i][j]);
    for (int64_t c = 0; c < n; c += VF_LANES) {
        vf w[FN_ROWS];

#pragma GCC unroll 8
        for (int j = 0; j < n_rows; j++)
            w[j] = vf_load(fn + j * stride + c);
#pragma GCC unroll 8
        for (int i = 0; i < n_tokens; i++) {
            vf v = vf_load(x + i * CHUNK + c);

#pragma GCC unroll 8
            for (int j = 0; j < n_rows; j++)
                acc[i][j] = vf_fma(v, w[j], acc[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < n_tokens; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n_rows; j++)
            vf_store(sum[i][j], acc[i][j]);
}

/* The same for TOKENS or one and up to FN_ROWS rows. */
static void mix_rows(float (*sum)[FN_ROWS][VF_LANES], const float *x, const float *fn,
                     int64_t stride, int64_t n, int n_tokens, int n_rows)
{
    if (n_rows == FN_ROWS) {
        if (n_tokens == TOKENS)
            mix_tile(sum, x, fn, stride, n, TOKENS, FN_ROWS);
        else
            mix_tile(sum, x, fn, stride, n, 1, FN_ROWS);
        return;
    }
    for (int i = 0; i < n_tokens; i++)
        for (int j = 0; j < n_rows; j++) {
            float one[1][FN_ROWS][VF_LANES];

            memcpy(one[0][0], sum[i][j], sizeof(one[0][0]));
            mix_tile(one, x + i * CHUNK, fn + j * stride, stride, n, 1, 1);
            memcpy(sum[i][j], one[0][0], sizeof(one[0][0]));
        }
}

/* Asks for the columns that come next: so little is read of each stream at a time that no
 * prefetcher sees what will be. (Asking for fn too gained nothing.) */
SIMD void ask_stream(const uint16_t *s, int64_t n)
{
    for (int64_t c = 0; c < n; c += 32)
        _mm_prefetch((const char *)(s + c), _MM_HINT_T1);
}

/* x = s as f32, and sum += s . s over n columns, in two times VF_LANES lanes. */
SIMD void widen(float *x, float (*sum)[VF_LANES], const uint16_t *s, int64_t n)
{
    vf a = vf_load(sum[0]), b = vf_load(sum[1]);
    int64_t c;

    for (c = 0; c + 2 * VF_LANES <= n; c += 2 * VF_LANES) {
        vf u = vf_load_bf16(s + c), v = vf_load_bf16(s + c + VF_LANES);

        a = vf_fma(u, u, a);
        b = vf_fma(v, v, b);
        vf_store(x + c, u);
        vf_store(x + c + VF_LANES, v);
    }
    if (c < n) {
        vf u = vf_load_bf16(s + c);

        a = vf_fma(u, u, a);
        vf_store(x + c, u);
    }
    vf_store(sum[0], a);
    vf_store(sum[1], b);
}

/* Sums of one item, in lanes. */
struct mix_sums {
    float row[MIX_MAX / FN_ROWS + 1][ITEM_TOKENS][FN_ROWS][VF_LANES];
    float self[ITEM_TOKENS][2][VF_LANES];
} __attribute__((aligned(64)));

/* Columns [c, c + n), rows [j0, end) of fn, n_tokens tokens from t0 on. */
static void mix_columns(const struct hc_job *job, struct mix_sums *sums, int64_t c, int64_t n,
                        int j0, int end, int t0, int n_tokens)
{
    float near[MIX_MAX * CHUNK] __attribute__((aligned(64)));
    float x[RUN] __attribute__((aligned(64)));
    int64_t stride = (int64_t)job->dims->hc * job->dims->hidden;
    const float *fn = job->fn + j0 * stride + c;
    bool many = n_tokens >= TOKENS;

    if (many) { /* together: as they lie, rows fall into the same sets of L1 */
        for (int j = 0; j < end - j0; j++)
            for (int64_t i = 0; i < n; i += VF_LANES)
                vi_copy(near + j * CHUNK + i, fn + j * stride + i);
        fn = near;
        stride = CHUNK;
    }
    for (int i = 0, some; i < n_tokens; i += some) {
        some = n_tokens - i >= TOKENS ? TOKENS : 1;
        for (int k = 0; k < some; k++) {
            const uint16_t *s = stream(job, t0 + i + k) + c;

            if (many)
                ask_stream(s + n, n);
            widen(x + k * CHUNK, sums->self[i + k], s, n);
        }
        for (int j = 0; j < end - j0; j += FN_ROWS)
            mix_rows(sums->row[j / FN_ROWS] + i, x, fn + j * stride, stride, n, some,
                     end - j0 - j < FN_ROWS ? end - j0 - j : FN_ROWS);
    }
}

static void mix_item(void *arg, int64_t item, struct cpu_part *part)
{
    struct hc_job *job = arg;
    int64_t n = (int64_t)job->dims->hc * job->dims->hidden;
    int t0 = (int)(item / job->n_row_items) * ITEM_TOKENS;
    int j0 = (int)(item % job->n_row_items) * job->item_rows;
    int n_tokens = job->T - t0 < ITEM_TOKENS ? job->T - t0 : ITEM_TOKENS;
    int end = j0 + job->item_rows < job->n_fn ? j0 + job->item_rows : job->n_fn;
    int64_t step = n_tokens >= TOKENS ? CHUNK : RUN;
    struct mix_sums sums;

    (void)part;
    memset(sums.row, 0, (size_t)((end - j0 + FN_ROWS - 1) / FN_ROWS) * sizeof(sums.row[0]));
    memset(sums.self, 0, sizeof(sums.self));
    for (int64_t c = 0; c < n; c += step)
        mix_columns(job, &sums, c, n - c < step ? n - c : step, j0, end, t0, n_tokens);
    for (int i = 0; i < n_tokens; i++) {
        float *mix = job->mix + (int64_t)(t0 + i) * (job->n_fn + 1);

        for (int j = j0; j < end; j++)
            mix[j] = vf_sum(vf_load(sums.row[(j - j0) / FN_ROWS][i][(j - j0) % FN_ROWS]));
        if (j0 == 0)
            mix[job->n_fn] = vf_sum(vf_load(sums.self[i][0]) + vf_load(sums.self[i][1]));
    }
}

/* ---- second pass ---- */

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static void normalise_columns(double c[HC_MAX][HC_MAX], int hc, double eps)
{
    double sum[HC_MAX];

    for (int b = 0; b < hc; b++)
        sum[b] = eps;
    for (int a = 0; a < hc; a++)
        for (int b = 0; b < hc; b++)
            sum[b] += c[a][b];
    for (int b = 0; b < hc; b++)
        sum[b] = 1 / sum[b];
    for (int a = 0; a < hc; a++)
        for (int b = 0; b < hc; b++)
            c[a][b] *= sum[b];
}

static void normalise_rows(double c[HC_MAX][HC_MAX], int hc, double eps)
{
    for (int a = 0; a < hc; a++) {
        double sum = eps;

        for (int b = 0; b < hc; b++)
            sum += c[a][b];
        sum = 1 / sum;
        for (int b = 0; b < hc; b++)
            c[a][b] *= sum;
    }
}

static void sinkhorn(float *comb, const double *mix, double scale, const float *base,
                     const struct kernel_dims *d)
{
    double c[HC_MAX][HC_MAX];
    int hc = d->hc;

    for (int a = 0; a < hc; a++) {
        double top = -INFINITY, sum = 0;

        for (int b = 0; b < hc; b++) {
            c[a][b] = mix[a * hc + b] * scale + (double)base[a * hc + b];
            top = c[a][b] > top ? c[a][b] : top;
        }
        for (int b = 0; b < hc; b++)
            sum += c[a][b] = exp(c[a][b] - top);
        for (int b = 0; b < hc; b++)
            c[a][b] = c[a][b] / sum + d->hc_eps;
    }
    normalise_columns(c, hc, d->hc_eps);
    for (int i = 1; i < d->hc_iters; i++) {
        normalise_rows(c, hc, d->hc_eps);
        normalise_columns(c, hc, d->hc_eps);
    }
    for (int a = 0; a < hc; a++)
        for (int b = 0; b < hc; b++)
            comb[a * hc + b] = (float)c[a][b];
}

/* x = rms_norm(bf16(sum_h pre[h] * s[h])) */
static void weighted_sum(uint16_t *out, const uint16_t *s, const float *pre,
                         const struct hc_job *job)
{
    int d = job->dims->hidden, hc = job->dims->hc;
    vf square = vf_set1(0.f);

    for (int i = 0; i < d; i += VF_LANES) {
        vf sum = vf_load_bf16(s + i) * vf_set1(pre[0]);

        for (int h = 1; h < hc; h++)
            sum = vf_fma(vf_load_bf16(s + h * d + i), vf_set1(pre[h]), sum);
        sum = vf_bf16(sum);
        square = vf_fma(sum, sum, square);
        vf_store_bf16(out + i, sum);
    }
    if (job->norm == NULL)
        return;
    vf r = vf_set1(inverse_root((double)vf_sum(square), d, job->dims->norm_eps));

    for (int i = 0; i < d; i += VF_LANES)
        vf_store_bf16(out + i, vf_load_bf16(job->norm + i) * (vf_load_bf16(out + i) * r));
}

static void read_item(void *arg, int64_t t, struct cpu_part *part)
{
    struct hc_job *job = arg;
    const struct kernel_dims *d = job->dims;
    const float *raw = job->mix + t * (job->n_fn + 1);
    int hc = d->hc;
    double root = sqrt((double)raw[job->n_fn] / (hc * d->hidden) + d->norm_eps);
    double mix[MIX_MAX];
    float pre[HC_MAX];

    (void)part;
    for (int i = 0; i < job->n_fn; i++)
        mix[i] = (double)(float)((double)raw[i] / root);
    for (int h = 0; h < hc; h++)
        pre[h] =
            (float)(sigmoid(mix[h] * (double)job->scale[0] + (double)job->base[h]) + d->hc_eps);
    if (job->post != NULL) {
        for (int h = 0; h < hc; h++)
            job->post[t * hc + h] = (float)(2 * sigmoid(mix[hc + h] * (double)job->scale[1] +
                                                        (double)job->base[hc + h]));
        sinkhorn(job->comb + t * hc * hc, mix + 2 * hc, (double)job->scale[2], job->base + 2 * hc,
                 d);
    }
    weighted_sum(job->x + t * d->hidden, stream(job, t), pre, job);
}

static void run_read(struct kernels *k, struct hc_job *job)
{
    int n_tokens;

    assert(k->dims.hc <= HC_MAX && k->dims.hidden % 16 == 0 && job->T <= k->dims.max_rows);
    job->dims = &k->dims;
    job->mix = cpu_of(k)->mix;
    /* All rows, so that streams come from memory once; or few, to occupy all threads. */
    n_tokens = (job->T + ITEM_TOKENS - 1) / ITEM_TOKENS;
    job->item_rows = n_tokens >= 2 * cpu_of(k)->n_parts ? job->n_fn : FN_ROWS;
    job->n_row_items = (job->n_fn + job->item_rows - 1) / job->item_rows;
    cpu_run(k, (int64_t)n_tokens * job->n_row_items, mix_item, job);
    cpu_run(k, job->T, read_item, job);
}

static void hc_read(struct kernels *k, struct dev_ptr x, struct dev_ptr post, struct dev_ptr comb,
                    struct dev_ptr streams, const struct weight *fn, const struct weight *scale,
                    const struct weight *base, const struct weight *norm, int T)
{
    struct hc_job job = {
        .x = cpu_ptr(x),
        .post = cpu_ptr(post),
        .comb = cpu_ptr(comb),
        .streams = cpu_ptr(streams),
        .fn = cpu_ptr(fn->data),
        .scale = cpu_ptr(scale->data),
        .base = cpu_ptr(base->data),
        .norm = norm != NULL ? cpu_ptr(norm->data) : NULL,
        .n_fn = (int)fn->rows,
        .T = T,
    };

    run_read(k, &job);
}

static void hc_head(struct kernels *k, struct dev_ptr x, struct dev_ptr streams,
                    struct dev_ptr rows, const struct weight *fn, const struct weight *scale,
                    const struct weight *base, const struct weight *norm, int n)
{
    struct hc_job job = {
        .x = cpu_ptr(x),
        .streams = cpu_ptr(streams),
        .rows = cpu_ptr(rows),
        .fn = cpu_ptr(fn->data),
        .scale = cpu_ptr(scale->data),
        .base = cpu_ptr(base->data),
        .norm = norm != NULL ? cpu_ptr(norm->data) : NULL,
        .n_fn = k->dims.hc,
        .T = n,
    };

    run_read(k, &job);
}

/* ---- writes ---- */

struct write_job {
    const struct kernel_dims *dims;
    uint16_t *out;
    const uint16_t *y, *streams;
    const float *post, *comb;
};

static void write_item(void *arg, int64_t t, struct cpu_part *part)
{
    struct write_job *job = arg;
    int d = job->dims->hidden, hc = job->dims->hc;
    const float *post = job->post + t * hc, *comb = job->comb + t * hc * hc;
    const uint16_t *s = job->streams + t * hc * d, *y = job->y + t * d;
    uint16_t *out = job->out + t * hc * d;

    (void)part;
    for (int i = 0; i < d; i += VF_LANES) {
        vf in[HC_MAX], v = vf_load_bf16(y + i);

        for (int h = 0; h < hc; h++)
            in[h] = vf_load_bf16(s + h * d + i);
        for (int to = 0; to < hc; to++) {
            vf sum = v * vf_set1(post[to]);

            for (int from = 0; from < hc; from++)
                sum = vf_fma(in[from], vf_set1(comb[from * hc + to]), sum);
            vf_store_bf16(out + to * d + i, sum);
        }
    }
}

static void hc_write(struct kernels *k, struct dev_ptr out, struct dev_ptr y,
                     struct dev_ptr streams, struct dev_ptr post, struct dev_ptr comb, int T)
{
    struct write_job job = {&k->dims,         cpu_ptr(out),  cpu_ptr(y),
                            cpu_ptr(streams), cpu_ptr(post), cpu_ptr(comb)};

    assert(k->dims.hc <= HC_MAX && k->dims.hidden % 16 == 0);
    cpu_run(k, T, write_item, &job);
}

struct join_job {
    const struct kernel_dims *dims;
    uint16_t *out;
    const uint16_t *e, *h;
};

static void join_item(void *arg, int64_t t, struct cpu_part *part)
{
    struct join_job *job = arg;
    int d = job->dims->hidden, hc = job->dims->hc;

    (void)part;
    for (int s = 0; s < hc; s++)
        for (int i = 0; i < d; i += VF_LANES) {
            int64_t at = (t * hc + s) * d + i;

            vf_store_bf16(job->out + at,
                          vf_load_bf16(job->e + t * d + i) + vf_load_bf16(job->h + at));
        }
}

static void mtp_join(struct kernels *k, struct dev_ptr out, struct dev_ptr e, struct dev_ptr h,
                     int T)
{
    struct join_job job = {&k->dims, cpu_ptr(out), cpu_ptr(e), cpu_ptr(h)};

    cpu_run(k, T, join_item, &job);
}

void SIMD_NAME(cpu_hyper_fill)(struct kernel_ops *ops)
{
    ops->hc_read = hc_read;
    ops->hc_head = hc_head;
    ops->hc_write = hc_write;
    ops->mtp_join = mtp_join;
}
