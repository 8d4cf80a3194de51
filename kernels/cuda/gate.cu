#include "kernels/cuda/gate.h"
#include "kernels/cuda/device.h"

enum { GATE_WARPS = CUDA_BLOCK / CUDA_WARP, NONE = 1 << 30 };

/* An expert and what it is chosen by. */
struct candidate {
    float score;
    int id;
};

/* The better one; equal: the lower id. */
CUDA_DEVICE struct candidate better(struct candidate a, struct candidate b)
{
    return b.score > a.score || (b.score == a.score && b.id < a.id) ? b : a;
}

CUDA_DEVICE struct candidate best_of_warp(struct candidate c)
{
    for (int mask = CUDA_WARP / 2; mask > 0; mask /= 2) {
        struct candidate other;

        other.score = warp_xor(c.score, mask);
        other.id = (int)dev_bits(warp_xor(dev_float((uint32_t)c.id), mask));
        c = better(c, other);
    }
    return c;
}

/* sqrt(softplus(z)), through double as in ref: a choice hangs on its last bit. */
CUDA_DEVICE float affinity_of(float logit)
{
    double z = (double)logit;

    return (float)sqrt((z > 0 ? z : 0) + log1p(exp(-fabs(z))));
}

/*
 * A block a row: affinities into shared memory, then n_active rounds of the largest that is left.
 * Shared 8 GATE_EXPERTS_MAX bytes and the warps' bests. Barriers: affinities, all threads to all;
 * in a round, the warps' bests to all, and what was chosen to all. Bound by latency: n_active
 * rounds of two barriers; 4 n_experts bytes a row are nothing beside it.
 */
CUDA_KERNEL(gate_kernel, struct gate_args)
{
    __shared__ float affinity[GATE_EXPERTS_MAX], score[GATE_EXPERTS_MAX];
    __shared__ struct candidate best[GATE_WARPS];
    __shared__ int ids[GATE_ACTIVE_MAX];
    int64_t t = blockIdx.x;
    int i = (int)threadIdx.x;

    for (int e = i; e < a.n_experts; e += CUDA_BLOCK) {
        affinity[e] = affinity_of(a.logits[t * a.n_experts + e]);
        score[e] = a.bias == 0 ? affinity[e] : affinity[e] + a.bias[e];
    }
    if (a.table != 0 && i < a.n_active)
        ids[i] = (int)a.table[(int64_t)a.tokens[t] * a.n_active + i];
    __syncthreads(); /* affinity, score, ids */
    for (int n = 0; a.table == 0 && n < a.n_active; n++) {
        struct candidate c = {-INFINITY, NONE};

        for (int e = i; e < a.n_experts; e += CUDA_BLOCK)
            if (score[e] == score[e]) { /* a NaN is never better */
                struct candidate mine = {score[e], e};

                c = better(c, mine);
            }
        c = best_of_warp(c);
        if (warp_lane() == 0)
            best[i / CUDA_WARP] = c;
        __syncthreads(); /* best: first lanes to all */
        for (int w = 0; w < GATE_WARPS; w++)
            c = better(c, best[w]);
        if (c.id == NONE) /* nothing is a number: the first experts, so that ids are valid */
            c.id = n;
        ids[n] = c.id; /* all threads write the same */
        score[c.id] = dev_float(0x7FC00000);
        __syncthreads(); /* score, ids to all; best has been read */
    }
    if (i < a.n_active) {
        double sum = 0;

        for (int n = 0; n < a.n_active; n++)
            sum += (double)affinity[ids[n]];
        a.ids[t * a.n_active + i] = ids[i];
        a.weights[t * a.n_active + i] = (float)((double)affinity[ids[i]] / sum * a.route_scale);
    }
}

CUDA_API void cuda_gate(cuda_stream s, struct gate_args args, int T)
{
    if (T > 0)
        CUDA_LAUNCH(gate_kernel, struct gate_args, T, 1, CUDA_BLOCK, s, args);
}
