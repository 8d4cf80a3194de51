/*
 * panel_avx512: AVX-512 (F, BW, VL, DQ, VBMI, BF16).
 *
 * Two ways to the same bits. "dot": decode to bf16 pairs, VDPBF16PS; full rate on Zen 4 and later.
 * "fma": decode to f32, two FMAs a pair; twice as fast on Intel cores that need two cycles on both
 * vector ports for a VDPBF16PS.
 *
 * One x row (decode): codes are decoded in registers, 4 chains of 16 rows. More: a chunk of 128
 * columns is decoded once into L1 (16 or 32 KB), then tiles of 6 x rows by 64 rows run over it with
 * 24 accumulators; the sums of earlier groups stay in memory (the caller's out), touched once a
 * group.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/panel_decode_avx512.h"

#include <time.h>

/* ---- few x rows ------------------------------------------------------------------------------ */

enum { FEW = 4 };

INLINE __m512 dot(__m512 sum, __m512i w, __m512i x)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
}

/* x rows as the loops want them: f32 for FMAs, else where they are. */
struct few_x {
    float f[FEW][128] __attribute__((aligned(64)));
    const uint16_t *x[FEW];
};

/* Columns [k, k + n) of n_x rows. */
INLINE void few_load(struct few_x *to, const uint16_t *const *x, int k, int n, const int n_x,
                     const bool fma)
{
    UNROLL for (int t = 0; t < n_x; t++)
    {
        to->x[t] = x[t] + k;
        if (fma)
            widen(to->f[t], x[t] + k, n);
    }
    if (fma)
        __asm__("" : "+m"(to->f)); /* or gcc keeps f in registers and pays a shuffle per element */
}

/* One pair of the tree for 16 rows and every x row; c: offset of the pair in x. */
INLINE void few_step(__m512 *s, __m512i w, const struct few_x *x, int c, const int n_x,
                     const bool fma)
{
    UNROLL for (int t = 0; t < n_x; t++)
    {
        if (fma) {
            s[t] = _mm512_fmadd_ps(odd_of(w), _mm512_set1_ps(x->f[t][c + 1]), s[t]);
            s[t] = _mm512_fmadd_ps(even_of(w), _mm512_set1_ps(x->f[t][c]), s[t]);
        } else {
            s[t] = dot(s[t], w, pair_of(x->x[t] + c));
        }
    }
}

INLINE void few_clear(__m512 s[BLOCKS][FEW], const int n_x)
{
    UNROLL for (int b = 0; b < BLOCKS; b++) UNROLL for (int t = 0; t < n_x; t++) s[b][t] =
        _mm512_setzero_ps();
}

/* out[t][16 rows] += s[t] * scale, or plain. */
INLINE void few_add(float *out, const __m512 *s, __m512 scale, const bool scaled, const int n_x)
{
    UNROLL for (int t = 0; t < n_x; t++)
    {
        __m512 y = _mm512_loadu_ps(out + t * PANEL_ROWS);

        y = scaled ? _mm512_fmadd_ps(s[t], scale, y) : _mm512_add_ps(y, s[t]);
        _mm512_storeu_ps(out + t * PANEL_ROWS, y);
    }
}

/* 8 columns of 16 rows, FMAs: each code is looked up as f32. */
INLINE void few_fp4_fma(__m512 *s, __m512i codes, __m512 table, const struct few_x *x, int c,
                        const int n_x)
{
    UNROLL for (int i = 0; i < 4; i++, c += 2)
    {
        __m512 odd = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 16 + 4 * i), table);
        __m512 even = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * i), table);

        UNROLL for (int t = 0; t < n_x; t++)
        {
            s[t] = _mm512_fmadd_ps(odd, _mm512_set1_ps(x->f[t][c + 1]), s[t]);
            s[t] = _mm512_fmadd_ps(even, _mm512_set1_ps(x->f[t][c]), s[t]);
        }
    }
}

struct fp4_tables {
    __m512i bf16;
    __m512 f32;
};

/* Adds n_groups groups from column g on to y (sums in registers), or to out (y NULL). The groups'
 * sums are chains of their own: with one x row, 4 would wait for each other's dots. */
