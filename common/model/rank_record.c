#include <stdlib.h>
#include <string.h>

#include "common/model/rank_internal.h"

/*
 * Steps whose rows all give logits (decode steps, with or without drafts to verify) are recorded by
 * their number of rows: kernels take what is whose from the batch's arrays. Up to the number of
 * sequences each number has its recording; beyond, where drafts are, every PAD_ROWS-th. A step in
 * between is filled up by a sequence of its own, in a page and a slot that the KV has for that.
 */
enum { PAD_ROWS = 8, WARM_ROWS = 64 /* of one sequence: they share a page */ };

/* ---- finding one ---- */

const struct recording *recordings_find(const struct recordings *all, const struct kv_memory *kv,
                                        const struct model_span *spans, int n)
{
    int rows = 0, logits = 0;

    if (all->n == 0 || kv->pages.addr != all->kv.pages.addr || kv->slots.addr != all->kv.slots.addr)
        return NULL;
    for (int i = 0; i < n; i++) {
        rows += spans[i].n_tokens;
        logits += rank_logit_rows(&spans[i]);
    }
    for (int i = 0; rows == logits && i < all->n; i++)
        if (all->list[i].n_rows >= rows)
            return &all->list[i];
    return NULL;
}

const struct model_span *recordings_pad(struct recordings *all, const struct model_span *spans,
                                        int n, int rows)
{
    static const int32_t tokens[PAD_ROWS];

    memcpy(all->padded, spans, (size_t)n * sizeof(*spans));
    all->padded[n] = (struct model_span){
        .tokens = tokens, .n_tokens = rows, .slot = all->kv.n_slots, .pages = &all->kv.n_pages};
    return all->padded;
}

/* ---- making them ---- */

/* Steps of so many rows, for nothing: what is recorded must have run, because a device may load a
 * kernel when it is first launched, which no recording can hold. */
static void warm(struct rank *r, const struct kv_memory *kv, int n_rows, struct model_span *spans,
                 int32_t *zeros)
{
    int n = 0;

    for (int left = n_rows; left > 0; left -= spans[n++].n_tokens)
        spans[n] = (struct model_span){.tokens = zeros,
                                       .n_tokens = left < WARM_ROWS ? left : WARM_ROWS,
                                       .slot = kv->n_slots,
                                       .pages = &kv->n_pages,
                                       .logits = MODEL_LOGITS_ALL};
    rank_forward(r, kv, spans, n);
    if (r->weights->n_mtp > 0)
        rank_mtp(r, kv, zeros, zeros, 1);
}

static void *record(struct rank *r, const struct kv_memory *kv, rank_step_fn step, int n_logits)
{
    struct kernels *k = &r->kernels;

    k->ops->record(k);
    step(r, kv, n_logits);
    return k->ops->recorded(k);
}

static enum status_code record_rows(struct rank *r, const struct kv_memory *kv, int n_rows,
                                    int n_drafting, struct status *st)
{
    struct recordings *all = &r->recordings;
    struct recording *one = &all->list[all->n++];
    bool mtp = r->weights->n_mtp > 0;

    *one = (struct recording){.n_rows = n_rows, .n_mtp_logits = n_drafting};
    r->last = rank_batch(r, n_rows, n_rows);
    one->forward = record(r, kv, rank_run_main, n_rows);
    if (one->forward != NULL && mtp)
        one->mtp = record(r, kv, rank_run_block, n_drafting);
    if (one->forward == NULL || (mtp && one->mtp == NULL))
        return status_set(st, ST_EXHAUSTED,
                          "cannot keep the launches of a step of %d rows: %s; lower "
                          "--cuda-graph-max-bs",
                          n_rows, r->kernels.error);
    return status_ok(st);
}

static size_t outside(struct rank *r)
{
    struct kernel_room room;

    r->kernels.ops->room(&r->kernels, &room);
    return room.outside;
}

enum status_code rank_record(struct rank *r, const struct kv_memory *kv, int max_seqs, int max_rows,
                             struct status *st)
{
    struct recordings *all = &r->recordings;
    size_t before;
    int32_t *zeros;

    if (r->kernels.ops->record == NULL || max_seqs < 1 || r->comm != NULL)
        return status_ok(st);
    all->list = calloc((size_t)(max_seqs + max_rows / PAD_ROWS + 1), sizeof(*all->list));
    all->padded = calloc((size_t)r->kernels.dims.max_seqs + 1, sizeof(*all->padded));
    zeros = calloc((size_t)max_rows, sizeof(*zeros));
    if (all->list == NULL || all->padded == NULL || zeros == NULL) {
        free(zeros);
        return status_set(st, ST_EXHAUSTED, "no memory for recordings");
    }
    warm(r, kv, 1, all->padded, zeros);
    warm(r, kv, max_rows, all->padded, zeros);
    free(zeros);
    before = outside(r);
    status_ok(st);
    for (int n = 1; n <= max_seqs && st->code == ST_OK; n++)
        record_rows(r, kv, n, n, st);
    for (int n = max_seqs; n < max_rows && st->code == ST_OK;) {
        n = n / PAD_ROWS * PAD_ROWS + PAD_ROWS;
        n = n < max_rows ? n : max_rows;
        record_rows(r, kv, n, max_seqs, st);
    }
    all->bytes = before - outside(r);
    all->kv = *kv; /* from now on they are found */
    return st->code;
}

void recordings_deinit(struct recordings *all, struct kernels *k)
{
    for (int i = 0; i < all->n; i++) {
        if (all->list[i].forward != NULL)
            k->ops->forget(k, all->list[i].forward);
        if (all->list[i].mtp != NULL)
            k->ops->forget(k, all->list[i].mtp);
    }
    free(all->list);
    free(all->padded);
    *all = (struct recordings){0};
}
