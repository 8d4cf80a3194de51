#include "tests/lib/kernel_rig.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernels/ref/formats.h"

struct kernel_dims rig_dims(void)
{
    return (struct kernel_dims){.hidden = 256,
                                .hc = 4,
                                .n_heads = 4,
                                .head_dim = 192,
                                .rope_dim = 64,
                                .q_lora_rank = 128,
                                .o_groups = 2,
                                .o_lora_rank = 64,
                                .window = 128,
                                .index_n_heads = 4,
                                .index_head_dim = 128,
                                .index_topk = 32,
                                .n_experts = 16,
                                .n_active = 4,
                                .moe_inter = 128,
                                .vocab = 512,
                                .hc_iters = 20,
                                .hc_eps = 1e-6,
                                .norm_eps = 1e-6,
                                .route_scale = 1.5,
                                .swiglu_limit = 10,
                                .max_rows = 512,
                                .max_seqs = 8,
                                .max_context = 4096};
}

static void run_pool(void *pool, void (*fn)(void *, int, int), void *arg)
{
    pool_run(pool, fn, arg);
}

static int node_of(void *pool, int part)
{
    (void)pool;
    return part % 2;
}

static bool open_rig(struct rig *r, int level, const struct kernel_dims *dims, int n_threads,
                     bool as_mapped)
{
    enum cpu_isa isa = level == RIG_AVX512_OTHER_WAY ? CPU_ISA_AVX512
                       : level == RIG_AMX_OTHER_WAY  ? CPU_ISA_AMX
                                                     : (enum cpu_isa)level;
    struct status st;

    if (isa > kernels_cpu_best()) {
        print_message("skipped: this processor does not run %s\n", kernels_cpu_names[isa]);
        return false;
    }
    assert_int_equal(pool_new(n_threads, &r->pool, &st), ST_OK);
    struct kernel_env env = {.parallel = run_pool,
                             .pool = r->pool,
                             .n_threads = n_threads,
                             .n_nodes = n_threads > 2 ? 2 : 1, /* three threads: two nodes */
                             .node_of = node_of,
                             .as_mapped = as_mapped,
                             .other_way = level >= RIG_AVX512_OTHER_WAY};

    if (kernels_open_cpu(&r->k, isa, dims, &env) != 0)
        fail_msg("kernels_open_cpu: %s", r->k.error);
    return true;
}

bool rig_open(struct rig *r, int level, const struct kernel_dims *dims, int n_threads)
{
    return open_rig(r, level, dims, n_threads, false);
}

bool rig_open_mapped(struct rig *r, int level, const struct kernel_dims *dims, int n_threads)
{
    return open_rig(r, level, dims, n_threads, true);
}

void rig_close(struct rig *r)
{
    kernels_close(&r->k);
    pool_free(r->pool);
}

/* ---- random ---- */

uint64_t rig_bits(struct rig_random *r)
{
    uint64_t z = r->state += 0x9E3779B97F4A7C15u; /* SplitMix64 */

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

float rig_normal(struct rig_random *r)
{
    uint64_t z = rig_bits(r);
    double sum = 0;

    for (int i = 0; i < 4; i++)
        sum += (double)(z >> (16 * i) & 0xFFFF);
    return (float)((sum - 131070) / 37837.2);
}

void rig_bf16(struct rig_random *r, uint16_t *out, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++)
        out[i] = bf16_encode(rig_normal(r) * scale);
}

void rig_f32(struct rig_random *r, float *out, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++)
        out[i] = rig_normal(r) * scale;
}

void rig_bytes(struct rig_random *r, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)rig_bits(r);
}

void rig_fp8(struct rig_random *r, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        do
            out[i] = (uint8_t)rig_bits(r);
        while ((out[i] & 127) == 127);
}

void rig_scales(struct rig_random *r, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)(118 + rig_bits(r) % 8);
}

struct weight_src rig_weight(struct rig_random *r, enum weight_type type, int64_t rows,
                             int64_t cols)
{
    size_t n = (size_t)(rows * cols);
    size_t n_scales =
        type == WEIGHT_FP8 ? (size_t)((rows + 127) / 128 * ((cols + 127) / 128)) : n / 32;
    struct weight_src w = {.type = type, .rows = rows, .cols = cols, .vector = rows == 1};
    void *data = malloc(n * 8 + 1);
    uint8_t *scale = malloc(n_scales + 1);

    assert_non_null(data);
    assert_non_null(scale);
    switch (type) {
    case WEIGHT_BF16:
        rig_bf16(r, data, n, 0.1f);
        break;
    case WEIGHT_F32:
        rig_f32(r, data, n, 0.1f);
        break;
    case WEIGHT_FP8:
        rig_fp8(r, data, n);
        rig_scales(r, scale, n_scales);
        w.scale = scale;
        break;
    default:
        rig_bytes(r, data, n / 2);
        rig_scales(r, scale, n_scales);
        w.scale = scale;
        break;
    }
    w.data = data;
    if (w.scale == NULL)
        free(scale);
    return w;
}

