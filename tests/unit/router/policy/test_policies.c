/* Each policy over a table of fake workers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/kv/block_hash.h"
#include "router/policy/policy.h"

enum { IDS_MAX = 64 * PREFIX_BLOCK_TOKENS };

static struct policy *make(enum policy_kind kind, uint32_t n)
{
    struct policy_config c = {kind, true, 4 << 20, 4 << 20, 42};
    struct policy *p;
    struct status st;
    char address[32];

    assert_int_equal(policy_new(&c, &p, &st), ST_OK);
    for (uint32_t i = 0; i < n; i++) {
        snprintf(address, sizeof(address), "10.0.0.%u:30000", i);
        assert_int_equal(policy_join(p, i, address, &st), ST_OK);
        policy_set_eligible(p, i, true);
    }
    return p;
}

/* A prompt: `shared` tokens of a group, then its own. */
struct prompt {
    int32_t ids[IDS_MAX];
    uint64_t pages[IDS_MAX / PREFIX_BLOCK_TOKENS];
    struct policy_request r;
};

static const struct policy_request *prompt(struct prompt *m, int group, size_t shared, int own,
                                           size_t n)
{
    uint64_t h = 0;

    for (size_t i = 0; i < n; i++)
        m->ids[i] = (int32_t)(i < shared ? (size_t)group * 100000 + i : (size_t)own * 7919 + i);
    for (size_t i = 0; i < n / PREFIX_BLOCK_TOKENS; i++)
        m->pages[i] = h = prefix_block_hash(h, 0, m->ids + i * PREFIX_BLOCK_TOKENS);
    m->r = (struct policy_request){
        .n_ids = n, .ids = m->ids, .n_pages = n / PREFIX_BLOCK_TOKENS, .pages = m->pages};
    return &m->r;
}

static uint32_t pick(struct policy *p, const struct policy_request *r)
{
    struct policy_choice c;

    return policy_pick(p, r, &c) ? c.worker : POLICY_NONE;
}

static struct policy_ticket give(struct policy *p, const struct policy_request *r, uint32_t worker,
                                 uint32_t hit)
{
    struct policy_choice c = {worker, hit};
    struct policy_ticket t = {0};

    policy_began(p, r, &c, &t);
    return t;
}

static void names_are_those_of_the_flags(void **state)
{
    char all[256] = "";

    (void)state;
    for (int k = 0; k < POLICY_N_KINDS; k++) {
        assert_int_equal(policy_kind_of(policy_kind_name((enum policy_kind)k)), k);
        strcat(strcat(all, k > 0 ? "|" : ""), policy_kind_name((enum policy_kind)k));
    }
    assert_string_equal(all, POLICY_NAMES);
    assert_int_equal(policy_kind_of("nonsense"), POLICY_N_KINDS);
}

static void every_policy_picks_only_eligible_workers_that_did_not_fail_it(void **state)
{
    static struct prompt m;
    uint32_t avoid[2] = {1, 4}, seen;

    (void)state;
    for (int k = 0; k < POLICY_N_KINDS; k++) {
        struct policy *p = make((enum policy_kind)k, 6);
        struct policy_request r;

        policy_set_eligible(p, 0, false);
        policy_leave(p, 3);
        for (int i = 0; i < 200; i++) {
            r = *prompt(&m, i % 3, 1024, i, 2048);
            r.key = (const char *)&i;
            r.key_len = sizeof(i);
            r.n_avoid = 2;
            r.avoid = avoid;
            seen = pick(p, &r);
            assert_true(seen == 2 || seen == 5);
        }
        r.key = "key"; /* the last one's is gone */
        r.key_len = 3;
        r.avoid = (uint32_t[]){2, 5, 1, 4};
        r.n_avoid = 4;
        assert_int_equal(pick(p, &r), POLICY_NONE);
        for (uint32_t i = 0; i < 6; i++)
            policy_set_eligible(p, i, false);
        r.n_avoid = 0;
        assert_int_equal(pick(p, &r), POLICY_NONE);
        policy_set_eligible(p, 0, true);
        assert_int_equal(pick(p, &r), 0);
        policy_free(p);
    }
}

static void round_robin_takes_turns(void **state)
{
    static struct prompt m;
    struct policy *p = make(POLICY_ROUND_ROBIN, 4);
    uint32_t first = pick(p, prompt(&m, 0, 0, 1, 10));

    (void)state;
    for (uint32_t i = 1; i < 12; i++)
        assert_int_equal(pick(p, &m.r), (first + i) % 4);
    policy_free(p);
}

