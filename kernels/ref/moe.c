/*
 * Experts: each a gated feed-forward layer of its own, for the tokens that chose it.
 *
 * Experts run one after the other, in ascending order, so that a weight row is decoded once for all
 * its tokens; the outputs of one expert are shared out over the threads.
 */
#include "kernels/ref/ref.h"

void ref_moe_order(int *order, const int32_t *ids, int n)
{
    for (int i = 0; i < n; i++) {
        int at = i;

        for (; at > 0 && ids[order[at - 1]] > ids[i]; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
}

double ref_swiglu(float gate, float up, double limit)
{
    double g = (double)gate, u = (double)up;

    if (limit > 0) {
        g = g > limit ? limit : g;
        u = u > limit ? limit : u < -limit ? -limit : u;
    }
    return g * (1 / (1 + exp(-g))) * u;
}

/* One expert and its tokens. */
struct expert_job {
    const struct expert_weights *e;
    const struct kernel_dims *d;
    const uint16_t *x; /* [..][hidden], quantised */
    struct ref_moe *m;
    int n;
    uint16_t *parts; /* moe_parts(): where results go instead of into the sums */
};

/* hidden[j][i] = bf16(swiglu(w1 x, w3 x) * weight), before it is quantised. */
static void up_part(void *arg, int part, int n_parts)
{
    const struct expert_job *job = arg;
    int64_t f = job->e->w1.rows, d = job->e->w1.cols;
    struct ref_range r = ref_share(f, part, n_parts);
    float w1[REF_COLS_MAX], w3[REF_COLS_MAX];

    for (int64_t i = r.begin; i < r.end; i++) {
        ref_weight_row(&job->e->w1, i, w1);
        ref_weight_row(&job->e->w3, i, w3);
        for (int j = 0; j < job->n; j++) {
            const uint16_t *x = job->x + job->m->token[j] * d;
            float gate = bf16_grid(ref_dot_bf16(w1, x, d));
            float up = bf16_grid(ref_dot_bf16(w3, x, d));
            double h = ref_swiglu(gate, up, job->d->swiglu_limit);

            job->m->hidden[j * f + i] = bf16_round(h * (double)job->m->weight[j]);
        }
    }
}

static void quantise_part(void *arg, int part, int n_parts)
{
    const struct expert_job *job = arg;
    int64_t f = job->e->w1.rows;
    struct ref_range r = ref_share(job->n, part, n_parts);

    for (int64_t j = r.begin; j < r.end; j++)
        fp8_grid_row(job->m->hidden + j * f, job->m->hidden + j * f, (int)f);
}

/* sum[token] += bf16(w2 hidden) */
static void down_part(void *arg, int part, int n_parts)
{
    const struct expert_job *job = arg;
    int64_t d = job->e->w2.rows, f = job->e->w2.cols;
    struct ref_range r = ref_share(d, part, n_parts);
    float w2[REF_COLS_MAX];

    for (int64_t i = r.begin; i < r.end; i++) {
        ref_weight_row(&job->e->w2, i, w2);
        for (int j = 0; j < job->n; j++) {
            double y = ref_dot_bf16(w2, job->m->hidden + j * f, f);

            if (job->parts != NULL)
                job->parts[job->m->part[j] * d + i] = bf16_round(y);
            else
                job->m->sum[job->m->token[j] * d + i] += (double)bf16_grid(y);
        }
    }
}

/* Tokens of m->token, weighed by m->weight, through one expert. */
static void run_expert(struct kernels *k, const struct expert_weights *e, const uint16_t *x, int n,
                       uint16_t *parts)
{
    struct expert_job job = {e, &k->dims, x, &((struct ref *)k->self)->moe, n, parts};

    if (n == 0)
        return;
    k->env.parallel(k->env.pool, up_part, &job);
    k->env.parallel(k->env.pool, quantise_part, &job);
    k->env.parallel(k->env.pool, down_part, &job);
}

/* At most REF_MOE_ROWS rows through experts [first, end) and the shared one, if given. */
static void run_block(struct kernels *k, uint16_t *parts, const uint16_t *x, const int32_t *ids,
                      const float *weights, const struct expert_weights *experts,
                      const struct expert_weights *shared, int first, int end, int T)
{
    struct ref_moe *m = &((struct ref *)k->self)->moe;
    int n_active = k->dims.n_active;

    for (int t = 0; t < T; t++) {
        m->token[t] = t;
        m->weight[t] = 1;
        m->part[t] = t * (n_active + 1) + n_active;
    }
    if (shared != NULL)
        run_expert(k, shared, x, T, parts);
    for (int e = first; e < end; e++) {
        int n = 0;

        for (int i = 0; i < T * n_active; i++)
            if (ids[i] == e) {
                m->token[n] = i / n_active;
                m->part[n] = i + i / n_active;
                m->weight[n++] = weights[i];
            }
        run_expert(k, &experts[e], x, n, parts);
    }
}

void ref_moe(struct kernels *k, struct dev_ptr y, struct dev_ptr xq, struct dev_ptr ids,
             struct dev_ptr weights, const struct expert_weights *experts,
             const struct expert_weights *shared, int T)
{
    int64_t d = k->dims.hidden, n_active = k->dims.n_active;
    double *sum = ((struct ref *)k->self)->moe.sum;

    for (int t = 0; t < T; t += REF_MOE_ROWS) {
        int n = T - t < REF_MOE_ROWS ? T - t : REF_MOE_ROWS;

        memset(sum, 0, (size_t)(n * d) * sizeof(*sum));
        run_block(k, NULL, (const uint16_t *)ref_ptr(xq) + t * d,
                  (const int32_t *)ref_ptr(ids) + t * n_active,
                  (const float *)ref_ptr(weights) + t * n_active, experts, shared, 0,
                  k->dims.n_experts, n);
        for (int64_t i = 0; i < n * d; i++)
            ((uint16_t *)ref_ptr(y))[t * d + i] = bf16_round(sum[i]);
    }
}

void ref_moe_parts(struct kernels *k, struct dev_ptr parts, struct dev_ptr xq, struct dev_ptr ids,
                   struct dev_ptr weights, const struct expert_weights *experts,
                   const struct expert_weights *shared, int first, int n, int T)
{
    int64_t d = k->dims.hidden, n_active = k->dims.n_active;

    memset(ref_ptr(parts), 0, (size_t)(T * (n_active + 1) * d) * sizeof(uint16_t));
    for (int t = 0; t < T; t += REF_MOE_ROWS)
        run_block(k, (uint16_t *)ref_ptr(parts) + t * (n_active + 1) * d,
                  (const uint16_t *)ref_ptr(xq) + t * d,
                  (const int32_t *)ref_ptr(ids) + t * n_active,
                  (const float *)ref_ptr(weights) + t * n_active, experts, shared, first, first + n,
                  T - t < REF_MOE_ROWS ? T - t : REF_MOE_ROWS);
}

void ref_moe_sum(struct kernels *k, struct dev_ptr y, struct dev_ptr parts, struct dev_ptr ids,
                 int T)
{
    const uint16_t *part = ref_ptr(parts);
    int64_t d = k->dims.hidden;
    int order[REF_ACTIVE_MAX], n = k->dims.n_active;

    for (int64_t t = 0; t < T; t++) {
        ref_moe_order(order, (const int32_t *)ref_ptr(ids) + t * n, n);
        for (int64_t i = 0; i < d; i++) {
            double sum = 0.0 + (double)bf16_decode(part[(t * (n + 1) + n) * d + i]);

            for (int a = 0; a < n; a++)
                sum += (double)bf16_decode(part[(t * (n + 1) + order[a]) * d + i]);
            ((uint16_t *)ref_ptr(y))[t * d + i] = bf16_round(sum);
        }
    }
}
