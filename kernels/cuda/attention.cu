#include "kernels/cuda/attention.h"
#include "kernels/cuda/row.h"

/*
 * A block has one token, HEADS heads, and a warp for each 64 dims of the keys (8 at head_dim 512):
 * 64 dims are one FP8 block with its scale, or the rotated dims. A warp decodes its dims of 32 keys
 * (a tile) into shared memory, and both products read them there: as keys, from whose dims each
 * warp has a part of all logits, and as values, whose dims are this warp's share of the output. So
 * a key is read and decoded once a block, and decoded keys never leave their warp.
 *
 * Grid      x: token * head blocks + head block; y: split (with partial) or 1
 * Shared    a warp: keys [KEYS][K_STRIDE] bf16, 4,608; its part of the logits [HEADS][S_STRIDE]
 *           f32, 5,120. A block: probabilities [HEADS][P_STRIDE] bf16, 2,560; max, sum and factor
 *           of each head, 384; addresses of a split's keys, 1,024. 81,792 bytes at head_dim 512.
 * Registers a thread: 64 of this split's output, 64 of the merged one, 32 of q, 32 of raw keys that
 *           are on their way while the last tile is multiplied.
 * Barriers  of a tile: logits: every warp -> the warp that has the head's row; probabilities and
 *           factors: that warp -> every warp. Of a split: addresses, and the sums set to nothing.
 * Bound     4 HEADS D FLOPs and D + 72 bytes a key and block. Decode at batch 1: bytes of keys that
 *           2 head blocks share through L2. Prefill: a tile is 512 mma of 4,096 FLOPs at D = 512,
 *           1,024 cycles of an SM at the 2,048 FLOPs a cycle of sm_80 (1,024 too of mma.sync on
 *           sm_90, which has 4,096 for wgmma alone); shared memory moves 128 KiB of it, 1,024
 *           cycles more where they do not overlap.
 */
enum {
    HEADS_N = ATTENTION_HEADS,
    KEYS = 32,
    TILES = ATTENTION_SPLIT / KEYS,
    DIMS = 64, /* of a warp */
    WARPS_MAX = 8,
    K_STRIDE = DIMS + 8, /* rows 16 bytes apart in the banks: ldmatrix has no conflicts */
    S_STRIDE = KEYS + 8,
    P_STRIDE = KEYS + 8,
    M_TILES = HEADS_N / 16,
    N_TILES = DIMS / 8,
    ROWS = 2 * M_TILES, /* heads of a thread: 8 apart */
    RAW = 16            /* words of 8 bytes that a lane has on their way */
};

#define LOG2_E 1.44269504f

/* Shared memory of a block. */
struct attention_shared {
    uint16_t *keys; /* this warp's */
    float *logits;  /* [warps][HEADS][S_STRIDE] */
    uint16_t *p;
    float *top, *sum, *factor; /* [HEADS] */
    uint64_t *row;             /* [ATTENTION_SPLIT]; 0: no such key */
};

static size_t shared_bytes(int n_warps)
{
    return (size_t)n_warps * (KEYS * K_STRIDE * 2 + HEADS_N * S_STRIDE * 4) +
           HEADS_N * P_STRIDE * 2 + 3 * HEADS_N * 4 + ATTENTION_SPLIT * 8;
}

CUDA_DEVICE struct attention_shared shared_of(unsigned char *at, int n_warps)
{
    struct attention_shared s;
    int warp = (int)threadIdx.x / CUDA_WARP;

    s.keys = (uint16_t *)(void *)at + warp * KEYS * K_STRIDE;
    at += n_warps * KEYS * K_STRIDE * 2;
    s.logits = (float *)(void *)at;
    at += n_warps * HEADS_N * S_STRIDE * 4;
    s.row = (uint64_t *)(void *)at;
    at += ATTENTION_SPLIT * 8;
    s.p = (uint16_t *)(void *)at;
    at += HEADS_N * P_STRIDE * 2;
    s.top = (float *)(void *)at;
    s.sum = s.top + HEADS_N;
    s.factor = s.sum + HEADS_N;
    return s;
}

/* ---- the keys of a token ---- */

struct token {
    int64_t row; /* of the batch */
    int seq, pos, n_window, n_keys;
};

