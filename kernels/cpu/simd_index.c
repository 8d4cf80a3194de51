/*
 * simd_index: the indexer's choice. Two passes over threads, for as many tokens at a time as the
 * workspace holds:
 *   score   item = (16 tokens, 256 keys): keys decoded once to pairs of dims, then tiles of 64 keys
 * and 6 heads; every step of the score is rounded to bf16 select  item = token: the k-th largest
 * score by counting its 16 bits in two steps of 8, then the chosen ones sorted by radix; both
 * passes go over the scores in order, so equal scores keep the order of their entries FLOPs: 2 *
 * keys * heads
 * * dim; bytes: 68 a key.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd_math.h"
#include "kernels/ref/ref.h"
#if defined(SIMD_TILES)
#include "kernels/cpu/tiles.h"
#endif

#include <assert.h>

enum {
    KEYS = 64,
    VECS = VF_LANES == 16 ? 4 : 2,
    HEADS = 6,
    TILE_KEYS = VECS * VF_LANES,
    BLOCK = 16,
    RUN =
        4 /* chunks of KEYS of an item, at most: its queries are brought into shape once for them */
};

struct select_job {
    const struct kernel_dims *dims;
    int32_t *chosen;
    const uint16_t *q, *weights;
    const struct kernel_batch *b;
    const struct kernel_kv *v;
    uint16_t *scores; /* [tokens][stride]: order of the scores as unsigned numbers */
    int64_t stride;
    int t0, n_tokens; /* of this round */
    int n_runs;       /* runs of keys that the longest token sees */
    int run_keys;     /* keys of a run: of an item */
    int block;        /* tokens of an item: they share decoded keys */
};

static int64_t n_visible(const struct select_job *job, int64_t t)
{
    return (((const int32_t *)cpu_ptr(job->b->row_pos))[t] + 1) / job->v->ratio;
}

/* ---- scores ---- */

/* bf16 bits as a number that is larger for larger values; +0 and -0 are equal. */
SIMD uint16_t order_of(uint16_t bits)
{
    if (bits & 0x8000)
        return (uint16_t)(0x8000 - (bits & 0x7FFF));
    return (uint16_t)(bits | 0x8000);
}

/* n <= KEYS keys, `stride` bytes apart, as pairs of dims [Di/2][vectors of keys][PAIRS]; whole
 * vectors, the last may hold rows of the page that are not filled yet: they get scores that nobody
 * reads. */
static void load_keys(el *out, const uint8_t *keys, int stride, int n, int Di)
{
    for (int j = 0; j < n; j += VF_LANES) {
        const uint8_t *at = keys + j * stride;

        for (int g = 0; g < Di / 32; g++) {
            vf scale =
                vf_e8m0(vi_shift_right(vi_gather(at + Di / 2 + g / 4 * 4, stride), g % 4 * 8));

            for (int w = 0; w < 4; w++) {
                vi codes = vi_gather(at + g * 16 + w * 4, stride);
                el *to = out + (g * 16 + w * 4) * 2 * KEYS + 2 * j;

                for (int i = 0; i < 4; i++)
                    vp_store(to + i * 2 * KEYS, vf_e2m1(vi_shift_right(codes, 8 * i)) * scale,
                             vf_e2m1(vi_shift_right(codes, 8 * i + 4)) * scale);
            }
        }
    }
}

/* relu first: what is rounded is no NaN */
SIMD vf term_added(vf total, vf dot, float weight)
{
    return total + vf_bf16_number(vf_bf16_number(vf_max(dot, vf_set1(0.f))) * vf_set1(weight));
}

#if defined(SIMD_TILES)

