#include "kernels/cuda/compress.h"
#include "kernels/cuda/row.h"

/*
 * Three kernels, each a block a row of the batch; a row that completes no entry has nothing to do
 * in the first two, so that the host need not know which do: pool    grid [T][128 channels]:
 * softmax over the tokens of the group, a channel a thread finish  grid [T]: norm, rotation and the
 * row's format, in shared memory (4 ROW_DIM_MAX bytes) store   grid [T]: the new rows into the
 * ring, after pool has read it Bound by bytes: 8 cols a token, read twice (pool, store) and written
 * once; of ratio 4, each token is pooled in two entries, the second time from L2.
 */
enum { STEP = 4 }; /* tokens whose loads are under way together */

struct place {
    int64_t row;
    int pos, start, first_row, seq;
    float *ring;
};

CUDA_DEVICE struct place place_of(const struct compress_args *a, int64_t row)
{
    struct place p;
    int64_t slot;

    p.row = row;
    p.pos = DEV(const int32_t, a->b.row_pos)[row];
    p.seq = DEV(const int32_t, a->b.row_seq)[row];
    p.start = DEV(const int32_t, a->b.seq_start)[p.seq];
    p.first_row = DEV(const int32_t, a->b.seq_row)[p.seq];
    slot = DEV(const int32_t, a->b.seq_slot)[p.seq];
    p.ring = (float *)(void *)(DEV(uint8_t, a->v.states) + slot * (int64_t)a->v.slot_stride +
                               (int64_t)(a->for_index ? a->v.index_comp_off : a->v.comp_off));
    return p;
}

CUDA_DEVICE float *ring_row(const struct compress_args *a, const struct place *p, int position)
{
    return p->ring + (int64_t)(position % a->v.comp_rows) * 2 * a->cols;
}

CUDA_DEVICE float score_with_ape(const struct compress_args *a, int64_t row, int position, int col)
{
    return a->score[row * a->cols + col] + a->ape[(int64_t)(position % a->v.ratio) * a->cols + col];
}

/* Value and score of a token, from this batch or from the ring. */
CUDA_DEVICE void token_at(const struct compress_args *a, const struct place *p, int position,
                          int col, float *kv, float *score)
{
    if (position >= p->start) {
        int64_t row = p->first_row + position - p->start;

        *kv = a->kv[row * a->cols + col];
        *score = score_with_ape(a, row, position, col);
    } else {
        const float *ring = ring_row(a, p, position);

        *kv = ring[col];
        *score = ring[a->cols + col];
    }
}

CUDA_KERNEL(pool_kernel, struct compress_args)
{
    struct place p = place_of(&a, (int64_t)blockIdx.x);
    int c = (int)(blockIdx.y * CUDA_BLOCK + threadIdx.x), overlap = a.v.ratio == 4;
    int first = p.pos + 1 - a.v.ratio, begin = overlap && first >= 4 ? first - 4 : first;
    float top = -INFINITY, total = 0, sum = 0;

    if (c >= a.dim || (p.pos + 1) % a.v.ratio != 0)
        return;
    for (int position = begin; position <= p.pos; position += STEP) {
        /* ratio 4: the group itself is in the upper columns, the one before in the lower */
        int col = overlap && position == first ? a.dim + c : c;
        float kv[STEP], score[STEP], most = top, base, factor;

        CUDA_EACH (i, STEP)
            token_at(&a, &p, position + i, col, &kv[i], &score[i]);
        CUDA_EACH (i, STEP)
            most = fmaxf(most, score[i]);
        base = most == -INFINITY ? 0 : most;
        factor = expf(top - base);
        total *= factor;
        sum *= factor;
        CUDA_EACH (i, STEP) {
            float e = expf(score[i] - base);

            total += e;
            sum = fmaf(kv[i], e, sum);
        }
        top = most;
    }
    a.pooled[p.row * a.dim + c] = dev_to_bf16(sum / total);
}

CUDA_KERNEL(finish_kernel, struct compress_args)
{
    __shared__ float x[ROW_DIM_MAX], scratch[CUDA_BLOCK / CUDA_WARP];
    struct place p = place_of(&a, (int64_t)blockIdx.x);
    int g = p.pos / a.v.ratio, at = g % a.v.entries_per_page;
    uint8_t *page;

    if ((p.pos + 1) % a.v.ratio != 0)
        return; /* the whole block */
    page = DEV(uint8_t, a.v.pages) +
           (int64_t)DEV(
               const int32_t,
               a.b.block_table)[(int64_t)p.seq * a.b.table_stride + g / a.v.entries_per_page] *
               (int64_t)a.v.page_stride;
    for (int c = (int)threadIdx.x; c < a.dim; c += CUDA_BLOCK)
        x[c] = dev_from_bf16(a.pooled[p.row * a.dim + c]);
    row_norm(x, a.norm, a.dim, a.eps, scratch);
    row_rotate(x, a.dim, a.rope_dim, p.pos + 1 - a.v.ratio, a.freq);
    if (a.for_index) {
        row_hadamard(x, a.dim);
        row_pack_key(page + a.v.key_off + (int64_t)at * a.v.key_bytes, x, a.dim);
    } else {
        row_pack_entry(page + a.v.entry_off + (int64_t)at * a.v.row_bytes, x, a.dim, a.rope_dim,
                       a.v.row_bytes);
    }
}

/* Of a sequence, the last comp_rows rows: no two blocks write one ring row. */
CUDA_KERNEL(store_kernel, struct compress_args)
{
    struct place p = place_of(&a, (int64_t)blockIdx.x);
    float *ring = ring_row(&a, &p, p.pos);

    if (p.row + a.v.comp_rows < DEV(const int32_t, a.b.seq_row)[p.seq + 1])
        return;
    for (int c = (int)threadIdx.x; c < a.cols; c += CUDA_BLOCK) {
        ring[c] = a.kv[p.row * a.cols + c];
        ring[a.cols + c] = score_with_ape(&a, p.row, p.pos, c);
    }
}

CUDA_API void cuda_compress(cuda_stream s, struct compress_args args)
{
    int T = args.b.n_rows;

    if (T <= 0)
        return;
    CUDA_LAUNCH(pool_kernel, struct compress_args, T, (args.dim + CUDA_BLOCK - 1) / CUDA_BLOCK,
                CUDA_BLOCK, s, args);
    CUDA_LAUNCH(finish_kernel, struct compress_args, T, 1, CUDA_BLOCK, s, args);
    CUDA_LAUNCH(store_kernel, struct compress_args, T, 1, CUDA_BLOCK, s, args);
}
