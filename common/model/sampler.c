#include "common/model/sampler.h"

int32_t sampler_draw(const float *logits, int32_t vocab, const struct sampling_params *params,
                     uint64_t position)
{
    int32_t best = 0;

    (void)params;
    (void)position;
    for (int32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}
