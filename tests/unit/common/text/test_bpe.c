#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/text/bpe_build.h"

enum { MAX_MERGES = 400, MAX_LEN = 64, MAX_TOKENS = 256 + MAX_MERGES };

static uint32_t seed = 1;

static uint32_t rnd(uint32_t n)
{
    seed = seed * 1664525 + 1013904223;
    return (seed >> 8) % n;
}

/* A vocabulary of 256 bytes and what random merges make of them. */
struct toy {
    struct bpe bpe;
    struct bpe_tables tables;
    struct bpe_merge merges[MAX_MERGES];
    uint32_t n_merges;
    uint32_t offsets[MAX_TOKENS + 1], byte_ids[256];
    uint8_t bytes[256 + MAX_MERGES * MAX_LEN];
};

static uint32_t token_len(const struct toy *t, uint32_t id)
{
    return t->offsets[id + 1] - t->offsets[id];
}

static bool has_string(const struct toy *t, uint32_t n, const uint8_t *s, uint32_t len)
{
    for (uint32_t id = 0; id < n; id++)
        if (token_len(t, id) == len && memcmp(t->bytes + t->offsets[id], s, len) == 0)
            return true;
    return false;
}

/* Merges two random tokens again and again: parts before wholes, as training does, but in any order
 * of usefulness: many tokens encode to something else, and many pairs cross. */
static void toy_make(struct toy *t, const char *alphabet, uint32_t n_merges)
{
    uint32_t n = 256, n_alphabet = (uint32_t)strlen(alphabet);

    memset(t, 0, sizeof(*t));
    for (uint32_t c = 0; c < 256; c++) {
        t->byte_ids[c] = 255 - c; /* any order will do */
        t->offsets[255 - c] = 255 - c;
        t->bytes[255 - c] = (uint8_t)c;
    }
    t->offsets[256] = 256;
    for (uint32_t tries = 0; t->n_merges < n_merges && tries < 20 * n_merges; tries++) {
        uint32_t pick = n_alphabet + (n - 256), parts[2], at = t->offsets[n], len;
        for (int i = 0; i < 2; i++) {
            parts[i] = rnd(pick);
            parts[i] = parts[i] < n_alphabet ? t->byte_ids[(uint8_t)alphabet[parts[i]]]
                                             : 256 + parts[i] - n_alphabet;
        }
        len = token_len(t, parts[0]) + token_len(t, parts[1]);
        if (len > MAX_LEN)
            continue;
        memcpy(t->bytes + at, t->bytes + t->offsets[parts[0]], token_len(t, parts[0]));
        memcpy(t->bytes + at + token_len(t, parts[0]), t->bytes + t->offsets[parts[1]],
               token_len(t, parts[1]));
        if (has_string(t, n, t->bytes + at, len))
            continue;
        t->offsets[++n] = at + len;
        t->merges[t->n_merges++] = (struct bpe_merge){parts[0], parts[1], n - 1};
    }
    t->bpe = (struct bpe){
        .n_tokens = n, .offsets = t->offsets, .bytes = t->bytes, .byte_ids = t->byte_ids};
}

static void toy_build(struct toy *t)
{
    struct status st;
    struct bpe *b = &t->bpe;

    assert_int_equal(bpe_build(b, t->merges, t->n_merges, &t->tables, &st), ST_OK);
    b->n_merges = t->n_merges;
    b->linear = t->tables.linear;
    b->tokens = t->tables.tokens;
    b->prefixes = t->tables.prefixes;
    b->merged = t->tables.merged;
    b->pairs = t->tables.pairs;
    b->pairs_mask = t->tables.n_pairs - 1;
    b->pairs_shift = 64 - (unsigned)__builtin_ctzll(t->tables.n_pairs);
    b->filter = t->tables.filter;
    b->filter_shift = 64 - (unsigned)__builtin_ctzll(t->tables.n_filter);
    b->trie = (struct trie){t->tables.trie, t->tables.n_trie};
}

/* The definition, word for word. */
static size_t encode_naively(const struct toy *t, const uint8_t *s, size_t n, uint32_t *ids)
{
    size_t k = n;

    for (size_t i = 0; i < n; i++)
        ids[i] = t->byte_ids[s[i]];
    for (;;) {
        uint32_t best = BPE_NONE;
        size_t at = 0;
        for (size_t i = 0; i + 1 < k; i++)
            for (uint32_t rank = 0; rank < t->n_merges && rank < best; rank++)
                if (t->merges[rank].left == ids[i] && t->merges[rank].right == ids[i + 1]) {
                    best = rank;
                    at = i;
                }
        if (best == BPE_NONE)
            return k;
        ids[at] = t->merges[best].whole;
        memmove(ids + at + 1, ids + at + 2, (k - at - 2) * sizeof(*ids));
        k--;
    }
}