INLINE void few_fp4_groups(float *out, __m512 (*y)[FEW], const uint8_t *at, struct fp4_tables t,
                           const uint16_t *const *x, int g, const int n_groups, const int n_x,
                           const bool fma, const bool ask)
{
    __m512 s[2][BLOCKS][FEW];
    struct few_x rows;

    few_load(&rows, x, g, n_groups * PANEL_FP4_GROUP, n_x, fma);
    ask_ahead(at, n_groups * 17, ask);
    UNROLL for (int i = 0; i < n_groups; i++) few_clear(s[i], n_x);
    UNROLL for (int j = 0; j < 4; j++) UNROLL for (int i = 0; i < n_groups; i++)
    {
        const uint8_t *codes = at + i * PANEL_FP4_BYTES + j * 256;
        const int c = i * PANEL_FP4_GROUP + 8 * j;

        UNROLL for (int b = 0; b < BLOCKS; b++)
        {
            if (fma) {
                few_fp4_fma(s[i][b], load_codes(codes + b * 64), t.f32, &rows, c, n_x);
            } else {
                __m512i w[4];

                fp4_decode(codes + b * 64, t.bf16, w, false);
                UNROLL for (int k = 0; k < 4; k++)
                    few_step(s[i][b], w[k], &rows, c + 2 * k, n_x, false);
            }
        }
    }
    UNROLL for (int i = 0; i < n_groups; i++)
    {
        struct group_scales scales = group_scales_load(at + i * PANEL_FP4_BYTES + 1024);

        UNROLL for (int b = 0; b < BLOCKS; b++)
        {
            if (y != NULL) {
                UNROLL for (int k = 0; k < n_x; k++) y[b][k] =
                    _mm512_fmadd_ps(s[i][b][k], scales.block[b], y[b][k]);
            } else {
                few_add(out + b * LANES, s[i][b], scales.block[b], true, n_x);
            }
        }
    }
}

INLINE void few_fp4(float *out, const struct panel *p, const uint16_t *const *x, const int n_x,
                    const bool fma, const bool ask)
{
    const struct fp4_tables t = {_mm512_load_si512(fp4_bf16), _mm512_load_ps(fp4_f32)};
    const bool in_registers = n_x <= 2; /* the sums of earlier groups; more have no room there */
    const int together = n_x == 1 && !fma ? 2 : 1, step = together * PANEL_FP4_GROUP;
    const uint8_t *at = p->data;
    __m512 y[BLOCKS][FEW];
    int g = 0;

    if (in_registers)
        few_clear(y, n_x);
    for (; g + step <= p->cols; g += step, at += together * PANEL_FP4_BYTES)
        few_fp4_groups(out, in_registers ? y : NULL, at, t, x, g, together, n_x, fma, ask);
    if (g < p->cols)
        few_fp4_groups(out, in_registers ? y : NULL, at, t, x, g, 1, n_x, fma, ask);
    if (in_registers) {
        UNROLL for (int b = 0; b < BLOCKS; b++) UNROLL for (int k = 0; k < n_x; k++)
            _mm512_storeu_ps(out + k * PANEL_ROWS + b * LANES, y[b][k]);
    }
}

INLINE void few_fp8(float *out, const struct panel *p, const uint16_t *const *x, const int n_x,
                    const bool fma, const bool ask)
{
    const struct fp8_tables t = fp8_tables_load();
    const uint8_t *at = p->data;
    struct few_x rows;

    for (int g = 0; g * 128 < p->cols; g++) {
        int n = p->cols - g * 128 < 128 ? p->cols - g * 128 : 128;
        __m512 s[BLOCKS][FEW];

        few_clear(s, n_x);
        few_load(&rows, x, g * 128, n, n_x, fma);
        for (int k = 0; k < n; k += 4, at += 256) {
            ask_ahead(at, 4, ask);
            UNROLL for (int b = 0; b < BLOCKS; b++)
            {
                __m512i w[2];

                fp8_decode(at + 64 * b, &t, w);
                few_step(s[b], w[0], &rows, k, n_x, fma);
                few_step(s[b], w[1], &rows, k + 2, n_x, fma);
            }
        }
        UNROLL for (int b = 0; b < BLOCKS; b++)
            few_add(out + b * LANES, s[b], _mm512_set1_ps(p->scale[g]), true, n_x);
    }
}

