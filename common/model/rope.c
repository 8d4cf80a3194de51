#include "common/model/rope.h"

#include <math.h>

/* Fractional index of the pair whose period fits `times` times into the original context. */
static double pair_turning(const struct model_config *c, double theta, double times)
{
    return c->rope_dim * log(c->yarn_original / (times * 2 * M_PI)) / (2 * log(theta));
}

/* How much of its frequency pair i keeps: 1 for those that turn often, 0 for slow ones, a ramp
 * between. */
static float keep(double low, double width, int i)
{
    float ramp = ((float)i - (float)low) / (float)width;

    return 1.0f - (ramp < 0 ? 0 : ramp > 1 ? 1 : ramp);
}

void rope_frequencies(const struct model_config *c, bool compressed, float *freq)
{
    double theta = compressed ? c->compress_rope_theta : c->rope_theta;
    double low, high, width;
    int dim = c->rope_dim;

    for (int i = 0; i < dim / 2; i++)
        freq[i] = 1.0f / (float)pow(theta, (double)(2 * i) / dim);
    if (!compressed || c->yarn_original == 0)
        return;
    low = fmax(floor(pair_turning(c, theta, c->yarn_beta_fast)), 0);
    high = fmin(ceil(pair_turning(c, theta, c->yarn_beta_slow)), dim - 1);
    width = high != low ? high - low : 0.001;
    for (int i = 0; i < dim / 2; i++) {
        float k = keep(low, width, i);

        /* Every product in f32: the model's frequencies are these roundings. */
        freq[i] = freq[i] / (float)c->yarn_factor * (1.0f - k) + freq[i] * k;
    }
}
