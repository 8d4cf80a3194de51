/* Collectives of threads: what they give, and that nobody waits for ever for a rank that is gone.
 */
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/clock.h"
#include "common/comm/comm.h"

enum { N = 4, LEN = 1003, QUICK_MS = 300 };

struct team {
    struct comm *ranks[N];
    int n;
    sem_t stuck; /* where a stopped rank sits */
    _Atomic int n_told;
    char told[256];
    void (*act)(struct team *t, struct comm *c);
};

struct seat {
    struct team *team;
    int rank;
};

static struct dev_ptr at(const void *p)
{
    return (struct dev_ptr){(uint64_t)(uintptr_t)p};
}

static void tell(void *arg, const char *reason)
{
    struct team *t = arg;

    snprintf(t->told, sizeof(t->told), "%s", reason);
    atomic_fetch_add(&t->n_told, 1);
}

static void *rank_main(void *arg)
{
    struct seat *s = arg;
    struct comm *c = s->team->ranks[s->rank];

    comm_attach(c);
    s->team->act(s->team, c);
    return NULL;
}

static void run(struct team *t, int n, int timeout_ms, void (*act)(struct team *, struct comm *))
{
    struct comm_options opt = {
        .n_ranks = n, .timeout_ms = timeout_ms, .on_failure = tell, .arg = t};
    struct seat seats[N];
    pthread_t threads[N];
    struct status st;

    memset(t, 0, sizeof(*t));
    sem_init(&t->stuck, 0, 0);
    t->n = n;
    t->act = act;
    assert_int_equal(comm_cpu_new(&opt, t->ranks, &st), ST_OK);
    for (int r = 0; r < n; r++) {
        seats[r] = (struct seat){t, r};
        assert_int_equal(pthread_create(&threads[r], NULL, rank_main, &seats[r]), 0);
    }
    for (int r = 0; r < n; r++)
        pthread_join(threads[r], NULL);
    for (int r = 0; r < n; r++)
        comm_free(t->ranks[r]);
    sem_destroy(&t->stuck);
}

/* ---- what they give ---- */

static void all_collectives(struct team *t, struct comm *c)
{
    int rank = comm_rank(c), n = comm_n_ranks(c);
    float *buf = malloc(LEN * sizeof(float)), *in = malloc((size_t)n * LEN * sizeof(float));
    float *out = malloc((size_t)n * LEN * sizeof(float));
    struct status st;

    (void)t;
    for (int round = 0; round < 20; round++) {
        float want[LEN];

        for (int i = 0; i < LEN; i++) {
            buf[i] = 1e-3f * (float)(i * (rank + 1)) + (float)(round << (6 * rank));
            want[i] = 0;
            for (int r = 0; r < n; r++)
                want[i] += 1e-3f * (float)(i * (r + 1)) + (float)(round << (6 * r));
        }
        comm_all_reduce(c, at(buf), LEN, COMM_F32);
        assert_memory_equal(buf, want, sizeof(want));

        for (int i = 0; i < n * LEN; i++)
            in[i] = (float)(i + 10000 * rank + round);
        comm_all_gather(c, at(out), at(in), LEN * sizeof(float));
        for (int r = 0; r < n; r++)
            assert_true(out[r * LEN + 7] == (float)(7 + 10000 * r + round));
        comm_all_gather_columns(c, at(out), at(in), LEN / 17, 17 * sizeof(float));
        for (int r = 0; r < n; r++)
            assert_true(out[(5 * n + r) * 17 + 3] == (float)(5 * 17 + 3 + 10000 * r + round));
        comm_all_to_all(c, at(out), at(in), LEN * sizeof(float));
        for (int r = 0; r < n; r++)
            assert_true(out[r * LEN + 9] == (float)(rank * LEN + 9 + 10000 * r + round));
        comm_reduce_scatter(c, at(buf), at(in), LEN, COMM_F32);
        assert_true(buf[11] == (float)(n * (rank * LEN + 11 + round) + 10000 * n * (n - 1) / 2));
        comm_barrier(c);
    }
    assert_int_equal(comm_check(c, &st), ST_OK);
    free(buf);
    free(in);
    free(out);
}

static void every_collective_gives_what_its_comment_says(void **state)
{
    struct team t;

    (void)state;
    for (int n = 1; n <= N; n++) {
        run(&t, n, 0, all_collectives);
        assert_int_equal(t.n_told, 0);
    }
}

static uint16_t bf16(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, 4);
    return (uint16_t)(bits >> 16);
}

static void one_term(struct team *t, struct comm *c)
{
    uint16_t buf[256] = {0};

    (void)t;
    for (int i = 0; i < 256; i++) /* every exponent, odd mantissas, infinities, one owner each */
        if (i % comm_n_ranks(c) == comm_rank(c))
            buf[i] = (uint16_t)(i << 7 | 0x55);
    buf[255] = comm_rank(c) == 1 ? 0x7FC1 : 0; /* NaN */
    buf[254] = comm_rank(c) == 2 ? bf16(-1.5f) : 0;
    comm_all_reduce(c, at(buf), 256, COMM_BF16);
    for (int i = 0; i < 254; i++)
        assert_int_equal(buf[i], i << 7 | 0x55);
    assert_int_equal(buf[255] & 0x7FC0, 0x7FC0);
    assert_int_equal(buf[254], bf16(-1.5f));
}

static void a_sum_with_one_term_keeps_its_bits(void **state)
{
    struct team t;

    (void)state;
    run(&t, N, 0, one_term);
}