INLINE void few_bf16(float *out, const struct panel *p, const uint16_t *const *x, const int n_x,
                     const bool fma, const bool ask)
{
    const uint8_t *at = p->data;
    struct few_x rows;

    for (int g = 0; g < p->cols; g += 128) {
        int n = p->cols - g < 128 ? p->cols - g : 128;
        __m512 s[BLOCKS][FEW];

        few_clear(s, n_x);
        few_load(&rows, x, g, n, n_x, fma);
        for (int k = 0; k < n; k += 2, at += 256) {
            ask_ahead(at, 4, ask);
            UNROLL for (int b = 0; b < BLOCKS; b++)
                few_step(s[b], load_codes(at + 64 * b), &rows, k, n_x, fma);
        }
        UNROLL for (int b = 0; b < BLOCKS; b++)
            few_add(out + b * LANES, s[b], _mm512_setzero_ps(), false, n_x);
    }
}

INLINE void few_of(float *out, const struct panel *p, const uint16_t *const *x, const int n_x,
                   const bool fma, const bool ask)
{
    if (p->type == WEIGHT_FP4)
        few_fp4(out, p, x, n_x, fma, ask);
    else if (p->type == WEIGHT_FP8)
        few_fp8(out, p, x, n_x, fma, ask);
    else
        few_bf16(out, p, x, n_x, fma, ask);
}

/* 1 .. FEW rows; columns a multiple of 32. */
INLINE void few(float *out, const struct panel *p, const uint16_t *const *x, int n_x,
                const bool fma)
{
    memset(out, 0, (size_t)n_x * PANEL_ROWS * sizeof(*out));
    switch (n_x) {
    case 1:
        few_of(out, p, x, 1, fma, fma);
        break;
    case 2:
        few_of(out, p, x, 2, fma, fma);
        break;
    case 3:
        few_of(out, p, x, 3, fma, fma);
        break;
    default:
        few_of(out, p, x, FEW, fma, fma);
        break;
    }
}

/* ---- several x rows: decode a chunk ---------------------------------------------------------- */

/* Where decoded pairs go. dot: [pair][64 rows] dwords. fma: [pair][odd, even][64 rows] f32. */
INLINE void put_pair(struct panel_scratch *scratch, int pair, int block, __m512i w, bool fma)
{
    if (fma) {
        float *at = scratch->w + pair * 2 * PANEL_ROWS + block * LANES;

        _mm512_store_ps(at, odd_of(w));
        _mm512_store_ps(at + PANEL_ROWS, even_of(w));
    } else {
        _mm512_store_si512((uint8_t *)scratch->w + pair * 4 * PANEL_ROWS + block * 64, w);
    }
}

INLINE void decode_fp4(struct panel_scratch *scratch, const uint8_t *at, int n, bool fma)
{
    const __m512i table = _mm512_load_si512(fp4_bf16);
    const __m512 table_f32 = _mm512_load_ps(fp4_f32);

    for (int g = 0; g < n / PANEL_FP4_GROUP; g++, at += PANEL_FP4_BYTES) {
        ask_ahead(at, 17, fma);
        for (int j = 0; j < 4; j++) {
            UNROLL for (int b = 0; b < BLOCKS; b++)
            {
                const uint8_t *codes = at + j * 256 + b * 64;
                int pair = g * 16 + j * 4;

                if (fma) {
                    __m512i c = load_codes(codes);

                    UNROLL for (int i = 0; i < 4; i++)
                    {
                        float *to = scratch->w + (pair + i) * 2 * PANEL_ROWS + b * LANES;

                        _mm512_store_ps(
                            to, _mm512_permutexvar_ps(_mm512_srli_epi32(c, 16 + 4 * i), table_f32));
                        _mm512_store_ps(
                            to + PANEL_ROWS,
                            _mm512_permutexvar_ps(_mm512_srli_epi32(c, 4 * i), table_f32));
                    }
                } else {
                    __m512i w[4];

                    fp4_decode(codes, table, w, true);
                    UNROLL for (int i = 0; i < 4; i++) put_pair(scratch, pair + i, b, w[i], false);
                }
            }
        }
        struct group_scales scales = group_scales_load(at + 1024);

        UNROLL for (int b = 0; b < BLOCKS; b++)
            _mm512_store_ps(scratch->scale + g * PANEL_ROWS + b * LANES, scales.block[b]);
    }
}

