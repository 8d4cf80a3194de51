#include "kernels/cuda/streams.h"
#include "kernels/cuda/device.h"

enum { HC = STREAMS_HC, MIX = STREAMS_MIX, SUMS = MIX + 1, QUAD = 4 };

/* Four bf16 values at a time: a word of 8 bytes. */
struct quad {
    uint16_t v[QUAD];
};

CUDA_DEVICE struct quad load_quad(const uint16_t *p)
{
    union {
        uint64_t bits;
        struct quad q;
    } u;

    u.bits = *(const uint64_t *)(const void *)p;
    return u.q;
}

CUDA_DEVICE void store_quad(uint16_t *p, struct quad q)
{
    union {
        uint64_t bits;
        struct quad q;
    } u;

    u.q = q;
    *(uint64_t *)(void *)p = u.bits;
}

/* ---- embedding: grid [T][copies]; bound by bytes: 2 (1 + copies) hidden a token ---- */

CUDA_KERNEL(embed_kernel, struct embed_args)
{
    const uint16_t *row = a.table + (int64_t)a.tokens[blockIdx.x] * a.hidden;
    uint16_t *out = a.streams + ((int64_t)blockIdx.x * a.copies + blockIdx.y) * a.hidden;

    for (int i = QUAD * (int)threadIdx.x; i < a.hidden; i += QUAD * CUDA_BLOCK)
        store_quad(out + i, load_quad(row + i));
}

CUDA_API void cuda_embed(cuda_stream s, struct embed_args args, int T)
{
    if (T > 0)
        CUDA_LAUNCH(embed_kernel, struct embed_args, T, args.copies, CUDA_BLOCK, s, args);
}

/* ---- hyper-connections, read ---- */

enum { MIX_ROWS = 4, WARPS = CUDA_BLOCK / CUDA_WARP, WARP_FN = MIX / WARPS };

CUDA_DEVICE int n_slices(const struct hc_read_args *a)
{
    return (HC * a->hidden + STREAMS_SLICE - 1) / STREAMS_SLICE;
}

CUDA_DEVICE const uint16_t *streams_of(const struct hc_read_args *a, int64_t t)
{
    return a->streams + (a->rows != 0 ? a->rows[t] : t) * HC * a->hidden;
}

struct mix_args {
    struct hc_read_args a;
    int T;
};

/*
 * Products of the streams with fn, and the squares, over one slice of columns: grid [slice]
 * [MIX_ROWS tokens], so that one token alone has hidden / 128 blocks to read fn (1.5 MB in Flash)
 * with. A warp has WARP_FN rows of fn and adds up over its lanes' columns; warp 0 has the squares
 * too. No shared memory. Bytes a block: 4 n_fn STREAMS_SLICE of fn, 2 MIX_ROWS STREAMS_SLICE of
 * streams; 2 n_fn MIX_ROWS STREAMS_SLICE FLOPs: FMA-bound from 4 tokens on.
 */
CUDA_KERNEL(hc_mix_kernel, struct mix_args)
{
    int warp = (int)threadIdx.x / CUDA_WARP, lane = warp_lane();
    int begin = (int)blockIdx.x * STREAMS_SLICE, n = HC * a.a.hidden;
    int end = begin + STREAMS_SLICE < n ? begin + STREAMS_SLICE : n;
    int t0 = (int)blockIdx.y * MIX_ROWS;
    float sum[MIX_ROWS][WARP_FN], square[MIX_ROWS];

    for (int r = 0; r < MIX_ROWS; r++) {
        square[r] = 0;
        for (int f = 0; f < WARP_FN; f++)
            sum[r][f] = 0;
    }
    for (int c = begin + QUAD * lane; c < end; c += QUAD * CUDA_WARP) {
        float x[MIX_ROWS][QUAD];

        for (int r = 0; r < MIX_ROWS; r++) { /* beyond T: the last row again, not stored */
            struct quad q = load_quad(streams_of(&a.a, t0 + r < a.T ? t0 + r : a.T - 1) + c);

            for (int i = 0; i < QUAD; i++) {
                x[r][i] = dev_from_bf16(q.v[i]);
                square[r] = fmaf(x[r][i], x[r][i], square[r]);
            }
        }
        for (int f = 0; f < WARP_FN; f++) {
            int at = warp * WARP_FN + f;
            const float *w = a.a.fn + (int64_t)(at < a.a.n_fn ? at : 0) * n + c;

            for (int i = 0; i < QUAD; i++)
                for (int r = 0; r < MIX_ROWS; r++)
                    sum[r][f] = fmaf(w[i], x[r][i], sum[r][f]);
        }
    }
    for (int r = 0; r < MIX_ROWS; r++) {
        float *out = a.a.partial + ((int64_t)(t0 + r) * n_slices(&a.a) + blockIdx.x) * SUMS;

        square[r] = warp_sum(square[r], CUDA_WARP);
        for (int f = 0; f < WARP_FN; f++)
            sum[r][f] = warp_sum(sum[r][f], CUDA_WARP);
        if (t0 + r >= a.T || lane != 0)
            continue;
        for (int f = 0; f < WARP_FN; f++)
            out[warp * WARP_FN + f] = sum[r][f];
        if (warp == 0)
            out[MIX] = square[r];
    }
}

