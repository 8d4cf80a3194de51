/*
 * panel_amx: AMX (TILE, BF16), beside what panel_avx512.c needs.
 *
 * The tree is the one of TDPBF16PS, which takes 32 columns at a time:
 *
 *   for each 32 columns                                             ascending
 *       e = o = 0
 *       for each pair (2i, 2i + 1) of them                          ascending
 *           e = fma(x[2i], w[2i], e);  o = fma(x[2i + 1], w[2i + 1], o)
 *       y = fma(e + o, scale, y)                                    from y = 0
 *
 * A tile has no place for a scale, so it is in the weights: nearly all scales are powers of two
 * (FP4's are by their format, FP8's in every release), which change exponents and no rounding.
 * Where one is not, or could leave the range of exponents, the chunk is multiplied by FMAs in this
 * order (the same bits, slowly). One x row, or two of FP8 or BF16, wait for memory: FMAs too, from
 * codes decoded in registers. (Tiles flush denormals, FMAs do not: bits differ only for numbers
 * below 1e-38.)
 *
 * For 16 x rows or fewer the codes of 32 columns are decoded while the 32 before are multiplied.
 * For more a chunk of 256 columns is decoded once into L1, 32 KB of tiles of 16 pairs by 16 rows,
 * then x rows run over it: two tiles of 16 of them by two of W at a time, so that each tile that is
 * loaded is multiplied twice.
 *
 * Source of the order: Intel 64 and IA-32 Architectures Software Developer's Manual, TDPBF16PS,
 * "Operation".
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/panel_decode_avx512.h"
#include "kernels/cpu/tiles.h"

#include <stdlib.h>

enum {
    STEP = TILE_STEP,
    STEP_PAIRS = STEP / 2,
    FEW = 2,                  /* x rows that are multiplied in registers */
    CHUNK = PANEL_TILE_CHUNK, /* columns decoded at a time */
    ROWS = PANEL_TILE_ROWS,   /* x rows of a tile */
    ROW_BYTES = PANEL_ROWS * 4,
    TILE_BYTES = 1024,
    STEP_BYTES = BLOCKS * TILE_BYTES
};

/* Scales whose exponent is at most so far from 0 change no product into a denormal or infinity,
 * unless x is as small or large as no activation is. */
enum { SCALE_REACH = 63 };

/* ---- one or two x rows ----------------------------------------------------------------------- */

/* Sums of even and of odd columns: 16 rows of W by FEW x rows. */
struct sums {
    __m512 even[FEW], odd[FEW];
};

INLINE void sums_add(struct sums *s, __m512 even, __m512 odd, float (*x)[STEP], int c,
                     const int n_x)
{
    UNROLL for (int k = 0; k < n_x; k++)
    {
        s->even[k] = _mm512_fmadd_ps(even, _mm512_set1_ps(x[k][c]), s->even[k]);
        s->odd[k] = _mm512_fmadd_ps(odd, _mm512_set1_ps(x[k][c + 1]), s->odd[k]);
    }
}

/* 8 columns of FP4, from column c of the 32 in x. */
INLINE void fp4_eight(struct sums *s, const uint8_t *at, __m512 table, float (*x)[STEP], int c,
                      const int n_x)
{
    __m512i codes = load_codes(at);

    UNROLL for (int i = 0; i < 4; i++) sums_add(
        s, _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * i), table),
        _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 16 + 4 * i), table), x, c + 2 * i, n_x);
}

INLINE void pair_add(struct sums *s, __m512i w, float (*x)[STEP], int c, const int n_x)
{
    sums_add(s, even_of(w), odd_of(w), x, c, n_x);
}