/* ---- lost ranks ---- */

static void last_sits_still(struct team *t, struct comm *c)
{
    struct status st;

    comm_barrier(c);
    if (comm_rank(c) == N - 1) {
        sem_wait(&t->stuck);
        comm_barrier(c); /* too late: returns at once */
    } else {
        comm_barrier(c);
        if (comm_rank(c) == 0)
            sem_post(&t->stuck);
    }
    assert_int_equal(comm_check(c, &st), ST_UNAVAILABLE);
    assert_non_null(strstr(st.msg, "rank 3 hangs"));
    assert_non_null(strstr(st.msg, "does nothing"));
}

static void a_rank_that_hangs_fails_the_group_and_is_named(void **state)
{
    struct team t;

    (void)state;
    run(&t, N, QUICK_MS, last_sits_still);
    assert_int_equal(t.n_told, 1);
    assert_non_null(strstr(t.told, "rank 3 hangs"));
}

static void last_leaves(struct team *t, struct comm *c)
{
    struct status st;

    (void)t;
    comm_barrier(c);
    if (comm_rank(c) == N - 1)
        return; /* its thread ends; it is joined later */
    comm_barrier(c);
    assert_int_equal(comm_check(c, &st), ST_UNAVAILABLE);
    assert_non_null(strstr(st.msg, "rank 3"));
}

static void a_rank_whose_thread_ends_fails_the_group(void **state)
{
    struct team t;

    (void)state;
    run(&t, N, QUICK_MS, last_leaves);
    assert_int_equal(t.n_told, 1);
}

static void last_computes(struct team *t, struct comm *c)
{
    static _Atomic unsigned sink;
    uint64_t end = clock_now_us() + 4 * QUICK_MS * 1000;
    struct status st;

    (void)t;
    if (comm_rank(c) == N - 1)
        while (clock_now_us() < end)
            if (atomic_fetch_add(&sink, 1) % 1024 == 0)
                comm_beat(c); /* as between operations */
    comm_barrier(c);
    assert_int_equal(comm_check(c, &st), ST_OK);
}

static void a_rank_that_is_slow_but_computes_is_waited_for(void **state)
{
    struct team t;

    (void)state;
    run(&t, N, QUICK_MS, last_computes);
    assert_int_equal(t.n_told, 0);
}

/* It burns CPU for ever, and its heart does not beat. */
static void last_runs_in_circles(struct team *t, struct comm *c)
{
    struct status st;

    (void)t;
    if (comm_rank(c) == N - 1)
        while (comm_check(c, &st) == ST_OK)
            ;
    comm_barrier(c);
    assert_int_equal(comm_check(c, &st), ST_UNAVAILABLE);
}

static void a_rank_that_runs_in_circles_is_lost(void **state)
{
    struct team t;

    (void)state;
    run(&t, N, QUICK_MS, last_runs_in_circles);
    assert_int_equal(t.n_told, 1);
    assert_non_null(strstr(t.told, "rank 3 hangs"));
    assert_non_null(strstr(t.told, "computes without getting on"));
}

static void one_gives_up(struct team *t, struct comm *c)
{
    struct status st;

    (void)t;
    if (comm_rank(c) == 2)
        comm_fail(c, "rank 2: device fault");
    for (int i = 0; i < 5; i++)
        comm_barrier(c);
    comm_fail(c, "a later reason");
    assert_int_equal(comm_check(c, &st), ST_UNAVAILABLE);
    assert_non_null(strstr(st.msg, "rank 2: device fault"));
}

static void a_failure_reaches_all_ranks_with_its_first_reason(void **state)
{
    struct team t;

    (void)state;
    run(&t, N, 0, one_gives_up);
    assert_int_equal(t.n_told, 1);
    assert_string_equal(t.told, "rank 2: device fault");
}

static void one_does_something_else(struct team *t, struct comm *c)
{
    float buf[8] = {0}, out[64];
    struct status st;

    (void)t;
    if (comm_rank(c) == 1)
        comm_all_gather(c, at(out), at(buf), sizeof(buf));
    else
        comm_all_reduce(c, at(buf), 8, COMM_F32);
    assert_int_equal(comm_check(c, &st), ST_UNAVAILABLE);
    assert_non_null(strstr(st.msg, "ranks disagree"));
}

static void ranks_in_different_collectives_are_told_so(void **state)
{
    struct team t;

    (void)state;
    run(&t, N, 0, one_does_something_else);
}

static void a_group_of_no_or_too_many_ranks_is_refused(void **state)
{
    struct comm_options opt = {0};
    struct comm *out[1];
    struct status st;

    (void)state;
    assert_int_equal(comm_cpu_new(&opt, out, &st), ST_INVALID);
    opt.n_ranks = COMM_RANKS_MAX + 1;
    assert_int_equal(comm_cpu_new(&opt, out, &st), ST_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_collective_gives_what_its_comment_says),
        cmocka_unit_test(a_sum_with_one_term_keeps_its_bits),
        cmocka_unit_test(a_rank_that_hangs_fails_the_group_and_is_named),
        cmocka_unit_test(a_rank_whose_thread_ends_fails_the_group),
        cmocka_unit_test(a_rank_that_is_slow_but_computes_is_waited_for),
        cmocka_unit_test(a_rank_that_runs_in_circles_is_lost),
        cmocka_unit_test(a_failure_reaches_all_ranks_with_its_first_reason),
        cmocka_unit_test(ranks_in_different_collectives_are_told_so),
        cmocka_unit_test(a_group_of_no_or_too_many_ranks_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
