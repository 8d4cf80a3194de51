/*
 * gate: which experts a token goes to.
 */
#include "kernels/cpu/cpu.h"

#include <assert.h>
#include <math.h>
#include <string.h>

struct gate_job {
    const struct kernel_dims *dims;
    const struct cpu *cpu;
    int32_t *ids;
    float *weights;
    const float *bias;
    const int64_t *table;
    const int32_t *tokens;
};

/* The n largest of score[count], best first; equal: lower index first. */
static void top_n(int32_t *ids, const float *score, int count, int n)
{
    int have = 0;

    for (int i = 0; i < count; i++) {
        if (have == n && !(score[i] > score[ids[n - 1]]))
            continue;
        int at = have < n ? have++ : n - 1;

        for (; at > 0 && score[i] > score[ids[at - 1]]; at--)
            ids[at] = ids[at - 1];
        ids[at] = i;
    }
}

static void gate_item(void *arg, int64_t t, struct cpu_part *part)
{
    struct gate_job *job = arg;
    int n = job->dims->n_active, n_experts = job->dims->n_experts;
    float *affinity = job->cpu->scores + t * n_experts;
    float *biased = part->out[0];
    int32_t *ids = job->ids + t * n;
    double sum = 0;

    for (int e = 0; e < n_experts; e++) {
        double z = (double)affinity[e];

        affinity[e] = (float)sqrt((z > 0 ? z : 0) + log1p(exp(-fabs(z)))); /* sqrt(softplus) */
        biased[e] = job->bias == NULL ? affinity[e] : affinity[e] + job->bias[e];
    }
    if (job->table == NULL)
        top_n(ids, biased, n_experts, n);
    else
        for (int i = 0; i < n; i++)
            ids[i] = (int32_t)job->table[(int64_t)job->tokens[t] * n + i];
    for (int i = 0; i < n; i++)
        sum += (double)affinity[ids[i]];
    for (int i = 0; i < n; i++)
        job->weights[t * n + i] = (float)((double)affinity[ids[i]] / sum * job->dims->route_scale);
}

static void cpu_gate(struct kernels *k, struct dev_ptr ids, struct dev_ptr weights,
                     struct dev_ptr x, const struct weight *gate, const struct weight *bias,
                     const struct weight *table, struct dev_ptr tokens, int T)
{
    struct cpu *c = cpu_of(k);
    struct gate_job job = {
        .dims = &k->dims,
        .cpu = c,
        .ids = cpu_ptr(ids),
        .weights = cpu_ptr(weights),
        .bias = bias != NULL ? cpu_ptr(bias->data) : NULL,
        .table = table != NULL ? cpu_ptr(table->data) : NULL,
        .tokens = cpu_ptr(tokens),
    };

    assert(T <= k->dims.max_rows && gate->rows == k->dims.n_experts);
    k->ops->linear(k, (struct dev_ptr){(uintptr_t)c->scores}, x, gate, T, true);
    cpu_run(k, T, gate_item, &job);
}

void cpu_gate_fill(struct kernel_ops *ops)
{
    ops->gate = cpu_gate;
}