/* 32 columns at `at` of blocks [b0, b0 + n_b). */
INLINE void step_add(struct sums *s, const uint8_t *at, float (*x)[STEP],
                     const struct fp8_tables *fp8, __m512 fp4, const int b0, const int n_b,
                     const int n_x, const enum weight_type type)
{
    if (type == WEIGHT_FP4) {
        ask_ahead(at, 17, b0 == 0);
        UNROLL for (int j = 0; j < 4; j++) UNROLL for (int b = 0; b < n_b; b++)
            fp4_eight(&s[b], at + j * 256 + (b0 + b) * 64, fp4, x, 8 * j, n_x);
    } else if (type == WEIGHT_FP8) {
        for (int c = 0; c < STEP; c += 4, at += 256) {
            ask_ahead(at, 4, b0 == 0);
            UNROLL for (int b = 0; b < n_b; b++)
            {
                __m512i w[2];

                fp8_decode(at + (b0 + b) * 64, fp8, w);
                pair_add(&s[b], w[0], x, c, n_x);
                pair_add(&s[b], w[1], x, c + 2, n_x);
            }
        }
    } else {
        for (int c = 0; c < STEP; c += 2, at += 256) {
            ask_ahead(at, 4, b0 == 0);
            UNROLL for (int b = 0; b < n_b; b++)
                pair_add(&s[b], load_codes(at + (b0 + b) * 64), x, c, n_x);
        }
    }
}

/* y += 32 columns at `at` times x. Blocks [b0, b0 + n_b) of 16 rows. */
INLINE void few_step(__m512 y[BLOCKS][FEW], const uint8_t *at, float (*x)[STEP],
                     const struct group_scales *scales, const struct fp8_tables *fp8, __m512 fp4,
                     const int b0, const int n_b, const int n_x, const enum weight_type type)
{
    struct sums s[BLOCKS];

    UNROLL for (int b = 0; b < n_b; b++) UNROLL for (int k = 0; k < n_x; k++) s[b].even[k] =
        s[b].odd[k] = _mm512_setzero_ps();
    step_add(s, at, x, fp8, fp4, b0, n_b, n_x, type);
    UNROLL for (int b = 0; b < n_b; b++) UNROLL for (int k = 0; k < n_x; k++)
    {
        __m512 sum = _mm512_add_ps(s[b].even[k], s[b].odd[k]), *to = &y[b0 + b][k];

        *to = type == WEIGHT_BF16 ? _mm512_add_ps(sum, *to)
                                  : _mm512_fmadd_ps(sum, scales->block[b0 + b], *to);
    }
}

INLINE void few_of(float *out, const struct panel *p, const uint16_t *const *x, const int n_x,
                   const enum weight_type type)
{
    const size_t step = type == WEIGHT_FP4   ? PANEL_FP4_BYTES
                        : type == WEIGHT_FP8 ? STEP * PANEL_ROWS
                                             : 2 * STEP * PANEL_ROWS;
    const __m512 fp4 = _mm512_load_ps(fp4_f32);
    const struct fp8_tables fp8 = fp8_tables_load();
    const uint8_t *at = p->data;
    __m512 y[BLOCKS][FEW];

    UNROLL for (int b = 0; b < BLOCKS; b++) UNROLL for (int k = 0; k < n_x; k++) y[b][k] =
        _mm512_setzero_ps();
    for (int c = 0; c < p->cols; c += STEP, at += step) {
        float rows[FEW][STEP] __attribute__((aligned(64)));
        struct group_scales scales;

        if (type == WEIGHT_FP4)
            scales = group_scales_load(at + 1024);
        else
            UNROLL for (int b = 0; b < BLOCKS; b++) scales.block[b] =
                _mm512_set1_ps(type == WEIGHT_FP8 ? p->scale[c / 128] : 1);
        UNROLL for (int k = 0; k < n_x; k++) widen(rows[k], x[k] + c, STEP);
        /* or gcc keeps them in registers and pays a shuffle per element */
        __asm__("" : "+m"(rows));
        if (n_x == 1) {
            few_step(y, at, rows, &scales, &fp8, fp4, 0, 4, n_x, type);
        } else {
            few_step(y, at, rows, &scales, &fp8, fp4, 0, 2, n_x, type);
            few_step(y, at, rows, &scales, &fp8, fp4, 2, 2, n_x, type);
        }
    }
    UNROLL for (int b = 0; b < BLOCKS; b++) UNROLL for (int k = 0; k < n_x; k++)
        _mm512_storeu_ps(out + k * PANEL_ROWS + b * LANES, y[b][k]);
}

INLINE void few_rows(float *out, const struct panel *p, const uint16_t *const *x, const int n_x)
{
    if (p->type == WEIGHT_FP4)
        few_of(out, p, x, n_x, WEIGHT_FP4);
    else if (p->type == WEIGHT_FP8)
        few_of(out, p, x, n_x, WEIGHT_FP8);
    else
        few_of(out, p, x, n_x, WEIGHT_BF16);
}

