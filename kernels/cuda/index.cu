#include "kernels/cuda/index.h"
#include "kernels/cuda/row.h"

/* ---- queries ---- */

enum { QUERY_WARPS = CUDA_BLOCK / CUDA_WARP, LANE_DIMS = INDEX_DIM / CUDA_WARP };

/*
 * A warp a head, four neighbouring values a lane: pairs of the rotation stay in a lane, Hadamard's
 * first two steps too, its other five are exchanges, and an FP4 block is 8 lanes. Bound by bytes: 4
 * INDEX_DIM a head.
 */
CUDA_KERNEL(index_query_kernel, struct index_query_args)
{
    int64_t head = (int64_t)blockIdx.x * QUERY_WARPS + (int)threadIdx.x / CUDA_WARP;
    int lane = warp_lane(), first = LANE_DIMS * lane - (INDEX_DIM - a.rope_dim);
    uint16_t *q = a.q + head * INDEX_DIM + LANE_DIMS * lane;
    float x[LANE_DIMS], y[LANE_DIMS], amax = 0, scale;

    if (head >= (int64_t)a.n_rows * a.n_heads)
        return; /* the whole warp */
    CUDA_EACH (i, LANE_DIMS)
        x[i] = dev_from_bf16(q[i]);
    if (first >= 0) {
        int32_t pos = a.row_pos[head / a.n_heads];

        dev_rotate(&x[0], &x[1], pos, a.freq[first / 2]);
        dev_rotate(&x[2], &x[3], pos, a.freq[first / 2 + 1]);
    }
    y[0] = x[0] + x[1], y[1] = x[0] - x[1], y[2] = x[2] + x[3], y[3] = x[2] - x[3];
    x[0] = y[0] + y[2], x[1] = y[1] + y[3], x[2] = y[0] - y[2], x[3] = y[1] - y[3];
    for (int mask = 1; mask < CUDA_WARP; mask *= 2)
        CUDA_EACH (i, LANE_DIMS) {
            float other = warp_xor(x[i], mask);

            x[i] = lane & mask ? other - x[i] : x[i] + other;
        }
    CUDA_EACH (i, LANE_DIMS) {
        x[i] = dev_bf16_grid(x[i] * (1 / sqrtf((float)INDEX_DIM)));
        amax = max_or_nan(amax, fabsf(x[i]));
    }
    scale = dev_from_e8m0(dev_fp4_scale(warp_max(amax, 32 / LANE_DIMS)));
    CUDA_EACH (i, LANE_DIMS)
        q[i] = dev_to_bf16(dev_from_e2m1(dev_to_e2m1(dev_clamp(x[i] / scale, 6))) * scale);
    if (lane == 0)
        a.weights[head] = dev_to_bf16(dev_from_bf16(a.weights[head]) * a.scale);
}

CUDA_API void cuda_index_query(cuda_stream s, struct index_query_args args)
{
    int64_t heads = (int64_t)args.n_rows * args.n_heads;

    if (heads > 0)
        CUDA_LAUNCH(index_query_kernel, struct index_query_args,
                    (heads + QUERY_WARPS - 1) / QUERY_WARPS, 1, CUDA_BLOCK, s, args);
}

/* ---- scores ---- */

/*
 * A warp has 2 tiles of 16 keys in its registers, as bf16, and goes over the heads, 8 at a time; a
 * block has 4 warps and goes over TOKENS rows, whose tokens share the keys. The products' k runs
 * through the dims in another order than they lie in: lane i of a group of four has dims 32i ..
 * 32i + 31, one FP4 block with one scale, of which step s takes 4s .. 4s + 3; so a lane reads 16
 * bytes of a key, and 8 of q for both halves of its b fragment.
 *
 * Grid      [128 keys][TOKENS rows of the round]
 * Shared    q as [head][4 blocks of 32 dims, 72 bytes apart], 288 bytes a head (no bank conflicts),
 *           and the weights: 290 n_heads bytes, 18,560 with 64.
 * Barriers  of a row: q may be overwritten; q and weights: all threads -> all.
 * Bound     2 n_heads INDEX_DIM FLOPs a key and row: 16,384 with 64 heads, 4.3 GFLOP over 262,144
 *           keys: 6.9 us at the 620 TFLOP/s that mma.sync reaches of an H200's peak; 68 bytes a key
 *           and block, 17.8 MB: 3.7 us. One row is bound by FLOPs already.
 */