CUDA_DEVICE struct token token_of(const struct attention_args *a, int64_t row)
{
    struct token t;
    int visible;

    t.row = row;
    t.seq = DEV(const int32_t, a->b.row_seq)[row];
    t.pos = DEV(const int32_t, a->b.row_pos)[row];
    t.n_window = t.pos + 1 < a->window ? t.pos + 1 : a->window;
    visible = a->kv.ratio == 0 ? 0 : (t.pos + 1) / a->kv.ratio;
    if (a->kv.ratio == 4 && visible > a->index_topk)
        visible = a->index_topk;
    t.n_keys = t.n_window + visible;
    return t;
}

CUDA_DEVICE const uint8_t *entry_of(const struct attention_args *a, int seq, int g)
{
    int32_t page =
        DEV(const int32_t,
            a->b.block_table)[(int64_t)seq * a->b.table_stride + g / a->kv.entries_per_page];

    return DEV(const uint8_t, a->kv.pages) + (int64_t)page * (int64_t)a->kv.page_stride +
           (int64_t)a->kv.entry_off + (int64_t)(g % a->kv.entries_per_page) * a->kv.row_bytes;
}

/* Row of key j of the token's list: the window from the oldest on, then the entries. */
CUDA_DEVICE const uint8_t *key_of(const struct attention_args *a, const struct token *t, int j)
{
    int p = t->pos + 1 - t->n_window + j, start = DEV(const int32_t, a->b.seq_start)[t->seq], g;

    if (j >= t->n_keys)
        return 0;
    if (j < t->n_window && p >= start)
        return a->rows +
               (int64_t)(DEV(const int32_t, a->b.seq_row)[t->seq] + p - start) * a->kv.row_bytes;
    if (j < t->n_window)
        return DEV(const uint8_t, a->kv.states) +
               (int64_t)DEV(const int32_t, a->b.seq_slot)[t->seq] * (int64_t)a->kv.slot_stride +
               (int64_t)a->kv.window_off + (int64_t)(p % a->kv.window_rows) * a->kv.row_bytes;
    g = j - t->n_window;
    if (a->kv.ratio == 4)
        g = a->chosen[t->row * a->index_topk + g];
    return g < 0 ? 0 : entry_of(a, t->seq, g);
}

/* ---- decoding: a warp's 64 dims of 32 keys ---- */

struct raw_keys {
    uint64_t word[RAW];
    uint32_t scale; /* of key `lane` of the tile */
};

/* FP8: 8 lanes a key, words 0 .. 7; rotated dims: 16 lanes a key, words 0 .. 15. */
CUDA_DEVICE void fetch(struct raw_keys *raw, const struct attention_args *a,
                       const struct attention_shared *s, int first, int fp8)
{
    int lane = warp_lane(), warp = (int)threadIdx.x / CUDA_WARP;
    int plain = a->head_dim - a->rope_dim, off = fp8 ? warp * DIMS : plain;
    const uint8_t *own = (const uint8_t *)(uintptr_t)s->row[first + lane];

    raw->scale = own != 0 && fp8 ? own[plain + 2 * a->rope_dim + warp] : 127;
    CUDA_EACH (i, RAW) {
        int key = fp8 ? i * 4 + lane / 8 : i * 2 + lane / 16;
        int word = fp8 ? lane % 8 : lane % 16;

        if (!fp8 || i < RAW / 2) {
            const uint8_t *row = (const uint8_t *)(uintptr_t)s->row[first + key];

            raw->word[i] = row == 0 ? 0 : ((const uint64_t *)(const void *)(row + off))[word];
        }
    }
}

/* Two FP8 codes (bytes 1 and 3 of pair) as bf16, times 2^120 and scale: the bits of a code, moved,
 * are a bf16 number 2^120 too small, subnormal where the code is. Exact. */
CUDA_DEVICE uint32_t decode_pair(uint32_t pair, uint32_t scale)
{
    uint32_t bits = (pair & 0x80008000u) | (pair >> 4 & 0x07F007F0u);

    return dev_mul_bf16x2(dev_mul_bf16x2(bits, 0x7B807B80u), scale);
}