static void few(float *out, const struct panel *p, const uint16_t *const *x, int n_x)
{
    if (n_x == 1)
        few_rows(out, p, x, 1);
    else
        few_rows(out, p, x, 2);
}

/* ---- a chunk of weights ---------------------------------------------------------------------- */

/* Columns decoded to tiles, zeros up to whole steps. Pair i of 16 rows stands at step * STEP_BYTES
 * + block * block_bytes + i * pair_bytes: tiles of 1 KB, or a BF16 panel as it is. */
struct tile_chunk {
    const uint8_t *w;
    size_t block_bytes, pair_bytes;
    int n_steps;
    bool folded;        /* scales are in w */
    const float *scale; /* else [steps][64], NULL: none */
};

INLINE uint8_t *tile_place(uint8_t *w, int pair, int block)
{
    return w + pair / STEP_PAIRS * STEP_BYTES + block * TILE_BYTES + pair % STEP_PAIRS * 64;
}

/* Zeros for the pairs that a last short step does not have. */
INLINE void clear_last_step(uint8_t *w, int n)
{
    if (n % STEP != 0)
        memset(w + n / STEP * STEP_BYTES, 0, STEP_BYTES);
}

/* Whether the scales of 64 rows may be folded: none is far from 0, or NaN. */
INLINE bool may_fold(const uint8_t *e8m0)
{
    __m512i low = _mm512_sub_epi8(_mm512_loadu_si512(e8m0), _mm512_set1_epi8(127 - SCALE_REACH));

    return _mm512_cmpgt_epu8_mask(low, _mm512_set1_epi8(2 * SCALE_REACH)) == 0;
}

/* bf16 of the FP4 codes times 2^SCALE_REACH, as fp4_bf16 has them; -0 is 0, which changes no sum.
 */
static const uint16_t fp4_high[32] __attribute__((aligned(64))) = {
    0x0000, 0x5E80, 0x5F00, 0x5F40, 0x5F80, 0x5FC0, 0x6000, 0x6040, 0x0000, 0xDE80, 0xDF00,
    0xDF40, 0xDF80, 0xDFC0, 0xE000, 0xE040, 0x0000, 0x5E80, 0x5F00, 0x5F40, 0x5F80, 0x5FC0,
    0x6000, 0x6040, 0x0000, 0xDE80, 0xDF00, 0xDF40, 0xDF80, 0xDFC0, 0xE000, 0xE040};

/* What to subtract from a number of fp4_high to multiply it by 2^-SCALE_REACH and an E8M0 that may
 * be folded, for both of a pair; with saturation 0 stays 0. */
INLINE __m512i exponents_below(const uint8_t *e8m0)
{
    __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)e8m0));

    e = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(127 + SCALE_REACH), e), 7);
    return _mm512_or_si512(_mm512_slli_epi32(e, 16), e);
}

/* 32 columns to the tiles of a step. */
INLINE void fp4_step(uint8_t *w, const uint8_t *at, const bool fold)
{
    const __m512i table = _mm512_load_si512(fold ? fp4_high : fp4_bf16);

    ask_ahead(at, 17, true);
    UNROLL for (int b = 0; b < BLOCKS; b++)
    {
        __m512i below = exponents_below(at + 1024 + b * LANES);

        UNROLL for (int j = 0; j < 4; j++)
        {
            __m512i pair[4];

            fp4_decode(at + j * 256 + b * 64, table, pair, true);
            UNROLL for (int i = 0; i < 4; i++) _mm512_store_si512(
                tile_place(w, 4 * j + i, b), fold ? _mm512_subs_epu16(pair[i], below) : pair[i]);
        }
    }
}

INLINE void fp4_steps(uint8_t *w, const uint8_t *at, int n_steps, const bool fold)
{
    for (int g = 0; g < n_steps; g++)
        fp4_step(w + g * STEP_BYTES, at + g * PANEL_FP4_BYTES, fold);
}

static void decode_fp4(struct tile_chunk *c, const struct panel *p, int k, int n,
                       struct panel_scratch *scratch, bool fold)
{
    const uint8_t *at = p->data + (size_t)(k / PANEL_FP4_GROUP) * PANEL_FP4_BYTES;
    uint8_t *w = (uint8_t *)scratch->w;