enum {
    KEY_TILES = 2,
    WARP_KEYS = 16 * KEY_TILES,
    BLOCK_KEYS = WARP_KEYS * CUDA_BLOCK / CUDA_WARP,
    TOKENS = 8,
    STEPS = INDEX_DIM / 16,
    Q_BLOCK = 36,        /* bf16 values between blocks of 32 dims */
    Q_HEAD = 4 * Q_BLOCK /* and between heads */
};

CUDA_DEVICE int visible_to(const struct index_select_args *a, int64_t row)
{
    return (DEV(const int32_t, a->b.row_pos)[row] + 1) / a->v.ratio;
}

/* Two FP4 codes (a byte) as bf16: their bits, moved, are 2^126 too small. Exact. */
CUDA_DEVICE uint32_t decode_nibbles(uint32_t byte, uint32_t scale)
{
    uint32_t bits = (byte & 8) << 12 | (byte & 7) << 6 | (byte & 0x80) << 24 | (byte & 0x70) << 18;

    return dev_mul_bf16x2(dev_mul_bf16x2(bits, 0x7E807E80u), scale);
}

/* a fragments of keys [g, g + WARP_KEYS) of a sequence; from n on: 0. */
CUDA_DEVICE void load_keys(uint32_t keys[KEY_TILES][STEPS][4], const struct index_select_args *a,
                           int seq, int g, int n)
{
    int lane = warp_lane();

    CUDA_EACH (tile, KEY_TILES)
        CUDA_EACH (half, 2) {
            int at = g + tile * 16 + half * 8 + lane / 4;
            uint32_t words[4] = {0, 0, 0, 0}, e = 127, scale;

            if (at < n) {
                int32_t page =
                    DEV(const int32_t, a->b.block_table)[(int64_t)seq * a->b.table_stride +
                                                         at / a->v.entries_per_page];
                const uint8_t *row =
                    DEV(const uint8_t, a->v.pages) + (int64_t)page * (int64_t)a->v.page_stride +
                    (int64_t)a->v.key_off + (int64_t)(at % a->v.entries_per_page) * a->v.key_bytes;

                CUDA_EACH (i, 4)
                    words[i] = ((const uint32_t *)(const void *)row)[lane % 4 * 4 + i];
                e = row[INDEX_DIM / 2 + lane % 4];
            }
            scale = e == 255 ? 0x7FC0 : e == 0 ? 0x40 : e << 7;
            scale |= scale << 16;
            CUDA_EACH (step, STEPS) {
                uint32_t bytes = words[step / 2] >> (16 * (step % 2));

                keys[tile][step][half] = decode_nibbles(bytes & 0xFF, scale);
                keys[tile][step][half + 2] = decode_nibbles(bytes >> 8 & 0xFF, scale);
            }
        }
}

/* Row t's queries and weights into shared memory; heads up to a multiple of 8 are 0. */
CUDA_DEVICE void load_query(uint16_t *q, uint16_t *weights, const struct index_select_args *a,
                            int64_t t)
{
    int heads = (a->n_heads + 7) / 8 * 8;
    const uint64_t *from = (const uint64_t *)(const void *)(a->q + t * a->n_heads * INDEX_DIM);

    for (int i = (int)threadIdx.x; i < heads * INDEX_DIM / 4; i += CUDA_BLOCK) {
        int head = i / (INDEX_DIM / 4), c = i % (INDEX_DIM / 4) * 4;

        *(uint64_t *)(void *)(q + head * Q_HEAD + c / 32 * Q_BLOCK + c % 32) =
            head < a->n_heads ? from[i] : 0;
    }
    for (int i = (int)threadIdx.x; i < heads; i += CUDA_BLOCK)
        weights[i] = i < a->n_heads ? a->weights[t * a->n_heads + i] : 0;
}

CUDA_DEVICE float term(float dot, uint16_t weight)
{
    dot = dev_bf16_grid(dot);
    return dev_bf16_grid((dot < 0 ? 0 : dot) * dev_from_bf16(weight)); /* a NaN stays one */
}

