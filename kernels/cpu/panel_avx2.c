/*
 * panel_avx2: AVX2, FMA, F16C. Decodes to f32 and multiplies with two FMAs a pair of columns, which
 * gives the bits of VDPBF16PS (panel.h).
 *
 * FP4: two table lookups give the bytes of each bf16. FP8: the code shifted right by one is an fp16
 * of 2^-8 times its value, subnormals included; the 2^8 goes into the scale. NaN codes have no fp16
 * twin: panel_pack() reports them, and their tile's scale becomes NaN.
 */
#include "kernels/cpu/panel_chunks.h"

#include <immintrin.h>

enum { LANES = 8, BLOCKS = PANEL_ROWS / LANES };

/* ---- decoding -------------------------------------------------------------------------------- */

INLINE __m256 even_of(__m256i pair)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
}

INLINE __m256 odd_of(__m256i pair)
{
    return _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32((int)0xFFFF0000)));
}

/* Codes into a register, once: gcc would rather repeat the load in every use. */
INLINE __m256i load_codes(const uint8_t *at)
{
    __m256i c = _mm256_loadu_si256((const void *)at);

    __asm__("" : "+x"(c));
    return c;
}

/* High and low bytes of the bf16 of the 16 FP4 codes. */
struct fp4_tables {
    __m256i high, low;
};

INLINE struct fp4_tables fp4_tables_load(void)
{
    return (struct fp4_tables){
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0x3F, 0x3F, 0x3F, 0x40, 0x40, 0x40, 0x40,
                                                  (char)0x80, (char)0xBF, (char)0xBF, (char)0xBF,
                                                  (char)0xC0, (char)0xC0, (char)0xC0, (char)0xC0)),
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, (char)0x80, (char)0xC0, 0, 0x40, (char)0x80,
                                                  (char)0xC0, 0, 0, (char)0x80, (char)0xC0, 0, 0x40,
                                                  (char)0x80, (char)0xC0)),
    };
}

/* 8 rows of 8 columns: bf16 pairs 0 .. 3 of each row. */
INLINE void fp4_decode(const uint8_t *codes, const struct fp4_tables *t, __m256i pair[4])
{
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i c = load_codes(codes);
    __m256i a = _mm256_and_si256(c, nibble);
    __m256i b = _mm256_and_si256(_mm256_srli_epi16(c, 4), nibble);
    __m256i a_high = _mm256_shuffle_epi8(t->high, a), a_low = _mm256_shuffle_epi8(t->low, a);
    __m256i b_high = _mm256_shuffle_epi8(t->high, b), b_low = _mm256_shuffle_epi8(t->low, b);

    pair[0] = _mm256_unpacklo_epi8(a_low, a_high);
    pair[1] = _mm256_unpackhi_epi8(a_low, a_high);
    pair[2] = _mm256_unpacklo_epi8(b_low, b_high);
    pair[3] = _mm256_unpackhi_epi8(b_low, b_high);
}

/* Words of FP8 codes in their upper bytes: 2^-8 times their values. w[0]: words 0 .. 7. */
INLINE void fp8_words(__m256i c, __m256 w[2])
{
    __m256i half = _mm256_and_si256(_mm256_srai_epi16(c, 1), _mm256_set1_epi16((short)0xBF80));

    w[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(half));
    w[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
}

/* 8 rows of 4 columns, PANEL_ORDER_8: column by column. */
INLINE void fp8_decode(const uint8_t *codes, __m256 column[4])
{
    __m256i c = load_codes(codes), zero = _mm256_setzero_si256();

    fp8_words(_mm256_unpacklo_epi8(zero, c), column);
    fp8_words(_mm256_unpackhi_epi8(zero, c), column + 2);
}

/* f32 of 8 E8M0 bytes: 0 is 2^-127, 255 is NaN. */
INLINE __m256 e8m0_f32(const uint8_t *scale)
{
    __m256i bits =
        _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)scale)), 23);
    __m256i nan = _mm256_cmpeq_epi32(bits, _mm256_set1_epi32(0x7F800000));

    bits = _mm256_max_epi32(bits, _mm256_set1_epi32(0x00400000));
    return _mm256_castsi256_ps(
        _mm256_or_si256(bits, _mm256_and_si256(nan, _mm256_set1_epi32(0x400000))));
}

