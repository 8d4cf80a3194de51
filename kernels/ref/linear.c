/* Dense layers: each output is one dot product, accumulated in double. */
#include "kernels/ref/ref.h"

/* Longest inner dimension: a decoded weight row lies on the stack. */
enum { COLS_MAX = 32768 };

/* Eight lanes of one fixed order, so that compilers can use vectors without changing the sum. */
#define DOT_BODY(load_b)                                                                           \
    double lane[8] = {0};                                                                          \
    int64_t i = 0;                                                                                 \
    for (; i + 8 <= n; i += 8)                                                                     \
        for (int j = 0; j < 8; j++)                                                                \
            lane[j] += (double)a[i + j] * (double)(load_b(b[i + j]));                              \
    for (int j = 0; i < n; i++, j++)                                                               \
        lane[j] += (double)a[i] * (double)(load_b(b[i]));                                          \
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +                                           \
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
/* clang 14 names the resolver otherwise than other files call it */
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

CLONES double ref_dot(const float *a, const float *b, int64_t n){DOT_BODY((float))}

CLONES double ref_dot_bf16(const float *a, const uint16_t *b, int64_t n){DOT_BODY(bf16_decode)}

size_t ref_act_quant_bytes(struct kernels *k, int n)
{
    (void)k;
    return (size_t)n * sizeof(uint16_t);
}

/* The quantised form is the dequantised values: code * scale is exact in bf16. */
struct quant_job {
    uint16_t *xq;
    const uint16_t *x;
    int T, n;
};

static void quant_part(void *arg, int part, int n_parts)
{
    const struct quant_job *job = arg;
    int blocks = job->n / 128;
    struct ref_range r = ref_share((int64_t)job->T * blocks, part, n_parts);

    for (int64_t b = r.begin; b < r.end; b++) {
        float x[128];
        uint8_t codes[128];
        float scale;

        for (int i = 0; i < 128; i++)
            x[i] = bf16_decode(job->x[b * 128 + i]);
        scale = e8m0_decode(fp8_quantise(codes, x, 128));
        for (int i = 0; i < 128; i++)
            job->xq[b * 128 + i] = bf16_encode(e4m3_decode(codes[i]) * scale);
    }
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
    float row[COLS_MAX];

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
