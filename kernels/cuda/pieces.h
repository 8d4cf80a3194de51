/*
 * pieces: many copies in one launch, between memory of the device and host memory that it reaches;
 * and their CRC32C.
 *
 * Work is queued on the stream; a launch that cannot be made is left to cudaGetLastError().
 */
#ifndef BATON_KERNELS_CUDA_PIECES_H
#define BATON_KERNELS_CUDA_PIECES_H

#include "kernels/cuda/stream.h"
#include "kernels/kernels.h"

/* struct kernel_piece is kernels.h's; the list is pinned: a kernel reads it over the bus. Copies
 * that overlap are made in any order. spread: blocks that share a piece. */
CUDA_API void cuda_pieces_copy(cuda_stream s, const struct kernel_piece *pieces, int n, int spread);

/* crc[g] = CRC32C (common/base/crc32c.h) of the src of the pieces of group g, one after the other:
 * pieces group_first[g] .. group_first[g + 1] - 1. */
struct pieces_crc_args {
    uint32_t *crc;
    const struct kernel_piece *pieces;
    const int32_t *group_first; /* [n_groups + 1] */
};
CUDA_API void cuda_pieces_crc(cuda_stream s, struct pieces_crc_args args, int n_groups);

#endif