INLINE void decode_fp8(struct panel_scratch *scratch, const uint8_t *at, int n, bool fma)
{
    const struct fp8_tables t = fp8_tables_load();

    for (int k = 0; k < n; k += 4, at += 256) {
        ask_ahead(at, 4, fma);
        UNROLL for (int b = 0; b < BLOCKS; b++)
        {
            __m512i w[2];

            fp8_decode(at + 64 * b, &t, w);
            put_pair(scratch, k / 2, b, w[0], fma);
            put_pair(scratch, k / 2 + 1, b, w[1], fma);
        }
    }
}

INLINE void decode_bf16(struct panel_scratch *scratch, const uint8_t *at, int n)
{
    for (int k = 0; k < n; k += 2, at += 256) {
        ask_ahead(at, 4, true);
        UNROLL for (int b = 0; b < BLOCKS; b++)
            put_pair(scratch, k / 2, b, _mm512_loadu_si512(at + 64 * b), true);
    }
}

/* ---- several x rows: tiles ------------------------------------------------------------------- */

/* Adds one group (n_pairs pairs of w) to n_x rows of out. scale: NULL, or [64]. */
INLINE void tile_finish(float *out, __m512 s[TILE][BLOCKS], const float *scale, int n_x)
{
    UNROLL for (int b = 0; b < BLOCKS; b++)
    {
        __m512 factor = scale != NULL ? _mm512_load_ps(scale + b * LANES) : _mm512_setzero_ps();

        UNROLL for (int i = 0; i < n_x; i++)
        {
            float *at = out + i * PANEL_ROWS + b * LANES;
            __m512 y = _mm512_loadu_ps(at);

            y = scale != NULL ? _mm512_fmadd_ps(s[i][b], factor, y) : _mm512_add_ps(y, s[i][b]);
            _mm512_storeu_ps(at, y);
        }
    }
}

INLINE void tile_dot(float *out, const uint8_t *w, const uint16_t *const *x, int n_pairs,
                     const float *scale, const int n_x)
{
    __m512 s[TILE][BLOCKS];

    UNROLL for (int i = 0; i < n_x; i++) UNROLL for (int b = 0; b < BLOCKS; b++) s[i][b] =
        _mm512_setzero_ps();
    for (int k = 0; k < n_pairs; k++, w += 4 * PANEL_ROWS) {
        __m512i wk[BLOCKS];

        UNROLL for (int b = 0; b < BLOCKS; b++) wk[b] = _mm512_loadu_si512(w + 64 * b);
        UNROLL for (int i = 0; i < n_x; i++)
        {
            __m512i xk = pair_of(x[i] + 2 * k);

            UNROLL for (int b = 0; b < BLOCKS; b++) s[i][b] = dot(s[i][b], wk[b], xk);
        }
    }
    tile_finish(out, s, scale, n_x);
}

enum { GROUP_TILE = 3, GROUP_PAIRS = PANEL_FP4_GROUP / 2 };

/* FP4: a group is 16 pairs, too few for 24 sums to go through memory after each. Fewer rows leave
 * room for both, the group's sums and those of all groups. */
