/* kernels/cuda/dense.cu as the host runs it. */
#include "kernels/cuda/dense.cu" /* NOLINT: a .cu is C here, see device.h */
