#include "router/pace.h"

static const double LEARN = 0.05; /* share of a new value */

static void learn(double *value, double us)
{
    *value = *value == 0 ? us : *value + LEARN * (us - *value);
}

void pace_first_token(struct pace *p, uint64_t since_us, int found_place)
{
    if (found_place || (double)since_us < p->ttft_us)
        learn(&p->ttft_us, (double)since_us);
}

void pace_end(struct pace *p, uint64_t since_us)
{
    learn(&p->lifetime_us, (double)since_us);
}

double pace_wait_us(const struct pace *p, uint64_t ahead, uint64_t places)
{
    return ahead < places ? 0 : (double)(ahead + 1 - places) * p->lifetime_us / (double)places;
}
