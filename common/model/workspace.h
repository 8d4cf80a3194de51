/*
 * workspace: the device buffers of one forward, sized at open for the largest batch. Nothing is
 * allocated in a step.
 *
 * Threads   engine.
 */
#ifndef BATON_COMMON_MODEL_WORKSPACE_H
#define BATON_COMMON_MODEL_WORKSPACE_H

#include "common/base/status.h"
#include "common/model/config.h"
#include "kernels/kernels.h"

/* Shapes with T = max_rows; bf16 unless said. */
struct workspace {
    struct dev_ptr base; /* one allocation; the rest point into it */
    size_t bytes;
    struct dev_ptr streams;             /* [T][hc][d] the main model's */
    struct dev_ptr mtp_streams;         /* [T][hc][d] */
    struct dev_ptr x;                   /* [T][d] a sublayer's input */
    struct dev_ptr y;                   /* [T][d] its output */
    struct dev_ptr xq;                  /* quantised x, or what else is quantised first */
    struct dev_ptr q_latent;            /* [T][ql] */
    struct dev_ptr q_latent_q;          /* quantised */
    struct dev_ptr q, o;                /* [T][H][D] */
    struct dev_ptr o_low;               /* [T][G * ol] */
    struct dev_ptr kv;                  /* [T][D] */
    struct dev_ptr rows;                /* [T][row_bytes] new latents */
    struct dev_ptr comp_kv, comp_score; /* f32 [T][2 D] */
    struct dev_ptr index_q;             /* [T][Hi][Di] */
    struct dev_ptr index_w;             /* [T][Hi] */
    struct dev_ptr chosen;              /* i32 [T][topk] */
    struct dev_ptr post;                /* f32 [T][hc] */
    struct dev_ptr comb;                /* f32 [T][hc][hc] */
    struct dev_ptr ids;                 /* i32 [T][n_active] */
    struct dev_ptr gate_w;              /* f32 [T][n_active] */
    struct dev_ptr logits;              /* f32 [max_logit_rows][vocab] */
    struct dev_ptr logit_rows;          /* i32 [max_logit_rows] */
    struct dev_ptr share;               /* several ranks: this one's columns of a product */
    struct dev_ptr parts;               /* several ranks: [T][n_active + 1][d], see moe_parts() */
    /* The batch: see struct kernel_batch. */
    struct dev_ptr row_seq, row_pos, tokens, next_tokens; /* i32 [T] */
    struct dev_ptr seq_row, seq_start, seq_slot;          /* i32 [max_seqs + 1] */
    struct dev_ptr block_table;                           /* i32 [max_seqs][table_stride] */
    struct dev_ptr freq[2]; /* f32 [R/2]: layers without, with compression */
    int table_stride;
};

/** What workspace_init() asks the device for. Parameters as there. */
size_t workspace_bytes(struct kernels *k, const struct model_config *c, int row_bytes,
                       int max_logit_rows, int n_ranks);

/** @param row_bytes  of a latent row. @param n_ranks  of the group. @return ST_OK; ST_EXHAUSTED
 * with the bytes asked for */
enum status_code workspace_init(struct workspace *ws, struct kernels *k,
                                const struct model_config *c, int row_bytes, int max_logit_rows,
                                int n_ranks, struct status *st);
void workspace_deinit(struct workspace *ws, struct kernels *k);

#endif
