/*
 * geometry: where every byte of V4's KV lies, computed from the configuration.
 *
 * Two slabs hold the six pools. A PAGE of the page slab is one logical page (256 tokens) of all
 * layers, page-first, so that moving a page is moving one run of bytes:
 *
 *   | c4 entries of layer a | of layer b | ... | index keys of a | of b | ... | c128 entries of c |
 * ... | 64 rows of row_bytes                       64 rows of key_bytes           2 rows of
 * row_bytes
 *
 * A SLOT of the state slab is what one live sequence keeps whatever its length: per layer (MTP
 * block last) the ring of window latents (swa), and per compressed layer the rings of its
 * compressors (c4_state, its indexer's, c128_state). Row i of a ring holds a position p with p %
 * rows == i. Rings are longer than what the model reads by KV_DRAFT_SLACK rows: a rejected draft
 * token never overwrites a row that is still needed, so rolling back is setting the length.
 *
 * Row formats (exact: the model rounds to these grids before use):
 *   latent, entry   (D - R) FP8 E4M3 | R bf16 | (D - R)/64 scales E8M0 | zeros to a multiple of 8
 *   index key       Di/2 bytes FP4 E2M1 pairs, low nibble first | Di/32 scales E8M0
 *   compressor row  f32 kv[cols], f32 score[cols] (ape added); cols = 2 dim (ratio 4), dim (ratio
 * 128)
 *
 * Threads   read-only after kv_geometry_init().
 */
#ifndef BATON_COMMON_KV_GEOMETRY_H
#define BATON_COMMON_KV_GEOMETRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum {
    KV_PAGE_TOKENS = 256, /* tokens of a logical page; a multiple of every ratio */
    KV_DRAFT_SLACK = 8, /* ring rows beyond what the model reads: one more than the longest draft */
    KV_LAYERS_MAX = 128
};

/* The pools of DESIGN, by what they hold. */
enum kv_pool { KV_SWA, KV_C4, KV_C128, KV_INDEXER, KV_C4_STATE, KV_C128_STATE, KV_N_POOLS };

/** Its name, in logs and metrics. */
const char *kv_pool_name(enum kv_pool pool);

/** Whether it lies in slots, else in pages. */
static inline bool kv_pool_in_slot(enum kv_pool pool)
{
    return pool == KV_SWA || pool == KV_C4_STATE || pool == KV_C128_STATE;
}

/* Where one layer's parts lie; offsets in bytes from the start of a page or slot, unused parts 0.
 */
struct kv_layer {
    int ratio;           /* 0, 4, 128 */
    uint32_t entry_off;  /* page: compressed entries */
    uint32_t key_off;    /* page: index keys (ratio 4) */
    uint32_t entries;    /* rows of each per page: KV_PAGE_TOKENS / ratio, 0 for ratio 0 */
    uint32_t window_off; /* slot: ring of window_rows latents */
    uint32_t comp_off;   /* slot: ring of comp_rows compressor rows */
    uint32_t comp_row_bytes;
    uint32_t comp_rows;
    uint32_t index_comp_off; /* slot: the indexer's compressor ring, comp_rows rows (ratio 4) */
    uint32_t index_comp_row_bytes;
};

struct kv_geometry {
    int n_layers; /* the MTP blocks included, last */
    int window;   /* tokens the model attends to */
    uint32_t window_rows;
    uint32_t row_bytes; /* latent or entry */
    uint32_t key_bytes; /* index key; 0 without ratio-4 layers */
    uint64_t page_bytes;
    uint64_t slot_bytes;
    uint64_t pool_bytes[KV_N_POOLS]; /* per page or per slot */
    struct kv_layer layers[KV_LAYERS_MAX];
};

/* What the layout depends on (from config.json). */
struct kv_geometry_params {
    int n_layers;      /* MTP blocks included */
    const int *ratios; /* [n_layers]: 0, 4 or 128 */
    int head_dim, rope_dim, index_head_dim, window;
};

/** @return ST_OK; ST_INVALID for a ratio, dimension or count that this layout cannot hold */
enum status_code kv_geometry_init(struct kv_geometry *g, const struct kv_geometry_params *params,
                                  struct status *st);

/**
 * A 64-bit hash of everything in g plus byte order and layout version: two workers whose hashes are
 * equal read each other's pages correctly.
 */
uint64_t kv_geometry_fingerprint(const struct kv_geometry *g);

/** Pages that n_tokens need. */
static inline uint32_t kv_pages_for(uint64_t n_tokens)
{
    return (uint32_t)((n_tokens + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS);
}

/* A run of bytes inside one page or slot. */
struct kv_run {
    uint32_t offset;
    uint32_t bytes;
};

/**
 * The runs of a page that hold data when n_tokens (1..256) of it are filled, merged and ascending.
 * A full page is one run.
 * @param runs  out, [cap]; cap >= 3 * KV_LAYERS_MAX suffices for every geometry
 * @return the number of runs
 */
size_t kv_page_runs(const struct kv_geometry *g, uint32_t n_tokens, struct kv_run *runs,
                    size_t cap);

/**
 * The runs of a slot that a sequence of length tokens needs to go on: the last min(length, window)
 * latents, the unfinished group of every compressor and, for ratio 4, the last finished group.
 * @param runs  out, [cap]; cap >= 6 * KV_LAYERS_MAX suffices
 */
size_t kv_slot_runs(const struct kv_geometry *g, uint64_t length, struct kv_run *runs, size_t cap);

/** Bytes of what kv_slot_runs() names at any page boundary, rounded up to 64: a state to go on from
 * there. */
uint64_t kv_snapshot_bytes(const struct kv_geometry *g);

/** All KV of a live sequence of n_tokens, pages and slot, divided by its tokens, rounded up. */
static inline uint64_t kv_bytes_per_token(const struct kv_geometry *g, uint64_t n_tokens)
{
    return (kv_pages_for(n_tokens) * g->page_bytes + g->slot_bytes + n_tokens - 1) / n_tokens;
}

#endif
