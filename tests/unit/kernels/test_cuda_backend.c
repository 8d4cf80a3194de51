/* The CUDA backend beside its operations: memory accounts, what it refuses and how, writes in
 * order, pieces and their checksums, recordings. Emulated: memory sizes are the test's. */
#include "common/base/crc32c.h"
#include "kernels/cuda/arena.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/emulated.h"
#include "tests/lib/kernel_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* ---- arena ---- */

enum { PARTS = 200, ROUNDS = 20000 };

static void parts_never_overlap_and_all_come_back(void **state)
{
    struct rig_random random = {1};
    struct arena a;
    size_t at[PARTS], bytes[PARTS] = {0}, in_use = 0;

    (void)state;
    arena_init(&a, (size_t)1 << 24);
    for (int i = 0; i < ROUNDS; i++) {
        size_t p = rig_bits(&random) % PARTS, n = rig_bits(&random) % 200000;

        if (bytes[p] > 0) {
            assert_true(arena_give(&a, at[p]));
            assert_false(arena_give(&a, at[p])); /* it is not taken any more */
            in_use -= bytes[p];
            bytes[p] = 0;
            continue;
        }
        if (!arena_take(&a, n, &at[p]))
            continue;
        bytes[p] = n == 0 ? ARENA_UNIT : (n + ARENA_UNIT - 1) / ARENA_UNIT * ARENA_UNIT;
        in_use += bytes[p];
        assert_true(at[p] % ARENA_UNIT == 0 && at[p] + bytes[p] <= a.size);
        for (size_t q = 0; q < PARTS; q++)
            assert_true(q == p || bytes[q] == 0 || at[p] >= at[q] + bytes[q] ||
                        at[q] >= at[p] + bytes[p]);
    }
    for (size_t p = 0; p < PARTS; p++)
        assert_true(bytes[p] == 0 || arena_give(&a, at[p]));
    assert_int_equal(a.top, 0);
    assert_int_equal(a.n_free, 0);
    assert_true(arena_take(&a, a.size, &at[0])); /* in one part again */
    assert_false(arena_take(&a, 1, &at[1]));
    arena_deinit(&a);
}

/* ---- opening ---- */

static int open_with(struct kernels *k, const struct kernel_dims *d, size_t memory_bytes)
{
    struct emulated_options opt = {.memory_bytes = memory_bytes};
    struct kernel_env env = {.n_threads = 1};

    return cuda_backend_open(k, gpu_emulated_open(&opt), d, &env);
}

static void too_little_memory_is_told(void **state)
{
    struct kernel_dims d = rig_dims();
    struct rig_random random = {2};
    struct weight_src src;
    struct kernels k;
    struct weight w;

    (void)state;
    assert_int_equal(open_with(&k, &d, 8 << 20), -1);
    assert_non_null(strstr(k.error, "no room for staging: 0.01 GB"));
    assert_int_equal(open_with(&k, &d, 48 << 20), -1);
    assert_non_null(strstr(k.error, "workspace"));
    assert_int_equal(open_with(&k, &d, (size_t)144 << 20), 0);
    src = rig_weight(&random, WEIGHT_FP8, 8192, 16384); /* 128 MiB */
    assert_int_equal(k.ops->weight_load(&k, &src, &w), -1);
    assert_non_null(strstr(k.error, "no room for a weight"));
    rig_weight_free(&src);
    kernels_close(&k);
}