/* The scales of one group, f32 of 8 rows each. Nearly all are between 1 and 254, where an E8M0 byte
 * is the exponent of an f32. */
INLINE void group_scales_load(__m256 to[BLOCKS], const uint8_t *scale)
{
    const __m256i one = _mm256_set1_epi8(1);
    __m256i low = _mm256_add_epi8(_mm256_loadu_si256((const void *)scale), one);
    __m256i high = _mm256_add_epi8(_mm256_loadu_si256((const void *)(scale + 32)), one);
    __m256i least = _mm256_min_epu8(low, high);
    bool odd = _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(least, one), least)) != 0;

    if (__builtin_expect(odd, 0)) {
        UNROLL for (int b = 0; b < BLOCKS; b++) to[b] = e8m0_f32(scale + b * LANES);
        return;
    }
    UNROLL for (int b = 0; b < BLOCKS; b++) to[b] = _mm256_castsi256_ps(_mm256_slli_epi32(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(scale + b * LANES))), 23));
}

static void widen(float *out, const uint16_t *x, int n)
{
    for (int i = 0; i < n; i += 8)
        _mm256_storeu_ps(out + i,
                         _mm256_castsi256_ps(_mm256_slli_epi32(
                             _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(x + i))), 16)));
}

/* ---- one x row ------------------------------------------------------------------------------- */

enum { AHEAD = 1024 }; /* bytes prefetched ahead of the codes being decoded */

INLINE void prefetch(const uint8_t *p, int lines)
{
    UNROLL for (int i = 0; i < lines; i++) _mm_prefetch((const char *)p + 64 * i, _MM_HINT_T0);
}

/* One pair of the tree. */
INLINE __m256 step(__m256 s, __m256 odd, __m256 even, const float *x)
{
    s = _mm256_fmadd_ps(odd, _mm256_broadcast_ss(x + 1), s);
    return _mm256_fmadd_ps(even, _mm256_broadcast_ss(x), s);
}

static void one_fp4(float *out, const struct panel *p, const uint16_t *x)
{
    const struct fp4_tables t = fp4_tables_load();
    const uint8_t *at = p->data;
    __m256 y[BLOCKS];

    UNROLL for (int b = 0; b < BLOCKS; b++) y[b] = _mm256_setzero_ps();
    for (int g = 0; g < p->cols; g += PANEL_FP4_GROUP, at += PANEL_FP4_BYTES) {
        float xf[PANEL_FP4_GROUP];

        widen(xf, x + g, PANEL_FP4_GROUP);
        __asm__("" : "+m"(xf)); /* broadcasts shall come from memory */
        __m256 s[BLOCKS], scale[BLOCKS];

        UNROLL for (int b = 0; b < BLOCKS; b++) s[b] = _mm256_setzero_ps();
        prefetch(at + AHEAD + 1024, 1);
        for (int j = 0; j < 4; j++) {
            prefetch(at + AHEAD + j * 256, 4);
            UNROLL for (int b = 0; b < BLOCKS; b++)
            {
                __m256i w[4];

                fp4_decode(at + j * 256 + b * 32, &t, w);
                UNROLL for (int i = 0; i < 4; i++) s[b] =
                    step(s[b], odd_of(w[i]), even_of(w[i]), xf + 8 * j + 2 * i);
            }
        }
        group_scales_load(scale, at + 1024);
        UNROLL for (int b = 0; b < BLOCKS; b++) y[b] = _mm256_fmadd_ps(s[b], scale[b], y[b]);
    }
    UNROLL for (int b = 0; b < BLOCKS; b++) _mm256_storeu_ps(out + b * LANES, y[b]);
}

/* Columns [k, end) of one group, all 64 rows in 8 chains. */
INLINE void one_finish(float *out, const __m256 s[BLOCKS], __m256 scale, bool scaled)
{
    UNROLL for (int b = 0; b < BLOCKS; b++)
    {
        __m256 y = _mm256_loadu_ps(out + b * LANES);

        y = scaled ? _mm256_fmadd_ps(s[b], scale, y) : _mm256_add_ps(y, s[b]);
        _mm256_storeu_ps(out + b * LANES, y);
    }
}

