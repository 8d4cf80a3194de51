/* The prefix cache against a naive dictionary, under thousands of random operations; its events
 * replayed; its evictions and snapshots by example. */
#include "common/kv/prefix_cache.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/kv/block_hash.h"
#include "common/kv/geometry.h"

enum { PAGES = 48, SNAPSHOTS = 5, CHAIN_MAX = 8, WORDS = 3, PINNED = 12, PINNED_SNAPSHOTS = 2 };

struct rig {
    struct slab *pages, *snapshots;
    struct prefix_cache *cache;
    uint64_t random;
    /* From events alone: the hashes that are in. */
    uint64_t blocks[PAGES];
    uint32_t n_blocks;
    uint64_t last_event;
};

static void on_event(void *arg, const struct prefix_event *e)
{
    struct rig *r = arg;
    uint32_t i = 0;

    assert_int_equal(e->sequence, ++r->last_event);
    while (i < r->n_blocks && r->blocks[i] != e->block)
        i++;
    if (e->kind == PREFIX_STATE_IN || e->kind == PREFIX_STATE_OUT) {
        assert_true(i < r->n_blocks); /* states stand on pages */
        return;
    }
    if (e->kind == PREFIX_PAGE_IN) {
        assert_int_equal(i, r->n_blocks);
        r->blocks[r->n_blocks++] = e->block;
    } else {
        assert_true(i < r->n_blocks);
        r->blocks[i] = r->blocks[--r->n_blocks];
    }
}

static struct rig open_rig(uint64_t seed)
{
    struct rig r = {.random = seed};
    struct status st;

    assert_int_equal(slab_new("page", PAGES, &r.pages, &st), ST_OK);
    assert_int_equal(slab_new("snapshot", SNAPSHOTS, &r.snapshots, &st), ST_OK);
    return r;
}

/* Apart from open_rig(): events point to where r has come to rest. */
static void start(struct rig *r)
{
    struct prefix_cache_options o = {r->pages, r->snapshots, PINNED, PINNED_SNAPSHOTS, on_event, r};
    struct status st;

    assert_int_equal(prefix_cache_new(&o, &r->cache, &st), ST_OK);
}

static void close_rig(struct rig *r)
{
    prefix_cache_free(r->cache);
    assert_int_equal(slab_n_free(r->pages), PAGES);
    assert_int_equal(slab_n_free(r->snapshots), SNAPSHOTS);
    slab_free(r->pages);
    slab_free(r->snapshots);
}

static uint32_t below(struct rig *r, uint32_t n)
{
    r->random = r->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(r->random >> 33) % n;
}

/* A page of tokens is one word, repeated: prompts of few words meet often. */
static void spell(int32_t *tokens, const int *words, uint32_t n)
{
    for (uint32_t i = 0; i < n * KV_PAGE_TOKENS; i++)
        tokens[i] = 10 + words[i / KV_PAGE_TOKENS] + (int32_t)(i % KV_PAGE_TOKENS == 255);
}

/* Takes pages for the prompt as a sequence does: hits first. */
static uint32_t admit(struct rig *r, uint64_t salt, const int32_t *tokens, uint32_t n,
                      uint32_t *pages, struct prefix_hit *hit)
{
    struct status st;

    prefix_cache_match(r->cache, salt, tokens, n, n, pages, hit);
    if (slab_n_free(r->pages) < n - hit->n_pages)
        prefix_cache_evict_pages(r->cache, n - hit->n_pages - slab_n_free(r->pages));
    if (slab_take(r->pages, n - hit->n_pages, pages + hit->n_pages, &st) != ST_OK) {
        slab_give(r->pages, pages, hit->n_pages);
        return 0;
    }
    return n;
}

static void a_prefix_is_found_again_with_its_pages(void **state)
{
    struct rig r = open_rig(1);
    int32_t tokens[4 * KV_PAGE_TOKENS], other[4 * KV_PAGE_TOKENS];
    uint32_t pages[4], got[4];
    struct prefix_hit hit;
    struct status st;

    (void)state;
    start(&r);
    spell(tokens, (int[]){0, 1, 2, 0}, 4);
    spell(other, (int[]){0, 1, 1, 0}, 4);
    assert_int_equal(slab_take(r.pages, 4, pages, &st), ST_OK);
    assert_int_equal(prefix_cache_insert(r.cache, 7, tokens, pages, 4), 4);
    assert_int_equal(prefix_cache_insert(r.cache, 7, tokens, pages, 4), 0);
    prefix_cache_match(r.cache, 7, other, 4, 4, got, &hit);
    assert_int_equal(hit.n_pages, 2);
    assert_int_equal(hit.n_state_pages, 0);
    assert_memory_equal(got, pages, 2 * sizeof(*got));
    assert_int_equal(slab_refs(r.pages, pages[0]), 3);
    slab_give(r.pages, got, 2);
    prefix_cache_match(r.cache, 8, tokens, 4, 4, got, &hit); /* another tenant */
    assert_int_equal(hit.n_pages, 0);
    prefix_cache_match(r.cache, 7, tokens, 3, 4, got, &hit); /* as deep as asked for */
    assert_int_equal(hit.n_pages, 3);
    slab_give(r.pages, got, 3);
    slab_give(r.pages, pages, 4);
    prefix_cache_check(r.cache);
    close_rig(&r);
}

