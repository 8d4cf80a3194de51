/* The memory plan of a model on a GPU (cuda_place.h's, emulated): made from what the device has
 * left, and what cannot fit is refused with the numbers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/worker/memory_plan.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/emulated.h"
#include "tests/lib/checkpoint_folder.h"

#define MIB ((size_t)1 << 20)

static char folder[CHECKPOINT_FOLDER_MAX];
static size_t memory_bytes; /* of the next GPU that is opened */

static int open_place(struct kernels *k, int ordinal, const struct kernel_dims *dims,
                      const struct kernel_env *env)
{
    struct emulated_options opt = {.memory_bytes = memory_bytes, .hidden = true};
    struct gpu *g = gpu_emulated_open(&opt);

    (void)ordinal;
    return g != NULL ? cuda_backend_open(k, g, dims, env) : -1;
}

static enum status_code open_model(size_t bytes, struct model **out, struct status *st)
{
    struct model_options opt = {.path = folder,
                                .device = "cuda:0",
                                .open_kernels = open_place,
                                .n_threads = 1,
                                .max_batch_tokens = 16,
                                .max_batch_seqs = 2,
                                .max_context = 1024,
                                .max_logit_rows = 4};

    memory_bytes = bytes;
    return model_open(&opt, out, st);
}

static void says(const struct status *st, const char *what)
{
    if (strstr(st->msg, what) == NULL)
        fail_msg("'%s' says nothing of '%s'", st->msg, what);
}

static void weights_that_do_not_fit_are_refused_by_class(void **state)
{
    uint64_t weights, workspace;
    struct kernel_room room;
    struct model *m = NULL;
    struct status st;

    (void)state;
    if (open_model(1024 * MIB, &m, &st) != ST_OK)
        fail_msg("%s", st.msg);
    assert_true(model_room(m, &room));
    assert_int_equal(room.total, 1024 * MIB);
    assert_int_equal(room.used + room.left, room.total);
    model_rank_bytes(m, 0, &weights, &workspace);
    assert_true(weights + workspace < room.used);
    model_free(m);
    m = NULL;
    assert_int_equal(open_model(room.used - weights / 2, &m, &st), ST_EXHAUSTED);
    assert_null(m);
    says(&st, "cuda:0: weights of");
    says(&st, "experts");
    says(&st, "left: raise --tp-size");
    /* not even what the kernels work with */
    assert_int_equal(open_model(40 * MIB, &m, &st), ST_INVALID);
    says(&st, "no room for");
    says(&st, "--device cpu works without");
}

static void the_pool_is_what_the_share_of_the_gpu_leaves(void **state)
{
    struct memory_limits limits;
    uint64_t used;
    struct memory_plan plan;
    struct kv_memory kv;
    struct model *m = NULL;
    struct status st;
    const struct kv_geometry *g;

    (void)state;
    if (open_model(512 * MIB, &m, &st) != ST_OK)
        fail_msg("%s", st.msg);
    g = model_get_geometry(m);
    assert_true(memory_limits_of_device(m, &limits, &used));
    assert_string_equal(limits.of, "the GPU");
    assert_int_equal(limits.total, 512 * MIB);
    struct memory_ask ask = {.mem_fraction_static = 0.9, .weight_bytes = used, .n_slots = 2};

    if (memory_plan_make(&ask, &limits, g, &plan, &st) != ST_OK ||
        memory_plan_check(&plan, &limits, &st) != ST_OK)
        fail_msg("%s", st.msg);
    assert_true(used + memory_plan_kv_bytes(&plan) <= 512 * MIB / 10 * 9 + MIB);
    assert_true(used + memory_plan_kv_bytes(&plan) + g->page_bytes > 512 * MIB / 10 * 9 - MIB);
    if (model_kv_alloc(m, plan.n_pages, plan.n_slots, &kv, &st) != ST_OK)
        fail_msg("%s", st.msg);
    memory_plan_log(&plan, m);
    model_kv_free(m, &kv);

    ask.mem_fraction_static = 0.01; /* less than what the weights have */
    assert_int_equal(memory_plan_make(&ask, &limits, g, &plan, &st), ST_INVALID);
    says(&st, "of weights on the GPU");
    ask = (struct memory_ask){.max_total_tokens = 1 << 28, .weight_bytes = used, .n_slots = 2};
    assert_int_equal(memory_plan_make(&ask, &limits, g, &plan, &st), ST_OK);
    assert_int_equal(memory_plan_check(&plan, &limits, &st), ST_EXHAUSTED);
    says(&st, "the GPU has");
    says(&st, "lower --max-total-tokens");
    assert_int_equal(model_kv_alloc(m, plan.n_pages, plan.n_slots, &kv, &st), ST_EXHAUSTED);
    model_free(m);
}

static int setup(void **state)
{
    struct checkpoint_options opt = {.preset = "slim", .experts = EXPERTS_FP4, .seed = -1};

    (void)state;
    return checkpoint_folder_make(folder, "test_device_memory", &opt);
}

static int teardown(void **state)
{
    (void)state;
    return checkpoint_folder_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_that_do_not_fit_are_refused_by_class),
        cmocka_unit_test(the_pool_is_what_the_share_of_the_gpu_leaves),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
