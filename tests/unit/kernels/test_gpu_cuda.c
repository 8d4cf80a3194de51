/* gpu_cuda.c over a CUDA of our own (fake_cuda.c): what it says of machines and devices that cannot
 * serve, and that a failure gives back all that was taken. */
#include "kernels/cuda/gpu.h"
#include "tests/unit/kernels/fake_cuda.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#define MIB ((size_t)1 << 20)

/* A device that serves; tests spoil it. */
static const struct fake_cuda good = {.n_devices = 2,
                                      .driver = 13000,
                                      .sm = 90,
                                      .free = 1600 * MIB,
                                      .total = 2048 * MIB,
                                      .vmm = true,
                                      .physical = 1600 * MIB};

static void nothing_is_left(void)
{
    assert_int_equal(fake_cuda.n_pinned, 0);
    assert_int_equal(fake_cuda.n_physical, 0);
    assert_int_equal(fake_cuda.n_ranges, 0);
    assert_int_equal(fake_cuda.n_streams, 0);
    assert_int_equal(fake_cuda.n_events, 0);
    assert_int_equal(fake_cuda.n_graphs, 0);
}

/* Opening fails, and says all of what. */
static void refuses(const struct gpu_options *opt, const char *first, const char *second)
{
    char error[256] = "";

    assert_null(gpu_cuda_open(opt, error, sizeof(error)));
    if (strstr(error, first) == NULL || strstr(error, second) == NULL)
        fail_msg("'%s' says nothing of '%s' and '%s'", error, first, second);
    nothing_is_left();
}

static struct gpu *opened(void)
{
    struct gpu_options opt = {.ordinal = 1};
    char error[256] = "";
    struct gpu *g = gpu_cuda_open(&opt, error, sizeof(error));

    if (g == NULL)
        fail_msg("%s", error);
    return g;
}

static void a_machine_without_a_driver_is_told_so(void **state)
{
    struct gpu_options opt = {0};

    (void)state;
    fake_cuda = (struct fake_cuda){0};
    refuses(&opt, "no NVIDIA driver", "libcuda.so.1");
    fake_cuda = good;
    fake_cuda.driver = 12040;
    refuses(&opt, "driver is for CUDA 12.4", "needs 13.0");
    fake_cuda = good;
    fake_cuda.lacks = "cuMemMap";
    refuses(&opt, "driver has no cuMemMap", "");
}

static void a_gpu_that_is_not_there_is_told_with_the_number_of_those_that_are(void **state)
{
    struct gpu_options opt = {.ordinal = 2};

    (void)state;
    fake_cuda = good;
    refuses(&opt, "no GPU 2", "shows 2");
}

static void an_old_gpu_is_refused_by_name(void **state)
{
    static const int old[] = {70, 75};
    struct gpu_options opt = {0};

    (void)state;
    for (int i = 0; i < 2; i++) {
        char name[16];

        fake_cuda = good;
        fake_cuda.sm = old[i];
        snprintf(name, sizeof(name), "sm_%d", old[i]);
        refuses(&opt, "too old: the kernels need sm_80", name);
    }
}

static void chips_have_e4m3_from_sm_89_on(void **state)
{
    static const int sm[] = {80, 86, 89, 90, 100, 120};

    (void)state;
    for (int i = 0; i < 6; i++) {
        struct gpu *g;

        fake_cuda = good;
        fake_cuda.sm = sm[i];
        g = opened();
        assert_int_equal(g->native_e4m3, sm[i] >= 89);
        g->ops->close(g);
        nothing_is_left();
    }
}

static void what_the_device_lacks_is_named(void **state)
{
    struct gpu_options opt = {0};

    (void)state;
    fake_cuda = good;
    fake_cuda.free = 100 * MIB;
    refuses(&opt, "0.10 GB free of 2.15", "too little");
    fake_cuda = good;
    fake_cuda.vmm = false;
    refuses(&opt, "cannot map memory", "Fake GPU, sm_90");
    fake_cuda = good;
    opt.fabric = true;
    refuses(&opt, "no fabric handles", "NVLink");
}