/* The same by tiles: 32 heads by all keys at a time. */
static void add_heads(float *total, const el *k, const el *q, const float *weight, int64_t n,
                      const struct kernel_dims *d)
{
    float sum[2 * TILE_ROWS][KEYS] __attribute__((aligned(64)));
    int Hi = d->index_n_heads, Di = d->index_head_dim;

    tiles_configure(TILE_ROWS);
    for (int h = 0; h < Hi; h += 2 * TILE_ROWS) {
        int n_heads = Hi - h < 2 * TILE_ROWS ? Hi - h : 2 * TILE_ROWS;
        const el *qh = q + h * Di;

        for (int j = 0; j < n; j += 2 * VF_LANES) {
            struct tile_product p = {
                .a = {qh, qh + TILE_ROWS * Di},
                .b = {k + 2 * j, k + 2 * (j + VF_LANES)},
                .a_row = (size_t)Di * sizeof(el),
                .b_row = 2 * KEYS * sizeof(el),
                .a_step = TILE_STEP,
                .b_step = TILE_STEP * KEYS,
                .sum = {{sum[0] + j, sum[0] + j + VF_LANES},
                        {sum[TILE_ROWS] + j, sum[TILE_ROWS] + j + VF_LANES}},
                .sum_row = sizeof(sum[0]),
                .n_steps = Di / TILE_STEP,
            };

            tiles_multiply(&p, n_heads > TILE_ROWS, n - j > VF_LANES, false);
        }
        for (int j = 0; j < n; j += VF_LANES) {
            vf t = vf_load(total + j);

            for (int i = 0; i < n_heads; i++)
                t = term_added(t, vf_load(sum[i] + j), weight[h + i]);
            vf_store(total + j, t);
        }
    }
    _tile_release();
}

