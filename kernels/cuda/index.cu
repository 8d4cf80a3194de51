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

/* ---- the workspace of a row ---- */

enum {
    HIGH_BITS = 11,
    LOW_BITS = 16 - HIGH_BITS,
    HIGH_BINS = 1 << HIGH_BITS,
    LOW_BINS = 1 << LOW_BITS
};

/* Of a count from the top: the bin with which the wanted number is reached, and how many values are
 * in higher ones. */
struct cut {
    uint32_t bin, above;
};

/* What the phases of a choice leave each other. */
struct choice {
    uint64_t rank[INDEX_TOPK_MAX]; /* the chosen, in any order */
    uint32_t high[HIGH_BINS];      /* candidates by the high bits of their scores */
    uint32_t low[INDEX_PARTS_MAX]
                [LOW_BINS]; /* those in the cut bin, by the low bits, each part's */
    struct cut cut;
    uint32_t n_above, unused;
};

CUDA_API size_t cuda_index_row_bytes(int ratio, int max_context)
{
    return (size_t)cuda_index_stride(ratio, max_context) * sizeof(uint16_t) + sizeof(struct choice);
}

CUDA_DEVICE unsigned char *work_of(const struct index_select_args *a, int64_t row)
{
    int64_t stride = (a->max_context / a->v.ratio + 127) / 128 * 128; /* cuda_index_stride() */

    return a->work + row * (stride * 2 + (int64_t)sizeof(struct choice));
}

CUDA_DEVICE uint16_t *scores_of(const struct index_select_args *a, int64_t row)
{
    return (uint16_t *)(void *)(work_of(a, row) + sizeof(struct choice));
}

CUDA_DEVICE struct choice *choice_of(const struct index_select_args *a, int64_t row)
{
    return (struct choice *)(void *)work_of(a, row);
}

/* By n_threads threads; low counts are written, not added to. */
CUDA_DEVICE void clear_choice(struct choice *c, int n_threads)
{
    for (int i = (int)threadIdx.x; i < HIGH_BINS; i += n_threads)
        c->high[i] = 0;
    if (threadIdx.x == 0)
        c->n_above = 0;
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
 *           keys: 4.4 us at an H200's 990 TFLOP/s, of which mma.sync is said to reach two thirds;
 * 68 bytes a key and block, 17.8 MB: 3.7 us. One row is bound by FLOPs already.
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

        if (first == 0)
            clear_choice(choice_of(&a, t - a.row0), CUDA_BLOCK);
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
        score_keys(scores_of(&a, t - a.row0) + g, n - g, keys, q, weights, a.n_heads);
    }
}

/* ---- the choice ---- */

/*
 * The k-th largest score by counting its bits, 11 and then 5 (a histogram of the first 8 would have
 * its counts in a few bins, where atomics queue); then what is above it in any order, and of what
 * equals it the first ones; then a bitonic sort by (falling score, entry). Every count is a sum of
 * integers, every tie's place known from the counts of the parts before: the order in which blocks
 * run changes nothing.
 *
 * Grid      [part of INDEX_PART candidates][row], a kernel for each phase; contexts of one part
 * have all phases in one block. Shared    counts 8,192 bytes; a choice as above, 32,800 (of which
 * the last phase uses the ranks alone); sums of warps. Bound     6 bytes a candidate in three
 * passes over L2 and four launches: 1.5 MB of 262,144, a microsecond of it at 2 TB/s; 16 KB of a
 * part at the 30 GB/s that 512 loads on their way reach, half a microsecond a pass.
 */
enum { SELECT_THREADS = 512, SELECT_WARPS = SELECT_THREADS / CUDA_WARP, EACH = 8 };

enum { PHASE_ALL, PHASE_HIGH, PHASE_LOW, PHASE_COLLECT, PHASE_SORT };

struct select_shared {
    struct choice own; /* of a block that has all phases */
    uint32_t count[HIGH_BINS], sums[SELECT_WARPS];
    struct cut cut;
};

/* What a block has to choose from. */
struct candidates {
    const uint16_t *scores;
    int begin, end; /* this part's */
    int part, k;
    struct choice *c;
    struct select_shared *s;
};

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

