/*
 * random_stream: the counter-based random numbers of one tensor (see checkpoint_make.h).
 */
#ifndef BATON_COMMON_MODEL_RANDOM_STREAM_H
#define BATON_COMMON_MODEL_RANDOM_STREAM_H

#include <stdint.h>

/** The key of "<seed>/<name>". */
uint64_t random_stream_key(int64_t seed, const char *name);

static inline uint64_t random_stream_word(uint64_t key, uint64_t i)
{
    uint64_t z = key + (i + 1) * 0x9E3779B97F4A7C15u;

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Near enough to N(0, 1). */
static inline float random_stream_normal(uint64_t key, uint64_t i)
{
    uint64_t w = random_stream_word(key, i);
    int64_t lanes = (int64_t)((w & 0xFFFF) + (w >> 16 & 0xFFFF) + (w >> 32 & 0xFFFF) + (w >> 48));

    return (float)((double)(lanes - 131070) / 37837.2);
}

static inline uint64_t random_stream_below(uint64_t key, uint64_t i, uint64_t limit)
{
    return random_stream_word(key, i) % limit;
}

#endif