static void whatever_fails_at_open_gives_all_back(void **state)
{
    static const char *const calls[] = {"cudaSetDevice", "cudaGetDeviceProperties",
                                        "cudaMemGetInfo", "cudaStreamCreateWithFlags",
                                        "cudaEventCreateWithFlags"};
    struct gpu_options opt = {0};

    (void)state;
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        fake_cuda = good;
        fake_cuda.fails = calls[i];
        /* not the device that this thread has: that one is not asked for again */
        opt.ordinal = (int)((i + 1) % 2);
        refuses(&opt, "out of memory", "");
    }
}

static void memory_ends_where_the_device_s_does(void **state)
{
    uint64_t first, second;
    struct gpu *g;

    (void)state;
    fake_cuda = good;
    g = opened();
    assert_int_equal(g->memory_bytes, (1600 - 512) * MIB); /* the driver has its room */
    first = g->ops->take(g, 900 * MIB);
    assert_int_not_equal(first, 0);
    assert_int_equal(*(volatile char *)(uintptr_t)(first + 900 * MIB - 1), 0);
    assert_int_equal(g->ops->take(g, 200 * MIB), 0);
    second = g->ops->take(g, 100 * MIB);
    assert_int_not_equal(second, 0);
    g->ops->give(g, first);
    assert_int_equal(g->ops->take(g, 800 * MIB), first);
    assert_int_equal(g->ops->wait(g), 0); /* no room is no failure of the device */
    g->ops->close(g);
    nothing_is_left();
}

static void memory_that_the_driver_does_not_give_is_no_memory(void **state)
{
    struct gpu *g;

    (void)state;
    fake_cuda = good;
    g = opened();
    fake_cuda.physical = 100 * MIB;
    assert_int_equal(g->ops->take(g, 200 * MIB), 0);
    assert_int_not_equal(g->ops->take(g, 64 * MIB), 0);
    fake_cuda.fails = "cuMemMap";
    assert_int_equal(g->ops->take(g, 30 * MIB), 0);
    g->ops->close(g);
    nothing_is_left();
}

static void a_failure_is_kept_and_told_by_wait(void **state)
{
    struct gpu *g;
    void *pinned;

    (void)state;
    fake_cuda = good;
    g = opened();
    pinned = g->ops->take_pinned(g, 4096);
    assert_non_null(pinned);
    fake_cuda.fails = "cudaMemcpyAsync";
    g->ops->to_device(g, g->ops->take(g, 4096), pinned, 4096);
    fake_cuda.fails = NULL;
    assert_int_equal(g->ops->wait(g), -1);
    assert_non_null(strstr(g->error, "cudaMemcpy: out of memory"));
    g->ops->close(g);
    nothing_is_left();
}

static void a_recording_without_memory_says_so(void **state)
{
    struct gpu *g;
    void *recording;

    (void)state;
    fake_cuda = good;
    g = opened();
    g->ops->record(g);
    recording = g->ops->recorded(g);
    assert_non_null(recording);
    g->ops->forget(g, recording);
    fake_cuda.fails = "cudaGraphInstantiate";
    g->ops->record(g);
    assert_null(g->ops->recorded(g));
    assert_non_null(strstr(g->error, "cudaGraphInstantiate"));
    g->ops->close(g);
    nothing_is_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_machine_without_a_driver_is_told_so),
        cmocka_unit_test(a_gpu_that_is_not_there_is_told_with_the_number_of_those_that_are),
        cmocka_unit_test(an_old_gpu_is_refused_by_name),
        cmocka_unit_test(chips_have_e4m3_from_sm_89_on),
        cmocka_unit_test(what_the_device_lacks_is_named),
        cmocka_unit_test(whatever_fails_at_open_gives_all_back),
        cmocka_unit_test(memory_ends_where_the_device_s_does),
        cmocka_unit_test(memory_that_the_driver_does_not_give_is_no_memory),
        cmocka_unit_test(a_failure_is_kept_and_told_by_wait),
        cmocka_unit_test(a_recording_without_memory_says_so),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
