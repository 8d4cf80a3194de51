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
    learn(&p->rest_us, (double)since_us);
}

double pace_lifetime_us(const struct pace *p)
{
    return p->ttft_us + p->rest_us;
}

double pace_wait_us(const struct pace *p, uint64_t ahead, uint64_t places)
{
    return ahead < places ? 0 : (double)(ahead + 1 - places) * pace_lifetime_us(p) / (double)places;
}

/* Hoare's selection. */
uint64_t pace_kth(uint64_t *values, size_t n, size_t k)
{
    size_t low = 0, high = n - 1;

    while (low < high) {
        uint64_t pivot = values[low + (high - low) / 2];
        size_t i = low, j = high;

        for (;;) {
            while (values[i] < pivot)
                i++;
            while (values[j] > pivot)
                j--;
            if (i >= j)
                break;
            uint64_t t = values[i];
            values[i++] = values[j];
            values[j--] = t;
        }
        if (k - 1 <= j)
            high = j;
        else
            low = j + 1;
    }
    return values[k - 1];
}