static void one_fp8(float *out, const struct panel *p, const uint16_t *x)
{
    const uint8_t *at = p->data;

    memset(out, 0, PANEL_ROWS * sizeof(*out));
    for (int g = 0; g * 128 < p->cols; g++) {
        int n = p->cols - g * 128 < 128 ? p->cols - g * 128 : 128;
        __m256 s[BLOCKS];
        float xf[128];

        widen(xf, x + g * 128, n);
        UNROLL for (int b = 0; b < BLOCKS; b++) s[b] = _mm256_setzero_ps();
        for (int k = 0; k < n; k += 4, at += 256) {
            prefetch(at + AHEAD, 4);
            UNROLL for (int b = 0; b < BLOCKS; b++)
            {
                __m256 w[4];

                fp8_decode(at + 32 * b, w);
                s[b] = step(s[b], w[1], w[0], xf + k);
                s[b] = step(s[b], w[3], w[2], xf + k + 2);
            }
        }
        one_finish(out, s, _mm256_set1_ps(p->scale[g] * 256), true);
    }
}

static void one_bf16(float *out, const struct panel *p, const uint16_t *x)
{
    const uint8_t *at = p->data;

    memset(out, 0, PANEL_ROWS * sizeof(*out));
    for (int g = 0; g < p->cols; g += 128) {
        int n = p->cols - g < 128 ? p->cols - g : 128;
        __m256 s[BLOCKS];
        float xf[128];

        widen(xf, x + g, n);
        UNROLL for (int b = 0; b < BLOCKS; b++) s[b] = _mm256_setzero_ps();
        for (int k = 0; k < n; k += 2, at += 256) {
            prefetch(at + AHEAD, 4);
            UNROLL for (int b = 0; b < BLOCKS; b++)
            {
                __m256i w = load_codes(at + 32 * b);

                s[b] = step(s[b], odd_of(w), even_of(w), xf + k);
            }
        }
        one_finish(out, s, _mm256_setzero_ps(), false);
    }
}

/* ---- several x rows: decode a chunk ---------------------------------------------------------- */

/* Decoded form: per pair of columns 64 rows of the odd one, then 64 of the even one, f32. */
INLINE void put(struct panel_scratch *scratch, int pair, int block, __m256 odd, __m256 even)
{
    float *at = scratch->w + pair * 2 * PANEL_ROWS + block * LANES;

    _mm256_store_ps(at, odd);
    _mm256_store_ps(at + PANEL_ROWS, even);
}

static void decode_fp4(struct panel_scratch *scratch, const uint8_t *at, int n)
{
    const struct fp4_tables t = fp4_tables_load();

    for (int g = 0; g < n / PANEL_FP4_GROUP; g++, at += PANEL_FP4_BYTES) {
        prefetch(at + AHEAD, 17);
        for (int j = 0; j < 4; j++)
            for (int b = 0; b < BLOCKS; b++) {
                __m256i w[4];

                fp4_decode(at + j * 256 + b * 32, &t, w);
                UNROLL for (int i = 0; i < 4; i++)
                    put(scratch, g * 16 + j * 4 + i, b, odd_of(w[i]), even_of(w[i]));
            }
        for (int b = 0; b < BLOCKS; b++)
            _mm256_store_ps(scratch->scale + g * PANEL_ROWS + b * LANES,
                            e8m0_f32(at + 1024 + b * LANES));
    }
}

static void decode_fp8(struct panel_scratch *scratch, const uint8_t *at, int n)
{
    for (int k = 0; k < n; k += 4, at += 256) {
        prefetch(at + AHEAD, 4);
        UNROLL for (int b = 0; b < BLOCKS; b++)
        {
            __m256 w[4];

            fp8_decode(at + 32 * b, w);
            put(scratch, k / 2, b, w[1], w[0]);
            put(scratch, k / 2 + 1, b, w[3], w[2]);
        }
    }
}

static void decode_bf16(struct panel_scratch *scratch, const uint8_t *at, int n)
{
    for (int k = 0; k < n; k += 2, at += 256) {
        prefetch(at + AHEAD, 4);
        UNROLL for (int b = 0; b < BLOCKS; b++)
        {
            __m256i w = load_codes(at + 32 * b);

            put(scratch, k / 2, b, odd_of(w), even_of(w));
        }
    }
}

static struct chunk decode(const struct panel *p, int k, int n, struct panel_scratch *scratch)
{
    struct chunk c = {.w = scratch->w, .scale = scratch->scale, .group = PANEL_CHUNK};

