/*
 * emulate: runs kernels of kernels/cuda on the host, for tests.
 *
 * Blocks run one after the other; the threads of a block are fibers that change only at a barrier
 * or at an exchange within a warp, last thread first, so that code which misses a barrier reads
 * what is not there yet. __shared__ is static: one block at a time has it, and it starts as the
 * last block left it, as on a GPU. What tensor cores do is done as the PTX manual lays it out.
 *
 * Promises  a block whose threads do not all reach each barrier ends the process with a message,
 *           and so does a warp whose threads do not all reach an exchange.
 * Threads   launches of several threads run one after the other; one records at a time.
 * Limits    EMULATE_THREADS_MAX threads a block; 64 KiB of stack each; EMULATE_SHARED_MAX of
 *           dynamic shared memory.
 */
#ifndef BATON_KERNELS_CUDA_EMULATE_H
#define BATON_KERNELS_CUDA_EMULATE_H

#include <stddef.h>
#include <stdint.h>

enum { EMULATE_THREADS_MAX = 1024, EMULATE_SHARED_MAX = 227 * 1024, EMULATE_WARP = 32 };

struct emulate_dim {
    unsigned x, y, z;
};
extern struct emulate_dim emulate_block_idx, emulate_thread_idx, emulate_block_dim,
    emulate_grid_dim;
extern unsigned char emulate_shared[]; /* dynamic */

/** The running fiber waits for the others of its block, or of its warp. */
void emulate_barrier(void);
void emulate_warp_barrier(void);
/** The value that lane `from` of the warp brings to the same call. */
uint32_t emulate_exchange(uint32_t value, unsigned from);
/** Bit l: lane l's value is not 0. */
uint32_t emulate_ballot(int value);
/** d += a . b of one warp: m16n8k16, bf16 with f32 sums; each lane has its fragments. */
void emulate_mma(float d[4], const uint32_t a[4], const uint32_t b[2]);
/** The same for m16n8k32, e4m3: four neighbours of k a word. */
void emulate_mma_e4m3(float d[4], const uint32_t a[4], const uint32_t b[2]);
/** ldmatrix .x4 / .x2, .trans where asked: lane l brings the address of row l % 8 of matrix l / 8.
 */
void emulate_ldmatrix(uint32_t *out, int n, int transposed, const void *row);
/** Runs kernel(args) on every thread of every block; returns when all are done. While launches are
 * recorded it keeps the call instead, with a copy of the arguments. */
void emulate_launch(void (*kernel)(const void *args), const void *args, size_t args_bytes,
                    struct emulate_dim grid, unsigned n_threads, size_t shared_bytes);

struct emulate_recording;
void emulate_record(void);
struct emulate_recording *emulate_recorded(void);
/** Of all recordings that are kept. */
size_t emulate_recorded_bytes(void);
void emulate_replay(const struct emulate_recording *r);
void emulate_forget(struct emulate_recording *r);

#define blockIdx emulate_block_idx
#define threadIdx emulate_thread_idx
#define blockDim emulate_block_dim
#define gridDim emulate_grid_dim
#define __syncthreads emulate_barrier
#define __syncwarp emulate_warp_barrier
#define __shared__ static
#define CUDA_DEVICE static inline
#define CUDA_DYNAMIC(name) unsigned char *const name = emulate_shared
#define CUDA_BOUNDED_KERNEL(name, args_type, n_threads, n_blocks) CUDA_KERNEL(name, args_type)
#define CUDA_KERNEL(name, args_type)                                                               \
    static void name##_body(args_type a);                                                          \
    static void name(const void *args)                                                             \
    {                                                                                              \
        name##_body(*(const args_type *)args);                                                     \
    }                                                                                              \
    static void name##_body(args_type a)
#define CUDA_LAUNCH_GRID(name, args_type, grid_x, grid_y, grid_z, n_threads, shared, stream, args) \
    do {                                                                                           \
        args_type launch_args = (args);                                                            \
        struct emulate_dim launch_grid = {(unsigned)(grid_x), (unsigned)(grid_y),                  \
                                          (unsigned)(grid_z)};                                     \
        (void)(stream);                                                                            \
        emulate_launch(name, &launch_args, sizeof(launch_args), launch_grid,                       \
                       (unsigned)(n_threads), (size_t)(shared));                                   \
    } while (0)

#endif