CUDA_DEVICE float sigmoid(float x)
{
    return 1 / (1 + expf(-x));
}

enum { SLICES_MAX = HC * STREAMS_HIDDEN_MAX / STREAMS_SLICE };

/* mix [SUMS], shared: sums over the slices, in order, then divided by the root. parts: shared,
 * [SLICES_MAX * SUMS]: all of them are fetched at once, for one after the other would be a wait
 * each. */
CUDA_DEVICE void finish_mix(float *mix, float *parts, const struct hc_read_args *a, int64_t t)
{
    int i = (int)threadIdx.x, n = n_slices(a);
    float sum = 0, root;

    for (int k = i; k < n * SUMS; k += CUDA_BLOCK)
        parts[k] = a->partial[t * n * SUMS + k];
    __syncthreads(); /* parts: all threads to the first ones */
    if (i < SUMS) {
        for (int k = 0; k < n; k++)
            sum += parts[k * SUMS + i];
        mix[i] = sum;
    }
    __syncthreads(); /* mix[MIX], the squares: its thread to all */
    root = sqrtf(mix[MIX] / (float)(HC * a->hidden) + a->norm_eps);
    if (i < MIX)
        mix[i] = sum / root; /* this thread's own; mix[MIX] stays */
    __syncthreads();         /* mix: the first threads to all */
}

/* comb of one token: lane 4 a + b of the first warp has c[a][b]; the other lanes repeat it. Rows
 * and columns are sums over 4 lanes; iterations as in ref. */
CUDA_DEVICE void sinkhorn(float *comb, const float *mix, const struct hc_read_args *a)
{
    int at = warp_lane() % (HC * HC);
    float x = fmaf(mix[at], a->scale[2], a->base[2 * HC + at]), top = x, sum;

    for (int mask = 1; mask < HC; mask *= 2)
        top = fmaxf(top, warp_xor(top, mask));
    x = expf(x - top);
    sum = x;
    for (int i = 0; i < 2 * a->iters; i++) {
        int step = i % 2 == 0 ? 1 : HC; /* rows, then columns */

        for (int mask = step; mask < HC * step; mask *= 2)
            sum += warp_xor(sum, mask);
        x = i == 0 ? x / sum + a->hc_eps : x / (sum + a->hc_eps);
        sum = x;
    }
    if (warp_lane() < HC * HC)
        comb[at] = x;
}

/* x = rms_norm(bf16(sum_h pre[h] * s[h])) of token t. */
CUDA_DEVICE void read_streams(const struct hc_read_args *a, int64_t t, const float *pre,
                              uint16_t *row, float *scratch)
{
    const uint16_t *s = streams_of(a, t);
    uint16_t *out = a->x + t * a->hidden;
    float square = 0, root;

    for (int i = QUAD * (int)threadIdx.x; i < a->hidden; i += QUAD * CUDA_BLOCK) {
        float sum[QUAD] = {0, 0, 0, 0};
        struct quad r;

        for (int h = 0; h < HC; h++) {
            struct quad q = load_quad(s + h * a->hidden + i);

            for (int j = 0; j < QUAD; j++)
                sum[j] = fmaf(pre[h], dev_from_bf16(q.v[j]), sum[j]);
        }
        for (int j = 0; j < QUAD; j++) {
            float x = dev_bf16_grid(sum[j]);

            r.v[j] = dev_to_bf16(x);
            square = fmaf(x, x, square);
        }
        store_quad(row + i, r); /* read again by this thread alone */
    }
    root = sqrtf(block_sum(square, scratch) / (float)a->hidden + a->norm_eps);
    for (int i = QUAD * (int)threadIdx.x; i < a->hidden; i += QUAD * CUDA_BLOCK) {
        struct quad q = load_quad(row + i);

        if (a->norm != 0)
            for (int j = 0; j < QUAD; j++)
                q.v[j] = dev_to_bf16(dev_from_bf16(a->norm[i + j]) * dev_from_bf16(q.v[j]) / root);
        store_quad(out + i, q);
    }
}

/*
 * What follows from the mix: grid [T][2]: one block of a token makes x, the other post and comb, so
 * that Sinkhorn's 40 dependent steps run beside the reading of the streams. Shared: the row,
 * 2 STREAMS_HIDDEN_MAX bytes, the mix and its parts, 6,400. Bytes a token: 2 (hc + 1) hidden and
 * the partial sums.
 */