/* A score's bf16 as a number that is larger for larger scores; +0 and -0 are equal, NaN least. */
CUDA_DEVICE uint16_t order_of(float score)
{
    uint16_t bits = dev_to_bf16(score);

    if (score != score)
        return 0;
    return (uint16_t)(bits & 0x8000 ? 0x8000 - (bits & 0x7FFF) : bits | 0x8000);
}

/* Scores of the warp's keys for the row in shared memory, into out[0 .. n). */
CUDA_DEVICE void score_keys(uint16_t *out, int n, const uint32_t keys[KEY_TILES][STEPS][4],
                            const uint16_t *q, const uint16_t *weights, int n_heads)
{
    int lane = warp_lane();
    float sum[KEY_TILES][2] = {{0}};

    for (int head = 0; head < n_heads; head += 8) {
        const uint16_t *at = q + (head + lane / 4) * Q_HEAD + lane % 4 * Q_BLOCK;
        uint16_t w0 = weights[head + lane % 4 * 2], w1 = weights[head + lane % 4 * 2 + 1];
        float d[KEY_TILES][4] = {{0}};

        CUDA_EACH (step, STEPS) {
            uint64_t four = *(const uint64_t *)(const void *)(at + 4 * step);
            uint32_t b[2] = {(uint32_t)four, (uint32_t)(four >> 32)};

            CUDA_EACH (tile, KEY_TILES)
                warp_mma(d[tile], keys[tile][step], b);
        }
        CUDA_EACH (tile, KEY_TILES)
            CUDA_EACH (half, 2)
                sum[tile][half] =
                    sum[tile][half] + term(d[tile][2 * half], w0) + term(d[tile][2 * half + 1], w1);
    }
    CUDA_EACH (tile, KEY_TILES)
        CUDA_EACH (half, 2) {
            int key = tile * 16 + half * 8 + lane / 4;
            float x = warp_sum(sum[tile][half], 4);

            if (lane % 4 == 0 && key < n)
                out[key] = order_of(x);
        }
}

CUDA_KERNEL(index_score_kernel, struct index_select_args)
{
    CUDA_DYNAMIC(memory);
    uint16_t *q = (uint16_t *)(void *)memory;
    uint16_t *weights = q + (a.n_heads + 7) / 8 * 8 * Q_HEAD;
    int first = (int)blockIdx.x * BLOCK_KEYS, g = first + (int)threadIdx.x / CUDA_WARP * WARP_KEYS;
    int begin = a.row0 + (int)blockIdx.y * TOKENS, end = begin + TOKENS, seq = -1, loaded = 0;
    uint32_t keys[KEY_TILES][STEPS][4];

    end = end < a.row0 + a.round_rows ? end : a.row0 + a.round_rows;
    end = end < a.b.n_rows ? end : a.b.n_rows;
    for (int t = begin; t < end; t++) {
        int n = visible_to(&a, t), its_seq = DEV(const int32_t, a.b.row_seq)[t];

        if (n <= first)
            continue; /* the whole block */
        if (its_seq != seq || (n > loaded && loaded < first + BLOCK_KEYS)) {
            load_keys(keys, &a, its_seq, g, n);
            seq = its_seq;
            loaded = n;
        }
        __syncthreads(); /* the last row's q has been read */
        load_query(q, weights, &a, t);
        __syncthreads(); /* q, weights: all threads to all */
        score_keys(a.scores + (int64_t)(t - a.row0) * a.stride + g, n - g, keys, q, weights,
                   a.n_heads);
    }
}

/* ---- the choice ---- */

/*
 * A block a row. The k-th largest score by counting its bits, 11 and then 5 (a histogram of the
 * first 8 would have its counts in a few bins, where atomics queue); then what is above it in any
 * order, and of what equals it the first ones; then a bitonic sort by (falling score, entry).
 *
 * Shared    counts 8,192 bytes; the chosen as (order, entry) 8 INDEX_TOPK_MAX: 16,384; sums of
 * warps. Bound     6 bytes a candidate in three passes over L2, 1.5 MB of 262,144: 14 us at 110
 * GB/s of one SM: more than the aim; several blocks a row would be next.
 */
enum { SELECT_THREADS = 512, SELECT_WARPS = SELECT_THREADS / CUDA_WARP, EACH = 8, HIGH_BITS = 11 };