static void models_beyond_the_kernels_are_refused(void **state)
{
    static const struct {
        size_t field;
        int value;
        const char *why;
    } cases[] = {
        {offsetof(struct kernel_dims, hidden), 192, "hidden_size"},
        {offsetof(struct kernel_dims, hc), 2, "hc_mult"},
        {offsetof(struct kernel_dims, moe_inter), 64, "moe_intermediate_size"},
        {offsetof(struct kernel_dims, n_experts), 2000, "experts"},
        {offsetof(struct kernel_dims, o_lora_rank), 72, "o_groups"},
        {offsetof(struct kernel_dims, max_rows), 70000, "65535"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct kernel_dims d = rig_dims();
        struct kernels k;

        memcpy((char *)&d + cases[i].field, &cases[i].value, sizeof(int));
        assert_int_equal(open_with(&k, &d, 0), -1);
        if (strstr(k.error, cases[i].why) == NULL)
            fail_msg("'%s' does not name %s", k.error, cases[i].why);
    }
}

static void the_chip_s_own_products_are_trusted_where_they_agree(void **state)
{
    struct kernel_dims d = rig_dims();
    struct kernels k;

    (void)state;
    assert_int_equal(open_with(&k, &d, 0), 0);
    assert_string_equal(k.ops->name, "cuda-sm89-e4m3");
    kernels_close(&k);
}

/* ---- writes ---- */

static void writes_are_read_in_their_order(void **state)
{
    enum { N = 5000 };
    struct kernel_dims d = rig_dims();
    struct rig_random random = {3};
    struct kernels k;
    uint8_t *want = calloc(1, N), *got = malloc(N), some[N];
    struct dev_ptr p;

    (void)state;
    assert_int_equal(open_with(&k, &d, 0), 0);
    p = k.ops->dev_alloc(&k, N);
    for (int i = 0; i < 4000; i++) { /* more than the lists hold; they overlap */
        size_t at = rig_bits(&random) % N, n = rig_bits(&random) % 40;

        n = at + n <= N ? n : N - at;
        rig_bytes(&random, some, n);
        memcpy(want + at, some, n);
        k.ops->dev_write(&k, dev_at(p, at), some, n);
        if (i % 999 == 0) {
            assert_int_equal(k.ops->dev_read(&k, got, p, N), 0);
            assert_memory_equal(got, want, N);
        }
    }
    assert_int_equal(k.ops->dev_read(&k, got, p, N), 0);
    assert_memory_equal(got, want, N);
    k.ops->dev_free(&k, p);
    kernels_close(&k);
    free(want);
    free(got);
}

static void large_writes_go_in_pieces(void **state)
{
    size_t n = (size_t)(33 << 20) + 7;
    struct kernel_dims d = rig_dims();
    uint8_t *data = malloc(n), *got = calloc(1, n);
    struct kernels k;
    struct dev_ptr p, q;

    (void)state;
    for (size_t i = 0; i < n; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 13);
    assert_int_equal(open_with(&k, &d, 0), 0);
    p = k.ops->dev_alloc(&k, n);
    q = k.ops->dev_alloc(&k, n);
    k.ops->dev_write(&k, p, data, n);
    k.ops->dev_copy(&k, q, p, n);
    assert_int_equal(k.ops->dev_read(&k, got, q, n), 0);
    assert_memory_equal(got, data, n);
    kernels_close(&k);
    free(data);
    free(got);
}

/* ---- pieces ---- */

enum { SLAB = 100000, GROUPS = 9, PIECES = 4 };

/* Pieces of odd sizes and places, some empty; each group's checksum is the host's over them. */
static void pieces_arrive_with_the_host_s_checksums(void **state)
{
    struct kernel_dims d = rig_dims();
    struct rig_random random = {4};
    struct kernel_piece pieces[GROUPS * PIECES];
    uint32_t ends[GROUPS], crc[GROUPS], back[GROUPS];
    uint8_t *host = malloc(SLAB), *other = calloc(1, SLAB);
    struct kernels k;
    struct dev_ptr p;
    size_t at = 3;

    (void)state;
    rig_bytes(&random, host, SLAB);
    assert_int_equal(open_with(&k, &d, 0), 0);
    p = k.ops->dev_alloc(&k, SLAB);
    for (int i = 0; i < GROUPS * PIECES; i++) {
        size_t n = i % 7 == 5 ? 0 : i % 5 == 0 ? 1 : rig_bits(&random) % 5000;

        pieces[i] = (struct kernel_piece){dev_at(p, at), {(uint64_t)(uintptr_t)(host + at)}, n};
        at += n + rig_bits(&random) % 3;
        ends[i / PIECES] = (uint32_t)i + 1;
    }
    ends[4] = ends[3]; /* a group of no pieces: its checksum is that of no bytes */
    assert_true(at < SLAB);
    assert_int_equal(k.ops->dev_share(&k, host, SLAB), 0);
    assert_int_equal(k.ops->dev_move(&k, pieces, GROUPS * PIECES, ends, GROUPS, true, crc), 0);
    for (int g = 0; g < GROUPS; g++) {
        uint32_t want = 0;

        for (uint32_t i = g > 0 ? ends[g - 1] : 0; i < ends[g]; i++)
            want = crc32c(want, (const void *)(uintptr_t)pieces[i].src.addr, pieces[i].bytes);
        assert_int_equal(crc[g], want);
    }
    for (int i = 0; i < GROUPS * PIECES; i++) { /* and back, elsewhere */
        size_t off = pieces[i].dst.addr - p.addr;

        pieces[i].src = pieces[i].dst;
        pieces[i].dst.addr = (uint64_t)(uintptr_t)(other + off);
    }
    assert_int_equal(k.ops->dev_move(&k, pieces, GROUPS * PIECES, ends, GROUPS, false, back), 0);
    assert_memory_equal(back, crc, sizeof(crc));
    for (int i = 0; i < GROUPS * PIECES; i++) {
        size_t off = pieces[i].dst.addr - (uint64_t)(uintptr_t)other;

        assert_memory_equal(other + off, host + off, pieces[i].bytes);
    }
    k.ops->dev_unshare(&k, host);
    kernels_close(&k);
    free(host);
    free(other);
}

/* ---- recordings ---- */

static void a_recording_runs_with_what_lies_there_then(void **state)
{
    enum { T = 3, N = 256 };
    struct kernel_dims d = rig_dims();
    struct rig_random random = {5};
    struct kernels k;
    struct dev_ptr x, xq;
    uint16_t rows[2][T * N];
    uint8_t *want, *got;
    size_t bytes;
    void *recording;

    (void)state;
    assert_int_equal(open_with(&k, &d, 0), 0);
    bytes = T * k.ops->act_quant_bytes(&k, N);
    want = malloc(bytes);
    got = malloc(bytes);
    x = k.ops->dev_alloc(&k, sizeof(rows[0]));
    xq = k.ops->dev_alloc(&k, bytes);
    k.ops->record(&k);
    k.ops->act_quant(&k, xq, x, T, N);
    recording = k.ops->recorded(&k);
    assert_non_null(recording);
    assert_int_equal(k.ops->dev_read(&k, got, xq, bytes), 0);
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal(got[i], 0); /* it has not run */
    for (int i = 0; i < 2; i++) {
        rig_bf16(&random, rows[i], T * N, 2);
        k.ops->dev_write(&k, x, rows[i], sizeof(rows[i]));
        k.ops->replay(&k, recording);
        assert_int_equal(k.ops->dev_read(&k, got, xq, bytes), 0);
        k.ops->act_quant(&k, xq, x, T, N);
        assert_int_equal(k.ops->dev_read(&k, want, xq, bytes), 0);
        assert_memory_equal(got, want, bytes);
    }
    k.ops->forget(&k, recording);
    kernels_close(&k);
    free(want);
    free(got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parts_never_overlap_and_all_come_back),
        cmocka_unit_test(too_little_memory_is_told),
        cmocka_unit_test(models_beyond_the_kernels_are_refused),
        cmocka_unit_test(the_chip_s_own_products_are_trusted_where_they_agree),
        cmocka_unit_test(writes_are_read_in_their_order),
        cmocka_unit_test(large_writes_go_in_pieces),
        cmocka_unit_test(pieces_arrive_with_the_host_s_checksums),
        cmocka_unit_test(a_recording_runs_with_what_lies_there_then),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