static void check_strings(struct toy *t, const char *alphabet, int n_strings)
{
    struct bpe_scratch scratch = {0};
    struct status st;

    for (int i = 0; i < n_strings; i++) {
        uint8_t s[80];
        uint32_t expected[80], found[80];
        size_t n = 1 + rnd(80), k, n_found;
        for (size_t c = 0; c < n; c++)
            s[c] = (uint8_t)alphabet[rnd((uint32_t)strlen(alphabet))];
        k = encode_naively(t, s, n, expected);
        assert_int_equal(bpe_encode(&t->bpe, &scratch, s, n, found, &n_found, &st), ST_OK);
        assert_int_equal(n_found, k);
        assert_memory_equal(found, expected, k * sizeof(*found));
        assert_int_equal(bpe_encode_by_merging(&t->bpe, &scratch, s, n, found, &n_found, &st),
                         ST_OK);
        assert_int_equal(n_found, k);
        assert_memory_equal(found, expected, k * sizeof(*found));
    }
    bpe_scratch_deinit(&scratch);
}

static void both_ways_give_what_the_definition_gives(void **state)
{
    static const char *const alphabets[] = {"a", "ab", "abc", "aeiou xyz", "\xe4\xb8\x80\x81 a"};
    static struct toy t;

    (void)state;
    for (uint32_t run = 0; run < 60; run++) {
        const char *alphabet = alphabets[run % 5];
        seed = run + 1;
        toy_make(&t, alphabet, 3 + rnd(run % 2 ? 12 : 150));
        toy_build(&t);
        assert_true(t.bpe.linear);
        check_strings(&t, alphabet, 60);
        bpe_tables_deinit(&t.tables);
    }
}

static void merges_in_no_order_of_training_are_merged_by_the_heap(void **state)
{
    static struct toy t;

    (void)state;
    for (uint32_t run = 0; run < 30; run++) {
        seed = 1000 + run;
        toy_make(&t, "abc", 40);
        for (uint32_t i = t.n_merges - 1; i > 0; i--) {
            uint32_t k = rnd(i + 1);
            struct bpe_merge swap = t.merges[i];
            t.merges[i] = t.merges[k];
            t.merges[k] = swap;
        }
        toy_build(&t);
        check_strings(&t, "abc", 60);
        bpe_tables_deinit(&t.tables);
    }
}

static void two_merges_of_one_token_are_merged_by_the_heap(void **state)
{
    static struct toy t;

    (void)state;
    toy_make(&t, "a", 0);
    memcpy(t.bytes + 256, "abbcabc", 7); /* ab, bc, abc made of ab+c and of a+bc */
    t.offsets[257] = 258;
    t.offsets[258] = 260;
    t.offsets[259] = 263;
    t.merges[0] = (struct bpe_merge){t.byte_ids['a'], t.byte_ids['b'], 256};
    t.merges[1] = (struct bpe_merge){t.byte_ids['b'], t.byte_ids['c'], 257};
    t.merges[2] = (struct bpe_merge){256, t.byte_ids['c'], 258};
    t.merges[3] = (struct bpe_merge){t.byte_ids['a'], 257, 258};
    t.n_merges = 4;
    t.bpe.n_tokens = 259;
    toy_build(&t);
    assert_false(t.bpe.linear);
    check_strings(&t, "abc", 200);
    bpe_tables_deinit(&t.tables);
}

static void a_repeated_merge_is_refused(void **state)
{
    static struct toy t;
    struct status st;

    (void)state;
    seed = 5;
    toy_make(&t, "abc", 10);
    t.merges[9] = t.merges[4];
    assert_int_equal(bpe_build(&t.bpe, t.merges, t.n_merges, &t.tables, &st), ST_INVALID);
    assert_non_null(strstr(st.msg, "merge 9 repeats merge 4"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_ways_give_what_the_definition_gives),
        cmocka_unit_test(merges_in_no_order_of_training_are_merged_by_the_heap),
        cmocka_unit_test(two_merges_of_one_token_are_merged_by_the_heap),
        cmocka_unit_test(a_repeated_merge_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
