/*
 * cuda_place: where tests run the kernels of kernels/cuda: on the host through the emulator
 * (cuda_place_emulated.c), or on a GPU in managed memory (cuda_place_gpu.c). Both are memory that
 * the host reaches, and a launch's work is done when it returns; so ref's operations may stand
 * between the kernels.
 */
#ifndef BATON_TESTS_UNIT_KERNELS_CUDA_PLACE_H
#define BATON_TESTS_UNIT_KERNELS_CUDA_PLACE_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/kernels.h"

/* Meson's exit status of a skipped test. */
enum { CUDA_PLACE_SKIPPED = 77 };

/** First of all. @return false: the kernels cannot run here; why is printed */
bool cuda_place_ready(void);

/* Ways of opening the backend: as the GPU is, or as if it had no e4m3; and one more whose memory
 * the host does not reach, as in production. */
extern const int cuda_place_n_levels;
enum { CUDA_PLACE_HIDDEN = 2 };

/** Opens the backend. @return as kernels_open_cuda() */
int cuda_place_open(struct kernels *k, int level, const struct kernel_dims *dims,
                    const struct kernel_env *env);

/** Zeroed memory that kernels reach; never NULL. */
void *cuda_place_alloc(size_t bytes);
void cuda_place_free(void *p);

/** k is open at CPU_ISA_REF: from now on kernels reach its memory and weights. One at a time. */
void cuda_place_enter(struct kernels *k);
/** Gives ref's table back: before kernels_close(). Fails the test when a kernel has failed. */
void cuda_place_leave(struct kernels *k);

#endif
