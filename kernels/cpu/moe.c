/*
 * moe: routed and shared experts, tokens grouped by expert so that a decoded block of weights
 * serves all its tokens.
 *
 * Two passes over threads, a barrier between them:
 *   up    item = (expert, 128 hidden columns, 96 of its tokens): w1, w3, swiglu, quantised into
 * `hidden` down  item = 64 output columns: w2 of every expert in ascending id, the shared one
 * first, each result rounded to bf16 and added to the sums of its tokens: the same order for any
 * batch
 */
#include "kernels/cpu/cpu.h"
#include "kernels/ref/ref.h"

#include <assert.h>
#include <string.h>

struct moe_job {
    struct cpu *cpu;
    const struct expert_weights *shared, *experts;
    const uint8_t *xq;
    uint16_t *y, *parts; /* one of them */
    int T, d, f, n_experts;
    int first, end; /* the experts we have */
    float limit;
    int64_t n_up; /* items of the first pass */
    int n_blocks; /* 128-column blocks of f */
};

static const struct expert_weights *expert(const struct moe_job *job, int e)
{
    return e == 0 ? job->shared : &job->experts[e - 1];
}

/* ---- slots ---- */

/* Counting sort of (token, expert) by expert; tokens stay in order. Expert e has number e + 1. */
static void sort_slots(struct moe_job *job, const int32_t *ids, const float *weights, int n_active)
{
    struct cpu *c = job->cpu;
    int32_t *start = c->expert_start; /* [n_experts + 2] */

    int n_shared = job->shared != NULL ? job->T : 0;

    memset(start, 0, (size_t)(job->n_experts + 2) * sizeof(*start));
    start[1] = n_shared;
    for (int i = 0; i < job->T * n_active; i++)
        start[ids[i] + 2] += ids[i] >= job->first && ids[i] < job->end;
    for (int e = 0; e < job->n_experts; e++)
        start[e + 2] += start[e + 1];
    for (int t = 0; t < n_shared; t++) {
        c->slot_token[t] = t;
        c->slot_weight[t] = 1;
        c->slot_part[t] = t * (n_active + 1) + n_active;
    }
    /* start[e + 1] serves as the fill mark of expert e and ends as its end: the start of the next.
     */
    for (int i = 0; i < job->T * n_active; i++) {
        if (ids[i] < job->first || ids[i] >= job->end)
            continue;
        int32_t slot = start[ids[i] + 1]++;

        c->slot_token[slot] = i / n_active;
        c->slot_weight[slot] = weights[i];
        c->slot_part[slot] = i + i / n_active;
    }
    memmove(start + 2, start + 1, (size_t)job->n_experts * sizeof(*start));
    start[1] = n_shared;
}

static int row_blocks(int n)
{
    return (n + CPU_ROWS_BLOCK - 1) / CPU_ROWS_BLOCK;
}

/* ---- first pass ---- */

/* g and u of 128 hidden columns (two panels each), for n slots from `first`. */
static void up_block(struct moe_job *job, int e, int block, int32_t first, int n,
                     struct cpu_part *part)
{
    struct cpu *c = job->cpu;
    const struct expert_weights *w = expert(job, e);
    int n_panels = (job->f + PANEL_ROWS - 1) / PANEL_ROWS;
    int cols = job->f - block * CPU_QUANT_BLOCK;
    uint16_t h[CPU_QUANT_BLOCK];

