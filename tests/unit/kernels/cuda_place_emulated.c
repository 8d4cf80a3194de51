/* Every .cu is C here (kernels/cuda/device.h), and one translation unit: their names differ. */
#include "kernels/cuda/attention.cu" /* NOLINT */
#include "kernels/cuda/compress.cu"  /* NOLINT */
#include "kernels/cuda/dense.cu"     /* NOLINT */
#include "kernels/cuda/gate.cu"      /* NOLINT */
#include "kernels/cuda/index.cu"     /* NOLINT */
#include "kernels/cuda/latent.cu"    /* NOLINT */
#include "kernels/cuda/ops.cu"       /* NOLINT */
#include "kernels/cuda/sampler.cu"   /* NOLINT */
#include "kernels/cuda/streams.cu"   /* NOLINT */

#include "kernels/ref/ref.h"
#include "tests/unit/kernels/cuda_place.h"

#include <stdlib.h>

static struct kernel_ops ops;
static struct cuda_ops place;

struct cuda_ops *cuda_ops_of(struct kernels *k)
{
    (void)k;
    return &place;
}

bool cuda_place_ready(void)
{
    return true;
}

void *cuda_place_alloc(size_t bytes)
{
    size_t whole = (bytes + 64) / 64 * 64;
    void *p = aligned_alloc(64, whole);

    if (p == NULL)
        abort();
    return memset(p, 0, whole);
}

void cuda_place_free(void *p)
{
    free(p);
}

void cuda_place_enter(struct kernels *k)
{
    (void)k;
}

/* No more workspace than asked for: index_select goes in rounds. A few SMs: attention of up to
 * eight rows is split. */
void cuda_place_use(struct kernels *k)
{
    const struct kernel_dims *d = &k->dims;
    int n_splits = cuda_attention_splits(4, d->window, d->index_topk, d->max_context);
    size_t split = cuda_attention_partial_bytes(d->n_heads, d->head_dim, n_splits, 8);

    if (cuda_ops_refuse(d) != NULL)
        abort();
    place.n_sms = 9;
    place.work_bytes = cuda_ops_work_bytes(d);
    place.work_bytes = place.work_bytes > split ? place.work_bytes : split;
    free(place.work);
    place.work = cuda_place_alloc(place.work_bytes);
    ops = *k->ops;
    ops.name = "cuda, emulated";
    cuda_ops_fill(&ops);
    k->ops = &ops;
}

void cuda_place_leave(struct kernels *k)
{
    k->ops = &kernels_ref_ops;
}