static void what_a_sequence_uses_is_not_evicted(void **state)
{
    struct rig r = open_rig(1);
    int32_t tokens[3 * KV_PAGE_TOKENS];
    uint32_t pages[3], got[3];
    struct prefix_hit hit;
    struct status st;

    (void)state;
    start(&r);
    spell(tokens, (int[]){0, 1, 2}, 3);
    assert_int_equal(slab_take(r.pages, 3, pages, &st), ST_OK);
    prefix_cache_insert(r.cache, 0, tokens, pages, 3);
    slab_give(r.pages, pages, 3);
    prefix_cache_match(r.cache, 0, tokens, 2, 2, got, &hit);
    assert_int_equal(prefix_cache_flush(r.cache), 1); /* the third; the others are in use */
    prefix_cache_check(r.cache);
    slab_give(r.pages, got, 2);
    assert_int_equal(prefix_cache_flush(r.cache), 2);
    close_rig(&r);
}

static void the_least_recently_used_leaf_goes_first(void **state)
{
    struct rig r = open_rig(1);
    int32_t a[2 * KV_PAGE_TOKENS], b[2 * KV_PAGE_TOKENS];
    uint32_t pages[4], got[2];
    struct prefix_hit hit;
    struct status st;

    (void)state;
    start(&r);
    spell(a, (int[]){0, 1}, 2);
    spell(b, (int[]){0, 2}, 2);
    assert_int_equal(slab_take(r.pages, 4, pages, &st), ST_OK);
    prefix_cache_insert(r.cache, 0, a, pages, 2);
    prefix_cache_insert(r.cache, 0, b, pages + 2, 2);
    slab_give(r.pages, pages, 4);
    prefix_cache_match(r.cache, 0, a, 2, 2, got, &hit);
    slab_give(r.pages, got, 2);
    assert_int_equal(prefix_cache_evict_pages(r.cache, 1), 1);
    prefix_cache_peek(r.cache, 0, b, 2, 2, &hit);
    assert_int_equal(hit.n_pages, 1);
    prefix_cache_peek(r.cache, 0, a, 2, 2, &hit);
    assert_int_equal(hit.n_pages, 2);
    close_rig(&r);
}

static void a_snapshot_is_hit_at_its_boundary_and_no_deeper_than_asked(void **state)
{
    struct rig r = open_rig(1);
    int32_t tokens[4 * KV_PAGE_TOKENS];
    uint32_t pages[4], got[4], at2, at4, again;
    struct prefix_hit hit;
    struct status st;

    (void)state;
    start(&r);
    spell(tokens, (int[]){0, 1, 2, 0}, 4);
    assert_int_equal(slab_take(r.pages, 4, pages, &st), ST_OK);
    assert_false(prefix_cache_put_snapshot(r.cache, 0, tokens, 2, &at2)); /* not in the tree */
    prefix_cache_insert(r.cache, 0, tokens, pages, 4);
    assert_true(prefix_cache_lacks_snapshot(r.cache, 0, tokens, 2));
    assert_true(prefix_cache_put_snapshot(r.cache, 0, tokens, 2, &at2));
    assert_true(prefix_cache_put_snapshot(r.cache, 0, tokens, 4, &at4));
    assert_false(prefix_cache_lacks_snapshot(r.cache, 0, tokens, 2));
    assert_true(prefix_cache_put_snapshot(r.cache, 0, tokens, 4, &again));
    assert_int_equal(again, at4);
    prefix_cache_match(r.cache, 0, tokens, 4, 3, got, &hit);
    assert_int_equal(hit.n_pages, 4);
    assert_int_equal(hit.n_state_pages, 2);
    assert_int_equal(hit.snapshot, at2);
    slab_give(r.pages, got, 4);
    prefix_cache_drop_snapshot(r.cache, 0, tokens, 2);
    prefix_cache_peek(r.cache, 0, tokens, 4, 3, &hit);
    assert_int_equal(hit.n_state_pages, 0);
    slab_give(r.pages, pages, 4);
    prefix_cache_check(r.cache);
    close_rig(&r);
}

