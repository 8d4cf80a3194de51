/* stream: what the headers of launch functions need, in C and in CUDA, on a GPU and emulated. */
#ifndef BATON_KERNELS_CUDA_STREAM_H
#define BATON_KERNELS_CUDA_STREAM_H

#include <stdint.h>

typedef struct CUstream_st *cuda_stream; /* cudaStream_t; the emulator does not look at it */

#ifdef __cplusplus
#define CUDA_API extern "C"
#else
#define CUDA_API
#endif

/* For host and device. */
#ifdef __CUDACC__
#define CUDA_BOTH static inline __host__ __device__
#else
#define CUDA_BOTH static inline
#endif

#endif
