/*
 * A model on several GPUs, emulated, over a NCCL of our own (tests/unit/common/comm/fake_nccl.c):
 * N ranks with a memory each give the bits of one, prefill, decode and MTP; states that leave and
 * come back reach every rank; and what is missing is told.
 *
 * usage: test_cuda_ranks LIBRARY
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/model/model.h"
#include "tests/lib/checkpoint_folder.h"
#include "tests/unit/kernels/cuda_place.h"

enum { LENGTH = 9, PROMPT = 5, CONTEXT = 512, PAGES = 2, SLOTS = 2 };

static const char *library;
static char folder[CHECKPOINT_FOLDER_MAX];
static int32_t tokens[LENGTH + 1];

/* All ranks have the same chip, whose memory the host does not reach. */
static int open_place(struct kernels *k, int ordinal, const struct kernel_dims *dims,
                      const struct kernel_env *env)
{
    (void)ordinal;
    return cuda_place_open(k, CUDA_PLACE_HIDDEN, dims, env);
}

static struct model_options options_of(int n_ranks)
{
    return (struct model_options){.path = folder,
                                  .device = "cuda:0",
                                  .open_kernels = open_place,
                                  .nccl_library = library,
                                  .tp_size = n_ranks,
                                  .n_threads = n_ranks,
                                  .max_batch_tokens = LENGTH,
                                  .max_batch_seqs = 2,
                                  .max_context = CONTEXT,
                                  .max_logit_rows = LENGTH};
}

struct run {
    struct model *m;
    struct kv_memory kv;
    size_t vocab;
    float *all; /* rows of logits, one after the other */
    size_t n;
};

static void run_open(struct run *r, int n_ranks)
{
    struct model_options opt = options_of(n_ranks);
    struct status st;

    *r = (struct run){0};
    if (model_open(&opt, &r->m, &st) != ST_OK ||
        model_kv_alloc(r->m, PAGES, SLOTS, &r->kv, &st) != ST_OK)
        fail_msg("%s", st.msg);
    r->vocab = (size_t)model_get_config(r->m)->vocab_size;
    r->all = calloc((size_t)4 * LENGTH * r->vocab, sizeof(float));
}

static void run_close(struct run *r)
{
    model_kv_free(r->m, &r->kv);
    model_free(r->m);
    free(r->all);
}

static void keep(struct run *r, const float *logits, int n)
{
    memcpy(r->all + r->n * r->vocab, logits, (size_t)n * r->vocab * sizeof(float));
    r->n += (size_t)n;
}

/* Tokens [start, start + n) of the sequence in a slot, with the MTP block over them. */
static void step(struct run *r, uint32_t slot, int start, int n)
{
    static const uint32_t pages[PAGES] = {1, 0};
    struct model_span span = {.tokens = tokens + start,
                              .n_tokens = n,
                              .start = start,
                              .slot = slot,
                              .pages = pages,
                              .logits = MODEL_LOGITS_ALL};
    int32_t last = n - 1;
    const float *logits;
    struct status st;

    if (model_forward(r->m, &r->kv, &span, 1, &logits, &st) != ST_OK)
        fail_msg("%s", st.msg);
    keep(r, logits, n);
    if (model_mtp(r->m, &r->kv, tokens + start + 1, &last, 1, &logits, &st) != ST_OK)
        fail_msg("%s", st.msg);
    keep(r, logits, 1);
}

/* The slot's bytes leave for host memory and come back into another slot. */
static void move_slot(struct run *r, uint32_t from, uint32_t to)
{
    size_t bytes = model_get_geometry(r->m)->slot_bytes;
    void *host = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct dev_ptr there = {(uint64_t)(uintptr_t)host};
    struct kernel_piece out = {there, dev_at(r->kv.slots, from * bytes), bytes};
    struct kernel_piece in = {dev_at(r->kv.slots, to * bytes), there, bytes};
    const uint32_t end = 1;
    uint32_t crc[2];
    struct status st;

    assert_true(host != MAP_FAILED);
    if (model_memory_share(r->m, host, bytes, &st) != ST_OK ||
        model_memory_move(r->m, &out, 1, &end, 1, false, &crc[0], &st) != ST_OK ||
        model_memory_move(r->m, &in, 1, &end, 1, true, &crc[1], &st) != ST_OK)
        fail_msg("%s", st.msg);
    assert_int_equal(crc[0], crc[1]);
    model_memory_unshare(r->m, host);
    munmap(host, bytes);
}