static void the_snapshot_that_saves_least_gives_way(void **state)
{
    struct rig r = open_rig(1);
    int32_t tokens[8 * KV_PAGE_TOKENS];
    uint32_t pages[8], unit;
    struct prefix_hit hit;
    struct status st;

    (void)state;
    start(&r);
    spell(tokens, (int[]){0, 1, 2, 0, 1, 2, 0, 1}, 8);
    assert_int_equal(slab_take(r.pages, 8, pages, &st), ST_OK);
    prefix_cache_insert(r.cache, 0, tokens, pages, 8);
    for (uint32_t at = 3; at <= 7; at++) /* five units: 3 saves three pages, 4 .. 7 one each */
        assert_true(prefix_cache_put_snapshot(r.cache, 0, tokens, at, &unit));
    assert_true(prefix_cache_put_snapshot(r.cache, 0, tokens, 8, &unit));
    prefix_cache_peek(r.cache, 0, tokens, 3, 3, &hit);
    assert_int_equal(hit.n_state_pages, 3);
    prefix_cache_peek(r.cache, 0, tokens, 8, 8, &hit);
    assert_int_equal(hit.n_state_pages, 8);
    slab_give(r.pages, pages, 8);
    prefix_cache_check(r.cache);
    close_rig(&r);
}

/* Five conversations with a state each; one of them has gone on. Its state goes first, though it
 * was used last. */
static void a_snapshot_that_was_gone_on_from_gives_way(void **state)
{
    struct rig r = open_rig(8);
    struct prefix_hit hit;
    struct status st;
    uint32_t unit, page;

    (void)state;
    start(&r);
    for (int32_t i = 0; i <= SNAPSHOTS; i++) {
        int32_t tokens[KV_PAGE_TOKENS] = {i};

        if (i == SNAPSHOTS) { /* the newest so far goes on */
            tokens[0] = i - 1;
            prefix_cache_match(r.cache, 0, tokens, 1, 1, &page, &hit);
            assert_int_equal(hit.n_state_pages, 1);
            slab_give(r.pages, &page, 1);
            tokens[0] = i;
        }
        assert_int_equal(slab_take(r.pages, 1, &page, &st), ST_OK);
        prefix_cache_insert(r.cache, 0, tokens, &page, 1);
        slab_give(r.pages, &page, 1);
        assert_true(prefix_cache_put_snapshot(r.cache, 0, tokens, 1, &unit));
    }
    for (int32_t i = 0; i <= SNAPSHOTS; i++) {
        int32_t tokens[KV_PAGE_TOKENS] = {i};

        assert_int_equal(prefix_cache_lacks_snapshot(r.cache, 0, tokens, 1), i == SNAPSHOTS - 1);
    }
    prefix_cache_check(r.cache);
    close_rig(&r);
}

/* ---- pins ---- */

/* A chain of n pages with a state at its end, that no sequence uses. */
static void leave(struct rig *r, const int32_t *tokens, uint32_t n)
{
    uint32_t pages[CHAIN_MAX], unit;
    struct status st;

    assert_int_equal(slab_take(r->pages, n, pages, &st), ST_OK);
    prefix_cache_insert(r->cache, 0, tokens, pages, n);
    assert_true(prefix_cache_put_snapshot(r->cache, 0, tokens, n, &unit));
    slab_give(r->pages, pages, n);
    prefix_cache_check(r->cache);
}

static struct prefix_hit peek(const struct rig *r, const int32_t *tokens, uint32_t n)
{
    struct prefix_hit hit;

    prefix_cache_peek(r->cache, 0, tokens, n, n, &hit);
    return hit;
}

/* Whatever else comes and goes, the pinned prompt is there with its state, until its time is over.
 */
