/*
 * model: a V4 checkpoint made runnable: weights on one device, the forward pass over ragged
 * batches, the MTP block, the head.
 *
 * Owns      the ranks (one, or --tp-size of them), with kernels, weights, the step's workspace
 * (sized at open; a forward allocates nothing). Promises  the logits of a sequence do not depend on
 * the batch it shares, on how its tokens were cut into spans, or on the number of threads: bit for
 * bit. Threads   one caller (the engine thread). Read-only getters: any, after model_open().
 */
#ifndef BATON_COMMON_MODEL_MODEL_H
#define BATON_COMMON_MODEL_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/pool.h"
#include "common/base/status.h"
#include "common/kv/geometry.h"
#include "common/model/config.h"
#include "kernels/kernels.h"

struct model;

struct model_options {
    const char *path;     /* checkpoint directory */
    const char *device;   /* "cpu", "cuda:0" */
    const char *cpu_isa;  /* "auto" or of kernels_cpu_names: the highest level used */
    int n_threads;        /* 0: one per CPU */
    int max_batch_tokens; /* rows of one forward, at most */
    int max_batch_seqs;
    int max_context;    /* tokens of one sequence, at most */
    int max_logit_rows; /* rows of logits of one forward, at most */
    bool pin_threads;   /* each to a CPU of its own: only when this process has them to itself */
    bool no_repack;     /* weights are used as mapped: starts at once, runs slower; same bits */
    /* Ranks that share the model (shard.h); 0: one. The bits are the same. On GPUs: one each, from
     * the one that device names on. */
    int tp_size;
    /* Called once when the group of ranks has failed, by the thread that found it; every forward
     * fails from then on, and a rank may be stuck in the model's memory for ever: the process
     * should end. NULL: nobody. */
    void (*on_group_failure)(void *arg, const char *reason);
    void *on_group_failure_arg;
    int inject_stall_rank; /* tests: this rank (> 0) stops for good at its third step */
    /* Tests: opens the backend instead of what device says; as kernels_open_cuda(). */
    int (*open_kernels)(struct kernels *k, int ordinal, const struct kernel_dims *dims,
                        const struct kernel_env *env);
    const char *nccl_library; /* tests; NULL: libnccl.so.2 */
};

/** @return ST_OK; ST_INVALID or ST_CORRUPT naming file, tensor, found and expected; ST_EXHAUSTED */
enum status_code model_open(const struct model_options *opt, struct model **out, struct status *st);
void model_free(struct model *m);

/** The KV layout of a checkpoint that is not open. @return as kv_geometry_init() */
enum status_code model_geometry_of(const struct model_config *c, struct kv_geometry *out,
                                   struct status *st);

const struct model_config *model_get_config(const struct model *m);
const struct kv_geometry *model_get_geometry(const struct model *m);

/** 64-bit hash of the configuration and of samples of every tensor's bytes: equal for two workers
 * that loaded the same checkpoint. */
uint64_t model_fingerprint(const struct model *m);

/** Total bytes of weights on the device or devices. */
uint64_t model_weight_bytes(const struct model *m);

/* What weights are for, by the names of their tensors. */
enum weight_class {
    WEIGHTS_EXPERTS,
    WEIGHTS_SHARED,
    WEIGHTS_ATTENTION,
    WEIGHTS_VOCABULARY,
    WEIGHTS_MTP,
    WEIGHTS_OTHER,
    WEIGHT_CLASSES
};
extern const char *const weight_class_names[WEIGHT_CLASSES];

/** The same by class. @param out  [WEIGHT_CLASSES] */
void model_weight_classes(const struct model *m, uint64_t *out);

/** Bytes of the buffers of a step, logits included. */
uint64_t model_workspace_bytes(const struct model *m);

/**
 * Memory of the device of the rank that has least left, in bytes: what is taken by now (weights,
 * workspace, the backend's own, KV), and what is left. @return false: ranks have no memory of their
 * own, it is the host's */
bool model_room(const struct model *m, struct kernel_room *out);

/** Bytes that recordings (model_record()) take of the device's driver, of all ranks. */
uint64_t model_recorded_bytes(const struct model *m);

/** Ranks that share the model, and what each holds. @param rank  [0, model_n_ranks()) */
int model_n_ranks(const struct model *m);
void model_rank_bytes(const struct model *m, int rank, uint64_t *weights, uint64_t *workspace);

/** "cpu-avx512" and the like. */
const char *model_backend_name(const struct model *m);

/* The two KV slabs (see common/kv/geometry.h): memory of n_pages pages and n_slots slots. */
struct kv_memory {
    struct dev_ptr pages, slots;
    uint32_t n_pages, n_slots;
};

/** Device memory for KV, from the model's backend; freed with model_kv_free() before model_free().
 */
enum status_code model_kv_alloc(struct model *m, uint32_t n_pages, uint32_t n_slots,
                                struct kv_memory *out, struct status *st);
void model_kv_free(struct model *m, struct kv_memory *kv);

