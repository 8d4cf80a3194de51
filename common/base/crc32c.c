#include "common/base/crc32c.h"

#include <stdbool.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* The register is kept inverted inside, as the definition asks; the public functions invert. */

/* ---- any processor: four bits at a time ---- */

static uint32_t crc_table(uint32_t crc, uint8_t *dst, const uint8_t *p, size_t n)
{
    static const uint32_t nibble[16] = {
        0x00000000, 0x105EC76F, 0x20BD8EDE, 0x30E349B1, 0x417B1DBC, 0x5125DAD3,
        0x61C69362, 0x7198540D, 0x82F63B78, 0x92A8FC17, 0xA24BB5A6, 0xB21572C9,
        0xC38D26C4, 0xD3D3E1AB, 0xE330A81A, 0xF36E6F75,
    };

    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        crc = crc >> 4 ^ nibble[crc & 15];
        crc = crc >> 4 ^ nibble[crc & 15];
    }
    if (dst != NULL)
        memcpy(dst, p, n);
    return crc;
}

#if defined(__x86_64__)

/* ---- the crc32 instruction: for heads and tails ---- */

__attribute__((target("sse4.2"))) static uint32_t crc_word(uint32_t crc, uint8_t *dst,
                                                           const uint8_t *p, size_t n)
{
    uint64_t c = crc;

    if (dst != NULL)
        memcpy(dst, p, n);
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t word;

        memcpy(&word, p, 8);
        c = _mm_crc32_u64(c, word);
    }
    crc = (uint32_t)c;
    for (; n > 0; p++, n--)
        crc = _mm_crc32_u8(crc, *p);
    return crc;
}

/*
 * Folding (Gopal et al., "Fast CRC computation for generic polynomials using PCLMULQDQ", 2009): 128
 * bits of message X = hi:lo, d bits before others, may be replaced by lo * k(d + 32) ^ hi * k(d -
 * 32) added to those others, where k(n) is x^n mod P, bit-reflected and shifted left by one. Four
 * registers walk side by side so that the multiplications overlap; at the end they are folded into
 * one, whose 16 bytes have the checksum of the whole message.
 */
#define K2080 0xdcb17aa4
#define K2016 0xb9e02b86
#define K544 0x740eef02
#define K480 0x9e4addf8
#define K160 0xf20c0dfe
#define K96 0x14cd00bd6

#define TARGET_128 __attribute__((target("sse4.2,pclmul"), always_inline)) static inline
#define TARGET_512                                                                                 \
    __attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.2"), always_inline)) static inline

TARGET_128 __m128i fold_128(__m128i x, __m128i next, __m128i k)
{
    return _mm_xor_si128(
        next, _mm_xor_si128(_mm_clmulepi64_si128(x, k, 0x00), _mm_clmulepi64_si128(x, k, 0x11)));
}

/* The checksum of four registers of message in a row. */
TARGET_128 uint32_t finish_128(__m128i a, __m128i b, __m128i c, __m128i d)
{
    const __m128i k = _mm_set_epi64x(K96, K160);
    uint64_t crc;

    a = fold_128(fold_128(fold_128(a, b, k), c, k), d, k);
    crc = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(a));
    return (uint32_t)_mm_crc32_u64(crc, (uint64_t)_mm_extract_epi64(a, 1));
}

/* 64 bytes a round; n >= 64. Past the caches when stream is set: dst is aligned to 16 then. */
TARGET_128 uint32_t blocks_128(uint32_t crc, uint8_t *dst, const uint8_t *p, size_t n, bool stream)
{
    const __m128i k = _mm_set_epi64x(K480, K544);
    __m128i x[4] = {_mm_setzero_si128()}; /* folding zeros gives the message itself */

    for (size_t at = 0; at + 64 <= n; at += 64)
        for (int i = 0; i < 4; i++) {
            __m128i m = _mm_loadu_si128((const void *)(p + at + 16 * i));

            if (stream)
                _mm_stream_si128((void *)(dst + at + 16 * i), m);
            if (at == 0 && i == 0)
                m = _mm_xor_si128(m, _mm_cvtsi32_si128((int)crc));
            x[i] = fold_128(x[i], m, k);
        }
    return finish_128(x[0], x[1], x[2], x[3]);
}

TARGET_512 __m512i fold_512(__m512i x, __m512i next, __m512i k)
{
    return _mm512_ternarylogic_epi64(next, _mm512_clmulepi64_epi128(x, k, 0x00),
                                     _mm512_clmulepi64_epi128(x, k, 0x11), 0x96);
}