static void what_is_pinned_outlasts_any_pressure(void **state)
{
    struct rig r = open_rig(4);
    int32_t pinned[5 * KV_PAGE_TOKENS], other[6 * KV_PAGE_TOKENS];
    struct prefix_cache_stats stats;

    (void)state;
    start(&r);
    prefix_cache_advance(r.cache, 5000);
    spell(pinned, (int[]){0, 1, 2, 0, 1}, 5);
    leave(&r, pinned, 5);
    assert_true(prefix_cache_pin(r.cache, 0, pinned, 4, 100)); /* the state is deeper: none */
    assert_true(prefix_cache_pin(r.cache, 0, pinned, 5, 30));
    for (int i = 0; i < 40; i++) { /* the last leaf hangs on the pinned chain */
        spell(other, (int[]){i % 3, i % 2, i % 5, 3 + i, i % 7, 2}, 6);
        if (slab_n_free(r.pages) < 6)
            prefix_cache_evict_pages(r.cache, 6 - slab_n_free(r.pages));
        leave(&r, other, 6);
        assert_int_equal(peek(&r, pinned, 5).n_pages, 5);
        assert_int_equal(peek(&r, pinned, 5).n_state_pages, 5);
    }
    prefix_cache_evict_pages(r.cache, UINT32_MAX);
    prefix_cache_check(r.cache);
    prefix_cache_get_stats(r.cache, &stats);
    assert_int_equal(stats.n_pages, 5);
    assert_int_equal(stats.pages_pinned, 5);
    prefix_cache_advance(r.cache, 5029);
    assert_int_equal(prefix_cache_evict_pages(r.cache, UINT32_MAX), 0);
    prefix_cache_advance(r.cache, 5030);
    assert_int_equal(prefix_cache_evict_pages(r.cache, UINT32_MAX), 1);
    prefix_cache_advance(r.cache, 5100);
    prefix_cache_check(r.cache);
    assert_int_equal(prefix_cache_evict_pages(r.cache, UINT32_MAX), 4);
    close_rig(&r);
}

static void pins_beyond_their_share_are_refused_whole(void **state)
{
    struct rig r = open_rig(5);
    int32_t a[8 * KV_PAGE_TOKENS], b[8 * KV_PAGE_TOKENS], c[KV_PAGE_TOKENS];
    struct prefix_cache_stats stats;

    (void)state;
    start(&r);
    spell(a, (int[]){0, 1, 2, 0, 1, 2, 0, 1}, 8);
    spell(b, (int[]){1, 1, 2, 0, 1, 2, 0, 1}, 8);
    spell(c, (int[]){2}, 1);
    assert_false(prefix_cache_pin(r.cache, 0, a, 8, 10)); /* it is not there */
    leave(&r, a, 8);
    leave(&r, b, 8);
    leave(&r, c, 1);
    assert_true(prefix_cache_pin(r.cache, 0, a, 8, 10));
    assert_false(prefix_cache_pin(r.cache, 0, b, 8, 10)); /* 16 pages of 12 */
    prefix_cache_get_stats(r.cache, &stats);
    assert_int_equal(stats.pages_pinned, 8);
    assert_int_equal(stats.pins_refused, 2);
    assert_true(prefix_cache_pin(r.cache, 0, b, 4, 10));
    assert_true(prefix_cache_pin(r.cache, 0, a, 8, 20)); /* it costs nothing more */
    assert_false(prefix_cache_pin(r.cache, 0, c, 1, 10));
    prefix_cache_check(r.cache);
    assert_int_equal(prefix_cache_flush(r.cache), 17); /* an operator's word goes before */
    prefix_cache_get_stats(r.cache, &stats);
    assert_int_equal(stats.pages_pinned, 0);
    assert_int_equal(stats.snapshots_pinned, 0);
    prefix_cache_check(r.cache);
    close_rig(&r);
}

/* ---- against a dictionary ---- */

/* What must be in the cache: chains by their words. A page once in stays until it is evicted, which
 * events tell; so the dictionary is the set of hashes, and a lookup is a walk over hashes. */
static uint32_t expected_pages(const struct rig *r, uint64_t salt, const int32_t *tokens,
                               uint32_t n)
{
    uint64_t hash = 0;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t b = 0;

        hash = prefix_block_hash(hash, salt, tokens + (size_t)i * KV_PAGE_TOKENS);
        while (b < r->n_blocks && r->blocks[b] != hash)
            b++;
        if (b == r->n_blocks)
            return i;
    }
    return n;
}

struct live {
    int32_t tokens[CHAIN_MAX * KV_PAGE_TOKENS];
    uint32_t pages[CHAIN_MAX], n;
    uint64_t salt;
};

