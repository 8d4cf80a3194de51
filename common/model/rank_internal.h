/* rank_internal: what the parts of a rank share. Private to rank.c and rank_record.c. */
#ifndef BATON_COMMON_MODEL_RANK_INTERNAL_H
#define BATON_COMMON_MODEL_RANK_INTERNAL_H

#include "common/model/rank.h"

/* A batch of so many rows in the workspace, as the kernels see it. */
struct kernel_batch rank_batch(const struct rank *r, int n_rows, int n_seqs);

/* What a step is made of, over r->last: the main model, or the MTP block, with logits of the first
 * n_logits of ws->logit_rows. */
typedef void (*rank_step_fn)(struct rank *r, const struct kv_memory *kv, int n_logits);
void rank_run_main(struct rank *r, const struct kv_memory *kv, int n_logits);
void rank_run_block(struct rank *r, const struct kv_memory *kv, int n_logits);

/* ---- rank_record.c ---- */

/* The recording of a step over these spans, which may have more rows; NULL: there is none. */
const struct recording *recordings_find(const struct recordings *all, const struct kv_memory *kv,
                                        const struct model_span *spans, int n);

/* The spans and one more, of `rows` rows that nobody looks at. Borrowed until the next call. */
const struct model_span *recordings_pad(struct recordings *all, const struct model_span *spans,
                                        int n, int rows);

void recordings_deinit(struct recordings *all, struct kernels *k);

#endif
