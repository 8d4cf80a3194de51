/*
 * ops: operations of kernels.h on rows, streams and KV, as calls of the launch functions here: from
 * struct kernels and device addresses to their arguments, and the workspace each needs.
 *
 * Written in device.h's C, so that the table which a GPU runs is the one that tests run on the
 * host. Memory and weights are backend.h's.
 */
#ifndef BATON_KERNELS_CUDA_OPS_H
#define BATON_KERNELS_CUDA_OPS_H

#include <stddef.h>

#include "kernels/cuda/stream.h"
#include "kernels/kernels.h"

/* Where operations run. Work is in stream order, so all of them use one workspace. */
struct cuda_ops {
    cuda_stream stream;
    void *work; /* device memory, aligned to 16 */
    size_t work_bytes;
    int n_sms;
    int native_e4m3; /* see warp_mma_e4m3() */
};

/** The backend says where its struct cuda_ops is. */
CUDA_API struct cuda_ops *cuda_ops_of(struct kernels *k);

struct moe_expert;
/** The backend keeps a layer's experts on the device. @param type  out: enum panel_type */
CUDA_API const struct moe_expert *cuda_experts_of(struct kernels *k,
                                                  const struct expert_weights *experts, int *type);
/** What the device is to know of n experts; zeroes for those that are not loaded. */
CUDA_API void cuda_experts_list(struct moe_expert *out, const struct expert_weights *experts,
                                int n);

/** Sets rms_norm, embed, hc_*, mtp_join, q_norm_rope, kv_latent, compress, index_*, attention,
 * window_commit, gate. */
CUDA_API void cuda_ops_fill(struct kernel_ops *ops);
/** Sets act_quant*, linear*, moe*; cuda_ops_fill() calls it. */
CUDA_API void cuda_products_fill(struct kernel_ops *ops);
CUDA_API size_t cuda_products_work_bytes(const struct kernel_dims *dims);

/** Workspace that every call within the dims fits into; more (to some 100 MB) makes index_select of
 * long contexts go in fewer rounds, and lets more rows of decode attention be split. */
CUDA_API size_t cuda_ops_work_bytes(const struct kernel_dims *dims);

/** @return NULL, or which limit of the kernels these dims break */
CUDA_API const char *cuda_ops_refuse(const struct kernel_dims *dims);

#endif
