/* self_test: whether a GPU's own e4m3 products agree with those made of bf16. */
#ifndef BATON_KERNELS_CUDA_SELF_TEST_H
#define BATON_KERNELS_CUDA_SELF_TEST_H

#include "kernels/cuda/gpu.h"

/** Multiplies a random matrix both ways and compares. @return false: they differ by more than a
 * short accumulator explains, or the GPU failed */
bool cuda_self_test(struct gpu *g);

#endif
