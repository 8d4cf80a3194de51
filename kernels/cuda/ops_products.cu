/* Products and experts: the part of ops.h whose weights are panels. */
#include "kernels/cuda/device.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/ops.h"

static struct panels panels_of(const struct weight *w)
{
    struct panels p;

    p.data = DEV(const uint8_t, w->data);
    p.scale = DEV(const void, w->scale);
    p.rows = (int)w->rows;
    p.cols = (int)w->cols;
    return p;
}

static int panel_type(const struct weight *w)
{
    return w->type == WEIGHT_FP4 ? PANEL_FP4 : w->type == WEIGHT_FP8 ? PANEL_FP8 : PANEL_BF16;
}

static size_t ops_act_quant_bytes(struct kernels *k, int n)
{
    (void)k;
    return cuda_quant_bytes(n);
}

static void ops_act_quant(struct kernels *k, struct dev_ptr xq, struct dev_ptr x, int T, int n)
{
    struct act_quant_args a = {DEV(uint8_t, xq), DEV(const uint16_t, x), n};

    cuda_act_quant(cuda_ops_of(k)->stream, a, T);
}

static struct linear_args linear_args(struct kernels *k, struct dev_ptr y, struct dev_ptr x,
                                      const struct weight *w, int T)
{
    struct linear_args a;

    a.y = DEV(void, y);
    a.x = DEV(const uint8_t, x);
    a.w = panels_of(w);
    a.y_stride = w->rows;
    a.x_bytes = (size_t)w->cols * 2;
    a.type = panel_type(w);
    a.plain = 1;
    a.native = cuda_ops_of(k)->native_e4m3;
    a.groups = 1;
    a.y_f32 = 0;
    a.T = T;
    return a;
}

static void ops_linear_q(struct kernels *k, struct dev_ptr y, struct dev_ptr xq,
                         const struct weight *w, int T)
{
    struct linear_args a = linear_args(k, y, xq, w, T);

    a.plain = 0;
    a.x_bytes = cuda_quant_bytes(a.w.cols);
    cuda_linear(cuda_ops_of(k)->stream, a);
}

static void ops_linear(struct kernels *k, struct dev_ptr y, struct dev_ptr x,
                       const struct weight *w, int T, bool y_f32)
{
    struct linear_args a = linear_args(k, y, x, w, T);

    a.y_f32 = y_f32;
    cuda_linear(cuda_ops_of(k)->stream, a);
}

static void ops_linear_grouped(struct kernels *k, struct dev_ptr y, struct dev_ptr x,
                               const struct weight *w, int T, int groups)
{
    struct linear_args a = linear_args(k, y, x, w, T);

    a.groups = groups;
    a.x_bytes *= (size_t)groups;
    cuda_linear(cuda_ops_of(k)->stream, a);
}

/* ---- experts ---- */

static struct moe_expert expert_of(const struct expert_weights *e)
{
    struct moe_expert m;

    m.w1 = DEV(const uint8_t, e->w1.data);
    m.w2 = DEV(const uint8_t, e->w2.data);
    m.w3 = DEV(const uint8_t, e->w3.data);
    m.s1 = DEV(const void, e->w1.scale);
    m.s2 = DEV(const void, e->w2.scale);
    m.s3 = DEV(const void, e->w3.scale);
    return m;
}

CUDA_API void cuda_experts_list(struct moe_expert *out, const struct expert_weights *experts, int n)
{
    for (int i = 0; i < n; i++)
        out[i] = expert_of(&experts[i]);
}