static void random_and_power_of_two_reach_everybody_and_two_avoids_the_loaded(void **state)
{
    static struct prompt m;
    const struct policy_request *r = prompt(&m, 0, 0, 1, 500);

    (void)state;
    for (int k = POLICY_RANDOM; k <= POLICY_POWER_OF_TWO; k++) {
        struct policy *p = make((enum policy_kind)k, 8);
        struct policy_ticket t = give(p, r, 3, 0);
        int n[8] = {0};

        for (int i = 0; i < 4000; i++)
            n[pick(p, r)]++;
        for (int i = 0; i < 8; i++)
            if (i != 3)
                assert_in_range(n[i], 300, 900);
        if (k == POLICY_RANDOM)
            assert_in_range(n[3], 300, 900);
        else
            assert_in_range(n[3], 0, 20); /* only when both draws are the same one */
        policy_ended(p, &t);
        policy_free(p);
    }
}

static void least_load_follows_queued_tokens_reports_and_ends(void **state)
{
    static struct prompt m;
    const struct policy_request *r = prompt(&m, 0, 0, 1, 1000);
    struct policy *p = make(POLICY_LEAST_LOAD, 3);
    struct policy_ticket a = give(p, r, 0, 0), b = give(p, r, 1, 900), c = give(p, r, 2, 500);
    struct policy_load load = {.running = 1, .queued_tokens = 5000};

    (void)state;
    assert_int_equal(pick(p, r), 1); /* 1000, 100, 500 */
    policy_report(p, 1, &load);      /* other routers have queued there */
    assert_int_equal(pick(p, r), 2);
    policy_served(p, &a);
    assert_int_equal(pick(p, r), 0);
    load.queued_tokens = 100; /* ours alone again */
    policy_report(p, 1, &load);
    policy_ended(p, &a);
    policy_ended(p, &b);
    policy_ended(p, &b); /* twice is once */
    policy_ended(p, &c);
    for (uint32_t i = 0; i < 3; i++)
        assert_true(policy_load_seconds(p, i) == 0);
    policy_free(p);
}

static void decode_load_counts_places_waiting_and_room_for_kv(void **state)
{
    struct policy_config c = {POLICY_LEAST_LOAD, false, 4 << 20, 4 << 20, 42};
    static struct prompt m;
    const struct policy_request *r = prompt(&m, 0, 0, 1, 100);
    struct policy *p;
    struct status st;

    (void)state;
    assert_int_equal(policy_new(&c, &p, &st), ST_OK);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(policy_join(p, i, "x", &st), ST_OK);
        policy_set_eligible(p, i, true);
    }
    policy_report(p, 0,
                  &(struct policy_load){.running = 3, .free_tokens = 90, .total_tokens = 100});
    policy_report(p, 1, &(struct policy_load){.running = 2, .waiting = 1});
    policy_report(p, 2,
                  &(struct policy_load){.running = 1, .free_tokens = 0, .total_tokens = 100000});
    assert_int_equal(pick(p, r), 0);
    policy_report(
        p, 2, &(struct policy_load){.running = 1, .free_tokens = 50000, .total_tokens = 100000});
    assert_int_equal(pick(p, r), 2);
    policy_free(p);
}

static void consistent_keeps_a_key_and_moves_few_when_a_worker_leaves(void **state)
{
    static struct prompt m;
    struct policy_request r = *prompt(&m, 0, 0, 1, 100);
    struct policy *p = make(POLICY_CONSISTENT, 8);
    uint32_t before[1000];
    int n[8] = {0}, moved = 0;

    (void)state;
    for (int i = 0; i < 1000; i++) {
        r.key = (const char *)&i;
        r.key_len = sizeof(i);
        before[i] = pick(p, &r);
        n[before[i]]++;
        assert_int_equal(pick(p, &r), before[i]);
    }
    for (int i = 0; i < 8; i++)
        assert_in_range(n[i], 60, 200);
    policy_leave(p, 5);
    for (int i = 0; i < 1000; i++) {
        r.key = (const char *)&i;
        moved += pick(p, &r) != before[i];
    }
    assert_int_equal(moved, n[5]);
    policy_free(p);
}

