/* cuda_emulated: kernels/cuda's operations as the host runs them, in ref's table. */
#ifndef BATON_TESTS_UNIT_KERNELS_CUDA_EMULATED_H
#define BATON_TESTS_UNIT_KERNELS_CUDA_EMULATED_H

#include "kernels/kernels.h"

/** k is open at CPU_ISA_REF; from now on it has the CUDA operations. One at a time. */
void cuda_emulated_set(struct kernels *k);
/** Gives ref's back: before kernels_close(). */
void cuda_emulated_unset(struct kernels *k);

#endif