    cols = cols < CPU_QUANT_BLOCK ? cols : CPU_QUANT_BLOCK;
    for (int i = 0; i < n; i++)
        part->x[i] = (const uint16_t *)(const void *)(job->xq + (size_t)c->slot_token[first + i] *
                                                                    cpu_xq_bytes(job->d));
    for (int half = 0; half < 2 && block * 2 + half < n_panels; half++) {
        struct panel p = cpu_panel(c, &w->w1, block * 2 + half, part);

        c->panels->multiply(part->out[half], &p, part->x, n, &part->panel);
        p = cpu_panel(c, &w->w3, block * 2 + half, part);
        c->panels->multiply(part->out[2 + half], &p, part->x, n, &part->panel);
    }
    for (int i = 0; i < n; i++) {
        for (int half = 0; half * PANEL_ROWS < cols; half++) {
            int some =
                cols - half * PANEL_ROWS < PANEL_ROWS ? cols - half * PANEL_ROWS : PANEL_ROWS;

            c->rows->swiglu(h + half * PANEL_ROWS, part->out[half] + i * PANEL_ROWS,
                            part->out[2 + half] + i * PANEL_ROWS, some, job->limit,
                            c->slot_weight[first + i]);
        }
        uint8_t *row = c->hidden + (size_t)(first + i) * cpu_xq_bytes(job->f);

        c->rows->quant((uint16_t *)(void *)row + block * CPU_QUANT_BLOCK, h, cols);
    }
}

static void up_item(void *arg, int64_t item, struct cpu_part *part)
{
    struct moe_job *job = arg;
    const int32_t *start = job->cpu->expert_start;

    for (int e = 0; e <= job->n_experts; e++) {
        int n_tokens = start[e + 1] - start[e];
        int64_t n_items = (int64_t)row_blocks(n_tokens) * job->n_blocks;

        if (item < n_items) {
            int first = (int)(item / job->n_blocks) * CPU_ROWS_BLOCK;
            int n = n_tokens - first < CPU_ROWS_BLOCK ? n_tokens - first : CPU_ROWS_BLOCK;

            up_block(job, e, (int)(item % job->n_blocks), start[e] + first, n, part);
            return;
        }
        item -= n_items;
    }
}

/* ---- second pass ---- */

static void down_item(void *arg, int64_t item, struct cpu_part *part)
{
    struct moe_job *job = arg;
    struct cpu *c = job->cpu;
    const int32_t *start = c->expert_start;
    int cols = job->d - (int)item * PANEL_ROWS;

    cols = cols < PANEL_ROWS ? cols : PANEL_ROWS;
    if (job->parts == NULL)
        memset(part->acc, 0, (size_t)job->T * PANEL_ROWS * sizeof(float));
    for (int e = 0; e <= job->n_experts; e++) {
        if (start[e] == start[e + 1])
            continue;
        struct panel p = cpu_panel(c, &expert(job, e)->w2, item, part);

        for (int32_t first = start[e]; first < start[e + 1]; first += CPU_ROWS_BLOCK) {
            int n = start[e + 1] - first < CPU_ROWS_BLOCK ? start[e + 1] - first : CPU_ROWS_BLOCK;

            for (int i = 0; i < n; i++)
                part->x[i] = (const uint16_t *)(const void *)(c->hidden + (size_t)(first + i) *
                                                                              cpu_xq_bytes(job->f));
            c->panels->multiply(part->out[0], &p, part->x, n, &part->panel);
            for (int i = 0; job->parts != NULL && i < n; i++)
                c->rows->round(job->parts + (size_t)c->slot_part[first + i] * (size_t)job->d +
                                   item * PANEL_ROWS,
                               part->out[0] + i * PANEL_ROWS, cols);
            for (int i = 0; job->parts == NULL && i < n; i++)
                c->rows->add_rounded(part->acc + c->slot_token[first + i] * PANEL_ROWS,
                                     part->out[0] + i * PANEL_ROWS, PANEL_ROWS);
        }
    }
    for (int t = 0; job->parts == NULL && t < job->T; t++)
        c->rows->round(job->y + (size_t)t * (size_t)job->d + item * PANEL_ROWS,
                       part->acc + t * PANEL_ROWS, cols);
}

/* Fills in what both forms share, and runs. */
static void run_moe(struct kernels *k, struct moe_job *job, struct dev_ptr ids,
                    struct dev_ptr weights)
{
    const struct expert_weights *any =
        job->shared != NULL ? job->shared : &job->experts[job->first];

