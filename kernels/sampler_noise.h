/*
 * sampler_noise: the random numbers of one draw, and a logarithm that is the same on every machine.
 *
 * Each id has an exponential variate e, independent and standard; -log(e) is its Gumbel noise, and
 * argmax(z + noise) a draw from softmax(z). To find the winner without 129,280 of them, ids are
 * joined in groups of 16 (sampler_rows.h), and the smallest variate of a group comes first: the
 * minimum of 16 is exponential with rate 16, each member has it with the same probability, and the
 * others lie a standard exponential above it (it has no memory). So one word per group bounds what
 * any member can reach, and all members are still independent standard variates, each a pure
 * function of (seed, position, id).
 *
 * Built for the CPU and for GPUs, without fused multiply-adds (-ffp-contract=off, --fmad=false):
 * the same bits on both.
 */
#ifndef BATON_KERNELS_SAMPLER_NOISE_H
#define BATON_KERNELS_SAMPLER_NOISE_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define NOISE static __host__ __device__ inline
#else
#define NOISE static inline
#endif

enum { NOISE_GROUP = 16 };

#define NOISE_GOLDEN 0x9E3779B97F4A7C15u

/* The numbers of one (seed, position). */
struct noise {
    uint64_t stream;
    uint32_t keys[2];
};

/* SplitMix64's finaliser (Steele, Lea, Flood 2014): every input bit reaches every output bit. */
NOISE uint64_t noise_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

NOISE struct noise noise_of(uint64_t seed, uint64_t position)
{
    uint64_t stream = noise_mix(noise_mix(seed + NOISE_GOLDEN) ^ (position * 0xD1B54A32D192ED03u));
    uint64_t keys = noise_mix(stream ^ 0xA0761D6478BD642Fu);

    return (struct noise){stream, {(uint32_t)keys, (uint32_t)(keys >> 32)}};
}

/* A 32-bit mixer of the same form, twice under two keys: cheap in vectors. Multipliers: Wellons'
 * search for low bias, 2018. */
#define NOISE_WORD_M1 0x7FEB352Du
#define NOISE_WORD_M2 0x846CA68Bu

NOISE uint32_t noise_mix32(uint32_t w)
{
    w = (w ^ (w >> 16)) * NOISE_WORD_M1;
    w = (w ^ (w >> 15)) * NOISE_WORD_M2;
    return w ^ (w >> 16);
}

NOISE uint32_t noise_group_word(const uint32_t keys[2], uint32_t group)
{
    return noise_mix32(noise_mix32(group + keys[0]) ^ keys[1]);
}

/*
 * Natural logarithm of a positive normal double, to about 1e-16 relative. x = m 2^k with m in
 * [1/sqrt 2, sqrt 2), log m = 2 artanh(s), s = (m - 1) / (m + 1), |s| < 0.172, by its series.
 */
NOISE double noise_log(double x)
{
    uint64_t bits, k;
    double m, s, q, sum = 0;

    memcpy(&bits, &x, sizeof(bits));
    k = (bits - 0x3FE6A09E667F3BCDu) >> 52; /* its low 11 bits are the exponent */
    bits -= k << 52;
    memcpy(&m, &bits, sizeof(m));
    s = (m - 1) / (m + 1);
    q = s * s;
    for (int n = 21; n >= 3; n -= 2)
        sum = (sum + 1.0 / n) * q;
    return (double)((int64_t)(k << 52) >> 52) * 0x1.62E42FEFA39EFp-1 + 2 * (s + s * sum);
}

/* Exponential with rate 1 from 52 bits: they stand for (bits + 1/2) / 2^52, in (0, 1), and 1 minus
 * that is exact. At least that number. */
NOISE double noise_exponential(uint64_t bits)
{
    return -noise_log(1 - ((double)bits + 0.5) * 0x1p-52);
}

/* What the members of a group share: the least variate, and which row (0 .. 15) has it. */
struct noise_group {
    double least;
    int32_t row;
};

/* least >= word / 2^32 / 16: what row_search relies on. */
NOISE struct noise_group noise_group_of(const struct noise *n, uint32_t group)
{
    uint64_t word = noise_group_word(n->keys, group);
    uint64_t rest = noise_mix((n->stream ^ 0xE7037ED1A0B428DBu) + group * NOISE_GOLDEN);

    return (struct noise_group){noise_exponential(word << 20 | rest >> 44) / NOISE_GROUP,
                                (int32_t)(rest & (NOISE_GROUP - 1))};
}

/* The variate of a member that is not the least. */
NOISE double noise_member(const struct noise *n, const struct noise_group *g, int32_t id)
{
    uint64_t word = noise_mix(n->stream + (uint64_t)(uint32_t)id * NOISE_GOLDEN);

    return g->least + noise_exponential(word >> 12);
}

#endif