CUDA_DEVICE void decode(uint16_t *keys, const struct raw_keys *raw, int fp8)
{
    int lane = warp_lane();

    __syncwarp(); /* the last tile's keys have been read */
    if (!fp8) {
        CUDA_EACH (i, RAW)
            ((uint64_t *)(void *)(keys + (i * 2 + lane / 16) * K_STRIDE))[lane % 16] = raw->word[i];
    } else {
        CUDA_EACH (i, RAW / 2) {
            int key = i * 4 + lane / 8;
            uint32_t e = warp_from(raw->scale, key), scale = e == 255 ? 0x7FC0 : e << 7;
            uint64_t *out = (uint64_t *)(void *)(keys + key * K_STRIDE + lane % 8 * 8);

            scale |= scale << 16;
            CUDA_EACH (half, 2) {
                uint32_t w = (uint32_t)(raw->word[i] >> (32 * half));
                uint32_t low = decode_pair((w & 0xFF) << 8 | (w & 0xFF00) << 16, scale);
                uint32_t high = decode_pair((w & 0xFF0000) >> 8 | (w & 0xFF000000u), scale);

                out[half] = (uint64_t)high << 32 | low;
            }
        }
    }
    __syncwarp();
}

/* ---- logits and probabilities ---- */

/* a fragments of this warp's 64 dims of q: [tile of 16 heads][16 dims]. Heads beyond the last: 0.
 */
CUDA_DEVICE void load_q(uint32_t q[M_TILES][DIMS / 16][4], const struct attention_args *a,
                        int64_t token, int head)
{
    int lane = warp_lane(), warp = (int)threadIdx.x / CUDA_WARP;

    CUDA_EACH (m, M_TILES)
        CUDA_EACH (k, DIMS / 16)
            CUDA_EACH (i, 4) {
                int h = head + m * 16 + lane / 4 + i % 2 * 8;
                int c = warp * DIMS + k * 16 + lane % 4 * 2 + i / 2 * 8;
                const uint16_t *at = a->q + (token * a->n_heads + h) * a->head_dim + c;

                q[m][k][i] = h < a->n_heads ? *(const uint32_t *)(const void *)at : 0;
            }
}

/* This warp's part of the tile's logits. */
CUDA_DEVICE void part_of_logits(const struct attention_shared *s,
                                const uint32_t q[M_TILES][DIMS / 16][4])
{
    int lane = warp_lane(), warp = (int)threadIdx.x / CUDA_WARP;
    float *out = s->logits + warp * HEADS_N * S_STRIDE;

    CUDA_EACH (n, KEYS / 8) {
        float d[M_TILES][4] = {{0}};

        CUDA_EACH (kk, DIMS / 32) {
            uint32_t b[4];

            warp_load_matrices(b, s->keys + (n * 8 + lane % 8) * K_STRIDE + kk * 32 + lane / 8 * 8);
            CUDA_EACH (m, M_TILES) {
                warp_mma(d[m], q[m][2 * kk], b);
                warp_mma(d[m], q[m][2 * kk + 1], b + 2);
            }
        }
        CUDA_EACH (m, M_TILES)
            CUDA_EACH (i, 4)
                out[(m * 16 + lane / 4 + i / 2 * 8) * S_STRIDE + n * 8 + lane % 4 * 2 + i % 2] =
                    d[m][i];
    }
}

/* What exp2 subtracts; a row without any finite logit has no largest. */
CUDA_DEVICE float base_of(float top)
{
    return top == -INFINITY ? 0 : top;
}

/* Rows of heads go round the warps, four at a time: 8 lanes a row, 4 keys each. */
CUDA_DEVICE void probabilities(const struct attention_shared *s, int n_warps, int first,
                               float scale)
{
    int lane = warp_lane(), key = lane % 8 * 4;

    for (int group = (int)threadIdx.x / CUDA_WARP; group < HEADS_N / 4; group += n_warps) {
        int row = group * 4 + lane / 8;
        float x[4] = {0, 0, 0, 0}, old = s->top[row], top, base, sum, factor;

        for (int w = 0; w < n_warps; w++)
            CUDA_EACH (i, 4)
                x[i] += s->logits[(w * HEADS_N + row) * S_STRIDE + key + i];
        CUDA_EACH (i, 4)
            x[i] = s->row[first + key + i] == 0 ? -INFINITY : x[i] * scale;
        top = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])); /* a NaN comes out in the sum */
        for (int mask = 4; mask > 0; mask /= 2)
            top = fmaxf(top, warp_xor(top, mask));
        top = fmaxf(old, top);
        base = base_of(top);
        CUDA_EACH (i, 4)
            x[i] = exp2f(x[i] - base);
        sum = warp_sum((x[0] + x[1]) + (x[2] + x[3]), 8);
        factor = exp2f(old - base);
        ((uint32_t *)(void *)(s->p + row * P_STRIDE + key))[0] = dev_pack_bf16(x[0], x[1]);
        ((uint32_t *)(void *)(s->p + row * P_STRIDE + key))[1] = dev_pack_bf16(x[2], x[3]);
        __syncwarp(); /* all lanes have read the row's old top */
        if (lane % 8 == 0) {
            s->top[row] = top;
            s->sum[row] = fmaf(s->sum[row], factor, sum);
            s->factor[row] = factor;
        }
    }
}