INLINE void tile_dot_groups(float *out, const uint8_t *w, const uint16_t *const *x, int n_groups,
                            const float *scale, const int n_x)
{
    __m512 y[GROUP_TILE][BLOCKS];

    UNROLL for (int i = 0; i < n_x; i++) UNROLL for (int b = 0; b < BLOCKS; b++) y[i][b] =
        _mm512_loadu_ps(out + i * PANEL_ROWS + b * LANES);
    for (int g = 0; g < n_groups; g++, scale += PANEL_ROWS) {
        __m512 s[GROUP_TILE][BLOCKS];

        UNROLL for (int i = 0; i < n_x; i++) UNROLL for (int b = 0; b < BLOCKS; b++) s[i][b] =
            _mm512_setzero_ps();
/* Twice: with more, gcc 12 moves the sums from register to register and loses a tenth. */
#pragma GCC unroll 2
        for (int k = 0; k < GROUP_PAIRS; k++) {
            __m512i wk[BLOCKS];

            UNROLL for (int b = 0; b < BLOCKS; b++) wk[b] =
                _mm512_load_si512(w + k * 4 * PANEL_ROWS + 64 * b);
            UNROLL for (int i = 0; i < n_x; i++)
            {
                __m512i xk = pair_of(x[i] + 2 * (g * GROUP_PAIRS + k));

                UNROLL for (int b = 0; b < BLOCKS; b++) s[i][b] = dot(s[i][b], wk[b], xk);
            }
        }
        w += GROUP_PAIRS * 4 * PANEL_ROWS;
        UNROLL for (int b = 0; b < BLOCKS; b++)
        {
            __m512 factor = _mm512_load_ps(scale + b * LANES);

            UNROLL for (int i = 0; i < n_x; i++) y[i][b] =
                _mm512_fmadd_ps(s[i][b], factor, y[i][b]);
        }
    }
    UNROLL for (int i = 0; i < n_x; i++) UNROLL for (int b = 0; b < BLOCKS; b++)
        _mm512_storeu_ps(out + i * PANEL_ROWS + b * LANES, y[i][b]);
}

/* x: f32 [n_x][PANEL_CHUNK]. */
INLINE void tile_fma(float *out, const float *w, const float *x, int n_pairs, const float *scale,
                     const int n_x)
{
    __m512 s[TILE][BLOCKS];

    UNROLL for (int i = 0; i < n_x; i++) UNROLL for (int b = 0; b < BLOCKS; b++) s[i][b] =
        _mm512_setzero_ps();
    for (int k = 0; k < n_pairs; k++, w += 2 * PANEL_ROWS) {
        UNROLL for (int odd = 1; odd >= 0; odd--)
        {
            __m512 wk[BLOCKS];

            UNROLL for (int b = 0; b < BLOCKS; b++) wk[b] =
                _mm512_load_ps(w + (1 - odd) * PANEL_ROWS + b * LANES);
            UNROLL for (int i = 0; i < n_x; i++)
            {
                __m512 xk = _mm512_set1_ps(x[i * PANEL_CHUNK + 2 * k + odd]);

                UNROLL for (int b = 0; b < BLOCKS; b++) s[i][b] =
                    _mm512_fmadd_ps(wk[b], xk, s[i][b]);
            }
        }
    }
    tile_finish(out, s, scale, n_x);
}

INLINE void tile_chunk(float *out, const struct chunk *c, const uint16_t *const *x, const float *xf,
                       const int n_x, const bool fma)
{
    if (!fma && c->group == PANEL_FP4_GROUP) {
        const int first = n_x < GROUP_TILE ? n_x : GROUP_TILE;

        tile_dot_groups(out, c->w, x, c->n_cols / PANEL_FP4_GROUP, c->scale, first);
        if (n_x > first)
            tile_dot_groups(out + first * PANEL_ROWS, c->w, x + first, c->n_cols / PANEL_FP4_GROUP,
                            c->scale, n_x - first);
        return;
    }
    for (int g = 0, k = 0; k < c->n_cols; g++, k += c->group) {
        int n = c->n_cols - k < c->group ? c->n_cols - k : c->group;
        const float *scale = c->scale != NULL ? c->scale + g * PANEL_ROWS : NULL;

        if (fma) {
            tile_fma(out, (const float *)c->w + k * PANEL_ROWS, xf + k, n / 2, scale, n_x);
        } else {
            const uint16_t *xk[TILE];

            UNROLL for (int i = 0; i < n_x; i++) xk[i] = x[i] + k;
            tile_dot(out, (const uint8_t *)c->w + k * 2 * PANEL_ROWS, xk, n / 2, scale, n_x);
        }
    }
}

