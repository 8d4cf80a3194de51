/*
 * emulate: runs kernels of kernels/cuda on the host, for tests.
 *
 * Blocks run one after the other; the threads of a block are fibers that change only at a barrier,
 * last thread first, so that code which misses a barrier reads what is not there yet. __shared__ is
 * static: one block at a time has it, and it starts as the last block left it, as on a GPU.
 *
 * Promises  a block whose threads do not all reach each barrier ends the process with a message.
 * Threads   one: fibers and shared arrays are static.
 * Limits    EMULATE_THREADS_MAX threads a block; 64 KiB of stack each; no warp intrinsics.
 */
#ifndef BATON_KERNELS_CUDA_EMULATE_H
#define BATON_KERNELS_CUDA_EMULATE_H

enum { EMULATE_THREADS_MAX = 256 };

typedef int cuda_stream; /* work is done when a launch returns */

struct emulate_dim {
    unsigned x, y;
};
extern struct emulate_dim emulate_block_idx, emulate_thread_idx;

/** The running fiber waits for the others of its block. */
void emulate_barrier(void);
/** Runs kernel(args) on every thread of every block; returns when all are done. */
void emulate_launch(void (*kernel)(const void *args), const void *args, unsigned grid_x,
                    unsigned grid_y, unsigned n_threads);

#define blockIdx emulate_block_idx
#define threadIdx emulate_thread_idx
#define __syncthreads emulate_barrier
#define __shared__ static
#define CUDA_DEVICE static inline
#define CUDA_KERNEL(name, args_type)                                                               \
    static void name##_body(args_type a);                                                          \
    static void name(const void *args)                                                             \
    {                                                                                              \
        name##_body(*(const args_type *)args);                                                     \
    }                                                                                              \
    static void name##_body(args_type a)
#define CUDA_LAUNCH(name, args_type, grid_x, grid_y, n_threads, stream, args)                      \
    do {                                                                                           \
        args_type launch_args = (args);                                                            \
        (void)(stream);                                                                            \
        emulate_launch(name, &launch_args, (unsigned)(grid_x), (unsigned)(grid_y),                 \
                       (unsigned)(n_threads));                                                     \
    } while (0)

#endif
