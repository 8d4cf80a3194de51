#include "kernels/cuda/backend_internal.h"

enum { SAMPLE_ROWS = 512 /* of a round of draws */ };

/* Rows [row, row + n) of the logits; those without a draw get one that costs least. */
static void sample_rows(struct kernels *k, struct dev_ptr logits, const struct kernel_draw *draws,
                        int n_draws, int row, int n)
{
    struct backend *b = backend_of(k);
    size_t rows_bytes = (size_t)n * sizeof(struct sample_row);
    uint64_t ids = b->draws.device + SAMPLE_ROWS * sizeof(struct sample_row);
    struct sample_args a = {
        .ids = (int32_t *)(uintptr_t)ids,
        .logits = (float *)(uintptr_t)logits.addr + (size_t)row * (size_t)k->dims.vocab,
        .rows = (const struct sample_row *)(uintptr_t)b->draws.device,
        .work = b->ops.work,
        .vocab = k->dims.vocab,
    };

    for (int t = 0; t < n; t++)
        b->draws.rows[t] = (struct sample_row){.top_p = 1, .n_top = -1};
    for (int i = 0; i < n_draws; i++) {
        const struct kernel_draw *d = &draws[i];

        b->draws.rows[d->row - row] = (struct sample_row){.seed = d->seed,
                                                          .position = d->position,
                                                          .temperature = d->temperature,
                                                          .top_p = d->top_p,
                                                          .min_p = d->min_p,
                                                          .top_k = d->top_k,
                                                          .n_top = -1};
    }
    b->gpu->ops->to_device(b->gpu, b->draws.device, b->draws.rows, rows_bytes);
    cuda_sample(b->gpu->stream, a, n);
    b->gpu->ops->to_host(b->gpu, b->draws.ids, ids, (size_t)n * sizeof(int32_t));
}

static int sample(struct kernels *k, struct dev_ptr logits, const struct kernel_draw *draws, int n,
                  int32_t *ids)
{
    struct backend *b = backend_of(k);
    size_t fit = b->ops.work_bytes / cuda_sample_bytes(k->dims.vocab, 1);
    int most = fit < SAMPLE_ROWS ? (int)fit : SAMPLE_ROWS;

    for (int i = 0, end; i < n; i = end) {
        int first = draws[i].row;

        end = i;
        while (end < n && draws[end].row - first < most)
            end++;
        cuda_ops_of(k);
        sample_rows(k, logits, draws + i, end - i, first, draws[end - 1].row - first + 1);
        if (backend_sync(k) != 0)
            return -1;
        for (int j = i; j < end; j++)
            ids[j] = b->draws.ids[draws[j].row - first];
    }
    return 0;
}

/* ---- the part ---- */

const char *backend_draws_open(struct backend *b)
{
    struct backend_draws *d = &b->draws;
    struct gpu *g = b->gpu;

    d->rows = g->ops->take_pinned(g, SAMPLE_ROWS * sizeof(*d->rows));
    d->ids = g->ops->take_pinned(g, SAMPLE_ROWS * sizeof(*d->ids));
    d->device = g->ops->take(g, SAMPLE_ROWS * (sizeof(*d->rows) + sizeof(*d->ids)));
    return d->rows == NULL || d->ids == NULL || d->device == 0 ? "draws" : NULL;
}

void backend_draws_close(struct backend *b)
{
    struct gpu *g = b->gpu;

    g->ops->give_pinned(g, b->draws.rows);
    g->ops->give_pinned(g, b->draws.ids);
}

void backend_draws_fill(struct kernel_ops *ops, const struct kernel_dims *dims)
{
    ops->sample = dims->vocab <= SAMPLE_VOCAB_MAX ? sample : NULL;
}
