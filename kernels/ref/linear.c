/* Dense layers: each output is one dot product, accumulated in double. */
#include "kernels/ref/ref.h"

/* Lanes of one fixed order, so that compilers can use vectors without changing the sum. */
enum { LANES = 16 };

#define DOT_BODY(load_b)                                                                           \
    double lane[LANES] = {0}, sum = 0;                                                             \
    int64_t i = 0;                                                                                 \
    for (; i + LANES <= n; i += LANES)                                                             \
        for (int j = 0; j < LANES; j++)                                                            \
            lane[j] += (double)a[i + j] * (double)(load_b(b[i + j]));                              \
    for (int j = 0; i < n; i++, j++)                                                               \
        lane[j] += (double)a[i] * (double)(load_b(b[i]));                                          \
    for (int j = 0; j < LANES; j++)                                                                \
        sum += lane[j];                                                                            \
    return sum;

REF_CLONES double ref_dot(const float *a, const float *b, int64_t n){DOT_BODY((float))}

REF_CLONES double ref_dot_bf16(const float *a, const uint16_t *b, int64_t n){DOT_BODY(bf16_decode)}

size_t ref_act_quant_bytes(struct kernels *k, int n)
{
    (void)k;
    return (size_t)n * sizeof(uint16_t);
}

/* The quantised form is the values themselves: code * scale is exact in bf16. */
struct quant_job {
    uint16_t *xq;
    const uint16_t *x;
    int T, n;
};

static void quant_part(void *arg, int part, int n_parts)
{
    const struct quant_job *job = arg;
    struct ref_range r = ref_share(job->T, part, n_parts);

    for (int64_t t = r.begin; t < r.end; t++)
        fp8_grid_row(job->xq + t * job->n, job->x + t * job->n, job->n);
}

void ref_act_quant(struct kernels *k, struct dev_ptr xq, struct dev_ptr x, int T, int n)
{
    struct quant_job job = {ref_ptr(xq), ref_ptr(x), T, n};

    k->env.parallel(k->env.pool, quant_part, &job);
}

/* Output i of row t reads input columns [group * cols, ...): group = i / rows_per_group. */
struct linear_job {
    void *y;
    const uint16_t *x;
    const struct weight *w;
    int T;
    int64_t x_stride, rows_per_group;
    bool y_f32;
};

static void linear_part(void *arg, int part, int n_parts)
{
    const struct linear_job *job = arg;
    const struct weight *w = job->w;
    struct ref_range r = ref_share(w->rows, part, n_parts);
    float row[REF_COLS_MAX];

    for (int64_t i = r.begin; i < r.end; i++) {
        const uint16_t *x = job->x + i / job->rows_per_group * w->cols;

        ref_weight_row(w, i, row);
        for (int t = 0; t < job->T; t++) {
            double sum = ref_dot_bf16(row, x + t * job->x_stride, w->cols);

            if (job->y_f32)
                ((float *)job->y)[t * w->rows + i] = (float)sum;
            else
                ((uint16_t *)job->y)[t * w->rows + i] = bf16_round(sum);
        }
    }
}

static void run_linear(struct kernels *k, struct dev_ptr y, struct dev_ptr x,
                       const struct weight *w, int T, int groups, bool y_f32)
{
    struct linear_job job = {.y = ref_ptr(y),
                             .x = ref_ptr(x),
                             .w = w,
                             .T = T,
                             .x_stride = groups * w->cols,
                             .rows_per_group = w->rows / groups,
                             .y_f32 = y_f32};

    k->env.parallel(k->env.pool, linear_part, &job);
}

void ref_linear_q(struct kernels *k, struct dev_ptr y, struct dev_ptr xq, const struct weight *w,
                  int T)
{
    run_linear(k, y, xq, w, T, 1, false);
}

void ref_linear(struct kernels *k, struct dev_ptr y, struct dev_ptr x, const struct weight *w,
                int T, bool y_f32)
{
    run_linear(k, y, x, w, T, 1, y_f32);
}

void ref_linear_grouped(struct kernels *k, struct dev_ptr y, struct dev_ptr x,
                        const struct weight *w, int T, int groups)
{
    run_linear(k, y, x, w, T, groups, false);
}