/* Inclusive sum over the threads before and this one; *total: over all. sums: shared,
 * [SELECT_WARPS]. */
CUDA_DEVICE uint32_t block_scan(uint32_t x, uint32_t *sums, uint32_t *total)
{
    int lane = warp_lane(), warp = (int)threadIdx.x / CUDA_WARP;
    uint32_t before = 0;

    for (int step = 1; step < CUDA_WARP; step *= 2) {
        uint32_t other = warp_from(x, lane >= step ? lane - step : lane);

        x += lane >= step ? other : 0;
    }
    __syncthreads(); /* the last use of sums is over */
    if (lane == CUDA_WARP - 1)
        sums[warp] = x;
    __syncthreads(); /* sums: last lanes to all */
    *total = 0;
    for (int w = 0; w < SELECT_WARPS; w++) {
        before += w < warp ? sums[w] : 0;
        *total += sums[w];
    }
    return before + x;
}

struct cut {
    uint32_t bin, above; /* values in higher bins */
};

/* The highest bin with which `want` values are reached. n_bins <= 4 SELECT_THREADS. */
CUDA_DEVICE struct cut find_cut(const uint32_t *count, int n_bins, uint32_t want, uint32_t *sums,
                                struct cut *shared)
{
    int bin = n_bins - 1 - 4 * (int)threadIdx.x; /* this thread's highest */
    uint32_t own = 0, total, upto;

    for (int i = 0; i < 4; i++)
        own += bin - i >= 0 ? count[bin - i] : 0;
    upto = block_scan(own, sums, &total);
    if (upto - own < want && upto >= want) { /* one thread */
        uint32_t above = upto - own;

        while (above + count[bin] < want)
            above += count[bin--];
        shared->bin = (uint32_t)bin;
        shared->above = above;
    }
    __syncthreads(); /* shared: that thread to all */
    return *shared;
}

/* EACH scores from g on; beyond n: 0 and not counted. */
struct eight {
    uint16_t v[EACH];
    int n;
};

CUDA_DEVICE struct eight load_eight(const uint16_t *scores, int g, int n)
{
    union {
        uint64_t words[2];
        uint16_t v[EACH];
    } u;
    struct eight e;

    e.n = n - g < 0 ? 0 : n - g < EACH ? n - g : EACH;
    u.words[0] = u.words[1] = 0;
    if (e.n > 0) { /* a row's stride is whole eights */
        u.words[0] = ((const uint64_t *)(const void *)(scores + g))[0];
        u.words[1] = ((const uint64_t *)(const void *)(scores + g))[1];
    }
    CUDA_EACH (i, EACH)
        e.v[i] = u.v[i];
    return e;
}

/* Ascending order of this is the order of the choice. */
CUDA_DEVICE uint64_t rank_of(uint32_t score, int g)
{
    return (uint64_t)(0xFFFF - score) << 32 | (uint32_t)g;
}

CUDA_DEVICE void sort_ranks(uint64_t *rank, int n)
{
    for (int size = 2; size <= n; size *= 2)
        for (int step = size / 2; step > 0; step /= 2) {
            for (int i = (int)threadIdx.x; i < n / 2; i += SELECT_THREADS) {
                int low = i / step * 2 * step + i % step;
                uint64_t x = rank[low], y = rank[low + step];

                if ((x > y) == ((low & size) == 0)) {
                    rank[low] = y;
                    rank[low + step] = x;
                }
            }
            __syncthreads();
        }
}

struct select_shared {
    uint32_t count[1 << HIGH_BITS], sums[SELECT_WARPS], n_above;
    struct cut cut;
    uint64_t rank[INDEX_TOPK_MAX];
};