    c->n_steps = n / STEP;
    for (int g = 0; g < c->n_steps; g++)
        fold = fold && may_fold(at + g * PANEL_FP4_BYTES + 1024);
    c->folded = fold;
    if (fold) {
        fp4_steps(w, at, c->n_steps, true);
        return;
    }
    fp4_steps(w, at, c->n_steps, false);
    for (int g = 0; g < c->n_steps; g++) {
        struct group_scales s = group_scales_load(at + g * PANEL_FP4_BYTES + 1024);

        UNROLL for (int b = 0; b < BLOCKS; b++)
            _mm512_store_ps(scratch->scale + g * PANEL_ROWS + b * LANES, s.block[b]);
    }
}

/* Of a power of two; a sign puts it far away. */
INLINE int exponent_of(float scale)
{
    uint32_t bits;

    memcpy(&bits, &scale, 4);
    return (int)(bits >> 23) - 127;
}

/* Whether a scale may be folded: it is a power of two, and not far from 1. */
INLINE bool is_near_power(float scale)
{
    uint32_t bits;

    memcpy(&bits, &scale, 4);
    return (bits & 0x7FFFFF) == 0 && abs(exponent_of(scale)) <= SCALE_REACH;
}

/* The tables with their values times 2^exponent; zeros and NaN stay. */
INLINE struct fp8_tables fp8_tables_scaled(int exponent)
{
    const __m512i add = _mm512_set1_epi16((short)(exponent * 128));
    uint16_t value[128] __attribute__((aligned(64)));
    uint8_t high[128] __attribute__((aligned(64))), low[128] __attribute__((aligned(64)));
    struct fp8_tables t;

    for (int i = 0; i < 128; i++)
        value[i] = (uint16_t)(fp8_high[i] << 8 | fp8_low[i]);
    for (int i = 0; i < 128; i += 32) {
        __m512i v = _mm512_load_si512(value + i);
        __mmask32 change =
            _mm512_test_epi16_mask(v, v) & _mm512_cmplt_epu16_mask(v, _mm512_set1_epi16(0x7F80));

        _mm512_store_si512(value + i, _mm512_mask_add_epi16(v, change, v, add));
    }
    for (int i = 0; i < 128; i++) {
        high[i] = (uint8_t)(value[i] >> 8);
        low[i] = (uint8_t)value[i];
    }
    for (int i = 0; i < 2; i++) {
        t.high[i] = _mm512_load_si512(high + 64 * i);
        t.low[i] = _mm512_load_si512(low + 64 * i);
    }
    return t;
}

/* 4 columns, of which the first is column i of w. */
INLINE void fp8_four(uint8_t *w, int i, const uint8_t *at, const struct fp8_tables *t)
{
    ask_ahead(at, 4, true);
    UNROLL for (int b = 0; b < BLOCKS; b++)
    {
        __m512i pair[2];

        fp8_decode(at + 64 * b, t, pair);
        _mm512_store_si512(tile_place(w, i / 2, b), pair[0]);
        _mm512_store_si512(tile_place(w, i / 2 + 1, b), pair[1]);
    }
}

static void decode_fp8(struct tile_chunk *c, const struct panel *p, int k, int n,
                       struct panel_scratch *scratch, bool fold)
{
    const uint8_t *at = p->data + (size_t)k * PANEL_ROWS;
    uint8_t *w = (uint8_t *)scratch->w;
    struct fp8_tables t = fp8_tables_load();

    c->n_steps = (n + STEP - 1) / STEP;
    for (int i = 0; i < n; i += 128)
        fold = fold && is_near_power(p->scale[(k + i) / 128]);
    c->folded = fold;
    clear_last_step(w, n);
    for (int i = 0; i < n; i += 4, at += 256) {
        if (fold && i % 128 == 0)
            t = fp8_tables_scaled(exponent_of(p->scale[(k + i) / 128]));
        fp8_four(w, i, at, &t);
    }
    for (int g = 0; !fold && g < c->n_steps; g++)
        for (int r = 0; r < PANEL_ROWS; r++)
            scratch->scale[g * PANEL_ROWS + r] = p->scale[(k + g * STEP) / 128];
}

