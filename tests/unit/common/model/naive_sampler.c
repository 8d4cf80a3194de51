#include "naive_sampler.h"

#include "kernels/sampler_noise.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

static const double *sort_by; /* qsort has no argument; tests have one thread */

static int by_rank(const void *a, const void *b)
{
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;

    if (sort_by[i] != sort_by[j])
        return sort_by[i] > sort_by[j] ? -1 : 1;
    return i < j ? -1 : i > j;
}

static bool greedy(const struct sampling_params *p)
{
    return p->temperature < 1e-5f || p->top_k == 1;
}

/* In float, as the adjusted logits are floats. */
static float adjusted(float x, int32_t id, const struct sampling_params *p, const int32_t *tokens,
                      uint32_t n_prompt, uint32_t n_output)
{
    uint32_t in_prompt = 0, in_output = 0;
    float r = p->repetition_penalty == 0 ? 1 : p->repetition_penalty;

    for (uint32_t i = 0; i < n_prompt + n_output; i++)
        *(i < n_prompt ? &in_prompt : &in_output) += tokens[i] == id;
    if (in_prompt + in_output > 0)
        x = x < 0 ? x * r : x / r;
    if (in_output > 0)
        x -= p->presence_penalty + p->frequency_penalty * (float)in_output;
    for (uint32_t i = 0; i < p->n_bias; i++)
        if (p->bias_ids[i] == id)
            x += p->bias[i];
    for (uint32_t i = 0; i < p->n_stop_ids && n_output < p->min_new; i++)
        if (p->stop_ids[i] == id)
            return -INFINITY;
    return n_output < p->min_new && id == p->eos ? -INFINITY : x;
}

void naive_read(struct naive *n, const float *logits, int32_t vocab,
                const struct sampling_params *p, const int32_t *tokens, uint32_t n_prompt,
                uint32_t n_output)
{
    double temperature = greedy(p) ? 1 : (double)p->temperature, total = 0;

    n->vocab = vocab;
    n->x = malloc((size_t)vocab * sizeof(double));
    n->p = malloc((size_t)vocab * sizeof(double));
    n->log_p = malloc((size_t)vocab * sizeof(double));
    n->order = malloc((size_t)vocab * sizeof(int32_t));
    for (int32_t i = 0; i < vocab; i++) {
        double x = (double)adjusted(logits[i], i, p, tokens, n_prompt, n_output);

        n->x[i] = isnan(x) ? -INFINITY : x;
        n->order[i] = i;
    }
    sort_by = n->x;
    qsort(n->order, (size_t)vocab, sizeof(int32_t), by_rank);
    for (int32_t i = vocab; i-- > 0;) /* smallest first: the sum is exact to the last bits */
        total += exp((n->x[n->order[i]] - n->x[n->order[0]]) / temperature);
    for (int32_t i = 0; i < vocab; i++) {
        n->log_p[i] = (n->x[i] - n->x[n->order[0]]) / temperature - log(total);
        n->p[i] = exp(n->log_p[i]);
    }
}

void naive_deinit(struct naive *n)
{
    free(n->x);
    free(n->p);
    free(n->log_p);
    free(n->order);
}

int32_t naive_kept(const struct naive *n, const struct sampling_params *p, double slack)
{
    double mass = 0, best = n->x[n->order[0]];
    int32_t k = 0;

    for (; k < n->vocab; k++) {
        int32_t id = n->order[k];
        bool off =
            (p->top_k > 0 && k >= p->top_k) || (p->top_p < 1 && mass >= (double)p->top_p + slack) ||
            (p->min_p > 0 && n->x[id] < best + (double)p->temperature * log((double)p->min_p)) ||
            n->x[id] == -INFINITY;

        if (k > 0 && off)
            break;
        mass += n->p[id];
    }
    return k;
}

int32_t naive_draw(const struct naive *n, const struct sampling_params *p, int32_t n_kept,
                   uint64_t position, double *margin)
{
    struct noise noise = noise_of(p->seed, position);
    double best = -INFINITY, second = -INFINITY;
    int32_t winner = -1;

    *margin = INFINITY;
    if (greedy(p))
        return n->order[0];
    for (int32_t k = 0; k < n_kept; k++) {
        int32_t id = n->order[k];
        struct noise_group g = noise_group_of(&noise, (uint32_t)(id / 256 * 16 + id % 16));
        double e = g.row == id % 256 / 16 ? g.least : noise_member(&noise, &g, id);
        double score = n->x[id] / (double)p->temperature - log(e);

        if (score > best || (score == best && id < winner)) {
            second = best;
            best = score;
            winner = id;
        } else if (score > second) {
            second = score;
        }
    }
    *margin = best - second;
    return winner;
}