/* acc = acc * factor + p . v, this warp's dims. */
CUDA_DEVICE void add_values(float acc[M_TILES][N_TILES][4], const struct attention_shared *s)
{
    int lane = warp_lane(), pair = lane % 8 + lane / 8 % 2 * 8;

    CUDA_EACH (m, M_TILES) {
        float low = s->factor[m * 16 + lane / 4], high = s->factor[m * 16 + lane / 4 + 8];

        CUDA_EACH (n, N_TILES)
            CUDA_EACH (i, 4)
                acc[m][n][i] *= i < 2 ? low : high;
    }
    CUDA_EACH (k, KEYS / 16) {
        uint32_t p[M_TILES][4];

        CUDA_EACH (m, M_TILES)
            warp_load_matrices(p[m], s->p + (m * 16 + pair) * P_STRIDE + k * 16 + lane / 16 * 8);
        CUDA_EACH (nn, N_TILES / 2) {
            uint32_t v[4];

            warp_load_transposed(v,
                                 s->keys + (k * 16 + pair) * K_STRIDE + (2 * nn + lane / 16) * 8);
            CUDA_EACH (m, M_TILES) {
                warp_mma(acc[m][2 * nn], p[m], v);
                warp_mma(acc[m][2 * nn + 1], p[m], v + 2);
            }
        }
    }
}

/* ---- merging splits ---- */

/* Largest logit (in powers of two) and sum of one head so far. */
struct softmax {
    float top, sum;
};

/* Takes in a split; the outputs become out * *mine + split's * *its. One function for both ways. */
CUDA_DEVICE void merge(struct softmax *so_far, struct softmax split, float *mine, float *its)
{
    float top = fmaxf(so_far->top, split.top), base = base_of(top);

    *mine = exp2f(so_far->top - base);
    *its = exp2f(split.top - base);
    so_far->sum = fmaf(so_far->sum, *mine, split.sum * *its);
    so_far->top = top;
}

CUDA_DEVICE float total_of(struct softmax s, float sink)
{
    return s.sum + exp2f(fmaf(sink, LOG2_E, -s.top)); /* the sink weighs, and is not in the max */
}

/* Where split `split` of a head leaves its output [head_dim] and its softmax. */
CUDA_DEVICE float *partial_of(const struct attention_args *a, int64_t token, int head, int split)
{
    return a->partial + ((token * a->n_heads + head) * a->n_splits + split) * (a->head_dim + 2);
}

/* How a pair of neighbours is rotated back; the same for all heads. */
struct turn {
    float c, s;
    int on;
};

CUDA_DEVICE struct turn turn_of(const struct attention_args *a, int c, int pos)
{
    int plain = a->head_dim - a->rope_dim;
    struct turn turn = {1, 0, c >= plain};

    if (turn.on)
        dev_sin_cos((double)((float)pos * a->freq[(c - plain) / 2]), &turn.s, &turn.c);
    return turn;
}

/* Divides, rounds, rotates back and stores dims c and c + 1. */
CUDA_DEVICE void store_pair(const struct attention_args *a, int64_t token, int head, int c,
                            float even, float odd, float total, struct turn turn)
{
    uint32_t *out = (uint32_t *)(void *)(a->o + (token * a->n_heads + head) * a->head_dim + c);

    even = dev_bf16_grid(even / total);
    odd = dev_bf16_grid(odd / total);
    if (turn.on)
        dev_turn(&even, &odd, turn.c, -turn.s);
    *out = dev_pack_bf16(even, odd);
}

