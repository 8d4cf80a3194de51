/*
 * fake_cuda: as much of the CUDA runtime and of the driver as gpu_cuda.c calls, for one device that
 * a test describes: what a machine without a driver, an old GPU, one that is full says. Device
 * memory is host memory; work is done when it is queued.
 *
 * Threads   one.
 */
#ifndef BATON_TESTS_UNIT_KERNELS_FAKE_CUDA_H
#define BATON_TESTS_UNIT_KERNELS_FAKE_CUDA_H

#include <stdbool.h>
#include <stddef.h>

struct fake_cuda {
    int n_devices;
    int driver; /* CUDA version of the driver, such as 13000; 0: there is none */
    int sm;     /* 10 * major + minor */
    size_t free, total;
    bool vmm, fabric;  /* what the driver can do */
    const char *lacks; /* a driver function that is not there */
    const char *fails; /* a call that fails from now on */
    size_t physical;   /* bytes that cuMemCreate() still gives */
    /* what is not given back yet */
    int n_pinned, n_physical, n_ranges, n_streams, n_events, n_graphs;
};

extern struct fake_cuda fake_cuda;

#endif
