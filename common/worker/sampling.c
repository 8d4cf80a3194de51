#include "common/worker/sampling.h"

struct sampling_params sampling_from_message(const Baton__V1__Sampling *m)
{
    struct sampling_params p = {.temperature = 1, .top_p = 1};

    if (m == NULL)
        return p;
    if (m->has_temperature)
        p.temperature = m->temperature;
    if (m->has_top_p)
        p.top_p = m->top_p;
    if (m->has_top_k)
        p.top_k = m->top_k;
    if (m->has_min_p)
        p.min_p = m->min_p;
    if (m->has_seed)
        p.seed = m->seed;
    return p;
}
