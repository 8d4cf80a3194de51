/*
 * ref: the readable spec of every operation of kernels.h: plain loops, double accumulation,
 * rounding where the model rounds. Bit for bit what tests/oracle/dsv4.py computes.
 *
 * One file per concept; each row of an operation is computed alone and in one order, so results
 * depend on nothing but their inputs.
 */
#ifndef BATON_KERNELS_REF_REF_H
#define BATON_KERNELS_REF_REF_H

#include "kernels/kernels.h"
#include "kernels/ref/formats.h"

/** Fills the table with the reference versions; k->dims and k->env are set. @return 0, or -1 with
 * k->error set: no memory */
int kernels_ref_open(struct kernels *k);
void kernels_ref_close(struct kernels *k);

/** The table itself: a fast backend starts from it. */
extern const struct kernel_ops kernels_ref_ops;

/* Workspace of one part of a parallel operation, sized at open. */
struct ref_scratch {
    float *keys;    /* [max_keys][D] decoded latents and entries */
    double *probs;  /* [max_keys] */
    float *scores;  /* [max_context / 4 + 1] */
    int32_t *order; /* the same */
};

/* Tokens that the experts take at a time. */
enum { REF_MOE_ROWS = 256 };

/* Workspace of moe: the tokens of one expert, and the sums of all. */
struct ref_moe {
    int32_t *token;   /* [REF_MOE_ROWS] */
    float *weight;    /* [REF_MOE_ROWS] */
    int32_t *part;    /* [REF_MOE_ROWS]: row of moe_parts() */
    uint16_t *hidden; /* [REF_MOE_ROWS][moe_inter] */
    double *sum;      /* [REF_MOE_ROWS][hidden] */
};

struct ref {
    struct ref_scratch *scratch; /* [n_threads] */
    int n_scratch;
    struct ref_moe moe;
};

/* ---- what the files share ---- */

/* Longest inner dimension of a product: a decoded row lies on the stack. */
enum { REF_COLS_MAX = 32768, REF_ACTIVE_MAX = 64 };

/* Builds a function for several ISAs; all give the same bits, because each product of two bf16 or
 * f32 is exact in double. gcc alone: clang 14 names the resolver otherwise than callers do. */
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
#define REF_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define REF_CLONES
#endif

/* Host address of a device pointer. */
static inline void *ref_ptr(struct dev_ptr p)
{
    return (void *)(uintptr_t)p.addr;
}

/* The share of n items that a part of a parallel operation has. */
struct ref_range {
    int64_t begin, end;
};
static inline struct ref_range ref_share(int64_t n, int part, int n_parts)
{
    return (struct ref_range){n * part / n_parts, n * (part + 1) / n_parts};
}

/* Sum of a[i] * b[i] in double, in one fixed order. */
double ref_dot(const float *a, const float *b, int64_t n);
/* The same with b in bf16. */
double ref_dot_bf16(const float *a, const uint16_t *b, int64_t n);

/* Row r of a weight as f32 (scales multiplied in: exact). out [cols]. */
void ref_weight_row(const struct weight *w, int64_t r, float *out);

/* y[i] = w[i] * x[i] / sqrt(mean(x^2) + eps), rounded to bf16; y may be x; w NULL: no norm, only
 * rounding. */
void ref_rms_norm_row(float *y, const float *x, const struct weight *w, int n, double eps);

/* Rotates the last R of n values by position (sign -1: back); results rounded to bf16. freq [R/2].
 */
void ref_rotate(float *x, int n, int R, int64_t position, const float *freq, int sign);

/* Walsh-Hadamard transform of n = 2^k values, Sylvester order, divided by sqrt(n); rounded to bf16.
 */
void ref_hadamard(float *x, int n);

/* One token's attention for one head over m keys [m][D]; o [D] rounded to bf16; probs [m] is
 * scratch. */
void ref_attend(float *o, const float *q, const float *keys, int m, int D, double sink,
                double *probs);

/* Score of one index key [Di] for a token's queries [Hi][Di] and head weights [Hi]. */
float ref_index_score(const uint16_t *q, const uint16_t *weights, const float *key, int Hi, int Di);

/* silu(min(gate, limit)) * clip(up, -limit, limit); limit 0: none. */
/* order = the slots of ids by ascending id, equal ones as they stand; n <= REF_ACTIVE_MAX. */
void ref_moe_order(int *order, const int32_t *ids, int n);
double ref_swiglu(float gate, float up, double limit);

/* Where entry g (or its index key) of a sequence lies. */
uint8_t *ref_entry(const struct kernel_batch *b, const struct kernel_kv *kv, int seq, int64_t g,
                   bool key);

