/* backend_internal: what the parts of the backend share. Private to backend*.c.
 *
 *   backend.c          opening, recordings, the device among others
 *   backend_memory.c   memory, order, writes small and large, pieces on their way
 *   backend_weights.c  weights into panels, experts into tables
 *   backend_draws.c    tokens drawn from logits
 */
#ifndef BATON_KERNELS_CUDA_BACKEND_INTERNAL_H
#define BATON_KERNELS_CUDA_BACKEND_INTERNAL_H

#include "kernels/cuda/backend.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sampler.h"

enum { PIECE_BYTES = 16 << 20, LAYERS_MAX = 512 };

/* The experts of one layer. */
struct experts {
    const struct expert_weights *key;
    uint64_t table; /* struct moe_expert [n_experts] */
    int type;
};

/* What the host writes and moves: backend_memory.c. */
struct backend_memory {
    uint8_t *piece[2]; /* pinned */
    uint64_t raw[2];   /* where they arrive */
    int turn;
    uint8_t *ring; /* pinned: the data of small writes */
    size_t ring_used;
    struct kernel_piece *writes; /* pinned, [WRITES_MAX] */
    int n_writes, n_sent;        /* made so far and already launched, since the last sync() */
    uint8_t *moves;              /* pinned: lists of dev_move() */
};

/* One round of draws: backend_draws.c. */
struct backend_draws {
    struct sample_row *rows; /* pinned, [SAMPLE_ROWS] */
    int32_t *ids;            /* pinned, [SAMPLE_ROWS] */
    uint64_t device;         /* the same on the device, one behind the other */
};

struct backend {
    struct cuda_ops ops;
    struct kernel_ops table;
    char name[32];
    struct gpu *gpu;
    struct backend_memory memory;
    struct backend_draws draws;
    struct experts layers[LAYERS_MAX];
    int n_layers;
};

static inline struct backend *backend_of(struct kernels *k)
{
    return k->self;
}

/** @return -1, with k->error set */
int backend_fail(struct kernels *k, const char *why);

/* ---- each part: takes what it needs (@return what there is no room for; NULL: it has all), gives
 * back what is not the device's own, and adds its operations to the table ---- */

const char *backend_memory_open(struct backend *b);
void backend_memory_close(struct backend *b);
void backend_memory_fill(struct kernel_ops *ops);

void backend_weights_fill(struct kernel_ops *ops);

const char *backend_draws_open(struct backend *b);
void backend_draws_close(struct backend *b);
void backend_draws_fill(struct kernel_ops *ops, const struct kernel_dims *dims);

/* ---- backend_memory.c, for the others ---- */

/** The pinned piece whose turn it is, free again, of PIECE_BYTES; fill_piece() copies to it, and
 * end_piece() gives the turn to the other. */
void backend_begin_piece(struct backend *b);
void backend_fill_piece(struct kernels *k, size_t at, const void *src, size_t bytes);
void backend_end_piece(struct backend *b);
/** Queued at once, piece by piece. */
void backend_large_write(struct kernels *k, uint64_t dst, const void *src, size_t bytes);

struct dev_ptr backend_alloc(struct kernels *k, size_t bytes);
void backend_free(struct kernels *k, struct dev_ptr p);
/** Waits for what is queued. @return 0, or -1 with k->error set */
int backend_sync(struct kernels *k);

#endif