/* ---- the kernel ---- */

/* One split: out acc and each head's softmax in s->top, s->sum. */
CUDA_DEVICE void run_split(const struct attention_args *a, const struct token *t,
                           const struct attention_shared *s,
                           const uint32_t q[M_TILES][DIMS / 16][4], int split,
                           float acc[M_TILES][N_TILES][4])
{
    int n_warps = (int)blockDim.x / CUDA_WARP, warp = (int)threadIdx.x / CUDA_WARP;
    int fp8 = (warp + 1) * DIMS <= a->head_dim - a->rope_dim, first = split * ATTENTION_SPLIT;
    int n_tiles = (t->n_keys - first + KEYS - 1) / KEYS;
    float scale = LOG2_E / sqrtf((float)a->head_dim);
    struct raw_keys raw;

    __syncthreads(); /* the last split's addresses and softmax have been read */
    for (int j = (int)threadIdx.x; j < ATTENTION_SPLIT; j += (int)blockDim.x)
        s->row[j] = (uint64_t)(uintptr_t)key_of(a, t, first + j);
    for (int h = (int)threadIdx.x; h < HEADS_N; h += (int)blockDim.x) {
        s->top[h] = -INFINITY;
        s->sum[h] = 0;
    }
    __syncthreads();
    CUDA_EACH (m, M_TILES)
        CUDA_EACH (n, N_TILES)
            CUDA_EACH (i, 4)
                acc[m][n][i] = 0;
    n_tiles = n_tiles < TILES ? n_tiles : TILES;
    fetch(&raw, a, s, 0, fp8);
    for (int tile = 0; tile < n_tiles; tile++) {
        decode(s->keys, &raw, fp8);
        if (tile + 1 < n_tiles)
            fetch(&raw, a, s, (tile + 1) * KEYS, fp8);
        part_of_logits(s, q);
        __syncthreads(); /* logits: every warp to the row's */
        probabilities(s, n_warps, tile * KEYS, scale);
        __syncthreads(); /* probabilities, factors: the row's warp to all */
        add_values(acc, s);
    }
}

/* A split's output and softmax, for attention_merge_kernel. */
CUDA_DEVICE void store_partial(const struct attention_args *a, const struct token *t,
                               const struct attention_shared *s, int head, int split,
                               const float acc[M_TILES][N_TILES][4])
{
    int lane = warp_lane(), dims = (int)threadIdx.x / CUDA_WARP * DIMS;

    CUDA_EACH (r, ROWS) {
        int row = lane / 4 + 8 * r;
        float *at = partial_of(a, t->row, head + row, split);

        if (head + row >= a->n_heads)
            continue;
        CUDA_EACH (n, N_TILES)
            CUDA_EACH (i, 2)
                at[dims + n * 8 + lane % 4 * 2 + i] = acc[r / 2][n][r % 2 * 2 + i];
        if (dims == 0 && lane % 4 == 0) {
            at[a->head_dim] = s->top[row];
            at[a->head_dim + 1] = s->sum[row];
        }
    }
}

CUDA_DEVICE void store_output(const struct attention_args *a, const struct token *t, int head,
                              const struct softmax so_far[ROWS],
                              const float out[M_TILES][N_TILES][4])
{
    int lane = warp_lane(), first = head + lane / 4;
    float total[ROWS];

    CUDA_EACH (r, ROWS)
        total[r] = first + 8 * r < a->n_heads ? total_of(so_far[r], a->sink[first + 8 * r]) : 1;
    CUDA_EACH (n, N_TILES) {
        int c = (int)threadIdx.x / CUDA_WARP * DIMS + n * 8 + lane % 4 * 2;
        struct turn turn = turn_of(a, c, t->pos);

        CUDA_EACH (r, ROWS)
            if (first + 8 * r < a->n_heads)
                store_pair(a, t->row, first + 8 * r, c, out[r / 2][n][r % 2 * 2],
                           out[r / 2][n][r % 2 * 2 + 1], total[r], turn);
    }
}