static int whole_tiles(int Hi)
{
    return (Hi + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
}

/* q of a token as rows of whole tiles; copy: room for them. */
static const el *queries(el *copy, const uint16_t *q, int Hi, int Di)
{
    if (Hi % TILE_ROWS == 0)
        return q;
    memcpy(copy, q, (size_t)Hi * (size_t)Di * sizeof(*q));
    memset(copy + Hi * Di, 0, (size_t)(whole_tiles(Hi) - Hi) * (size_t)Di * sizeof(*q));
    return copy;
}

#else

/* total[key] += the terms of n_heads heads, in order. q [heads][Di]. */
SIMD void score_tile(float *total, const el *k, const el *q, const float *weight, int Di,
                     const int n_heads)
{
    vf sum[HEADS][VECS];

#pragma GCC unroll 8
    for (int i = 0; i < n_heads; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECS; j++)
            sum[i][j] = vf_set1(0.f);
    for (int c = 0; c < Di; c += 2) {
        vp kc[VECS];

#pragma GCC unroll 8
        for (int j = 0; j < VECS; j++)
            kc[j] = vp_load(k + c * KEYS + j * 2 * VF_LANES);
#pragma GCC unroll 8
        for (int i = 0; i < n_heads; i++) {
            vp qc = vp_set1(q + i * Di + c);

#pragma GCC unroll 8
            for (int j = 0; j < VECS; j++)
                sum[i][j] = vf_dot(sum[i][j], qc, kc[j]);
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < VECS; j++) {
        vf t = vf_load(total + j * VF_LANES);

#pragma GCC unroll 8
        for (int i = 0; i < n_heads; i++)
            t = term_added(t, sum[i][j], weight[i]);
        vf_store(total + j * VF_LANES, t);
    }
}

/* total[key] += the terms of all heads, in order, for n <= KEYS keys, decoded in k. q [Hi][Di]. */
static void add_heads(float *total, const el *k, const el *q, const float *weight, int64_t n,
                      const struct kernel_dims *d)
{
    int Hi = d->index_n_heads, Di = d->index_head_dim;

    for (int j = 0; j < n; j += TILE_KEYS) {
        int h = 0;

        for (; h + HEADS <= Hi; h += HEADS)
            score_tile(total + j, k + 2 * j, q + h * Di, weight + h, Di, HEADS);
        for (; h + 4 <= Hi; h += 4)
            score_tile(total + j, k + 2 * j, q + h * Di, weight + h, Di, 4);
        for (; h < Hi; h++)
            score_tile(total + j, k + 2 * j, q + h * Di, weight + h, Di, 1);
    }
}

static int whole_tiles(int Hi)
{
    return Hi;
}

static const el *queries(el *copy, const uint16_t *q, int Hi, int Di)
{
    return el_row(copy, q, Hi * Di);
}

#endif

static int seq_of(const struct select_job *job, int64_t t)
{
    return ((const int32_t *)cpu_ptr(job->b->row_seq))[t];
}

/* Keys g .. g + n - 1 of a sequence, n <= KEYS; runs of them lie in one page. */
static void load_chunk(el *k, const struct select_job *job, int seq, int64_t g, int64_t n)
{
    for (int64_t i = 0, run; i < n; i += run) {
        int64_t left = job->v->entries_per_page - (g + i) % job->v->entries_per_page;

        run = n - i < left ? n - i : left;
        load_keys(k + 2 * i, ref_entry(job->b, job->v, seq, g + i, true), job->v->key_bytes,
                  (int)run, job->dims->index_head_dim);
    }
}

/* Scores of n <= KEYS keys, decoded in k, for one token. q [Hi][Di], weight [Hi]. */
static void score_chunk(uint16_t *scores, const el *k, const el *q, const float *weight, int64_t n,
                        const struct kernel_dims *d)
{
    float total[KEYS] __attribute__((aligned(64))) = {0};
    uint16_t rounded[KEYS];

    add_heads(total, k, q, weight, n, d);
    store_row(rounded, total, KEYS);
    for (int64_t i = 0; i < n; i++)
        scores[i] = order_of(rounded[i]);
}

/* Scores of the n keys from g on, decoded in part->keys, for token t. */
static void score_run(const struct select_job *job, int64_t t, int64_t g, int64_t n,
                      struct cpu_part *part)
{
    int Hi = job->dims->index_n_heads, Di = job->dims->index_head_dim;
    const uint16_t *weights = job->weights + t * Hi;
    el *k = (el *)(void *)part->keys, *copy = k + RUN * Di * KEYS;
    float *weight = (float *)(void *)(copy + whole_tiles(Hi) * Di);
    const el *q = queries(copy, job->q + t * Hi * Di, Hi, Di);
    uint16_t *scores = job->scores + (t - job->t0) * job->stride + g;
    int h = 0;

    for (; h + VF_LANES <= Hi; h += VF_LANES)
        vf_store(weight + h, vf_load_bf16(weights + h));
    if (h < Hi)
        vf_store_some(weight + h, vf_load_bf16_some(weights + h, Hi - h), Hi - h);
    for (int64_t i = 0; i < n; i += KEYS)
        score_chunk(scores + i, k + i * Di, q, weight, n - i < KEYS ? n - i : KEYS, job->dims);
}

/* Tokens of one sequence stand in order, so the last of them sees all that the others see. */
static void score_item(void *arg, int64_t item, struct cpu_part *part)
{
    struct select_job *job = arg;
    int64_t g = item % job->n_runs * job->run_keys;
    int64_t t = job->t0 + item / job->n_runs * job->block;
    int64_t end = t + job->block, all = job->t0 + job->n_tokens;

    for (end = end < all ? end : all; t < end;) {
        int64_t next = t + 1, most = n_visible(job, t);

        for (; next < end && seq_of(job, next) == seq_of(job, t); next++)
            most = n_visible(job, next) > most ? n_visible(job, next) : most;
        most = most - g < job->run_keys ? most - g : job->run_keys;
        for (int64_t i = 0; i < most; i += KEYS)
            load_chunk((el *)(void *)part->keys + i * job->dims->index_head_dim, job,
                       seq_of(job, t), g + i, most - i < KEYS ? most - i : KEYS);
        for (; t < next; t++) {
            int64_t n = n_visible(job, t) - g;

            if (n > 0)
                score_run(job, t, g, n < job->run_keys ? n : job->run_keys, part);
        }
    }
}

/* ---- selection ---- */

/* The largest byte b such that at least `want` of the counted values are >= b; above: how many are
 * > b. */
static int cut(const uint32_t count[256], int64_t want, int64_t *above)
{
    int64_t sum = 0;

    for (int b = 255; b > 0; b--) {
        if (sum + count[b] >= want) {
            *above = sum;
            return b;
        }
        sum += count[b];
    }
    *above = sum;
    return 0;
}

/* The k-th largest of n scores, k <= n. */
static uint16_t kth_largest(const uint16_t *score, int64_t n, int64_t k)
{
    uint32_t count[256] = {0};
    int64_t above;

    for (int64_t i = 0; i < n; i++)
        count[score[i] >> 8]++;
    int high = cut(count, k, &above);

    memset(count, 0, sizeof(count));
    for (int64_t i = 0; i < n; i++)
        if (score[i] >> 8 == high)
            count[score[i] & 255]++;
    return (uint16_t)(high << 8 | cut(count, k - above, &above));
}

/* One pass of a radix sort by falling byte of score; stable. */
static void radix_pass(int32_t *to, const int32_t *from, int64_t n, const uint16_t *score,
                       int shift)
{
    uint32_t at[257] = {0};

    for (int64_t i = 0; i < n; i++)
        at[256 - (score[from[i]] >> shift & 255)]++;
    for (int b = 1; b <= 256; b++)
        at[b] += at[b - 1];
    for (int64_t i = 0; i < n; i++)
        to[at[255 - (score[from[i]] >> shift & 255)]++] = from[i];
}

static void select_item(void *arg, int64_t item, struct cpu_part *part)
{
    struct select_job *job = arg;
    int64_t t = job->t0 + item, n = n_visible(job, t), topk = job->dims->index_topk;
    const uint16_t *score = job->scores + item * job->stride;
    int32_t *chosen = job->chosen + t * topk, *other = (int32_t *)(void *)part->keys;
    int64_t k = n < topk ? n : topk, found = 0;

    if (k > 0) {
        uint16_t edge = kth_largest(score, n, k);
        int64_t n_above = 0;

        for (int64_t i = 0; i < n; i++)
            n_above += score[i] > edge;
        int64_t n_equal = k - n_above; /* the first ones */

        for (int64_t i = 0; i < n && found < k; i++)
            if (score[i] > edge || (score[i] == edge && n_equal-- > 0))
                chosen[found++] = (int32_t)i;
        radix_pass(other, chosen, k, score, 0);
        radix_pass(chosen, other, k, score, 8);
    }
    for (int64_t i = k; i < topk; i++)
        chosen[i] = -1;
}

static int64_t n_items(const struct select_job *job)
{
    return (int64_t)((job->n_tokens + job->block - 1) / job->block) * job->n_runs;
}

/* Large items; where there is little work, smaller ones, so that every thread has some. */
static void cut_items(struct select_job *job, int64_t n_keys, int n_threads)
{
    for (int run = RUN; run > 0; run /= 2) {
        job->run_keys = run * KEYS;
        job->n_runs = (int)((n_keys + job->run_keys - 1) / job->run_keys);
        job->block = BLOCK;
        if (n_items(job) >= 8 * (int64_t)n_threads)
            return;
        job->block = 1;
        if (n_items(job) >= 8 * (int64_t)n_threads)
            return;
    }
}

static void index_select(struct kernels *k, struct dev_ptr chosen, struct dev_ptr q,
                         struct dev_ptr weights, const struct kernel_batch *b,
                         const struct kernel_kv *kv_view)
{
    struct cpu *c = cpu_of(k);
    struct select_job job = {
        .dims = &k->dims,
        .chosen = cpu_ptr(chosen),
        .q = cpu_ptr(q),
        .weights = cpu_ptr(weights),
        .b = b,
        .v = kv_view,
        .scores = (uint16_t *)(void *)c->scores,
        .stride = cpu_index_stride(&k->dims),
    };
    int at_once = (int)(c->scores_bytes / (size_t)job.stride / sizeof(uint16_t));

    assert(at_once > 0 && k->dims.index_head_dim % 32 == 0 && kv_view->entries_per_page % 16 == 0);
    for (; job.t0 < b->n_rows; job.t0 += at_once) {
        int64_t most = 0;

        job.n_tokens = b->n_rows - job.t0 < at_once ? b->n_rows - job.t0 : at_once;
        for (int i = 0; i < job.n_tokens; i++)
            most = n_visible(&job, job.t0 + i) > most ? n_visible(&job, job.t0 + i) : most;
        cut_items(&job, most, c->n_parts);
        cpu_run(k, n_items(&job), score_item, &job);
        cpu_run(k, job.n_tokens, select_item, &job);
    }
}

size_t SIMD_NAME(cpu_index_bytes)(const struct kernel_dims *d)
{
    size_t Hi = (size_t)whole_tiles(d->index_n_heads), Di = (size_t)d->index_head_dim;
    size_t score = (RUN * Di * KEYS + Hi * Di) * sizeof(el) + Hi * sizeof(float);
    size_t select = (size_t)d->index_topk * sizeof(int32_t);

    return score > select ? score : select;
}

void SIMD_NAME(cpu_index_fill)(struct kernel_ops *ops)
{
    ops->index_select = index_select;
}