static void prefix_hash_keeps_prefixes_together_until_a_worker_is_overloaded(void **state)
{
    static struct prompt m;
    struct policy *p = make(POLICY_PREFIX_HASH, 4);
    uint32_t home = pick(p, prompt(&m, 1, 512, 0, 1024));
    struct policy_ticket t[40];
    uint32_t most = 0, n[4] = {0};

    (void)state;
    for (int i = 0; i < 10; i++)
        assert_int_equal(pick(p, prompt(&m, 1, 512, i, 1024)), home);
    for (int i = 0; i < 40; i++) { /* one hot prefix does not melt one worker */
        uint32_t w = pick(p, prompt(&m, 1, 512, i, 1024));

        t[i] = give(p, &m.r, w, 0);
        n[w]++;
    }
    for (int i = 0; i < 4; i++)
        most = n[i] > most ? n[i] : most;
    assert_in_range(most, 10, 16);
    for (int i = 0; i < 40; i++)
        policy_ended(p, &t[i]);
    policy_free(p);
}

static void cache_aware_follows_a_prefix_unless_its_worker_is_far_busier(void **state)
{
    static struct prompt m;
    struct policy *p = make(POLICY_CACHE_AWARE, 4);
    uint32_t home[4];
    struct policy_ticket t[40];

    (void)state;
    for (int g = 0; g < 4; g++) {
        home[g] = pick(p, prompt(&m, g, 1024, 0, 1280));
        t[g] = give(p, &m.r, home[g], 0);
    }
    for (int g = 0; g < 4; g++)
        policy_ended(p, &t[g]);
    assert_true(home[0] != home[1] && home[1] != home[2] && home[2] != home[3]);
    for (int i = 1; i < 20; i++)
        for (int g = 0; g < 4; g++)
            assert_int_equal(pick(p, prompt(&m, g, 1024, i, 1280)), home[g]);
    for (int i = 0; i < 40; i++)
        t[i] = give(p, prompt(&m, 9, 0, i, 100), home[0], 0);
    assert_int_not_equal(pick(p, prompt(&m, 0, 1024, 77, 1280)), home[0]);
    for (int i = 0; i < 40; i++)
        policy_ended(p, &t[i]);
    policy_free(p);
}

static void tell(struct policy *p, uint32_t worker, const struct prompt *m, size_t n,
                 enum policy_page_event what)
{
    for (size_t i = 0; i < n; i++)
        policy_page(p, worker, what, m->pages[i]);
}

static void kv_exact_finds_the_deepest_holder_and_tells_the_hit(void **state)
{
    static struct prompt m;
    struct policy *p = make(POLICY_KV_EXACT, 5);
    struct policy_choice c;

    (void)state;
    prompt(&m, 1, 4096, 0, 4200);
    tell(p, 2, &m, 3, POLICY_PAGE_IN);
    tell(p, 4, &m, 11, POLICY_PAGE_IN);
    assert_true(policy_pick(p, &m.r, &c));
    assert_int_equal(c.worker, 4);
    assert_int_equal(c.hit_tokens, 11 * 256);
    policy_page(p, 4, POLICY_PAGE_OUT, m.pages[10]);
    policy_page(p, 4, POLICY_PAGE_OUT, m.pages[9]);
    assert_true(policy_pick(p, &m.r, &c));
    assert_int_equal(c.hit_tokens, 9 * 256);
    policy_pages_reset(p, 4, false); /* it restarted */
    assert_true(policy_pick(p, &m.r, &c));
    assert_int_equal(c.worker, 2);
    assert_int_equal(c.hit_tokens, 3 * 256);
    policy_leave(p, 2);
    assert_true(policy_pick(p, &m.r, &c));
    assert_int_equal(c.hit_tokens, 0);
    policy_free(p);
}

static void kv_exact_hits_end_where_a_state_is_held(void **state)
{
    static struct prompt m;
    struct policy *p = make(POLICY_KV_EXACT, 3);
    struct policy_choice c;

    (void)state;
    prompt(&m, 1, 4096, 0, 4200);
    for (uint32_t i = 0; i < 3; i++)
        policy_pages_reset(p, i, true);
    tell(p, 0, &m, 16, POLICY_PAGE_IN);
    policy_page(p, 0, POLICY_STATE_IN, m.pages[3]);
    tell(p, 1, &m, 9, POLICY_PAGE_IN);
    policy_page(p, 1, POLICY_STATE_IN, m.pages[8]);
    assert_true(policy_pick(p, &m.r, &c));
    assert_int_equal(c.worker, 1);
    assert_int_equal(c.hit_tokens, 9 * 256);
    policy_page(p, 1, POLICY_STATE_OUT, m.pages[8]);
    assert_true(policy_pick(p, &m.r, &c));
    assert_int_equal(c.worker, 0);
    assert_int_equal(c.hit_tokens, 4 * 256);
    policy_free(p);
}