CUDA_KERNEL(hc_finish_kernel, struct hc_read_args)
{
    __shared__ uint64_t row[STREAMS_HIDDEN_MAX / QUAD];
    __shared__ float mix[SUMS], pre[HC], scratch[WARPS], parts[SLICES_MAX * SUMS];
    int64_t t = blockIdx.x;
    int h = (int)threadIdx.x;

    finish_mix(mix, parts, &a, t);
    if (blockIdx.y == 0) {
        if (h < HC)
            pre[h] = sigmoid(fmaf(mix[h], a.scale[0], a.base[h])) + a.hc_eps;
        __syncthreads(); /* pre: threads h < HC to all */
        read_streams(&a, t, pre, (uint16_t *)(void *)row, scratch);
    } else if (h < CUDA_WARP) {
        sinkhorn(a.comb + t * HC * HC, mix + 2 * HC, &a);
        if (h < HC)
            a.post[t * HC + h] = 2 * sigmoid(fmaf(mix[HC + h], a.scale[1], a.base[HC + h]));
    }
}

static void read_launch(cuda_stream s, struct hc_read_args args, int T, int n_roles)
{
    int slices = (HC * args.hidden + STREAMS_SLICE - 1) / STREAMS_SLICE;
    struct mix_args mix = {args, T};

    if (T <= 0)
        return;
    CUDA_LAUNCH(hc_mix_kernel, struct mix_args, slices, (T + MIX_ROWS - 1) / MIX_ROWS, CUDA_BLOCK,
                s, mix);
    CUDA_LAUNCH(hc_finish_kernel, struct hc_read_args, T, n_roles, CUDA_BLOCK, s, args);
}

CUDA_API void cuda_hc_read(cuda_stream s, struct hc_read_args args, int T)
{
    args.rows = 0;
    args.n_fn = MIX;
    read_launch(s, args, T, 2);
}

CUDA_API void cuda_hc_head(cuda_stream s, struct hc_read_args args, int n)
{
    args.n_fn = HC;
    read_launch(s, args, n, 1);
}

/* ---- hyper-connections, write: grid [hidden / 512][T]; a thread has four columns of all streams.
 * Bytes a token: 2 (2 hc + 1) hidden. ---- */

CUDA_KERNEL(hc_write_kernel, struct hc_write_args)
{
    int64_t t = blockIdx.y;
    int i = QUAD * (int)(blockIdx.x * CUDA_BLOCK + threadIdx.x);
    const float *post = a.post + t * HC, *comb = a.comb + t * HC * HC;
    struct quad in[HC], y;

    if (i >= a.hidden)
        return;
    y = load_quad(a.y + t * a.hidden + i);
    for (int h = 0; h < HC; h++)
        in[h] = load_quad(a.streams + (t * HC + h) * a.hidden + i);
    for (int to = 0; to < HC; to++) {
        struct quad out;

        for (int j = 0; j < QUAD; j++) {
            float sum = post[to] * dev_from_bf16(y.v[j]);

            for (int from = 0; from < HC; from++)
                sum = fmaf(comb[from * HC + to], dev_from_bf16(in[from].v[j]), sum);
            out.v[j] = dev_to_bf16(sum);
        }
        store_quad(a.out + (t * HC + to) * a.hidden + i, out);
    }
}

CUDA_API void cuda_hc_write(cuda_stream s, struct hc_write_args args, int T)
{
    int columns = QUAD * CUDA_BLOCK;

    if (T > 0)
        CUDA_LAUNCH(hc_write_kernel, struct hc_write_args, (args.hidden + columns - 1) / columns, T,
                    CUDA_BLOCK, s, args);
}

/* ---- MTP join: grid [hidden / 512][T]; bytes a token: 2 (2 hc + 1) hidden ---- */

CUDA_KERNEL(mtp_join_kernel, struct mtp_join_args)
{
    int64_t t = blockIdx.y;
    int i = QUAD * (int)(blockIdx.x * CUDA_BLOCK + threadIdx.x);
    struct quad e;

    if (i >= a.hidden)
        return;
    e = load_quad(a.e + t * a.hidden + i);
    for (int h = 0; h < HC; h++) {
        struct quad q = load_quad(a.h + (t * HC + h) * a.hidden + i);

        for (int j = 0; j < QUAD; j++)
            q.v[j] = dev_to_bf16(dev_from_bf16(e.v[j]) + dev_from_bf16(q.v[j]));
        store_quad(a.out + (t * HC + h) * a.hidden + i, q);
    }
}

CUDA_API void cuda_mtp_join(cuda_stream s, struct mtp_join_args args, int T)
{
    int columns = QUAD * CUDA_BLOCK;

    if (T > 0)
        CUDA_LAUNCH(mtp_join_kernel, struct mtp_join_args, (args.hidden + columns - 1) / columns, T,
                    CUDA_BLOCK, s, args);
}
