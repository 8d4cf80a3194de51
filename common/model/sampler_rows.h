/*
 * sampler_rows: the passes over a row of logits that are worth vectors: what sampler.c needs from
 * each level. Written once (sampler_rows.c) over 16 lanes (sampler_lanes.h) and built per ISA.
 *
 * A row is cut into chunks of 256 ids, a chunk into 16 groups by lane: group l of chunk c has the
 * ids 256 c + 16 r + l, r = 0 .. 15. Maxima of groups and of chunks are a tree over the row: a pass
 * that looks for large logits skips what cannot have any.
 *
 * Promises  every level gives the same bits: lanes are added in the same order, no operation is
 *           fused, and none comes from libm. search() may differ in principle (it is a filter that
 * is allowed false alarms), and does not.
 */
#ifndef BATON_COMMON_MODEL_SAMPLER_ROWS_H
#define BATON_COMMON_MODEL_SAMPLER_ROWS_H

#include <stddef.h>
#include <stdint.h>

enum { ROW_LANES = 16, ROW_CHUNK = 256 };

/* Ids at and above the vocabulary read as -inf, from tail. */
struct sampler_row {
    const float *logits;
    const float *tail; /* [ROW_CHUNK]: the last chunk, where it is not whole; otherwise NULL */
    int32_t n_chunks;
};

static inline const float *row_chunk(const struct sampler_row *row, int32_t c)
{
    if (row->tail != NULL && c == row->n_chunks - 1)
        return row->tail;
    return row->logits + (int64_t)c * ROW_CHUNK;
}

/* How x becomes a probability relative to the best: 2^((x - best) * scale), scale = log2(e) /
 * temperature. Below 2^-126 it stays there; NaN is that, too. */
struct row_scale {
    float best;
    float scale;
};

/* A place in the ranking: what comes before it has a larger logit, or the same and a lower id. */
struct row_rank {
    float x;
    int32_t id;
};

/* Which groups may have a member that beats the best score so far (see sampler_noise.h). */
struct row_search {
    const float *group_max; /* [n_chunks * ROW_LANES] */
    int32_t n_chunks;
    struct row_scale scale;
    float least;      /* groups below are out */
    float bound;      /* a group stays if its word >> 8 <= bound * probability of its maximum */
    uint32_t keys[2]; /* of the group words */
};

struct sampler_rows {
    /* group_max [n_chunks * ROW_LANES], chunk_max [n_chunks]; NaN is never a maximum */
    void (*maxima)(const struct sampler_row *row, float *group_max, float *chunk_max);
    /* sum of the probabilities */
    double (*total)(const struct sampler_row *row, struct row_scale scale);
    /* the same over what ranks before r, and how many these are */
    double (*before)(const struct sampler_row *row, const float *chunk_max, struct row_scale scale,
                     struct row_rank r, int32_t *n);
    /* first chunk at or after c with such groups, and them as bits (lane l: 1 << l); n_chunks: none
     */
    int32_t (*search)(const struct row_search *q, int32_t c, uint32_t *groups);
};

extern const struct sampler_rows sampler_rows_plain;
extern const struct sampler_rows sampler_rows_avx2;
extern const struct sampler_rows sampler_rows_avx512;

#endif