static void decode_bf16(struct tile_chunk *c, const struct panel *p, int k, int n,
                        struct panel_scratch *scratch, bool fold)
{
    const uint8_t *at = p->data + (size_t)k * 2 * PANEL_ROWS;

    c->n_steps = (n + STEP - 1) / STEP;
    c->folded = fold;
    c->scale = NULL;
    c->block_bytes = 64;
    c->pair_bytes = ROW_BYTES;
    if (n % STEP == 0) {
        c->w = at;
        return;
    }
    memcpy(scratch->w, at, (size_t)((n + 1) / 2) * ROW_BYTES);
    memset((uint8_t *)scratch->w + (size_t)((n + 1) / 2) * ROW_BYTES, 0,
           (size_t)(c->n_steps * STEP_PAIRS - (n + 1) / 2) * ROW_BYTES);
}

/* Columns [k, k + n). fold: scales may go into the weights. */
static struct tile_chunk chunk_decode(const struct panel *p, int k, int n,
                                      struct panel_scratch *scratch, bool fold)
{
    struct tile_chunk c = {.w = (const uint8_t *)scratch->w,
                           .block_bytes = TILE_BYTES,
                           .pair_bytes = 64,
                           .scale = scratch->scale};

    if (p->type == WEIGHT_FP4)
        decode_fp4(&c, p, k, n, scratch, fold);
    else if (p->type == WEIGHT_FP8)
        decode_fp8(&c, p, k, n, scratch, fold);
    else
        decode_bf16(&c, p, k, n, scratch, fold);
    return c;
}

/* ---- x rows times a chunk -------------------------------------------------------------------- */

/* Up to 16 x rows as a tile wants them: one stride apart, of whole steps. */
struct tile_rows {
    const uint8_t *first;
    size_t stride; /* bytes */
};

/* Columns [k, k + n) of n_x rows; where they lie unevenly or end early, a copy of n_tile rows,
 * those beyond n_x zero. */
INLINE struct tile_rows rows_of(const uint16_t *const *x, int n_x, int n_tile, int k, int n,
                                uint16_t *copy)
{
    ptrdiff_t stride = n_x > 1 ? x[1] - x[0] : STEP;
    bool even = n_x == n_tile && n % STEP == 0 && stride > 0;
    int whole = (n + STEP - 1) / STEP * STEP;

    for (int i = 2; i < n_x && even; i++)
        even = x[i] - x[i - 1] == stride;
    if (even)
        return (struct tile_rows){(const uint8_t *)(x[0] + k), (size_t)stride * 2};
    for (int i = 0; i < n_tile; i++) {
        int live = i < n_x ? n : 0;

        if (live > 0)
            memcpy(copy + i * CHUNK, x[i] + k, (size_t)n * 2);
        memset(copy + i * CHUNK + live, 0, (size_t)(whole - live) * 2);
    }
    return (struct tile_rows){(const uint8_t *)copy, CHUNK * 2};
}

/* Tiles 0 and 1 are 16 columns each from a on, 2 and 3 from b on, of rows of 64 sums. */
INLINE void sums_load(const float *a, const float *b)
{
    tiles_written();
    _tile_loadd(0, a, ROW_BYTES);
    _tile_loadd(1, a + 16, ROW_BYTES);
    _tile_loadd(2, b, ROW_BYTES);
    _tile_loadd(3, b + 16, ROW_BYTES);
}

INLINE void sums_store(float *a, float *b)
{
    _tile_stored(0, a, ROW_BYTES);
    _tile_stored(1, a + 16, ROW_BYTES);
    _tile_stored(2, b, ROW_BYTES);
    _tile_stored(3, b + 16, ROW_BYTES);
}

/* sums [rows of a tile][64] += x times the chunk. */
INLINE void multiply_one_by_four(float *sums, const struct tile_chunk *c, struct tile_rows x)
{
    const uint8_t *w = c->w;

    sums_load(sums, sums + 32);
    for (int s = 0; s < c->n_steps; s++, w += STEP_BYTES) {
        _tile_loadd(4, x.first + s * STEP * 2, x.stride);
        _tile_loadd(5, w, c->pair_bytes);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, w + c->block_bytes, c->pair_bytes);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, w + 2 * c->block_bytes, c->pair_bytes);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, w + 3 * c->block_bytes, c->pair_bytes);
        _tile_dpbf16ps(3, 4, 5);
    }
    sums_store(sums, sums + 32);
}