/* The highest bin with which `want` values are reached. n_bins <= 4 SELECT_THREADS. */
CUDA_DEVICE struct cut find_cut(const uint32_t *count, int n_bins, uint32_t want,
                                struct select_shared *s)
{
    struct cut cut;
    int bin = n_bins - 1 - 4 * (int)threadIdx.x; /* this thread's highest */
    uint32_t own = 0, total, upto;

    for (int i = 0; i < 4; i++)
        own += bin - i >= 0 ? count[bin - i] : 0;
    upto = block_scan(own, s->sums, &total);
    if (upto - own < want && upto >= want) { /* one thread */
        uint32_t above = upto - own;

        while (above + count[bin] < want)
            above += count[bin--];
        s->cut.bin = (uint32_t)bin;
        s->cut.above = above;
    }
    __syncthreads(); /* cut: that thread to all */
    cut = s->cut;
    __syncthreads(); /* cut and counts have been read */
    return cut;
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

/* Counts of this part's scores into s->count [n_bins]: by their high bits, or, of those in bin
 * `only`, by their low ones. */
CUDA_DEVICE void count_part(const struct candidates *x, int n_bins, int only)
{
    uint32_t *count = x->s->count;

    for (int i = (int)threadIdx.x; i < n_bins; i += SELECT_THREADS)
        count[i] = 0;
    __syncthreads(); /* counts are 0 */
    for (int g = x->begin + EACH * (int)threadIdx.x; g < x->end; g += EACH * SELECT_THREADS) {
        struct eight e = load_eight(x->scores, g, x->end);

        CUDA_EACH (i, EACH) {
            int bin = e.v[i] >> LOW_BITS;

            if (i < e.n && only < 0)
                dev_add(&count[bin], 1);
            else if (i < e.n && bin == only)
                dev_add(&count[e.v[i] & (LOW_BINS - 1)], 1);
        }
    }
    __syncthreads(); /* counts: all threads to all */
}

CUDA_DEVICE void count_high(const struct candidates *x)
{
    count_part(x, HIGH_BINS, -1);
    for (int i = (int)threadIdx.x; i < HIGH_BINS; i += SELECT_THREADS)
        if (x->s->count[i] > 0)
            dev_add(&x->c->high[i], x->s->count[i]);
}

CUDA_DEVICE void count_low(const struct candidates *x)
{
    struct cut high = find_cut(x->c->high, HIGH_BINS, (uint32_t)x->k, x->s);

    count_part(x, LOW_BINS, (int)high.bin);
    if (threadIdx.x < LOW_BINS)
        x->c->low[x->part][threadIdx.x] = x->s->count[threadIdx.x];
    if (x->part == 0 && threadIdx.x == 0)
        x->c->cut = high;
}

/* This part's share of the k largest. */
CUDA_DEVICE void collect(const struct candidates *x, int n_parts)
{
    struct choice *c = x->c;
    struct cut high = c->cut, low;
    uint32_t limit, ties, found = 0;

    if (threadIdx.x < LOW_BINS) {
        uint32_t sum = 0;

        for (int p = 0; p < n_parts; p++)
            sum += c->low[p][threadIdx.x];
        x->s->count[threadIdx.x] = sum;
    }
    __syncthreads(); /* counts: the first threads to all */
    low = find_cut(x->s->count, LOW_BINS, (uint32_t)x->k - high.above, x->s);
    limit = high.bin << LOW_BITS | low.bin;
    ties = (uint32_t)x->k - high.above - low.above; /* how many that equal it are chosen */
    for (int p = 0; p < x->part; p++)
        found += c->low[p][low.bin];
    for (int base = x->begin; base < x->end; base += EACH * SELECT_THREADS) {
        int g = base + EACH * (int)threadIdx.x;
        struct eight e = load_eight(x->scores, g, x->end);
        uint32_t equal = 0, total, at;

        CUDA_EACH (i, EACH) {
            if (i < e.n && e.v[i] > limit)
                c->rank[dev_add(&c->n_above, 1)] = rank_of(e.v[i], g + i);
            equal += i < e.n && e.v[i] == limit;
        }
        if (found >= ties)
            continue; /* all threads know */
        at = found + block_scan(equal, x->s->sums, &total) - equal;
        CUDA_EACH (i, EACH)
            if (i < e.n && e.v[i] == limit && at < ties)
                c->rank[x->k - 1 - (int)at++] = rank_of(limit, g + i);
        found += total;
    }
}

/* Sorts the chosen, all n where n <= k, and tells them. */
CUDA_DEVICE void tell_chosen(const struct candidates *x, int n, int32_t *out, int topk)
{
    uint64_t *rank = x->s->own.rank;
    int padded = 1;

    while (padded < x->k)
        padded *= 2;
    for (int i = (int)threadIdx.x; i < padded; i += SELECT_THREADS)
        if (i >= x->k)
            rank[i] = ~(uint64_t)0;
        else if (n == x->k)
            rank[i] = rank_of(x->scores[i], i);
        else
            rank[i] = x->c->rank[i]; /* itself, where one block has all phases */
    __syncthreads();                 /* rank: all threads to all */
    sort_ranks(rank, padded);
    for (int i = (int)threadIdx.x; i < topk; i += SELECT_THREADS)
        out[i] = i < x->k ? (int32_t)(uint32_t)rank[i] : -1;
}

CUDA_KERNEL(index_choose_kernel, struct index_select_args)
{
    __shared__ struct select_shared s;
    int64_t row = blockIdx.y, t = a.row0 + row;
    int n = visible_to(&a, t), all = a.phase == PHASE_ALL, size = all ? n : INDEX_PART;
    struct candidates x;

    x.scores = scores_of(&a, row);
    x.part = (int)blockIdx.x;
    x.begin = x.part * size;
    x.end = x.begin + size < n ? x.begin + size : n;
    x.k = n < a.topk ? n : a.topk;
    x.c = all ? &s.own : choice_of(&a, row);
    x.s = &s;
    if (a.phase != PHASE_SORT && !all && (n <= x.k || x.begin >= n))
        return; /* the whole block: nothing to count */
    if (all && n > x.k) {
        clear_choice(x.c, SELECT_THREADS);
        __syncthreads(); /* a choice of nothing: all threads to all; so below, after each phase */
    }
    if (n > x.k && (all || a.phase == PHASE_HIGH))
        count_high(&x);
    __syncthreads();
    if (n > x.k && (all || a.phase == PHASE_LOW))
        count_low(&x);
    __syncthreads();
    if (n > x.k && (all || a.phase == PHASE_COLLECT))
        collect(&x, all ? 1 : (n + INDEX_PART - 1) / INDEX_PART);
    __syncthreads();
    if (all || a.phase == PHASE_SORT)
        tell_chosen(&x, n, a.chosen + t * a.topk, a.topk);
}

static void choose(cuda_stream s, struct index_select_args args, int n)
{
    int64_t stride = cuda_index_stride(args.v.ratio, args.max_context);
    int n_parts = (int)((stride + INDEX_PART - 1) / INDEX_PART);

    args.phase = PHASE_ALL;
    if (n_parts > 1)
        for (args.phase = PHASE_HIGH; args.phase < PHASE_SORT; args.phase++)
            CUDA_LAUNCH(index_choose_kernel, struct index_select_args, n_parts, n, SELECT_THREADS,
                        s, args);
    CUDA_LAUNCH(index_choose_kernel, struct index_select_args, 1, n, SELECT_THREADS, s, args);
}

CUDA_API void cuda_index_select(cuda_stream s, struct index_select_args args)
{
    size_t shared = (size_t)((args.n_heads + 7) / 8 * 8) * (Q_HEAD + 1) * 2;
    int64_t stride = cuda_index_stride(args.v.ratio, args.max_context);

    for (args.row0 = 0; args.row0 < args.b.n_rows; args.row0 += args.round_rows) {
        int left = args.b.n_rows - args.row0, n = left < args.round_rows ? left : args.round_rows;

        CUDA_LAUNCH_GRID(index_score_kernel, struct index_select_args,
                         (stride + BLOCK_KEYS - 1) / BLOCK_KEYS, (n + TOKENS - 1) / TOKENS, 1,
                         CUDA_BLOCK, shared, s, args);
        choose(s, args, n);
    }
}