static void tile_with_dot(float *out, const struct chunk *c, const uint16_t *const *x,
                          const float *xf, int n_x)
{
    TILE_BY_COUNT(tile_chunk, out, c, x, xf, n_x, false)
}

static void tile_with_fma(float *out, const struct chunk *c, const uint16_t *const *x,
                          const float *xf,
                          int n_x){TILE_BY_COUNT(tile_chunk, out, c, x, xf, n_x, true)}

INLINE struct chunk
    chunk_decode(const struct panel *p, int k, int n, struct panel_scratch *scratch, const bool fma)
{
    struct chunk c = {.w = scratch->w, .scale = scratch->scale, .group = PANEL_CHUNK};

    switch (p->type) {
    case WEIGHT_FP4:
        c.n_cols = n;
        c.group = PANEL_FP4_GROUP;
        decode_fp4(scratch, p->data + (size_t)(k / PANEL_FP4_GROUP) * PANEL_FP4_BYTES, n, fma);
        break;
    case WEIGHT_FP8:
        c.n_cols = (n + 3) / 4 * 4;
        decode_fp8(scratch, p->data + (size_t)k * PANEL_ROWS, c.n_cols, fma);
        UNROLL for (int b = 0; b < BLOCKS; b++)
            _mm512_store_ps(scratch->scale + b * LANES, _mm512_set1_ps(p->scale[k / 128]));
        break;
    default:
        c.n_cols = (n + 1) / 2 * 2;
        c.scale = NULL;
        if (fma)
            decode_bf16(scratch, p->data + (size_t)k * 2 * PANEL_ROWS, c.n_cols);
        else
            c.w = p->data + (size_t)k * 2 * PANEL_ROWS;
        break;
    }
    return c;
}

static struct chunk decode_for_dot(const struct panel *p, int k, int n,
                                   struct panel_scratch *scratch)
{
    return chunk_decode(p, k, n, scratch, false);
}

static struct chunk decode_for_fma(const struct panel *p, int k, int n,
                                   struct panel_scratch *scratch)
{
    return chunk_decode(p, k, n, scratch, true);
}

/* ---- choice ---------------------------------------------------------------------------------- */

static void multiply_dot(float *out, const struct panel *p, const uint16_t *const *x, int n_x,
                         struct panel_scratch *scratch)
{
    if (n_x <= FEW && p->cols % 32 == 0)
        few(out, p, x, n_x, false);
    else
        multiply_chunks(out, p, x, n_x, scratch, decode_for_dot, tile_with_dot, NULL);
}

static void multiply_fma(float *out, const struct panel *p, const uint16_t *const *x, int n_x,
                         struct panel_scratch *scratch)
{
    if (n_x <= FEW && p->cols % 32 == 0)
        few(out, p, x, n_x, true);
    else
        multiply_chunks(out, p, x, n_x, scratch, decode_for_fma, tile_with_fma, widen);
}

static const struct panel_kernels with_dot = {"avx512 dot", PANEL_ORDER_16, multiply_dot, false};
static const struct panel_kernels with_fma = {"avx512 fma", PANEL_ORDER_16, multiply_fma, true};

/* FLOP/s of a loop on registers. */
static double rate_of(double (*loop)(int64_t n))
{
    struct timespec t0, t1;

    clock_gettime(CLOCK_MONOTONIC, &t0);
    double flops = loop(1000);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    return flops / ((double)(t1.tv_sec - t0.tv_sec) * 1e9 + (double)(t1.tv_nsec - t0.tv_nsec));
}

/* Takes 0.3 ms. Both give the same bits, so a wrong guess costs time only. One way is twice as fast
 * as the other on each processor so far. Timed on registers: what a chunk in L1 takes also depends
 * on who else uses that L1 just now. */
const struct panel_kernels *panel_kernels_avx512(bool other)
{
    double dot = 0, fma = 0;

    for (int round = 0; round < 20; round++) { /* the first ones pay for waking the vector units */
        double dot_now = rate_of(cpu_dot_avx512), fma_now = rate_of(cpu_fma_avx512);

        dot = dot_now > dot ? dot_now : dot;
        fma = fma_now > fma ? fma_now : fma;
    }
    return (fma > dot) != other ? &with_fma : &with_dot;
}
