/* The descriptor is another machine's bytes: whatever they are, reading them answers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/crc32c.h"
#include "common/transfer/descriptor.h"

static const struct descriptor example = {
    .incarnation = 0x1122334455667788,
    .address = "address of a worker",
    .address_len = 19,
    .slabs = {[0] = {4096, 1 << 20, "key zero", 8}, [2] = {1ull << 40, 1ull << 36, "k2", 2}},
};

static struct buf example_bytes(void)
{
    struct buf b = {0};

    descriptor_write(&example, &b);
    return b;
}

/* Makes the checksum hold again, so that what lies behind it is reached. */
static void seal(uint8_t *bytes, size_t len)
{
    uint32_t crc;

    if (len < 20)
        return;
    crc = crc32c(0, bytes + 20, len - 20);
    memcpy(bytes + 12, &(uint32_t){(uint32_t)len}, 4);
    memcpy(bytes + 16, &crc, 4);
}

static void what_was_written_is_read(void **state)
{
    struct buf b = example_bytes();
    struct descriptor d;
    struct status st;

    (void)state;
    assert_int_equal(descriptor_read(b.data, b.len, &d, &st), ST_OK);
    assert_int_equal(d.incarnation, example.incarnation);
    assert_int_equal(d.address_len, 19);
    assert_memory_equal(d.address, example.address, 19);
    assert_int_equal(d.slabs[0].bytes, 1 << 20);
    assert_int_equal(d.slabs[1].bytes, 0);
    assert_int_equal(d.slabs[2].base, 1ull << 40);
    assert_memory_equal(d.slabs[2].rkey, "k2", 2);
    buf_deinit(&b);
}

static void every_cut_is_refused_with_a_reason(void **state)
{
    struct buf b = example_bytes();
    struct descriptor d;
    struct status st;

    (void)state;
    for (size_t len = 0; len < b.len; len++) {
        uint8_t *exact = malloc(len + 1); /* so that ASan sees a byte too far */

        memcpy(exact, b.data, len);
        exact = realloc(exact, len > 0 ? len : 1);
        assert_int_equal(descriptor_read(exact, len, &d, &st), ST_INVALID);
        assert_true(strlen(st.msg) > 10);
        seal(exact, len);
        assert_int_equal(descriptor_read(exact, len, &d, &st), ST_INVALID);
        free(exact);
    }
    buf_append(&b, "x", 1);
    seal((uint8_t *)b.data, b.len);
    assert_int_equal(descriptor_read(b.data, b.len, &d, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "too many"));
    buf_deinit(&b);
}

static void every_flipped_bit_is_noticed(void **state)
{
    struct buf b = example_bytes();
    struct descriptor d;
    struct status st;

    (void)state;
    for (size_t bit = 0; bit < b.len * 8; bit++) {
        b.data[bit / 8] ^= (char)(1 << (bit % 8));
        assert_int_equal(descriptor_read(b.data, b.len, &d, &st), ST_INVALID);
        b.data[bit / 8] ^= (char)(1 << (bit % 8));
    }
    buf_deinit(&b);
}

static uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

/* Whatever is accepted must lie inside the bytes that came. */
static void check_inside(const struct descriptor *d, const uint8_t *bytes, size_t len)
{
    assert_true((const uint8_t *)d->address >= bytes &&
                (const uint8_t *)d->address + d->address_len <= bytes + len);
    for (int i = 0; i < TRANSFER_SLABS_MAX; i++) {
        const struct descriptor_slab *s = &d->slabs[i];

        if (s->bytes > 0)
            assert_true((const uint8_t *)s->rkey >= bytes &&
                        (const uint8_t *)s->rkey + s->rkey_len <= bytes + len &&
                        s->base + s->bytes > s->base);
    }
}

static void random_mutations_behind_a_good_checksum_never_crash(void **state)
{
    struct buf b = example_bytes();
    uint64_t seed = 42;
    int accepted = 0;

    (void)state;
    for (int round = 0; round < 50000; round++) {
        size_t len = next_random(&seed) % 4 == 0 ? next_random(&seed) % b.len : b.len;
        uint8_t *m = malloc(b.len);
        struct descriptor d;
        struct status st;

        memcpy(m, b.data, b.len);
        for (uint32_t k = next_random(&seed) % 6; k > 0; k--) {
            static const uint8_t telling[] = {0, 1, 0x7f, 0x80, 0xff};

            m[next_random(&seed) % b.len] = next_random(&seed) % 2 ? telling[next_random(&seed) % 5]
                                                                   : (uint8_t)next_random(&seed);
        }
        seal(m, len);
        if (descriptor_read(m, len, &d, &st) == ST_OK) {
            check_inside(&d, m, len);
            accepted++;
        }
        free(m);
    }
    assert_true(accepted > 0);
    buf_deinit(&b);
}

static void other_bytes_and_other_versions_are_named(void **state)
{
    struct buf b = example_bytes();
    struct descriptor d;
    struct status st;

    (void)state;
    assert_int_equal(descriptor_read("GET / HTTP/1.1\r\n\r\n", 18, &d, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "magic"));
    b.data[8] = 9;
    assert_int_equal(descriptor_read(b.data, b.len, &d, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "version 9"));
    buf_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read),
        cmocka_unit_test(every_cut_is_refused_with_a_reason),
        cmocka_unit_test(every_flipped_bit_is_noticed),
        cmocka_unit_test(random_mutations_behind_a_good_checksum_never_crash),
        cmocka_unit_test(other_bytes_and_other_versions_are_named),
    };

    return cmocka_run_group_tests_name("transfer descriptor", tests, NULL, NULL);
}
