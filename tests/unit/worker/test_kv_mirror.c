/* The KV of one GPU goes through host memory to another (cuda_place.h: emulated, or real), and the
 * second goes on as the first would; what is garbled on the way is found. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/worker/kv_mirror.h"
#include "tests/lib/checkpoint_folder.h"
#include "tests/unit/kernels/cuda_place.h"

enum { PAGES = 4, SLOTS = 3, PROMPT = 270, CONTEXT = 1024 };

static char folder[CHECKPOINT_FOLDER_MAX];
static int32_t tokens[PROMPT + 1];

/* A worker's: model, KV, mirror. */
struct side {
    struct model *m;
    struct kv_memory kv;
    struct kv_mirror *mirror;
    void *host[2];
    size_t bytes[2];
    uint32_t pages[2], slot;
};

static void side_open(struct side *s, uint32_t first_page, uint32_t slot)
{
    struct model_options opt = {.path = folder,
                                .device = "cuda:2", /* CUDA_PLACE_HIDDEN */
                                .open_kernels = cuda_place_open,
                                .n_threads = 1,
                                .max_batch_tokens = PROMPT,
                                .max_batch_seqs = 1,
                                .max_context = CONTEXT,
                                .max_logit_rows = 1};
    struct kv_memory host = {.n_pages = PAGES, .n_slots = SLOTS};
    struct status st;

    *s = (struct side){.pages = {first_page, first_page - 1}, .slot = slot};
    if (model_open(&opt, &s->m, &st) != ST_OK)
        fail_msg("%s", st.msg);
    assert_false(model_kv_is_host(s->m));
    s->bytes[HANDOFF_SLAB_PAGES] = PAGES * model_get_geometry(s->m)->page_bytes;
    s->bytes[HANDOFF_SLAB_SLOTS] = SLOTS * model_get_geometry(s->m)->slot_bytes;
    for (int i = 0; i < 2; i++) {
        s->host[i] =
            mmap(NULL, s->bytes[i], PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        assert_true(s->host[i] != MAP_FAILED);
    }
    host.pages.addr = (uint64_t)(uintptr_t)s->host[HANDOFF_SLAB_PAGES];
    host.slots.addr = (uint64_t)(uintptr_t)s->host[HANDOFF_SLAB_SLOTS];
    if (kv_mirror_new(s->m, &host, &s->kv, &s->mirror, &st) != ST_OK)
        fail_msg("%s", st.msg);
    assert_null(model_host_address(s->m, s->kv.pages));
}

static void side_close(struct side *s)
{
    kv_mirror_free(s->mirror);
    for (int i = 0; i < 2; i++)
        munmap(s->host[i], s->bytes[i]);
    model_free(s->m);
}

static const float *forward(struct side *s, int start, int n)
{
    struct model_span span = {.tokens = tokens + start,
                              .n_tokens = n,
                              .start = start,
                              .slot = s->slot,
                              .pages = s->pages,
                              .logits = MODEL_LOGITS_LAST};
    const float *logits = NULL;
    struct status st;

    if (model_forward(s->m, &s->kv, &span, 1, &logits, &st) != ST_OK)
        fail_msg("%s", st.msg);
    return logits;
}

static struct handoff_list list_of(const struct side *from, const struct side *to)
{
    struct handoff_units units = {from->pages, to->pages, from->slot, to->slot};
    const struct kv_geometry *g = model_get_geometry(from->m);
    uint32_t end = 2 + handoff_slot_groups(g, PROMPT);
    struct handoff_list list;
    struct status st;

    if (handoff_list_init(&list, g, &units, PROMPT, 0, end, &st) != ST_OK)
        fail_msg("%s", st.msg);
    return list;
}

static void a_handoff_between_gpus_goes_on_as_if_there_were_none(void **state)
{
    struct side a, b;
    struct handoff_list sent, got;
    uint32_t crc[3];
    struct status st;
    size_t vocab;
    float *want;

    (void)state;
    side_open(&a, 1, 2);
    side_open(&b, 3, 1);
    vocab = (size_t)model_get_config(a.m)->vocab_size;
    forward(&a, 0, PROMPT);
    sent = list_of(&a, &b);
    got = list_of(&b, &b);
    assert_int_equal(sent.n_groups, 3);
    if (kv_mirror_out(a.mirror, &sent, crc, &st) != ST_OK)
        fail_msg("%s", st.msg);
    for (size_t i = 0; i < sent.n_pieces; i++) { /* the transfer */
        const struct transfer_piece *p = &sent.pieces[i];

        memcpy((uint8_t *)b.host[p->slab] + p->remote_off,
               (uint8_t *)a.host[p->slab] + p->local_off, p->bytes);
    }
    /* a bit of the second page is turned in the receiver's host memory, and turned back */
    uint8_t *bit = (uint8_t *)b.host[got.pieces[1].slab] + got.pieces[1].local_off + 5;

    *bit ^= 4;
    assert_int_equal(kv_mirror_in(b.mirror, &got, crc, &st), ST_CORRUPT);
    assert_non_null(strstr(st.msg, "group 1 of 3"));
    *bit ^= 4;
    if (kv_mirror_in(b.mirror, &got, crc, &st) != ST_OK)
        fail_msg("%s", st.msg);
    want = malloc(vocab * sizeof(*want));
    memcpy(want, forward(&a, PROMPT, 1), vocab * sizeof(*want));
    assert_memory_equal(forward(&b, PROMPT, 1), want, vocab * sizeof(*want));
    free(want);
    handoff_list_deinit(&sent);
    handoff_list_deinit(&got);
    side_close(&a);
    side_close(&b);
}

static int setup(void **state)
{
    struct checkpoint_options opt = {.preset = "slim", .seed = -1};

    (void)state;
    for (int i = 0; i <= PROMPT; i++)
        tokens[i] = (i * 31 + i * i % 7) % 500;
    return checkpoint_folder_make(folder, "test_kv_mirror", &opt);
}

static int teardown(void **state)
{
    (void)state;
    return checkpoint_folder_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_handoff_between_gpus_goes_on_as_if_there_were_none),
    };

    if (!cuda_place_ready())
        return CUDA_PLACE_SKIPPED;
    return cmocka_run_group_tests_name("kv mirror", tests, setup, teardown);
}