/* At most MOE_ROWS_MAX tokens from t on. */
static struct moe_args moe_args(struct kernels *k, struct dev_ptr xq, struct dev_ptr ids,
                                struct dev_ptr weights, const struct expert_weights *experts,
                                const struct expert_weights *shared, int t, int T)
{
    const struct kernel_dims *d = &k->dims;
    struct cuda_ops *o = cuda_ops_of(k);
    struct moe_args a;

    a.parts = 0; /* the callers' */
    a.first = 0;
    a.n = d->n_experts;
    a.xq = DEV(const uint8_t, xq) + (size_t)t * cuda_quant_bytes(d->hidden);
    a.ids = DEV(const int32_t, ids) + (int64_t)t * d->n_active;
    a.weights = DEV(const float, weights) + (int64_t)t * d->n_active;
    a.table = cuda_experts_of(k, experts, &a.type);
    a.has_shared = shared != 0;
    if (shared != 0)
        a.shared = expert_of(shared);
    a.n_experts = d->n_experts;
    a.n_active = d->n_active;
    a.d = d->hidden;
    a.f = d->moe_inter;
    a.T = T - t < MOE_ROWS_MAX ? T - t : MOE_ROWS_MAX;
    a.native = o->native_e4m3;
    a.limit = (float)d->swiglu_limit;
    a.work = (unsigned char *)o->work;
    return a;
}

static void ops_moe_parts(struct kernels *k, struct dev_ptr parts, struct dev_ptr xq,
                          struct dev_ptr ids, struct dev_ptr weights,
                          const struct expert_weights *experts,
                          const struct expert_weights *shared, int first, int n, int T)
{
    int64_t row = (int64_t)(k->dims.n_active + 1) * k->dims.hidden;

    for (int t = 0; t < T; t += MOE_ROWS_MAX) {
        struct moe_args a = moe_args(k, xq, ids, weights, experts, shared, t, T);

        a.parts = DEV(uint16_t, parts) + t * row;
        a.first = first;
        a.n = n;
        cuda_moe_parts(cuda_ops_of(k)->stream, a);
    }
}

static void ops_moe_sum(struct kernels *k, struct dev_ptr y, struct dev_ptr parts,
                        struct dev_ptr ids, int T)
{
    struct moe_sum_args a = {DEV(uint16_t, y), DEV(const uint16_t, parts), DEV(const int32_t, ids),
                             k->dims.n_active, k->dims.hidden};

    cuda_moe_sum(cuda_ops_of(k)->stream, a, T);
}

/* The parts lie behind what cuda_moe_parts() works with. */
static size_t parts_offset(const struct kernel_dims *d)
{
    return (cuda_moe_work_bytes(d->n_experts, d->n_active, d->moe_inter, d->max_rows) + 255) / 256 *
           256;
}

static void ops_moe(struct kernels *k, struct dev_ptr y, struct dev_ptr xq, struct dev_ptr ids,
                    struct dev_ptr weights, const struct expert_weights *experts,
                    const struct expert_weights *shared, int T)
{
    struct cuda_ops *o = cuda_ops_of(k);

    for (int t = 0; t < T; t += MOE_ROWS_MAX) {
        struct moe_args a = moe_args(k, xq, ids, weights, experts, shared, t, T);
        struct moe_sum_args sum = {DEV(uint16_t, y) + (int64_t)t * a.d, 0, a.ids, a.n_active, a.d};

        a.parts = (uint16_t *)(void *)(a.work + parts_offset(&k->dims));
        sum.parts = a.parts;
        cuda_moe_parts(o->stream, a);
        cuda_moe_sum(o->stream, sum, a.T);
    }
}

CUDA_API size_t cuda_products_work_bytes(const struct kernel_dims *d)
{
    size_t rows = (size_t)(d->max_rows < MOE_ROWS_MAX ? d->max_rows : MOE_ROWS_MAX);

    return parts_offset(d) + rows * (size_t)(d->n_active + 1) * (size_t)d->hidden * 2;
}

CUDA_API void cuda_products_fill(struct kernel_ops *ops)
{
    ops->act_quant_bytes = ops_act_quant_bytes;
    ops->act_quant = ops_act_quant;
    ops->linear_q = ops_linear_q;
    ops->linear = ops_linear;
    ops->linear_grouped = ops_linear_grouped;
    ops->moe = ops_moe;
    ops->moe_parts = ops_moe_parts;
    ops->moe_sum = ops_moe_sum;
}