/* Two tiles of x rows, by two blocks of W and then by the other two. */
INLINE void multiply_two_by_two(float *sums, const struct tile_chunk *c, struct tile_rows x0,
                                struct tile_rows x1)
{
    float *below = sums + ROWS * PANEL_ROWS;

    for (int half = 0; half < 2; half++, sums += 32, below += 32) {
        const uint8_t *w = c->w + (size_t)half * 2 * c->block_bytes;

        sums_load(sums, below);
        for (int s = 0; s < c->n_steps; s++, w += STEP_BYTES) {
            _tile_loadd(4, x0.first + s * STEP * 2, x0.stride);
            _tile_loadd(6, w, c->pair_bytes);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, w + c->block_bytes, c->pair_bytes);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, x1.first + s * STEP * 2, x1.stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        sums_store(sums, below);
    }
}

/* e + o of a step, for 16 rows of W. */
INLINE __m512 fma_step(const struct tile_chunk *c, int s, int b, const uint16_t *x)
{
    const uint8_t *w = c->w + (size_t)s * STEP_BYTES + (size_t)b * c->block_bytes;
    float f[STEP] __attribute__((aligned(64)));
    __m512 e = _mm512_setzero_ps(), o = _mm512_setzero_ps();

    widen(f, x, STEP);
    for (int k = 0; k < STEP_PAIRS; k++, w += c->pair_bytes) {
        __m512i pair = _mm512_loadu_si512(w);

        e = _mm512_fmadd_ps(even_of(pair), _mm512_set1_ps(f[2 * k]), e);
        o = _mm512_fmadd_ps(odd_of(pair), _mm512_set1_ps(f[2 * k + 1]), o);
    }
    return _mm512_add_ps(e, o);
}

/* The same sums by FMAs. */
static void multiply_fma_rows(float *sums, const struct tile_chunk *c, struct tile_rows x, int n_x)
{
    const bool scaled = c->scale != NULL && !c->folded;

    for (int i = 0; i < n_x; i++)
        for (int b = 0; b < BLOCKS; b++) {
            const uint16_t *row = (const void *)(x.first + (size_t)i * x.stride);
            float *at = sums + i * PANEL_ROWS + b * LANES;
            __m512 y = _mm512_loadu_ps(at);

            for (int s = 0; s < c->n_steps; s++) {
                __m512 sum = fma_step(c, s, b, row + s * STEP);

                y = scaled ? _mm512_fmadd_ps(
                                 sum, _mm512_load_ps(c->scale + s * PANEL_ROWS + b * LANES), y)
                           : _mm512_add_ps(sum, y);
            }
            _mm512_storeu_ps(at, y);
        }
}

/* All x rows times columns [k, k + n), by tiles: pairs of full ones, one, and what is left. */
INLINE void chunk_by_tiles(float *out, const struct tile_chunk *c, const uint16_t *const *x,
                           int n_x, int k, int n, struct panel_scratch *scratch)
{
    uint16_t *copy = scratch->rows;
    int i = 0;

    if (n_x < ROWS) { /* the tiles are as narrow */
        multiply_one_by_four(out, c, rows_of(x, n_x, n_x, k, n, copy));
        return;
    }
    for (; i + 2 * ROWS <= n_x; i += 2 * ROWS)
        multiply_two_by_two(out + i * PANEL_ROWS, c, rows_of(x + i, ROWS, ROWS, k, n, copy),
                            rows_of(x + i + ROWS, ROWS, ROWS, k, n, copy + ROWS * CHUNK));
    for (; i < n_x; i += ROWS) {
        int live = n_x - i < ROWS ? n_x - i : ROWS;
        struct tile_rows rows = rows_of(x + i, live, ROWS, k, n, copy);

        if (live == ROWS) {
            multiply_one_by_four(out + i * PANEL_ROWS, c, rows);
            continue;
        }
        memcpy(scratch->sums, out + i * PANEL_ROWS, (size_t)live * ROW_BYTES);
        multiply_one_by_four(scratch->sums, c, rows);
        memcpy(out + i * PANEL_ROWS, scratch->sums, (size_t)live * ROW_BYTES);
    }
}