/**
 * Keeps the launches of decode steps, so that such a step costs one call instead of hundreds (CUDA
 * graphs): of up to max_seqs sequences, with up to max_tokens rows of each that all give logits
 * (drafts to verify), and of the MTP block over them. A step with fewer rows than a recording is
 * filled up. The bits are the same. Nothing where the backend's calls cost nothing, and on several
 * devices.
 * @param kv  that of every later step, from model_kv_alloc()
 * @return ST_OK; ST_EXHAUSTED with what the device said
 */
enum status_code model_record(struct model *m, const struct kv_memory *kv, int max_seqs,
                              int max_tokens, struct status *st);

/** Whether the KV may be any host memory (CPU); else it is model_kv_alloc()'s. */
bool model_kv_is_host(const struct model *m);

/** Host address of device memory that this process can read and write, or NULL (GPU). */
void *model_host_address(struct model *m, struct dev_ptr p);

/* Which rows of a span give logits. */
enum model_logits { MODEL_LOGITS_NONE, MODEL_LOGITS_LAST, MODEL_LOGITS_ALL };

/* One sequence's part of a batch: n_tokens new tokens after `start` that are already in the KV. */
struct model_span {
    const int32_t *tokens;
    int n_tokens;
    int64_t start;
    uint32_t slot; /* its state slot */
    const uint32_t
        *pages; /* block table: page of positions [256 i, 256 i + 256); covers start + n_tokens */
    enum model_logits logits;
};

/**
 * Runs the main model over a batch and advances the KV of its sequences.
 * @param logits  out, host f32 [rows asked for, in batch order][vocab]; borrowed until the next
 * call. NULL, here and below: they stay where they are, for model_sample() and model_logits()
 * @return ST_OK; ST_INVALID for a token id outside the vocabulary or a bound of the options passed;
 *         ST_INTERNAL for a device fault; ST_UNAVAILABLE when the group of ranks has failed
 */
enum status_code model_forward(struct model *m, const struct kv_memory *kv,
                               const struct model_span *spans, int n_spans, const float **logits,
                               struct status *st);

/**
 * Runs MTP block 0 over the rows of the LAST model_forward(): row i joins the streams of position p
 * with next_tokens[i], the token at p + 1, and predicts token p + 2. Advances the MTP layer's
 * window in the same slots.
 * @param next_tokens  [rows of that batch]
 * @param rows         indices of the rows whose logits are wanted, [n]; n may be 0
 * @param logits       out, f32 [n][vocab], as in model_forward()
 */
enum status_code model_mtp(struct model *m, const struct kv_memory *kv, const int32_t *next_tokens,
                           const int32_t *rows, int n, const float **logits, struct status *st);

/**
 * One draft further: goes on from rows of the last model_mtp() or model_mtp_next(). Row i takes the
 * MTP streams of row from[i] as those of position spans[i].start, joins them with
 * spans[i].tokens[0] (the draft at start + 1) and predicts token start + 2. The window rows it
 * writes are a guess: the next model_mtp() over real streams replaces them.
 * @param spans   [n], one token each, one sequence each
 * @param logits  out, f32 [n][vocab]
 */
enum status_code model_mtp_next(struct model *m, const struct kv_memory *kv,
                                const struct model_span *spans, const int32_t *from, int n,
                                const float **logits, struct status *st);

/** Whether model_sample() is there: where logits need not come to the host. */
bool model_samples(const struct model *m);

/** The tokens that sampler.h draws from rows of the last step's logits.
 * @param draws  [n], rows ascending, each once
 * @param ids    out, [n]; -1: nothing can be drawn. @return ST_OK; ST_INTERNAL: a device fault */
enum status_code model_sample(struct model *m, const struct kernel_draw *draws, int n, int32_t *ids,
                              struct status *st);

/** All logits of the last step on the host, as model_forward() would have given them. */
enum status_code model_logits(struct model *m, const float **logits, struct status *st);

/** Whether the checkpoint has an MTP block. */
bool model_has_mtp(const struct model *m);

/** Zeroed device memory of the model's backend, or null; freed with model_memory_free(). */
struct dev_ptr model_memory_alloc(struct model *m, size_t bytes);
void model_memory_free(struct model *m, struct dev_ptr p);

/** Makes page-aligned host memory one that model_memory_move() reaches; where model_host_address()
 * gives NULL. @return ST_OK; ST_EXHAUSTED with what the device said */
enum status_code model_memory_share(struct model *m, void *host, size_t bytes, struct status *st);
void model_memory_unshare(struct model *m, void *host);

/** Copies pieces between device memory and such host memory, with checksums of the device's side of
 * their groups: see dev_move of kernels.h. @param crc  out, [n_groups]
 * @return ST_OK; ST_INTERNAL */
enum status_code model_memory_move(struct model *m, const struct kernel_piece *pieces, size_t n,
                                   const uint32_t *group_end, size_t n_groups, bool to_device,
                                   uint32_t *crc, struct status *st);

/** Copies device memory in the order of the forwards; ranges do not overlap. */
void model_memory_copy(struct model *m, struct dev_ptr dst, struct dev_ptr src, size_t bytes);

#endif
