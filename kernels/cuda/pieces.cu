#include "kernels/cuda/pieces.h"
#include "kernels/cuda/device.h"

/* ---- copies ---- */

struct copy_args {
    const struct kernel_piece *pieces;
};

/* Grid [pieces][spread]: 16 bytes a thread where both ends allow it. Bound by the bus. */
CUDA_KERNEL(pieces_copy_kernel, struct copy_args)
{
    struct kernel_piece p = a.pieces[blockIdx.x];
    const uint8_t *from = DEV(const uint8_t, p.src);
    uint8_t *to = DEV(uint8_t, p.dst);
    int64_t wide = (p.src.addr | p.dst.addr) % 16 == 0 ? (int64_t)p.bytes / 16 : 0;
    int64_t first = (int64_t)blockIdx.y * CUDA_BLOCK + (int)threadIdx.x;
    int64_t step = (int64_t)gridDim.y * CUDA_BLOCK;

    for (int64_t i = first; i < wide; i += step) {
        uint32_t v[4];

        dev_load_16(v, from + i * 16);
        dev_store_16(to + i * 16, v);
    }
    for (int64_t i = wide * 16 + first; i < (int64_t)p.bytes; i += step)
        to[i] = from[i];
}

CUDA_API void cuda_pieces_copy(cuda_stream s, const struct kernel_piece *pieces, int n, int spread)
{
    struct copy_args a = {pieces};

    if (n > 0)
        CUDA_LAUNCH(pieces_copy_kernel, struct copy_args, n, spread, CUDA_BLOCK, s, a);
}

/* ---- checksums ----
 * A CRC is linear: that of a whole is the sum (XOR) of those of its parts, each moved on by the
 * bytes after it, which is a product with x^(8 n) modulo the polynomial. */

enum { CRC_THREADS = 256 };

#define CRC_POLYNOMIAL 0x82F63B78u /* reflected: bit 31 is x^0 */

/* a * b. */
CUDA_DEVICE uint32_t crc_multiply(uint32_t a, uint32_t b)
{
    uint32_t sum = 0;

    for (int bit = 31; bit >= 0; bit--) { /* x^0 first */
        sum ^= a >> bit & 1 ? b : 0;
        b = b >> 1 ^ (b & 1 ? CRC_POLYNOMIAL : 0); /* times x */
    }
    return sum;
}

/* crc * x^(8 n). */
CUDA_DEVICE uint32_t crc_move(uint32_t crc, uint64_t n)
{
    uint32_t power = 0x00800000u; /* x^8, then its squares */

    for (; n > 0; n >>= 1) {
        if (n & 1)
            crc = crc_multiply(crc, power);
        power = crc_multiply(power, power);
    }
    return crc;
}

/* Of n bytes, beginning from 0. */
CUDA_DEVICE uint32_t crc_part(const uint32_t *table, const uint8_t *at, int64_t n)
{
    uint32_t crc = 0;

    for (int64_t i = 0; i < n; i++)
        crc = table[(crc ^ at[i]) & 0xFF] ^ crc >> 8;
    return crc;
}

/*
 * A block a group; threads share out each piece. Shared: the table of a byte, 1 KiB, and the
 * threads' sums. Bound by its byte loop: a page of a megabyte is 4 KiB a thread, some 50 us, beside
 * as many other pages as there are SMs.
 */
CUDA_KERNEL(pieces_crc_kernel, struct pieces_crc_args)
{
    __shared__ uint32_t table[256], sums[CRC_THREADS];
    int i = (int)threadIdx.x, first = a.group_first[blockIdx.x];
    int end = a.group_first[blockIdx.x + 1];
    uint32_t mine = 0, word = (uint32_t)i;
    uint64_t total = 0, before = 0;

    for (int bit = 0; bit < 8; bit++)
        word = word >> 1 ^ (word & 1 ? CRC_POLYNOMIAL : 0);
    table[i] = word;
    for (int p = first; p < end; p++)
        total += a.pieces[p].bytes;
    __syncthreads(); /* table */
    for (int p = first; p < end; p++) {
        uint64_t bytes = a.pieces[p].bytes, share = (bytes + CRC_THREADS - 1) / CRC_THREADS;
        uint64_t from = share * (uint64_t)i < bytes ? share * (uint64_t)i : bytes;
        uint64_t to = from + share < bytes ? from + share : bytes;

        if (to > from)
            mine ^= crc_move(crc_part(table, DEV(const uint8_t, a.pieces[p].src) + from,
                                      (int64_t)(to - from)),
                             total - before - to);
        before += bytes;
    }
    sums[i] = mine;
    __syncthreads();
    if (i == 0) {
        uint32_t crc = crc_move(0xFFFFFFFFu, total);

        for (int t = 0; t < CRC_THREADS; t++)
            crc ^= sums[t];
        a.crc[blockIdx.x] = ~crc;
    }
}

CUDA_API void cuda_pieces_crc(cuda_stream s, struct pieces_crc_args args, int n_groups)
{
    if (n_groups > 0)
        CUDA_LAUNCH(pieces_crc_kernel, struct pieces_crc_args, n_groups, 1, CRC_THREADS, s, args);
}