/* ---- FP4 and FP8 times one tile of x rows ---------------------------------------------------- */

/* sums += x times the step in w, in tiles 0 to 3. */
INLINE void narrow_step(const uint8_t *w, const uint8_t *x, size_t stride)
{
    tiles_written();
    _tile_loadd(4, x, stride);
    _tile_loadd(5, w, 64);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, w + TILE_BYTES, 64);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, w + 2 * TILE_BYTES, 64);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, w + 3 * TILE_BYTES, 64);
    _tile_dpbf16ps(3, 4, 5);
}

/* Where narrow_of() is in a panel. */
struct narrow {
    const uint8_t *at;        /* the step's codes */
    struct fp8_tables tables; /* FP8: with this exponent in them */
    int exponent;
};

/* Whether the scales of the step from column k on can be folded. */
INLINE bool narrow_folds(struct narrow *s, const struct panel *p, int k)
{
    if (p->type == WEIGHT_FP4)
        return may_fold(s->at + 1024);
    if (!is_near_power(p->scale[k / 128]))
        return false;
    if (exponent_of(p->scale[k / 128]) != s->exponent || k == 0) {
        s->exponent = exponent_of(p->scale[k / 128]);
        s->tables = fp8_tables_scaled(s->exponent);
    }
    return true;
}

INLINE void narrow_decode(uint8_t *w, const uint8_t *at, const struct fp8_tables *tables,
                          const bool fold, const enum weight_type type)
{
    if (type == WEIGHT_FP4)
        fp4_step(w, at, fold);
    else
        for (int i = 0; i < STEP; i += 4)
            fp8_four(w, i, at + i * PANEL_ROWS, tables);
}

/* A step whose scales cannot be folded: by FMAs. */
static void narrow_by_fma(float *out, const struct panel *p, int k, const uint8_t *at,
                          struct tile_rows x, int n_x, struct panel_scratch *scratch)
{
    struct tile_chunk c = {.w = (const uint8_t *)scratch->w,
                           .block_bytes = TILE_BYTES,
                           .pair_bytes = 64,
                           .n_steps = 1,
                           .scale = scratch->scale};
    const struct fp8_tables plain = fp8_tables_load();
    struct group_scales s;

    if (p->type == WEIGHT_FP4) {
        s = group_scales_load(at + 1024);
        narrow_decode((uint8_t *)scratch->w, at, NULL, false, WEIGHT_FP4);
    } else {
        UNROLL for (int b = 0; b < BLOCKS; b++) s.block[b] = _mm512_set1_ps(p->scale[k / 128]);
        narrow_decode((uint8_t *)scratch->w, at, &plain, false, WEIGHT_FP8);
    }
    UNROLL for (int b = 0; b < BLOCKS; b++) _mm512_store_ps(scratch->scale + b * LANES, s.block[b]);
    sums_store(out, out + 32);
    multiply_fma_rows(out, &c, x, n_x);
    sums_load(out, out + 32);
}

/* Up to 16 x rows: memory gives a step in the time that it takes to decode one and to multiply the
 * one before, so they are done side by side and memory never waits. Decoding a chunk first, and
 * then multiplying, takes up to twice as long. Columns a multiple of 32. */
INLINE void narrow_of(float *out, const struct panel *p, const uint16_t *const *x, int n_x,
                      struct panel_scratch *scratch, const enum weight_type type)
{
    const size_t step_bytes = type == WEIGHT_FP4 ? PANEL_FP4_BYTES : STEP * PANEL_ROWS;
    uint8_t *w = (uint8_t *)scratch->w, *next = w + STEP_BYTES;
    struct narrow s = {.at = p->data};
    struct tile_rows rows = {0}, before = {0};
    bool waits = false; /* the step in w has been decoded and not multiplied by the rows before */