/* The k-th largest of n > k scores; ties: how many that equal it are chosen. */
CUDA_DEVICE uint32_t kth_largest(const uint16_t *scores, int n, int k, struct select_shared *s,
                                 uint32_t *ties)
{
    enum { LOW_BITS = 16 - HIGH_BITS, STRIDE = EACH * SELECT_THREADS };
    struct cut high = {0, 0}, low = {0, 0};

    for (int pass = 0; pass < 2; pass++) {
        for (int i = (int)threadIdx.x; i < 1 << HIGH_BITS; i += SELECT_THREADS)
            s->count[i] = 0;
        __syncthreads(); /* counts are 0 */
        for (int g = EACH * (int)threadIdx.x; g < n; g += STRIDE) {
            struct eight e = load_eight(scores, g, n);

            CUDA_EACH (i, EACH) {
                uint32_t bin = e.v[i] >> LOW_BITS;

                if (i < e.n && pass == 0)
                    dev_count(&s->count[bin]);
                else if (i < e.n && bin == high.bin)
                    dev_count(&s->count[e.v[i] & ((1 << LOW_BITS) - 1)]);
            }
        }
        __syncthreads(); /* counts: all threads to all */
        if (pass == 0)
            high = find_cut(s->count, 1 << HIGH_BITS, (uint32_t)k, s->sums, &s->cut);
        else
            low = find_cut(s->count, 1 << LOW_BITS, (uint32_t)k - high.above, s->sums, &s->cut);
        __syncthreads(); /* cut and counts have been read */
    }
    *ties = (uint32_t)k - high.above - low.above;
    return high.bin << LOW_BITS | low.bin;
}

/* The k largest of n > k, unsorted, into s->rank. */
CUDA_DEVICE void collect(const uint16_t *scores, int n, int k, struct select_shared *s)
{
    uint32_t ties, limit = kth_largest(scores, n, k, s, &ties), found = 0;

    if (threadIdx.x == 0)
        s->n_above = 0;
    __syncthreads();
    for (int base = 0; base < n; base += EACH * SELECT_THREADS) {
        int g = base + EACH * (int)threadIdx.x;
        struct eight e = load_eight(scores, g, n);
        uint32_t equal = 0, total, at;

        CUDA_EACH (i, EACH) {
            if (i < e.n && e.v[i] > limit)
                s->rank[dev_count(&s->n_above)] = rank_of(e.v[i], g + i);
            equal += i < e.n && e.v[i] == limit;
        }
        if (found >= ties)
            continue; /* all threads know */
        at = found + block_scan(equal, s->sums, &total) - equal;
        CUDA_EACH (i, EACH)
            if (i < e.n && e.v[i] == limit && at < ties)
                s->rank[k - 1 - (int)at++] = rank_of(limit, g + i);
        found += total;
    }
}

CUDA_KERNEL(index_choose_kernel, struct index_select_args)
{
    __shared__ struct select_shared s;
    int64_t t = a.row0 + (int64_t)blockIdx.x;
    const uint16_t *scores = a.scores + (int64_t)blockIdx.x * a.stride;
    int n = visible_to(&a, t), k = n < a.topk ? n : a.topk, padded = 1;

    while (padded < k)
        padded *= 2;
    if (n > k)
        collect(scores, n, k, &s);
    else
        for (int g = (int)threadIdx.x; g < n; g += SELECT_THREADS)
            s.rank[g] = rank_of(scores[g], g);
    for (int i = k + (int)threadIdx.x; i < padded; i += SELECT_THREADS)
        s.rank[i] = ~(uint64_t)0;
    __syncthreads(); /* rank: all threads to all */
    sort_ranks(s.rank, padded);
    for (int i = (int)threadIdx.x; i < a.topk; i += SELECT_THREADS)
        a.chosen[t * a.topk + i] = i < k ? (int32_t)(uint32_t)s.rank[i] : -1;
}

CUDA_API void cuda_index_select(cuda_stream s, struct index_select_args args)
{
    size_t shared = (size_t)((args.n_heads + 7) / 8 * 8) * (Q_HEAD + 1) * 2;

    for (args.row0 = 0; args.row0 < args.b.n_rows; args.row0 += args.round_rows) {
        int left = args.b.n_rows - args.row0, n = left < args.round_rows ? left : args.round_rows;

        CUDA_LAUNCH_GRID(index_score_kernel, struct index_select_args,
                         (args.stride + BLOCK_KEYS - 1) / BLOCK_KEYS, (n + TOKENS - 1) / TOKENS, 1,
                         CUDA_BLOCK, shared, s, args);
        CUDA_LAUNCH(index_choose_kernel, struct index_select_args, n, 1, SELECT_THREADS, s, args);
    }
}