    job->cpu = cpu_of(k);
    job->d = (int)any->w1.cols;
    job->f = (int)any->w1.rows;
    job->n_experts = k->dims.n_experts;
    job->limit = (float)k->dims.swiglu_limit;
    assert(job->T <= k->dims.max_rows && job->f <= k->dims.moe_inter);
    job->n_blocks = (job->f + CPU_QUANT_BLOCK - 1) / CPU_QUANT_BLOCK;
    sort_slots(job, cpu_ptr(ids), cpu_ptr(weights), k->dims.n_active);
    for (int e = 0; e <= job->n_experts; e++)
        job->n_up +=
            (int64_t)row_blocks(job->cpu->expert_start[e + 1] - job->cpu->expert_start[e]) *
            job->n_blocks;
    cpu_run_panels(k, job->n_up, job->n_blocks, up_item, job);
    cpu_run(k, (job->d + PANEL_ROWS - 1) / PANEL_ROWS, down_item, job);
}

static void cpu_moe(struct kernels *k, struct dev_ptr y, struct dev_ptr xq, struct dev_ptr ids,
                    struct dev_ptr weights, const struct expert_weights *experts,
                    const struct expert_weights *shared, int T)
{
    struct moe_job job = {.shared = shared,
                          .experts = experts,
                          .xq = cpu_ptr(xq),
                          .y = cpu_ptr(y),
                          .T = T,
                          .end = k->dims.n_experts};

    if (T > 0)
        run_moe(k, &job, ids, weights);
}

static void cpu_moe_parts(struct kernels *k, struct dev_ptr parts, struct dev_ptr xq,
                          struct dev_ptr ids, struct dev_ptr weights,
                          const struct expert_weights *experts, const struct expert_weights *shared,
                          int first, int n, int T)
{
    struct moe_job job = {.shared = shared,
                          .experts = experts,
                          .xq = cpu_ptr(xq),
                          .parts = cpu_ptr(parts),
                          .T = T,
                          .first = first,
                          .end = first + n};

    memset(job.parts, 0,
           (size_t)T * (size_t)(k->dims.n_active + 1) * (size_t)k->dims.hidden * sizeof(uint16_t));
    if (T > 0 && (n > 0 || shared != NULL))
        run_moe(k, &job, ids, weights);
}

/* ---- adding up the parts ---- */

struct sum_job {
    struct cpu *cpu;
    const uint16_t *parts;
    const int32_t *ids;
    uint16_t *y;
    int n_active, d;
};

/* item: one token. Adds in the order of down_item(). */
static void sum_item(void *arg, int64_t t, struct cpu_part *part)
{
    const struct sum_job *job = arg;
    int order[REF_ACTIVE_MAX], n = job->n_active;

    (void)part;
    ref_moe_order(order, job->ids + t * n, n);
    for (int first = 0; first < job->d; first += PANEL_ROWS) {
        int cols = job->d - first < PANEL_ROWS ? job->d - first : PANEL_ROWS;
        float sum[PANEL_ROWS] = {0};

        for (int a = -1; a < n; a++) {
            const uint16_t *from =
                job->parts + (t * (n + 1) + (a < 0 ? n : order[a])) * job->d + first;

            for (int i = 0; i < cols; i++)
                sum[i] += bf16_decode(from[i]);
        }
        job->cpu->rows->round(job->y + t * job->d + first, sum, cols);
    }
}

static void cpu_moe_sum(struct kernels *k, struct dev_ptr y, struct dev_ptr parts,
                        struct dev_ptr ids, int T)
{
    struct sum_job job = {cpu_of(k),  cpu_ptr(parts),   cpu_ptr(ids),
                          cpu_ptr(y), k->dims.n_active, k->dims.hidden};

    cpu_run(k, T, sum_item, &job);
}

void cpu_moe_fill(struct kernel_ops *ops)
{
    ops->moe = cpu_moe;
    ops->moe_parts = cpu_moe_parts;
    ops->moe_sum = cpu_moe_sum;
}