static void kv_exact_weighs_a_hit_against_the_wait(void **state)
{
    static struct prompt m, other;
    struct policy *p = make(POLICY_KV_EXACT, 3);
    struct policy_ticket t[8];
    struct policy_choice c;

    (void)state;
    for (uint32_t i = 0; i < 3; i++)
        policy_measure(p, i, 1000, 0.1);
    prompt(&m, 1, 2048, 0, 2100);
    tell(p, 1, &m, 8, POLICY_PAGE_IN); /* 52 of 2100 tokens left to compute */
    t[0] = give(p, prompt(&other, 7, 0, 1, 1000), 1, 0);
    assert_true(policy_pick(p, &m.r, &c));
    assert_int_equal(c.worker, 1); /* 1000 + 52 < 2100 */
    for (int i = 1; i < 8; i++)
        t[i] = give(p, prompt(&other, 7, 0, i, 1000), 1, 0);
    assert_true(policy_pick(p, &m.r, &c));
    assert_int_not_equal(c.worker, 1); /* 8000 + 52 > 2100 */
    assert_int_equal(c.hit_tokens, 0);
    for (int i = 0; i < 8; i++)
        policy_ended(p, &t[i]);
    policy_free(p);
}

static void kv_exact_counts_on_prompts_that_are_on_their_way(void **state)
{
    static struct prompt m, n;
    struct policy *p = make(POLICY_KV_EXACT, 4);
    struct policy_choice c, d;
    struct policy_ticket t = {0};

    (void)state;
    assert_true(policy_pick(p, prompt(&m, 1, 8192, 0, 8300), &c));
    policy_began(p, &m.r, &c, &t);
    assert_true(policy_pick(p, prompt(&n, 1, 8192, 5, 8300), &d));
    assert_int_equal(d.hit_tokens, 8192);
    policy_served(p, &t); /* from here on the worker's own word counts */
    assert_true(policy_pick(p, &n.r, &d));
    assert_int_equal(d.hit_tokens, 0);
    policy_ended(p, &t);
    policy_free(p);
}

static void a_worker_that_left_may_still_end_its_requests(void **state)
{
    static struct prompt m;

    (void)state;
    for (int k = 0; k < POLICY_N_KINDS; k++) {
        struct policy *p = make((enum policy_kind)k, 2);
        struct policy_ticket t = give(p, prompt(&m, 1, 0, 1, 2000), 1, 0), u;
        struct status st;

        policy_leave(p, 1);
        policy_page(p, 1, POLICY_PAGE_IN, 5);
        policy_report(p, 1, &(struct policy_load){.running = 4});
        policy_ended(p, &t);
        u = give(p, &m.r, 0, 0);
        policy_leave(p, 0);
        assert_int_equal(policy_join(p, 0, "again", &st), ST_OK);
        policy_ended(p, &u); /* of the one before */
        assert_true(policy_load_seconds(p, 0) == 0);
        policy_tick(p);
        policy_free(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_those_of_the_flags),
        cmocka_unit_test(every_policy_picks_only_eligible_workers_that_did_not_fail_it),
        cmocka_unit_test(round_robin_takes_turns),
        cmocka_unit_test(random_and_power_of_two_reach_everybody_and_two_avoids_the_loaded),
        cmocka_unit_test(least_load_follows_queued_tokens_reports_and_ends),
        cmocka_unit_test(decode_load_counts_places_waiting_and_room_for_kv),
        cmocka_unit_test(consistent_keeps_a_key_and_moves_few_when_a_worker_leaves),
        cmocka_unit_test(prefix_hash_keeps_prefixes_together_until_a_worker_is_overloaded),
        cmocka_unit_test(cache_aware_follows_a_prefix_unless_its_worker_is_far_busier),
        cmocka_unit_test(kv_exact_finds_the_deepest_holder_and_tells_the_hit),
        cmocka_unit_test(kv_exact_hits_end_where_a_state_is_held),
        cmocka_unit_test(kv_exact_weighs_a_hit_against_the_wait),
        cmocka_unit_test(kv_exact_counts_on_prompts_that_are_on_their_way),
        cmocka_unit_test(a_worker_that_left_may_still_end_its_requests),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
