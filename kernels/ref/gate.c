/* The gate: which experts a token goes to, and with which weights. */
#include "kernels/ref/ref.h"

enum { E_MAX = 4096, D_MAX = 16384 };

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

/* sqrt(softplus(x . gate row)) of every expert */
static void affinities(const struct gate_job *job, const uint16_t *x, float *affinity)
{
    const struct kernel_dims *d = &job->k->dims;
    const uint16_t *gate = ref_ptr(job->gate->data);
    float wide[D_MAX];

    for (int i = 0; i < d->hidden; i++)
        wide[i] = bf16_decode(x[i]);
    for (int64_t e = 0; e < d->n_experts; e++) {
        double z = (double)(float)ref_dot_bf16(wide, gate + e * d->hidden, d->hidden);

        affinity[e] = (float)sqrt((z > 0 ? z : 0) + log1p(exp(-fabs(z))));
    }
}

static void gate_part(void *arg, int part, int n_parts)
{
    const struct gate_job *job = arg;
    const struct kernel_dims *d = &job->k->dims;
    struct ref_range r = ref_share(job->T, part, n_parts);
    int n = d->n_active;
    float affinity[E_MAX], biased[E_MAX];

    for (int64_t t = r.begin; t < r.end; t++) {
        int32_t *ids = job->ids + t * n;
        double sum = 0;

        affinities(job, job->x + t * d->hidden, affinity);
        for (int e = 0; e < d->n_experts; e++)
            biased[e] = job->bias == NULL ? affinity[e] : affinity[e] + job->bias[e];
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
