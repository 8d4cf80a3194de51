/* Every .cu is C here (kernels/cuda/device.h), and one translation unit: their names differ. */
#include "kernels/cuda/attention.cu" /* NOLINT */
#include "kernels/cuda/compress.cu"  /* NOLINT */
#include "kernels/cuda/dense.cu"     /* NOLINT */
#include "kernels/cuda/index.cu"     /* NOLINT */
#include "kernels/cuda/latent.cu"    /* NOLINT */
#include "kernels/cuda/ops.cu"       /* NOLINT */
#include "kernels/cuda/sampler.cu"   /* NOLINT */
#include "kernels/cuda/streams.cu"   /* NOLINT */

#include "kernels/ref/ref.h"
#include "tests/unit/kernels/cuda_emulated.h"

#include <assert.h>
#include <stdlib.h>

static struct kernel_ops ops;
static struct cuda_ops place;

struct cuda_ops *cuda_ops_of(struct kernels *k)
{
    (void)k;
    return &place;
}

/* No more workspace than asked for: index_select goes in rounds. A few SMs: attention of up to
 * eight rows is split. */
void cuda_emulated_set(struct kernels *k)
{
    size_t split = cuda_attention_partial_bytes(
        k->dims.n_heads, k->dims.head_dim,
        cuda_attention_splits(4, k->dims.window, k->dims.index_topk, k->dims.max_context), 8);

    assert(cuda_ops_refuse(&k->dims) == NULL);
    place.n_sms = 9;
    place.work_bytes = cuda_ops_work_bytes(&k->dims);
    place.work_bytes = place.work_bytes > split ? place.work_bytes : split;
    free(place.work);
    place.work = aligned_alloc(64, (place.work_bytes + 63) / 64 * 64);
    if (place.work == NULL)
        abort();
    ops = *k->ops;
    ops.name = "cuda, emulated";
    cuda_ops_fill(&ops);
    k->ops = &ops;
}

void cuda_emulated_unset(struct kernels *k)
{
    k->ops = &kernels_ref_ops;
}
