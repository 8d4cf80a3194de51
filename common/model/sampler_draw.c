#include "common/model/sampler.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

/* A token that may be drawn: its probability relative to the best one, and its scaled logit. */
struct candidate {
    float p;
    float z;
    int32_t id;
};

/* SplitMix64's finaliser (Steele, Lea, Flood 2014): every input bit reaches every output bit. */
static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* The stream of one (seed, position); each token id is one number of it. */
static uint64_t stream_of(uint64_t seed, uint64_t position)
{
    return mix(mix(seed + 0x9E3779B97F4A7C15u) ^ (position * 0xD1B54A32D192ED03u));
}

/* Standard Gumbel noise of one token: argmax(z + noise) is a draw from softmax(z). */
static double gumbel(uint64_t stream, int32_t id)
{
    uint64_t bits = mix(stream + (uint64_t)(uint32_t)id * 0x9E3779B97F4A7C15u);
    double u = ((double)(bits >> 11) + 0.5) * 0x1p-53; /* in (0, 1), never an end */

    return -log(-log(u));
}

static int32_t argmax(const float *logits, int32_t vocab)
{
    int32_t best = 0;

    for (int32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* Higher probability first; equal: lower id first. */
static bool before(const struct candidate *a, const struct candidate *b)
{
    return a->p > b->p || (a->p == b->p && a->id < b->id);
}

static void sift_down(struct candidate *heap, int32_t n, int32_t i)
{
    for (;;) {
        int32_t child = 2 * i + 1;
        struct candidate t;

        if (child >= n)
            return;
        if (child + 1 < n && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &heap[i]))
            return;
        t = heap[i];
        heap[i] = heap[child];
        heap[child] = t;
        i = child;
    }
}

/*
 * Leaves in c the tokens that top_k and top_p keep (at its end, best last) and returns how many. A
 * heap: usually few are kept of many, and a full sort would cost more than the rest of the step.
 */
static int32_t keep_best(struct candidate *c, int32_t n, int32_t top_k, double top_p)
{
    double total = 0, sum = 0;
    int32_t heap = n;

    for (int32_t i = 0; i < n; i++)
        total += (double)c[i].p;
    for (int32_t i = n / 2; i-- > 0;)
        sift_down(c, n, i);
    while (heap > 0 && n - heap < top_k && (n == heap || sum < top_p * total)) {
        struct candidate best = c[0];

        sum += (double)best.p;
        c[0] = c[--heap];
        c[heap] = best;
        sift_down(c, heap, 0);
    }
    return n - heap;
}

static int32_t draw(const struct candidate *c, int32_t n, uint64_t stream)
{
    int32_t best = c[0].id;
    double best_score = -INFINITY;

    for (int32_t i = 0; i < n; i++) {
        double score = (double)c[i].z + gumbel(stream, c[i].id);

        if (score > best_score || (score == best_score && c[i].id < best)) {
            best_score = score;
            best = c[i].id;
        }
    }
    return best;
}

int32_t sampler_draw(const float *logits, int32_t vocab, const struct sampling_params *params,
                     uint64_t position)
{
    int32_t top = argmax(logits, vocab), n = 0, result;
    int32_t top_k = params->top_k > 0 ? params->top_k : vocab;
    float max = logits[top] / params->temperature;
    struct candidate *c;

    if (!(params->temperature > 0) || top_k == 1 || !isfinite(max))
        return top;
    c = malloc((size_t)vocab * sizeof(*c));
    if (c == NULL)
        abort(); /* one row of logits: the process is beyond help */
    for (int32_t i = 0; i < vocab; i++) {
        float z = logits[i] / params->temperature, p = expf(z - max);

        if (p > 0 && p >= params->min_p)
            c[n++] = (struct candidate){p, z, i};
    }
    if (top_k < n || params->top_p < 1) {
        int32_t kept = keep_best(c, n, top_k, (double)params->top_p);

        result = draw(c + n - kept, kept, stream_of(params->seed, position));
    } else {
        result = draw(c, n, stream_of(params->seed, position));
    }
    free(c);
    return result;
}
