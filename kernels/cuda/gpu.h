/*
 * gpu: what the CUDA backend asks of one GPU: memory from one reservation, copies and work in the
 * order of one stream, recordings of launches. gpu_cuda.c is a real one; tests have one that
 * emulates.
 *
 * Owns      its memory, pinned or not: close() frees all of it.
 * Errors    calls that return nothing keep the first failure, and wait() reports it.
 * Threads   one caller.
 */
#ifndef BATON_KERNELS_CUDA_GPU_H
#define BATON_KERNELS_CUDA_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/stream.h"

struct gpu;

struct gpu_ops {
    /** Before the calling thread launches work of its own on the stream. */
    void (*enter)(struct gpu *g);
    /** Zeroed memory, aligned to 4096; 0: there is none left. */
    uint64_t (*take)(struct gpu *g, size_t bytes);
    void (*give)(struct gpu *g, uint64_t address);
    /** @param used  out: taken; outside: free on the device beside memory_bytes */
    void (*room)(struct gpu *g, size_t *used, size_t *outside);
    /** Host memory that copies and kernels reach; NULL: none left. */
    void *(*take_pinned)(struct gpu *g, size_t bytes);
    void (*give_pinned)(struct gpu *g, void *p);

    /** Host memory of the caller's, page-aligned, becomes such memory, at its own address.
     * @return 0, or -1 with g->error set */
    int (*share)(struct gpu *g, void *host, size_t bytes);
    void (*unshare)(struct gpu *g, void *host);

    /* In stream order; host memory is pinned and stays as it is until the copy is done. */
    void (*to_device)(struct gpu *g, uint64_t dst, const void *pinned, size_t bytes);
    void (*to_host)(struct gpu *g, void *pinned, uint64_t src, size_t bytes);
    void (*within)(struct gpu *g, uint64_t dst, uint64_t src, size_t bytes);
    /** n_rows rows of `bytes`, a pitch from one to the next. */
    void (*rows)(struct gpu *g, uint64_t dst, size_t dst_pitch, uint64_t src, size_t src_pitch,
                 size_t bytes, size_t n_rows);
    /** In stream order: *g->number = n. */
    void (*set_number)(struct gpu *g, uint64_t n);

    /** Marks what is queued; which is 0 or 1, and a mark replaces the last of its kind. */
    void (*mark)(struct gpu *g, int which);
    /** Waits for the work before the mark, if there is one. */
    void (*wait_mark)(struct gpu *g, int which);
    /** Waits for all work. @return 0, or -1 with g->error set */
    int (*wait)(struct gpu *g);

    /** From now on launches are kept instead of made. */
    void (*record)(struct gpu *g);
    /** Ends that. @return what replay() takes; NULL with g->error set when it cannot be kept */
    void *(*recorded)(struct gpu *g);
    void (*replay)(struct gpu *g, void *recording);
    void (*forget)(struct gpu *g, void *recording);

    void (*close)(struct gpu *g);
};

struct gpu {
    const struct gpu_ops *ops;
    cuda_stream stream;
    int n_sms;
    bool native_e4m3;         /* tensor cores take e4m3: sm_89 and later */
    bool host_reaches;        /* the host may read and write device memory at its address */
    size_t memory_bytes;      /* that take() had to give when it was opened */
    size_t total_bytes;       /* of the device */
    _Atomic uint64_t *number; /* see set_number(); pinned */
    char name[64];            /* "NVIDIA H200, sm_90" */
    char error[256];          /* the first failure; "": none */
};

struct gpu_options {
    int ordinal;
    double memory_share; /* of what is free now, at most; 0: all but some room for the driver */
    bool fabric;         /* memory that other hosts of an NVLink domain can map */
    bool host_reaches;   /* tests: memory that both reach, and that is slow for it */
};

/**
 * Opens a GPU through the CUDA runtime.
 * @return NULL with the reason in error: no driver, no such GPU, too old, no memory
 */
struct gpu *gpu_cuda_open(const struct gpu_options *opt, char *error, size_t error_len);

#endif