static void random_operations_agree_with_a_dictionary(void **state)
{
    enum { LIVE = 5, STEPS = 20000 };
    static struct live live[LIVE];
    struct rig r = open_rig(99);
    uint32_t hits = 0, evicted = 0, pinned = 0;

    (void)state;
    memset(live, 0, sizeof(live));
    start(&r);
    for (int step = 0; step < STEPS; step++) {
        struct live *s = &live[below(&r, LIVE)];
        struct prefix_hit hit;
        uint32_t unit, n, want;

        if (s->n > 0) { /* computed: leaves its pages and perhaps a state, and goes */
            prefix_cache_insert(r.cache, s->salt, s->tokens, s->pages, s->n);
            if (below(&r, 2) == 0)
                prefix_cache_put_snapshot(r.cache, s->salt, s->tokens, 1 + below(&r, s->n), &unit);
            slab_give(r.pages, s->pages, s->n);
            s->n = 0;
        } else {
            int words[CHAIN_MAX];

            n = 1 + below(&r, CHAIN_MAX);
            for (uint32_t i = 0; i < n; i++)
                words[i] = (int)below(&r, WORDS);
            spell(s->tokens, words, n);
            s->salt = below(&r, 2);
            want = expected_pages(&r, s->salt, s->tokens, n);
            s->n = admit(&r, s->salt, s->tokens, n, s->pages, &hit);
            assert_int_equal(hit.n_pages, want);
            assert_true(hit.n_state_pages <= hit.n_pages);
            hits += hit.n_pages;
        }
        if (below(&r, 6) == 0 && live[0].n > 0)
            pinned += prefix_cache_pin(r.cache, live[0].salt, live[0].tokens,
                                       1 + below(&r, live[0].n), 1 + below(&r, 60));
        prefix_cache_advance(r.cache, (uint64_t)step);
        if (below(&r, 50) == 0)
            evicted += prefix_cache_evict_pages(r.cache, 1 + below(&r, 6));
        if (below(&r, 400) == 0)
            evicted += prefix_cache_flush(r.cache);
        if (step % 16 == 0)
            prefix_cache_check(r.cache);
    }
    assert_true(hits > 1000 && evicted > 100 && pinned > 100);
    for (int i = 0; i < LIVE; i++)
        if (live[i].n > 0)
            slab_give(r.pages, live[i].pages, live[i].n);
    close_rig(&r);
}

static void count_block(void *arg, uint64_t block, uint64_t parent)
{
    struct rig *r = arg;
    bool seen = parent == 0;

    for (uint32_t i = 0; i < r->n_blocks; i++)
        seen |= r->blocks[i] == parent;
    assert_true(seen); /* parents come first */
    r->blocks[r->n_blocks++] = block;
}

static void whoever_comes_late_gets_the_whole_tree_parents_first(void **state)
{
    struct rig r = open_rig(3), late = {0};
    int32_t tokens[CHAIN_MAX * KV_PAGE_TOKENS];
    uint32_t pages[CHAIN_MAX];
    struct prefix_cache_stats stats;
    struct status st;

    (void)state;
    start(&r);
    for (int i = 0; i < 5; i++) {
        spell(tokens, (int[]){i % 2, i, 2, i, 1, 2, 0, 1}, CHAIN_MAX);
        assert_int_equal(slab_take(r.pages, CHAIN_MAX, pages, &st), ST_OK);
        prefix_cache_insert(r.cache, 0, tokens, pages, CHAIN_MAX);
        slab_give(r.pages, pages, CHAIN_MAX);
    }
    prefix_cache_each(r.cache, count_block, &late);
    prefix_cache_get_stats(r.cache, &stats);
    assert_int_equal(late.n_blocks, stats.n_pages);
    assert_int_equal(r.n_blocks, stats.n_pages);
    close_rig(&r);
}

static void states_are_left_where_prompts_end_and_sparsely_before(void **state)
{
    (void)state;
    assert_true(prefix_snapshot_wanted(512, 700));
    assert_true(prefix_snapshot_wanted(512, 512));
    assert_false(prefix_snapshot_wanted(256, 700));
    assert_false(prefix_snapshot_wanted(768, 700));
    assert_true(prefix_snapshot_wanted(PREFIX_SPARSE_TOKENS, 100000));
    assert_false(prefix_snapshot_wanted(PREFIX_SPARSE_TOKENS + 256, 100000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prefix_is_found_again_with_its_pages),
        cmocka_unit_test(what_a_sequence_uses_is_not_evicted),
        cmocka_unit_test(the_least_recently_used_leaf_goes_first),
        cmocka_unit_test(a_snapshot_is_hit_at_its_boundary_and_no_deeper_than_asked),
        cmocka_unit_test(the_snapshot_that_saves_least_gives_way),
        cmocka_unit_test(a_snapshot_that_was_gone_on_from_gives_way),
        cmocka_unit_test(what_is_pinned_outlasts_any_pressure),
        cmocka_unit_test(pins_beyond_their_share_are_refused_whole),
        cmocka_unit_test(random_operations_agree_with_a_dictionary),
        cmocka_unit_test(whoever_comes_late_gets_the_whole_tree_parents_first),
        cmocka_unit_test(states_are_left_where_prompts_end_and_sparsely_before),
    };

    return cmocka_run_group_tests_name("prefix cache", tests, NULL, NULL);
}
