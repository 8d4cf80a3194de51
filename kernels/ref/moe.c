/* Experts: the gate chooses, each chosen expert is a gated feed-forward layer of its own. */
#include "kernels/ref/ref.h"

enum { ACTIVE_MAX = 32, E_MAX = 4096, F_MAX = 16384, D_MAX = 16384 };

struct gate_job {
    const struct kernels *k;
    int32_t *ids;
    float *weights;
    const uint16_t *x;
    const struct weight *gate;
    const float *bias;
    const int64_t *table;
    const int32_t *tokens;
    int T;
};

/* The n largest of score, best first; equal: lower index first. */
static void top_n(int32_t *ids, const float *score, int E, int n)
{
    for (int i = 0; i < n; i++) {
        int best = -1;

        for (int e = 0; e < E; e++) {
            bool taken = false;

            for (int j = 0; j < i; j++)
                taken |= ids[j] == e;
            if (!taken && (best < 0 || score[e] > score[best]))
                best = e;
        }
        ids[i] = best;
    }
}

static void gate_part(void *arg, int part, int n_parts)
{
    const struct gate_job *job = arg;
    const struct kernel_dims *d = &job->k->dims;
    struct ref_range r = ref_share(job->T, part, n_parts);
    int n = d->n_active;
    float row[D_MAX], affinity[E_MAX], biased[E_MAX];

    for (int64_t t = r.begin; t < r.end; t++) {
        int32_t *ids = job->ids + t * n;
        double sum = 0;

        for (int e = 0; e < d->n_experts; e++) {
            double z;

            ref_weight_row(job->gate, e, row);
            z = (double)(float)ref_dot_bf16(row, job->x + t * d->hidden, d->hidden);
            affinity[e] =
                (float)sqrt((z > 0 ? z : 0) + log1p(exp(-fabs(z)))); /* sqrt(softplus(z)) */
            biased[e] = job->bias == NULL ? affinity[e] : affinity[e] + job->bias[e];
        }
        if (job->table == NULL)
            top_n(ids, biased, d->n_experts, n);
        for (int i = 0; i < n; i++) {
            if (job->table != NULL)
                ids[i] = (int32_t)job->table[(int64_t)job->tokens[t] * n + i];
            sum += (double)affinity[ids[i]];
        }
        for (int i = 0; i < n; i++)
            job->weights[t * n + i] = (float)((double)affinity[ids[i]] / sum * d->route_scale);
    }
}

void ref_gate(struct kernels *k, struct dev_ptr ids, struct dev_ptr weights, struct dev_ptr x,
              const struct weight *gate, const struct weight *bias, const struct weight *table,
              struct dev_ptr tokens, int T)
{
    struct gate_job job = {
        .k = k,
        .ids = ref_ptr(ids),
        .weights = ref_ptr(weights),
        .x = ref_ptr(x),
        .gate = gate,
        .bias = bias != NULL ? ref_ptr(bias->data) : NULL,
        .table = table != NULL ? ref_ptr(table->data) : NULL,
        .tokens = ref_ptr(tokens),
        .T = T,
    };

    k->env.parallel(k->env.pool, gate_part, &job);
}

/* ---- the experts ---- */

double ref_swiglu(float gate, float up, double limit)
{
    double g = (double)gate, u = (double)up;

    if (limit > 0) {
        g = g > limit ? limit : g;
        u = u > limit ? limit : u < -limit ? -limit : u;
    }
    return g * (1 / (1 + exp(-g))) * u;
}

/* y[d] += expert(x) (bf16), the hidden layer weighed by w before it is rounded and quantised. */
static void add_expert(double *y, const uint16_t *x, const struct expert_weights *e, double w,
                       double limit)
{
    float row[D_MAX > F_MAX ? D_MAX : F_MAX];
    uint16_t h[F_MAX];
    int64_t f = e->w1.rows;

    for (int64_t i = 0; i < f; i++) {
        float gate, up;

        ref_weight_row(&e->w1, i, row);
        gate = bf16_grid(ref_dot_bf16(row, x, e->w1.cols));
        ref_weight_row(&e->w3, i, row);
        up = bf16_grid(ref_dot_bf16(row, x, e->w3.cols));
        h[i] = bf16_round(ref_swiglu(gate, up, limit) * w);
    }
    for (int64_t b = 0; b < f; b += 128) {
        uint8_t codes[128];
        float block[128], scale;

        for (int i = 0; i < 128; i++)
            block[i] = bf16_decode(h[b + i]);
        scale = e8m0_decode(fp8_quantise(codes, block, 128));
        for (int i = 0; i < 128; i++)
            h[b + i] = bf16_encode(e4m3_decode(codes[i]) * scale);
    }
    for (int64_t i = 0; i < e->w2.rows; i++) {
        ref_weight_row(&e->w2, i, row);
        y[i] += (double)bf16_grid(ref_dot_bf16(row, h, f));
    }
}

struct moe_job {
    const struct kernels *k;
    uint16_t *y;
    const uint16_t *xq;
    const int32_t *ids;
    const float *weights;
    const struct expert_weights *experts, *shared;
    int T;
};

static void moe_row(const struct moe_job *job, int64_t t)
{
    const struct kernel_dims *d = &job->k->dims;
    const int32_t *ids = job->ids + t * d->n_active;
    const uint16_t *x = job->xq + t * d->hidden;
    double y[D_MAX] = {0};

    add_expert(y, x, job->shared, 1, d->swiglu_limit);
    for (int e = -1, next;; e = next) { /* ascending id */
        int slot = -1;

        next = d->n_experts;
        for (int i = 0; i < d->n_active; i++)
            if (ids[i] > e && ids[i] < next) {
                next = ids[i];
                slot = i;
            }
        if (slot < 0)
            break;
        add_expert(y, x, &job->experts[next], (double)job->weights[t * d->n_active + slot],
                   d->swiglu_limit);
    }
    for (int i = 0; i < d->hidden; i++)
        job->y[t * d->hidden + i] = bf16_round(y[i]);
}

static void moe_part(void *arg, int part, int n_parts)
{
    const struct moe_job *job = arg;
    struct ref_range r = ref_share(job->T, part, n_parts);

    for (int64_t t = r.begin; t < r.end; t++)
        moe_row(job, t);
}

void ref_moe(struct kernels *k, struct dev_ptr y, struct dev_ptr xq, struct dev_ptr ids,
             struct dev_ptr weights, const struct expert_weights *experts,
             const struct expert_weights *shared, int T)
{
    struct moe_job job = {k,      ref_ptr(y), ref_ptr(xq), ref_ptr(ids), ref_ptr(weights), experts,
                          shared, T};

    k->env.parallel(k->env.pool, moe_part, &job);
}