void rig_weight_free(struct weight_src *src)
{
    free((void *)(uintptr_t)src->data);
    free((void *)(uintptr_t)src->scale);
}

struct dev_ptr rig_put(struct rig *r, const void *src, size_t bytes)
{
    struct dev_ptr p = r->k.ops->dev_alloc(&r->k, bytes + 1);

    assert_false(dev_is_null(p));
    if (src != NULL)
        r->k.ops->dev_write(&r->k, p, src, bytes);
    return p;
}

void *rig_get(struct rig *r, struct dev_ptr p, size_t bytes)
{
    void *out = malloc(bytes + 1);

    assert_non_null(out);
    assert_int_equal(r->k.ops->dev_read(&r->k, out, p, bytes), 0);
    return out;
}

void *rig_host(struct rig *r, struct dev_ptr p)
{
    void *host = r->k.ops->dev_host(&r->k, p);

    assert_non_null(host);
    return host;
}

/* ---- comparison ---- */

void rig_same_bytes(const char *what, const void *got, const void *want, size_t n)
{
    const uint8_t *a = got, *b = want;

    for (size_t i = 0; i < n; i++)
        if (a[i] != b[i])
            fail_msg("%s: byte %zu of %zu is %02x, expected %02x", what, i, n, a[i], b[i]);
}

/* Position of a bf16 on the number line: neighbours differ by 1, +0 and -0 by 0. */
static int place(uint16_t x)
{
    return x & 0x8000 ? -(x & 0x7FFF) : x;
}

void rig_same_bf16(const char *what, const uint16_t *got, const uint16_t *want, size_t n)
{
    size_t n_off = 0;
    double square = 0;

    for (size_t i = 0; i < n; i++)
        square += (double)bf16_decode(want[i]) * (double)bf16_decode(want[i]);
    double small = 1e-5 * sqrt(square / (double)(n > 0 ? n : 1));

    for (size_t i = 0; i < n; i++) {
        float a = bf16_decode(got[i]), b = bf16_decode(want[i]);

        if (got[i] == want[i] || (isnan(a) && isnan(b)) || (a == 0 && b == 0))
            continue;
        n_off++;
        if (abs(place(got[i]) - place(want[i])) > 1 && !(fabs((double)a - (double)b) <= small))
            fail_msg("%s: element %zu of %zu is %g, expected %g", what, i, n, (double)a, (double)b);
    }
    if (n_off > n / 100 + 1)
        fail_msg("%s: %zu of %zu elements differ by one step: more than 1 %%", what, n_off, n);
}

void rig_rows_bf16(const char *what, const uint16_t *got, const uint16_t *want, size_t n_rows,
                   size_t cols)
{
    double total = 0;

    for (size_t t = 0; t < n_rows; t++) {
        double error = 0, size = 0;

        for (size_t i = t * cols; i < (t + 1) * cols; i++) {
            double a = (double)bf16_decode(got[i]), b = (double)bf16_decode(want[i]);

            error += (a - b) * (a - b);
            size += b * b;
        }
        if (size == 0 && error == 0)
            continue;
        if (!(error <= 0.04 * 0.04 * size))
            fail_msg("%s: row %zu of %zu is off by %g of its RMS", what, t, n_rows,
                     sqrt(error / size));
        total += sqrt(error / size);
    }
    if (total > 0.005 * (double)n_rows)
        fail_msg("%s: rows are off by %g of their RMS on average", what, total / (double)n_rows);
}

void rig_same_f32(const char *what, const float *got, const float *want, size_t n)
{
    double square = 0;

    for (size_t i = 0; i < n; i++)
        square += (double)want[i] * (double)want[i];
    double small = 1e-5 * sqrt(square / (double)(n > 0 ? n : 1));

    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= small) &&
            !(isnan(got[i]) && isnan(want[i])) && got[i] != want[i])
            fail_msg("%s: element %zu of %zu is %.9g, expected %.9g (allowed %g)", what, i, n,
                     (double)got[i], (double)want[i], small);
}
