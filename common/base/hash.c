#include "common/base/hash.h"

#include <sys/random.h>

#include "common/base/clock.h"

uint64_t hash_seed(void)
{
    uint64_t seed = 0;

    if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
        seed = clock_now_ns() ^ (uint64_t)(uintptr_t)&seed;
    return seed | 1;
}
