/* kernels/cuda as the host runs it. */
#include "kernels/cuda/streams.cu" /* NOLINT: a .cu is C here, see device.h */

#include "kernels/cuda/latent.cu" /* NOLINT */

#include "kernels/cuda/attention.cu" /* NOLINT */

#include "kernels/cuda/compress.cu" /* NOLINT */

#include "kernels/cuda/index.cu" /* NOLINT */

#include "kernels/cuda/sampler.cu" /* NOLINT */