/* memory.c */
struct dev_ptr ref_dev_alloc(struct kernels *k, size_t bytes);
void ref_dev_free(struct kernels *k, struct dev_ptr p);
void ref_dev_write(struct kernels *k, struct dev_ptr dst, const void *src, size_t bytes);
int ref_dev_read(struct kernels *k, void *dst, struct dev_ptr src, size_t bytes);
void ref_dev_copy(struct kernels *k, struct dev_ptr dst, struct dev_ptr src, size_t bytes);
int ref_sync(struct kernels *k);
void *ref_dev_host(struct kernels *k, struct dev_ptr p);
/* weight.c */
int ref_weight_load(struct kernels *k, const struct weight_src *src, struct weight *out);
void ref_weight_unload(struct kernels *k, struct weight *w);
/* linear.c */
size_t ref_act_quant_bytes(struct kernels *k, int n);
void ref_act_quant(struct kernels *k, struct dev_ptr xq, struct dev_ptr x, int T, int n);
void ref_linear_q(struct kernels *k, struct dev_ptr y, struct dev_ptr xq, const struct weight *w,
                  int T);
void ref_linear(struct kernels *k, struct dev_ptr y, struct dev_ptr x, const struct weight *w,
                int T, bool y_f32);
void ref_linear_grouped(struct kernels *k, struct dev_ptr y, struct dev_ptr x,
                        const struct weight *w, int T, int groups);
/* norm.c */
void ref_rms_norm(struct kernels *k, struct dev_ptr y, struct dev_ptr x, const struct weight *w,
                  int T, int n);
void ref_q_norm_rope(struct kernels *k, struct dev_ptr q, const struct kernel_batch *b,
                     struct dev_ptr freq);
/* hyper.c */
void ref_embed(struct kernels *k, struct dev_ptr streams, const struct weight *table,
               struct dev_ptr tokens, int T, int copies);
void ref_hc_read(struct kernels *k, struct dev_ptr x, struct dev_ptr post, struct dev_ptr comb,
                 struct dev_ptr streams, const struct weight *fn, const struct weight *scale,
                 const struct weight *base, const struct weight *norm, int T);
void ref_hc_write(struct kernels *k, struct dev_ptr out, struct dev_ptr y, struct dev_ptr streams,
                  struct dev_ptr post, struct dev_ptr comb, int T);
void ref_hc_head(struct kernels *k, struct dev_ptr x, struct dev_ptr streams, struct dev_ptr rows,
                 const struct weight *fn, const struct weight *scale, const struct weight *base,
                 const struct weight *norm, int n);
void ref_mtp_join(struct kernels *k, struct dev_ptr out, struct dev_ptr e, struct dev_ptr h, int T);
/* latent.c */
void ref_kv_latent(struct kernels *k, struct dev_ptr rows, struct dev_ptr kv,
                   const struct weight *norm, const struct kernel_batch *b, struct dev_ptr freq,
                   const struct kernel_kv *kv_view);
void ref_window_commit(struct kernels *k, struct dev_ptr rows, const struct kernel_batch *b,
                       const struct kernel_kv *kv_view);
/* compress.c */
void ref_compress(struct kernels *k, struct dev_ptr kv, struct dev_ptr score,
                  const struct compressor_weights *w, const struct kernel_batch *b,
                  const struct kernel_kv *kv_view, struct dev_ptr freq, bool for_index);
/* index.c */
void ref_index_query(struct kernels *k, struct dev_ptr q, struct dev_ptr weights,
                     const struct kernel_batch *b, struct dev_ptr freq);
void ref_index_select(struct kernels *k, struct dev_ptr chosen, struct dev_ptr q,
                      struct dev_ptr weights, const struct kernel_batch *b,
                      const struct kernel_kv *kv_view);
/* attention.c */
void ref_attention(struct kernels *k, struct dev_ptr o, struct dev_ptr q, struct dev_ptr rows,
                   struct dev_ptr chosen, const struct weight *sink, const struct kernel_batch *b,
                   const struct kernel_kv *kv_view, struct dev_ptr freq);
/* gate.c */
void ref_gate(struct kernels *k, struct dev_ptr ids, struct dev_ptr weights, struct dev_ptr x,
              const struct weight *gate, const struct weight *bias, const struct weight *table,
              struct dev_ptr tokens, int T);
/* moe.c */
void ref_moe_parts(struct kernels *k, struct dev_ptr parts, struct dev_ptr xq, struct dev_ptr ids,
                   struct dev_ptr weights, const struct expert_weights *experts,
                   const struct expert_weights *shared, int first, int n, int T);
void ref_moe_sum(struct kernels *k, struct dev_ptr y, struct dev_ptr parts, struct dev_ptr ids,
                 int T);
void ref_moe(struct kernels *k, struct dev_ptr y, struct dev_ptr xq, struct dev_ptr ids,
             struct dev_ptr weights, const struct expert_weights *experts,
             const struct expert_weights *shared, int T);

#endif