/* The same by the way of a state at a page boundary. */
static void copy_slot(struct run *r, uint32_t from, uint32_t to)
{
    size_t bytes = model_get_geometry(r->m)->slot_bytes;
    struct dev_ptr state = model_memory_alloc(r->m, bytes);

    assert_false(dev_is_null(state));
    model_memory_copy(r->m, state, dev_at(r->kv.slots, from * bytes), bytes);
    model_memory_copy(r->m, dev_at(r->kv.slots, to * bytes), state, bytes);
    model_memory_free(r->m, state);
}

/* A prompt in two chunks, and tokens one by one, some after the state has moved. */
static void run_all(struct run *r)
{
    step(r, 0, 0, 2);
    step(r, 0, 2, PROMPT - 2);
    step(r, 0, PROMPT, 1);
    move_slot(r, 0, 1);
    step(r, 1, PROMPT + 1, 1);
    copy_slot(r, 1, 0);
    for (int i = PROMPT + 2; i < LENGTH; i++)
        step(r, 0, i, 1);
}

/* Weights are shared out, not copied. */
static void check_shares(const struct run *many, const struct run *one)
{
    uint64_t alone, own, workspace;

    model_rank_bytes(one->m, 0, &alone, &workspace);
    for (int i = 0; i < model_n_ranks(many->m); i++) {
        model_rank_bytes(many->m, i, &own, &workspace);
        assert_true(own < alone * 3 / 4);
    }
}

static void ranks_give_the_bits_of_one(void **state)
{
    const char *full = getenv("BATON_TEST_FULL");
    struct run one, many;

    (void)state;
    run_open(&one, 1);
    run_all(&one);
    for (int n = 2; n <= (full != NULL && full[0] == '1' ? 4 : 2); n *= 2) {
        run_open(&many, n);
        assert_int_equal(model_n_ranks(many.m), n);
        check_shares(&many, &one);
        run_all(&many);
        assert_int_equal(many.n, one.n);
        for (size_t i = 0; i < one.n * one.vocab; i++)
            if (memcmp(&many.all[i], &one.all[i], sizeof(float)) != 0)
                fail_msg("%d ranks: row %zu, logit %zu is %.9g, expected %.9g", n, i / one.vocab,
                         i % one.vocab, (double)many.all[i], (double)one.all[i]);
        run_close(&many);
    }
    run_close(&one);
}

static void without_nccl_the_reason_is_told(void **state)
{
    struct model_options opt = options_of(2);
    struct model *m = NULL;
    struct status st;

    (void)state;
    opt.nccl_library = "/nonexistent/libnccl.so.2";
    assert_int_equal(model_open(&opt, &m, &st), ST_UNAVAILABLE);
    assert_non_null(strstr(st.msg, "several GPUs need NCCL"));
    assert_non_null(strstr(st.msg, "--tp-size 1"));
}

static int setup(void **state)
{
    struct checkpoint_options opt = {.preset = "flashlike", .experts = EXPERTS_FP4, .seed = -1};

    (void)state;
    if (checkpoint_folder_make(folder, "test_cuda_ranks", &opt) != 0)
        return -1;
    for (int t = 0; t <= LENGTH; t++)
        tokens[t] = (t * 37 + t * t % 11) % 300;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    return checkpoint_folder_remove(folder);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_give_the_bits_of_one),
        cmocka_unit_test(without_nccl_the_reason_is_told),
    };

    if (argc != 2)
        return 2;
    if (!cuda_place_ready())
        return CUDA_PLACE_SKIPPED;
    library = argv[1];
    return cmocka_run_group_tests_name("cuda ranks", tests, setup, teardown);
}
