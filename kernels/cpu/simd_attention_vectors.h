/*
 * simd_attention_vectors: the products of attention on vectors. Logits: lanes are heads, a pair of
 * dims of a key (broadcast) times q transposed, 128 dims at a time so that q stays in L1. Values:
 * lanes are dims, a pair of p (broadcast) times two keys zipped.
 */
#ifndef BATON_KERNELS_CPU_SIMD_ATTENTION_VECTORS_H
#define BATON_KERNELS_CPU_SIMD_ATTENTION_VECTORS_H

#include "kernels/cpu/simd_attention.h"

enum {
    KEYS = 64,                           /* decoded at a time */
    LOGIT_KEYS = VF_LANES == 16 ? 8 : 4, /* keys of a tile of logits */
    LOGIT_HEADS = 2,                     /* vectors of heads of one */
    LOGIT_DIMS = 128,                    /* dims of a pass */
    VALUE_HEADS = 6,                     /* heads of a tile of values */
    VALUE_DIMS = VF_LANES == 16 ? 4 : 2, /* vectors of dims of one */
    DIMS = VALUE_DIMS * VF_LANES
};

static int row_stride(int D)
{
    return (D + PAIRS - 1) / PAIRS * PAIRS;
}

SIMD void products_begin(void)
{
}

SIMD void products_end(void)
{
}

/* s[block][key][lane] += k . q over n_pairs pairs of dims; from 0 if `first`. */
SIMD void logit_tile(float *s, int64_t s_block, const el *k, int stride, const el *q, int n_pairs,
                     int heads, bool first, const int n_keys, const int n_vecs)
{
    vf sum[LOGIT_KEYS][LOGIT_HEADS];

#pragma GCC unroll 8
    for (int i = 0; i < n_keys; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            sum[i][j] = first ? vf_set1(0.f) : vf_load(s + j * s_block + i * VF_LANES);
    for (int c = 0; c < n_pairs; c++) {
        vp qc[LOGIT_HEADS];

#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            qc[j] = vp_load(q + c * 2 * heads + j * PAIRS);
#pragma GCC unroll 8
        for (int i = 0; i < n_keys; i++) {
            vp kc = vp_set1(k + i * stride + 2 * c);

#pragma GCC unroll 8
            for (int j = 0; j < n_vecs; j++)
                sum[i][j] = vf_dot(sum[i][j], kc, qc[j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < n_keys; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            vf_store(s + j * s_block + i * VF_LANES, sum[i][j]);
}

/* Logits of the n <= KEYS keys in w->k, of which the first is key j; some beyond n are written too,
 * and never read. */
static void logits(const struct work *w, int j, int n)
{
    for (int c = 0; c < w->D; c += LOGIT_DIMS) {
        int n_pairs = (w->D - c < LOGIT_DIMS ? w->D - c : LOGIT_DIMS) / 2;

        for (int i = 0; i < n; i += LOGIT_KEYS)
            for (int block = 0; block < w->n_blocks; block += LOGIT_HEADS) {
                const el *k = w->k + i * w->stride + c, *q = w->q + c * w->heads + block * PAIRS;
                float *s = w->s + block * w->s_block + (int64_t)(j + i) * VF_LANES;

                if (w->n_blocks - block >= LOGIT_HEADS)
                    logit_tile(s, w->s_block, k, w->stride, q, n_pairs, w->heads, c == 0,
                               LOGIT_KEYS, LOGIT_HEADS);
                else
                    logit_tile(s, w->s_block, k, w->stride, q, n_pairs, w->heads, c == 0,
                               LOGIT_KEYS, 1);
            }
    }
}

/* The probabilities of m keys are pairs: as values() reads them. */
SIMD void arrange(const struct work *w, int m)
{
    (void)w;
    (void)m;
}

/* o[head][dims] += sum over n_pairs pairs of keys of p[pair][head] * k[pair][dims]. p[i], lane[i]:
 * where the pairs of head i are; stride: of o. */
SIMD void value_tile(float *o, const el *const *p, const int *lane, const el *k, int stride,
                     int n_pairs, const int n_heads, const int n_vecs)
{
    vf sum[VALUE_HEADS][VALUE_DIMS];

#pragma GCC unroll 8
    for (int i = 0; i < n_heads; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            sum[i][j] = vf_load(o + i * stride + j * VF_LANES);
    for (int pair = 0; pair < n_pairs; pair++) {
        vp v[VALUE_DIMS];

#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            v[j] = vp_load(k + pair * 2 * DIMS + j * PAIRS);
#pragma GCC unroll 8
        for (int i = 0; i < n_heads; i++) {
            vp pi = vp_lane(p[i] + pair * PAIRS, lane[i]);

#pragma GCC unroll 8
            for (int j = 0; j < n_vecs; j++)
                sum[i][j] = vf_dot(sum[i][j], pi, v[j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < n_heads; i++)
#pragma GCC unroll 8
        for (int j = 0; j < n_vecs; j++)
            vf_store(o + i * stride + j * VF_LANES, sum[i][j]);
}

/* Adds the n <= KEYS keys in w->k, of which the first is key j (even), for n_heads heads. */
static void values(const struct work *w, int j, int n, int n_heads)
{
    int n_pairs = (n + 1) / 2;

    for (int pair = 0; pair < n_pairs; pair++) {
        const el *k = w->k + 2 * pair * w->stride;

        for (int c = 0; c < w->stride; c += PAIRS)
            vp_zip(w->zipped + c / DIMS * DIMS * KEYS + 2 * (pair * DIMS + c % DIMS), k + c,
                   k + w->stride + c);
    }
    for (int c = 0; c < w->stride; c += DIMS)
        for (int h = 0, n_tile; h < n_heads; h += n_tile) {
            const el *p[VALUE_HEADS], *k = w->zipped + c * KEYS;
            float *o = w->o + h * w->stride + c;
            int lane[VALUE_HEADS];
            bool whole = c + DIMS <= w->stride;

            n_tile = n_heads - h >= VALUE_HEADS ? VALUE_HEADS : n_heads - h >= 4 ? 4 : 1;
            for (int i = 0; i < n_tile; i++) {
                const float *block = w->s + (h + i) / VF_LANES * w->s_block;

                p[i] = (const el *)(const void *)block + j / 2 * PAIRS;
                lane[i] = (h + i) % VF_LANES;
            }
            if (whole && n_tile == VALUE_HEADS)
                value_tile(o, p, lane, k, w->stride, n_pairs, VALUE_HEADS, VALUE_DIMS);
            else if (whole && n_tile == 4)
                value_tile(o, p, lane, k, w->stride, n_pairs, 4, VALUE_DIMS);
            else
                for (int i = 0; i < n_tile; i++)
                    for (int v = 0; v < VALUE_DIMS && c + v * VF_LANES < w->stride; v++)
                        value_tile(o + i * w->stride + v * VF_LANES, p + i, lane + i, k + v * PAIRS,
                                   w->stride, n_pairs, 1, 1);
        }
}

#endif
