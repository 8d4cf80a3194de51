#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/text/trie.h"

static uint32_t seed = 1;

static uint32_t rnd(uint32_t n)
{
    seed = seed * 1664525 + 1013904223;
    return (seed >> 8) % n;
}

static uint32_t naive_longest(const struct trie_key *keys, size_t n_keys, const uint8_t *s,
                              size_t n, size_t *len)
{
    uint32_t best = TRIE_NONE;

    *len = 0;
    for (size_t i = 0; i < n_keys; i++)
        if (keys[i].len <= n && keys[i].len > *len && memcmp(keys[i].bytes, s, keys[i].len) == 0) {
            *len = keys[i].len;
            best = keys[i].value;
        }
    return best;
}

/* Different random strings of an alphabet; returns how many. */
static size_t make_keys(struct trie_key *keys, size_t n, const uint8_t *alphabet,
                        uint32_t n_alphabet, uint8_t *room, uint32_t len_max)
{
    size_t made = 0;

    for (size_t i = 0; i < n; i++) {
        struct trie_key k = {room, 1 + rnd(len_max), (uint32_t)made * 3};
        size_t twin = 0;
        for (uint32_t c = 0; c < k.len; c++)
            room[c] = alphabet[rnd(n_alphabet)];
        while (twin < made &&
               (keys[twin].len != k.len || memcmp(keys[twin].bytes, k.bytes, k.len) != 0))
            twin++;
        if (twin == made) {
            keys[made++] = k;
            room += k.len;
        }
    }
    return made;
}

static void check_against_naive(const uint8_t *alphabet, uint32_t n_alphabet, uint32_t len_max)
{
    enum { KEYS = 600, TEXT = 2000 };
    static uint8_t room[KEYS * 40], text[TEXT];
    static uint32_t prefix[KEYS * 3];
    struct trie_key keys[KEYS];
    struct status st;
    struct trie t;
    uint32_t *slots;
    size_t n = make_keys(keys, KEYS, alphabet, n_alphabet, room, len_max);

    assert_int_equal(trie_build(keys, n, prefix, &slots, &t.n, &st), ST_OK);
    t.slots = slots;
    assert_true(trie_is_sound(&t, KEYS * 3));
    for (size_t i = 0; i < TEXT; i++)
        text[i] = alphabet[rnd(n_alphabet)];
    for (size_t i = 0; i <= TEXT; i++) {
        size_t len, expected_len;
        uint32_t expected = naive_longest(keys, n, text + i, TEXT - i, &expected_len);
        assert_int_equal(trie_longest(&t, text + i, TEXT - i, &len), expected);
        assert_int_equal(len, expected_len);
    }
    for (size_t i = 0; i < n; i++) {
        size_t len;
        assert_int_equal(trie_longest(&t, keys[i].bytes, keys[i].len, &len), keys[i].value);
        assert_int_equal(prefix[keys[i].value],
                         naive_longest(keys, n, keys[i].bytes, keys[i].len - 1, &len));
    }
    free(slots);
}

static void the_longest_key_is_found_at_every_place(void **state)
{
    uint8_t all[256];

    (void)state;
    for (int i = 0; i < 256; i++)
        all[i] = (uint8_t)i;
    for (seed = 1; seed < 20; seed++) {
        check_against_naive((const uint8_t *)"ab", 2, 12);
        check_against_naive((const uint8_t *)"\0\1\xff", 3, 20);
        check_against_naive((const uint8_t *)"abcdefghijklmnopqrstuvwxyz", 26, 5);
        check_against_naive(all, 256, 3);
    }
}

static void an_empty_trie_finds_nothing(void **state)
{
    struct status st;
    struct trie t;
    uint32_t *slots;
    size_t len;

    (void)state;
    assert_int_equal(trie_build(NULL, 0, NULL, &slots, &t.n, &st), ST_OK);
    t.slots = slots;
    for (int c = 0; c < 256; c++) {
        uint8_t s[2] = {(uint8_t)c, 0};
        assert_int_equal(trie_longest(&t, s, 2, &len), TRIE_NONE);
        assert_int_equal(len, 0);
    }
    free(slots);
}

static void repeated_and_empty_keys_are_refused(void **state)
{
    const struct trie_key twins[] = {
        {(const uint8_t *)"long enough to be sorted by its tail", 30, 7},
        {(const uint8_t *)"x", 1, 8},
        {(const uint8_t *)"long enough to be sorted by its tail", 30, 9}};
    const struct trie_key empty[] = {{(const uint8_t *)"", 0, 1}};
    struct status st;
    uint32_t *slots;
    size_t n_slots;

    (void)state;
    assert_int_equal(trie_build(twins, 3, NULL, &slots, &n_slots, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "7"));
    assert_non_null(strstr(st.msg, "9"));
    assert_int_equal(trie_build(empty, 1, NULL, &slots, &n_slots, &st), ST_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_longest_key_is_found_at_every_place),
        cmocka_unit_test(an_empty_trie_finds_nothing),
        cmocka_unit_test(repeated_and_empty_keys_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