    memset(out, 0, (size_t)n_x * ROW_BYTES);
    tiles_configure(n_x);
    sums_load(out, out + 32);
    for (int k = 0; k < p->cols; k += STEP, s.at += step_bytes) {
        bool folds = narrow_folds(&s, p, k);

        if (k % CHUNK == 0) {
            if (waits) /* its x rows may be about to be written over */
                narrow_step(w, before.first, before.stride);
            waits = false;
            rows =
                rows_of(x, n_x, n_x, k, p->cols - k < CHUNK ? p->cols - k : CHUNK, scratch->rows);
        }
        if (folds)
            narrow_decode(next, s.at, &s.tables, true, type);
        if (waits)
            narrow_step(w, before.first, before.stride);
        before = (struct tile_rows){rows.first + (size_t)(k % CHUNK) * 2, rows.stride};
        if (!folds)
            narrow_by_fma(out, p, k, s.at, before, n_x, scratch);
        waits = folds;
        uint8_t *free = w;

        w = next;
        next = free;
    }
    if (waits)
        narrow_step(w, before.first, before.stride);
    sums_store(out, out + 32);
    _tile_release();
}

static void narrow(float *out, const struct panel *p, const uint16_t *const *x, int n_x,
                   struct panel_scratch *scratch)
{
    if (p->type == WEIGHT_FP4)
        narrow_of(out, p, x, n_x, scratch, WEIGHT_FP4);
    else
        narrow_of(out, p, x, n_x, scratch, WEIGHT_FP8);
}

INLINE void multiply(float *out, const struct panel *p, const uint16_t *const *x, int n_x,
                     struct panel_scratch *scratch, const bool tiles)
{
    if (tiles && n_x > (p->type == WEIGHT_FP4 ? 1 : FEW) && n_x <= ROWS && p->type != WEIGHT_BF16 &&
        p->cols % STEP == 0) {
        narrow(out, p, x, n_x, scratch);
        return;
    }
    if (n_x <= FEW && p->cols % STEP == 0) {
        few(out, p, x, n_x);
        return;
    }
    memset(out, 0, (size_t)n_x * ROW_BYTES);
    if (tiles)
        tiles_configure(n_x < ROWS ? n_x : ROWS); /* 5 holds x rows where there are 16 */
    for (int k = 0; k < p->cols; k += CHUNK) {
        int n = p->cols - k < CHUNK ? p->cols - k : CHUNK;
        struct tile_chunk c = chunk_decode(p, k, n, scratch, tiles);

        if (tiles && c.folded)
            chunk_by_tiles(out, &c, x, n_x, k, n, scratch);
        else
            for (int i = 0; i < n_x; i += ROWS) {
                int live = n_x - i < ROWS ? n_x - i : ROWS;

                multiply_fma_rows(out + (size_t)i * PANEL_ROWS, &c,
                                  rows_of(x + i, live, live, k, n, scratch->rows), live);
            }
    }
    if (tiles)
        _tile_release();
}

/* ---- choice ---------------------------------------------------------------------------------- */

static void multiply_tiles(float *out, const struct panel *p, const uint16_t *const *x, int n_x,
                           struct panel_scratch *scratch)
{
    multiply(out, p, x, n_x, scratch, true);
}

static void multiply_fma(float *out, const struct panel *p, const uint16_t *const *x, int n_x,
                         struct panel_scratch *scratch)
{
    multiply(out, p, x, n_x, scratch, false);
}

double cpu_tiles_amx(int64_t n)
{
    tiles_configure(16);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t i = 0; i < n; i++) {
        _tile_dpbf16ps(0, 6, 7);
        _tile_dpbf16ps(1, 6, 7);
        _tile_dpbf16ps(2, 6, 7);
        _tile_dpbf16ps(3, 6, 7);
        __asm__ volatile("");
    }
    _tile_release();
    return 4.0 * 2 * 16 * 16 * STEP * (double)n;
}

/* The other way: FMAs in the tiles' order. Operations that are not products are AVX-512's, by FMAs
 * where those are faster. */
const struct panel_kernels *panel_kernels_amx(bool other)
{
    static const struct panel_kernels ways[2][2] = {
        {{"amx", PANEL_ORDER_16, multiply_tiles, false},
         {"amx", PANEL_ORDER_16, multiply_tiles, true}},
        {{"amx by fma", PANEL_ORDER_16, multiply_fma, false},
         {"amx by fma", PANEL_ORDER_16, multiply_fma, true}},
    };

    return &ways[other][panel_kernels_avx512(false)->by_fma];
}