    switch (p->type) {
    case WEIGHT_FP4:
        c.n_cols = n;
        c.group = PANEL_FP4_GROUP;
        decode_fp4(scratch, p->data + (size_t)(k / PANEL_FP4_GROUP) * PANEL_FP4_BYTES, n);
        break;
    case WEIGHT_FP8:
        c.n_cols = (n + 3) / 4 * 4;
        decode_fp8(scratch, p->data + (size_t)k * PANEL_ROWS, c.n_cols);
        for (int r = 0; r < PANEL_ROWS; r++)
            scratch->scale[r] = p->scale[k / 128] * 256;
        break;
    default:
        c.n_cols = (n + 1) / 2 * 2;
        c.scale = NULL;
        decode_bf16(scratch, p->data + (size_t)k * 2 * PANEL_ROWS, c.n_cols);
        break;
    }
    return c;
}

/* ---- several x rows: tiles ------------------------------------------------------------------- */

enum { SIDE = 2 }; /* blocks of 8 rows at a time: 6 x 2 sums, 2 of w and 1 of x fill 15 registers */

/* Adds one group to n_x rows of out, rows [0, SIDE * 8) of the panel. */
INLINE void tile_group(float *out, const float *w, const float *x, int n_pairs, const float *scale,
                       const int n_x)
{
    __m256 s[TILE][SIDE];

    UNROLL for (int i = 0; i < n_x; i++) UNROLL for (int b = 0; b < SIDE; b++) s[i][b] =
        _mm256_setzero_ps();
    for (int k = 0; k < n_pairs; k++, w += 2 * PANEL_ROWS) {
        UNROLL for (int odd = 1; odd >= 0; odd--)
        {
            __m256 wk[SIDE];

            UNROLL for (int b = 0; b < SIDE; b++) wk[b] =
                _mm256_load_ps(w + (1 - odd) * PANEL_ROWS + b * LANES);
            UNROLL for (int i = 0; i < n_x; i++)
            {
                __m256 xk = _mm256_broadcast_ss(x + i * PANEL_CHUNK + 2 * k + odd);

                UNROLL for (int b = 0; b < SIDE; b++) s[i][b] = _mm256_fmadd_ps(wk[b], xk, s[i][b]);
            }
        }
    }
    UNROLL for (int i = 0; i < n_x; i++) UNROLL for (int b = 0; b < SIDE; b++)
    {
        float *at = out + i * PANEL_ROWS + b * LANES;
        __m256 y = _mm256_loadu_ps(at);

        if (scale != NULL)
            y = _mm256_fmadd_ps(s[i][b], _mm256_load_ps(scale + b * LANES), y);
        else
            y = _mm256_add_ps(y, s[i][b]);
        _mm256_storeu_ps(at, y);
    }
}

INLINE void tile_chunk(float *out, const struct chunk *c, const uint16_t *const *x, const float *xf,
                       const int n_x)
{
    (void)x;
    for (int r = 0; r < PANEL_ROWS; r += SIDE * LANES)
        for (int g = 0, k = 0; k < c->n_cols; g++, k += c->group) {
            int n = c->n_cols - k < c->group ? c->n_cols - k : c->group;
            const float *scale = c->scale != NULL ? c->scale + g * PANEL_ROWS + r : NULL;

            tile_group(out + r, (const float *)c->w + k * PANEL_ROWS + r, xf + k, n / 2, scale,
                       n_x);
        }
}

static void tile(float *out, const struct chunk *c, const uint16_t *const *x, const float *xf,
                 int n_x)
{
    TILE_BY_COUNT(tile_chunk, out, c, x, xf, n_x)
}

static void multiply(float *out, const struct panel *p, const uint16_t *const *x, int n_x,
                     struct panel_scratch *scratch)
{
    if (n_x > 1 || p->cols % 32 != 0)
        multiply_chunks(out, p, x, n_x, scratch, decode, tile, widen);
    else if (p->type == WEIGHT_FP4)
        one_fp4(out, p, x[0]);
    else if (p->type == WEIGHT_FP8)
        one_fp8(out, p, x[0]);
    else
        one_bf16(out, p, x[0]);
}

static const struct panel_kernels kernels = {"avx2", PANEL_ORDER_8, multiply, true};

const struct panel_kernels *panel_kernels_avx2(bool other)
{
    (void)other;
    return &kernels;
}
