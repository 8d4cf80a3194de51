/*
 * linear: the dense products. An item is one panel (64 output columns) and up to CPU_ROWS_BLOCK
 * rows of x.
 */
#include "kernels/cpu/cpu.h"

#include <assert.h>

/* ---- quantisation of activations ---- */

struct quant_job {
    const struct cpu *cpu;
    uint8_t *out;
    const uint16_t *x;
    int n;
};

static void quant_item(void *arg, int64_t t, struct cpu_part *part)
{
    struct quant_job *job = arg;

    (void)part;
    job->cpu->rows->quant((uint16_t *)(void *)(job->out + (size_t)t * cpu_xq_bytes(job->n)),
                          job->x + t * job->n, job->n);
}

static size_t cpu_act_quant_bytes(struct kernels *k, int n)
{
    (void)k;
    return cpu_xq_bytes(n);
}

static void cpu_act_quant(struct kernels *k, struct dev_ptr xq, struct dev_ptr x, int T, int n)
{
    struct quant_job job = {cpu_of(k), cpu_ptr(xq), cpu_ptr(x), n};

    cpu_run(k, T, quant_item, &job);
}

/* ---- products ---- */

struct linear_job {
    const struct cpu *cpu;
    const struct weight *w;
    const uint8_t *x;
    size_t x_stride; /* bytes */
    void *y;
    bool y_f32;
    int T;
    int groups; /* 1, or those of linear_grouped */
    int64_t n_panels;
};

/* Rows [first, end) of w, all of panel `i` and of group g. */
static void linear_rows(struct linear_job *job, int64_t i, int t0, int n, int g, int64_t first,
                        int64_t end, struct cpu_part *part)
{
    struct panel p = cpu_panel(job->cpu, job->w, i, part);
    float *out = part->out[0];
    int64_t rows = job->w->rows;

    for (int t = 0; t < n; t++)
        part->x[t] = (const uint16_t *)(const void *)(job->x + (size_t)(t0 + t) * job->x_stride) +
                     (size_t)g * (size_t)p.cols;
    job->cpu->panels->multiply(out, &p, part->x, n, &part->panel);
    for (int t = 0; t < n; t++) {
        const float *from = out + t * PANEL_ROWS + (first - i * PANEL_ROWS);
        int64_t to = (t0 + t) * rows + first;

        if (job->y_f32)
            for (int64_t r = 0; r < end - first; r++)
                ((float *)job->y)[to + r] = from[r];
        else
            job->cpu->rows->round((uint16_t *)job->y + to, from, (int)(end - first));
    }
}

static void linear_item(void *arg, int64_t item, struct cpu_part *part)
{
    struct linear_job *job = arg;
    int64_t i = item % job->n_panels;
    int t0 = (int)(item / job->n_panels) * CPU_ROWS_BLOCK;
    int n = job->T - t0 < CPU_ROWS_BLOCK ? job->T - t0 : CPU_ROWS_BLOCK;
    int64_t group_rows = job->w->rows / job->groups;
    int64_t end = (i + 1) * PANEL_ROWS < job->w->rows ? (i + 1) * PANEL_ROWS : job->w->rows;

    for (int64_t first = i * PANEL_ROWS; first < end;) { /* one round, unless groups are small */
        int64_t g = first / group_rows;
        int64_t stop = (g + 1) * group_rows < end ? (g + 1) * group_rows : end;

        linear_rows(job, i, t0, n, (int)g, first, stop, part);
        first = stop;
    }
}

static void run_linear(struct kernels *k, struct linear_job *job)
{
    assert(cpu_is_matrix(job->w));
    job->cpu = cpu_of(k);
    job->n_panels = (job->w->rows + PANEL_ROWS - 1) / PANEL_ROWS;
    cpu_run_panels(k, job->n_panels * ((job->T + CPU_ROWS_BLOCK - 1) / CPU_ROWS_BLOCK),
                   job->n_panels, linear_item, job);
}

static void cpu_linear_q(struct kernels *k, struct dev_ptr y, struct dev_ptr xq,
                         const struct weight *w, int T)
{
    run_linear(k, &(struct linear_job){.w = w,
                                       .x = cpu_ptr(xq),
                                       .x_stride = cpu_xq_bytes((int)w->cols),
                                       .y = cpu_ptr(y),
                                       .T = T,
                                       .groups = 1});
}

static void cpu_linear(struct kernels *k, struct dev_ptr y, struct dev_ptr x,
                       const struct weight *w, int T, bool y_f32)
{
    assert(w->type == WEIGHT_BF16);
    run_linear(k, &(struct linear_job){.w = w,
                                       .x = cpu_ptr(x),
                                       .x_stride = (size_t)w->cols * 2,
                                       .y = cpu_ptr(y),
                                       .y_f32 = y_f32,
                                       .T = T,
                                       .groups = 1});
}

static void cpu_linear_grouped(struct kernels *k, struct dev_ptr y, struct dev_ptr x,
                               const struct weight *w, int T, int groups)
{
    assert(w->rows % groups == 0);
    run_linear(k, &(struct linear_job){.w = w,
                                       .x = cpu_ptr(x),
                                       .x_stride = (size_t)w->cols * 2 * (size_t)groups,
                                       .y = cpu_ptr(y),
                                       .T = T,
                                       .groups = groups});
}

void cpu_linear_fill(struct kernel_ops *ops)
{
    ops->act_quant_bytes = cpu_act_quant_bytes;
    ops->act_quant = cpu_act_quant;
    ops->linear_q = cpu_linear_q;
    ops->linear = cpu_linear;
    ops->linear_grouped = cpu_linear_grouped;
}
