#include "kernels/cuda/self_test.h"

#include <math.h>
#include <string.h>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/norm.h"

/* Of the RMS: e4m3 products of Hopper keep 13 bits below the largest of 32 terms, which is some
 * 1e-4 of a sum over 512; a wrong layout is of order 1. */
#define TOLERANCE 2e-3

enum { ROWS = 64, COLS = 512, TOKENS = 16, OUT_BYTES = ROWS * TOKENS * 4 };

static uint8_t next_code(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return (uint8_t)(*x >> 40 & 0xBF); /* no NaN: magnitudes below 2 */
}

/* Layout: matrix (any bytes are panels of some matrix), its scales, quantised tokens. */
static void fill(uint8_t *at, size_t matrix, size_t scales)
{
    uint64_t x = 88172645463325252u;
    float one = 1;

    for (size_t i = 0; i < matrix; i++)
        at[i] = next_code(&x);
    for (size_t i = 0; i < scales / sizeof(one); i++)
        memcpy(at + matrix + i * sizeof(one), &one, sizeof(one));
    for (int t = 0; t < TOKENS; t++) {
        uint8_t *row = at + matrix + scales + (size_t)t * cuda_quant_bytes(COLS);

        for (int i = 0; i < COLS; i++)
            row[i] = next_code(&x);
        for (int i = 0; i < COLS / QUANT_BLOCK; i++)
            memcpy(row + COLS + i * 4, &one, sizeof(one));
    }
}

static bool alike(const float *a, const float *b)
{
    double diff = 0, all = 0;

    for (int i = 0; i < ROWS * TOKENS; i++) {
        diff += (double)(a[i] - b[i]) * (double)(a[i] - b[i]);
        all += (double)b[i] * (double)b[i];
    }
    return diff <= TOLERANCE * TOLERANCE * all && all > 0; /* a NaN is not alike */
}

bool cuda_self_test(struct gpu *g)
{
    size_t matrix = panel_bytes(PANEL_FP8, ROWS, COLS);
    size_t scales = panel_scale_bytes(PANEL_FP8, ROWS, COLS);
    size_t in = matrix + scales + TOKENS * cuda_quant_bytes(COLS);
    uint8_t *host = g->ops->take_pinned(g, in + 2 * OUT_BYTES);
    uint64_t device = g->ops->take(g, in + 2 * OUT_BYTES);
    struct linear_args a = {.w = {.rows = ROWS, .cols = COLS},
                            .y_stride = ROWS,
                            .x_bytes = cuda_quant_bytes(COLS),
                            .type = PANEL_FP8,
                            .groups = 1,
                            .y_f32 = 1,
                            .T = TOKENS};
    bool fine = host != NULL && device != 0;

    if (fine) {
        fill(host, matrix, scales);
        g->ops->to_device(g, device, host, in);
        a.w.data = (const uint8_t *)(uintptr_t)device;
        a.w.scale = a.w.data + matrix;
        a.x = a.w.data + matrix + scales;
        for (int native = 0; native < 2; native++) {
            a.y = (void *)(uintptr_t)(device + in + (size_t)native * OUT_BYTES);
            a.native = native;
            cuda_linear(g->stream, a);
        }
        g->ops->to_host(g, host + in, device + in, 2 * OUT_BYTES);
        fine = g->ops->wait(g) == 0 && alike((const float *)(const void *)(host + in),
                                             (const float *)(const void *)(host + in + OUT_BYTES));
    }
    g->ops->give_pinned(g, host);
    if (device != 0)
        g->ops->give(g, device);
    return fine;
}