CUDA_BOUNDED_KERNEL(attention_kernel, struct attention_args, WARPS_MAX *CUDA_WARP, 1)
{
    CUDA_DYNAMIC(memory);
    int blocks = (a.n_heads + HEADS_N - 1) / HEADS_N, lane = warp_lane();
    int head = (int)(blockIdx.x % (unsigned)blocks) * HEADS_N;
    struct attention_shared s = shared_of(memory, (int)blockDim.x / CUDA_WARP);
    struct token t = token_of(&a, (int64_t)(blockIdx.x / (unsigned)blocks));
    int n_splits = (t.n_keys + ATTENTION_SPLIT - 1) / ATTENTION_SPLIT;
    int begin = a.partial != 0 ? (int)blockIdx.y : 0, end = a.partial != 0 ? begin + 1 : n_splits;
    uint32_t q[M_TILES][DIMS / 16][4];
    float acc[M_TILES][N_TILES][4], out[M_TILES][N_TILES][4] = {{{0}}};
    struct softmax so_far[ROWS];

    if (begin >= n_splits)
        return; /* the whole block */
    load_q(q, &a, t.row, head);
    CUDA_EACH (r, ROWS) {
        so_far[r].top = -INFINITY;
        so_far[r].sum = 0;
    }
    for (int split = begin; split < end; split++) {
        run_split(&a, &t, &s, q, split, acc);
        if (a.partial != 0)
            break; /* the merge has a kernel of its own */
        CUDA_EACH (r, ROWS) {
            struct softmax its_own = {s.top[lane / 4 + 8 * r], s.sum[lane / 4 + 8 * r]};
            float mine, its;

            merge(&so_far[r], its_own, &mine, &its);
            CUDA_EACH (n, N_TILES)
                CUDA_EACH (i, 2) {
                    float *x = &out[r / 2][n][r % 2 * 2 + i];

                    *x = fmaf(*x, mine, acc[r / 2][n][r % 2 * 2 + i] * its);
                }
        }
    }
    if (a.partial != 0)
        store_partial(&a, &t, &s, head, begin, acc);
    else
        store_output(&a, &t, head, so_far, out);
}

enum { AT_ONCE = 4 }; /* splits whose loads are under way together */

/* Grid [head][T]; a thread has pairs of dims. Bytes a head: 4 head_dim for each split. */
CUDA_KERNEL(attention_merge_kernel, struct attention_args)
{
    int head = (int)blockIdx.x;
    struct token t = token_of(&a, (int64_t)blockIdx.y);
    int n_splits = (t.n_keys + ATTENTION_SPLIT - 1) / ATTENTION_SPLIT;

    for (int c = 2 * (int)threadIdx.x; c < a.head_dim; c += 2 * CUDA_BLOCK) {
        struct softmax so_far = {-INFINITY, 0};
        float even = 0, odd = 0;

        for (int first = 0; first < n_splits; first += AT_ONCE) {
            struct softmax split[AT_ONCE];
            float x[AT_ONCE], y[AT_ONCE];

            CUDA_EACH (i, AT_ONCE) {
                const float *at = partial_of(&a, t.row, head, first + i);

                if (first + i < n_splits) {
                    split[i].top = at[a.head_dim];
                    split[i].sum = at[a.head_dim + 1];
                    x[i] = at[c];
                    y[i] = at[c + 1];
                }
            }
            CUDA_EACH (i, AT_ONCE)
                if (first + i < n_splits) {
                    float mine, its;

                    merge(&so_far, split[i], &mine, &its);
                    even = fmaf(even, mine, x[i] * its);
                    odd = fmaf(odd, mine, y[i] * its);
                }
        }
        store_pair(&a, t.row, head, c, even, odd, total_of(so_far, a.sink[head]),
                   turn_of(&a, c, t.pos));
    }
}

CUDA_API void cuda_attention(cuda_stream s, struct attention_args args)
{
    int blocks = (args.n_heads + HEADS_N - 1) / HEADS_N, n_warps = args.head_dim / DIMS;
    int T = args.b.n_rows;

    if (T <= 0)
        return;
    CUDA_LAUNCH_GRID(attention_kernel, struct attention_args, T * blocks,
                     args.partial != 0 ? args.n_splits : 1, 1, n_warps * CUDA_WARP,
                     shared_bytes(n_warps), s, args);
    if (args.partial != 0)
        CUDA_LAUNCH(attention_merge_kernel, struct attention_args, args.n_heads, T, CUDA_BLOCK, s,
                    args);
}