/* 256 bytes a round; n >= 256. dst, where stream is set, is aligned to 64. */
TARGET_512 uint32_t blocks_512(uint32_t crc, uint8_t *dst, const uint8_t *p, size_t n, bool stream)
{
    const __m512i k = _mm512_set_epi64(K2016, K2080, K2016, K2080, K2016, K2080, K2016, K2080);
    const __m512i k1 = _mm512_set_epi64(K480, K544, K480, K544, K480, K544, K480, K544);
    __m512i x[4] = {_mm512_setzero_si512()}, y;

    for (size_t at = 0; at + 256 <= n; at += 256)
        for (int i = 0; i < 4; i++) {
            __m512i m = _mm512_loadu_si512((const void *)(p + at + 64 * i));

            if (stream)
                _mm512_stream_si512((void *)(dst + at + 64 * i), m);
            if (at == 0 && i == 0)
                m = _mm512_xor_si512(m, _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
            x[i] = fold_512(x[i], m, k);
        }
    y = fold_512(fold_512(fold_512(x[0], x[1], k1), x[2], k1), x[3], k1);
    return finish_128(_mm512_castsi512_si128(y), _mm512_extracti32x4_epi32(y, 1),
                      _mm512_extracti32x4_epi32(y, 2), _mm512_extracti32x4_epi32(y, 3));
}

/* The two inlined above with and without the copy, so that the inner loops have no branch. */
__attribute__((target("sse4.2,pclmul"))) static uint32_t read_128(uint32_t crc, const uint8_t *p,
                                                                  size_t n)
{
    return blocks_128(crc, NULL, p, n, false);
}

__attribute__((target("sse4.2,pclmul"))) static uint32_t copy_128(uint32_t crc, uint8_t *dst,
                                                                  const uint8_t *p, size_t n)
{
    return blocks_128(crc, dst, p, n, true);
}

__attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.2"))) static uint32_t
read_512(uint32_t crc, const uint8_t *p, size_t n)
{
    return blocks_512(crc, NULL, p, n, false);
}

__attribute__((target("avx512f,vpclmulqdq,pclmul,sse4.2"))) static uint32_t
copy_512(uint32_t crc, uint8_t *dst, const uint8_t *p, size_t n)
{
    return blocks_512(crc, dst, p, n, true);
}

/* Head up to the alignment of the stores, blocks, tail. */
static uint32_t crc_folded(bool wide, uint32_t crc, uint8_t *dst, const uint8_t *p, size_t n)
{
    size_t align = wide ? 64 : 16, block = wide ? 256 : 64;
    size_t head = dst != NULL ? -(uintptr_t)dst & (align - 1) : 0, body;

    if (n < head + block)
        return crc_word(crc, dst, p, n);
    body = (n - head) & ~(block - 1);
    crc = crc_word(crc, dst, p, head);
    p += head;
    if (dst == NULL)
        return crc_word(wide ? read_512(crc, p, body) : read_128(crc, p, body), NULL, p + body,
                        n - body);
    dst += head;
    crc = wide ? copy_512(crc, dst, p, body) : copy_128(crc, dst, p, body);
    return crc_word(crc, dst + body, p + body, n - head - body);
}

#endif

enum method { VPCLMULQDQ, PCLMULQDQ, TABLE };

static const char *const names[] = {"vpclmulqdq", "pclmulqdq", "table"};

static enum method best(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq"))
        return VPCLMULQDQ;
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul"))
        return PCLMULQDQ;
#endif
    return TABLE;
}

static uint32_t run(enum method m, uint32_t crc, void *dst, const void *data, size_t n)
{
#if defined(__x86_64__)
    if (m != TABLE)
        return ~crc_folded(m == VPCLMULQDQ, ~crc, dst, data, n);
#endif
    (void)m;
    return ~crc_table(~crc, dst, data, n);
}

uint32_t crc32c(uint32_t crc, const void *data, size_t n)
{
    return run(best(), crc, NULL, data, n);
}

uint32_t crc32c_copy(uint32_t crc, void *dst, const void *data, size_t n)
{
    return run(best(), crc, dst, data, n);
}

void crc32c_copy_end(void)
{
#if defined(__x86_64__)
    _mm_sfence(); /* streaming stores are not ordered with what follows otherwise */
#endif
}

const char *crc32c_method(void)
{
    return names[best()];
}

uint32_t crc32c_by(const char *method, uint32_t crc, void *dst, const void *data, size_t n)
{
    enum method m = TABLE;

    for (int i = 0; i < TABLE; i++)
        if (strcmp(method, names[i]) == 0)
            m = (enum method)i;
    return run(m < best() ? best() : m, crc, dst, data, n);
}
