/*
 * comm_nccl over a NCCL of our own (fake_nccl.c): what collectives give, and that a rank which
 * hangs, runs in circles, leaves or is cut off takes its group down in time, with a reason.
 *
 * usage: test_comm_nccl LIBRARY
 */
#include <dlfcn.h>
#include <pthread.h>
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
#include "common/comm/comm_nccl.h"

enum { N = 3, LEN = 500, QUICK_MS = 400, SCRATCH = 4096 };

static const char *library;

/* One rank's GPU: the host. */
struct device {
    _Atomic uint64_t reached;
    _Alignas(16) uint8_t scratch[SCRATCH];
};

struct team {
    uint8_t id[COMM_NCCL_ID_BYTES];
    struct device devices[N];
    void (*act)(struct team *t, struct comm *c);
    _Atomic int n_told;
    char told[256];
    pthread_mutex_t mutex; /* told */
    _Atomic int wrong;     /* cmocka asserts on its own thread alone */
};

struct seat {
    struct team *team;
    int rank;
};

static struct dev_ptr at(const void *p)
{
    return (struct dev_ptr){(uint64_t)(uintptr_t)p};
}

static void columns(void *arg, struct dev_ptr out, struct dev_ptr in, int n_ranks, size_t n_rows,
                    size_t row_bytes)
{
    (void)arg;
    for (size_t t = 0; t < n_rows; t++)
        for (size_t r = 0; r < (size_t)n_ranks; r++)
            memcpy((uint8_t *)(uintptr_t)out.addr + (t * (size_t)n_ranks + r) * row_bytes,
                   (uint8_t *)(uintptr_t)in.addr + (r * n_rows + t) * row_bytes, row_bytes);
}

static void enter(void *arg)
{
    (void)arg;
}

static void mark(void *arg, uint64_t n)
{
    ((struct device *)arg)->reached = n;
}

static uint64_t reached(void *arg)
{
    return ((struct device *)arg)->reached;
}

static void tell(void *arg, const char *reason)
{
    struct team *t = arg;

    pthread_mutex_lock(&t->mutex);
    if (t->n_told++ == 0)
        snprintf(t->told, sizeof(t->told), "%s", reason);
    pthread_mutex_unlock(&t->mutex);
}

static void expect(struct team *t, bool fine)
{
    if (!fine)
        t->wrong++;
}

static void *rank_main(void *arg)
{
    struct seat *s = arg;
    struct team *t = s->team;
    struct device *d = &t->devices[s->rank];
    struct comm_options opt = {.n_ranks = N, .timeout_ms = QUICK_MS, .on_failure = tell, .arg = t};
    struct comm_nccl_device device = {
        .scratch = at(d->scratch),
        .scratch_bytes = SCRATCH,
        .enter = enter,
        .columns = columns,
        .mark = mark,
        .reached = reached,
        .arg = d,
    };
    struct comm *c;
    struct status st;

    if (comm_nccl_new(&opt, library, t->id, s->rank, &device, &c, &st) != ST_OK) {
        expect(t, false);
        return NULL;
    }
    t->act(t, c);
    comm_free(c);
    return NULL;
}

static void run(struct team *t, void (*act)(struct team *, struct comm *))
{
    struct seat seats[N];
    pthread_t threads[N];
    struct status st;

    memset(t, 0, sizeof(*t));
    pthread_mutex_init(&t->mutex, NULL);
    t->act = act;
    assert_int_equal(comm_nccl_id(library, t->id, &st), ST_OK);
    for (int r = 0; r < N; r++) {
        seats[r] = (struct seat){t, r};
        assert_int_equal(pthread_create(&threads[r], NULL, rank_main, &seats[r]), 0);
    }
    for (int r = 0; r < N; r++)
        pthread_join(threads[r], NULL);
    pthread_mutex_destroy(&t->mutex);
    assert_int_equal(t->wrong, 0);
}

/* ---- what they give ---- */

static void all_collectives(struct team *t, struct comm *c)
{
    int rank = comm_rank(c);
    float *buf = malloc(LEN * sizeof(float)), *in = malloc((size_t)N * LEN * sizeof(float));
    float *out = malloc((size_t)N * LEN * sizeof(float));
    struct status st;

    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < LEN; i++)
            buf[i] = (float)(i * (rank + 1) + round);
        comm_all_reduce(c, at(buf), LEN, COMM_F32);
        for (int i = 0; i < LEN; i++)
            expect(t, buf[i] == (float)(i * N * (N + 1) / 2 + N * round));
        for (int i = 0; i < N * LEN; i++)
            in[i] = (float)(i + 10000 * rank + round);
        comm_all_gather(c, at(out), at(in), LEN * sizeof(float));
        for (int r = 0; r < N; r++)
            expect(t, out[r * LEN + 7] == (float)(7 + 10000 * r + round));
        /* in rounds: the scratch takes 20 rows of three ranks at a time */
        comm_all_gather_columns(c, at(out), at(in), LEN / 17, 17 * sizeof(float));
        for (int row = 0; row < LEN / 17; row++)
            for (int r = 0; r < N; r++)
                expect(t, out[(row * N + r) * 17 + 3] == (float)(row * 17 + 3 + 10000 * r + round));
        comm_all_to_all(c, at(out), at(in), LEN * sizeof(float));
        for (int r = 0; r < N; r++)
            expect(t, out[r * LEN + 9] == (float)(rank * LEN + 9 + 10000 * r + round));
        comm_reduce_scatter(c, at(buf), at(in), LEN, COMM_F32);
        expect(t, buf[11] == (float)(N * (rank * LEN + 11 + round) + 10000 * N * (N - 1) / 2));
        comm_barrier(c);
    }
    expect(t, comm_check(c, &st) == ST_OK);
    free(buf);
    free(in);
    free(out);
}

static void every_collective_gives_what_its_comment_says(void **state)
{
    struct team t;

    (void)state;
    run(&t, all_collectives);
    assert_int_equal(t.n_told, 0);
}

/* ---- failing ---- */

static void until_failed(struct team *t, struct comm *c)
{
    struct status st;

    for (int i = 0; i < 1000 && comm_check(c, &st) == ST_OK; i++)
        comm_barrier(c);
    expect(t, comm_check(c, &st) == ST_UNAVAILABLE);
}

/* It burns CPU for ever, and comes to no collective. */
static void last_runs_in_circles(struct team *t, struct comm *c)
{
    struct status st;

    comm_barrier(c);
    if (comm_rank(c) == N - 1)
        while (comm_check(c, &st) == ST_OK)
            ;
    until_failed(t, c);
}

static void a_rank_that_comes_no_more_fails_the_group(void **state)
{
    uint64_t begun = clock_now_us();
    struct team t;

    (void)state;
    run(&t, last_runs_in_circles);
    assert_int_equal(t.n_told, N); /* each rank's process would be told */
    assert_non_null(strstr(t.told, "hangs or has died"));
    assert_non_null(strstr(t.told, "barrier 1"));
    assert_true(clock_now_us() - begun > 1000 * QUICK_MS);
}

static void first_breaks_the_network(struct team *t, struct comm *c)
{
    void *lib = dlopen(library, RTLD_NOW);
    void (*break_it)(void *id);
    void *fn = dlsym(lib, "fake_nccl_break");

    memcpy(&break_it, &fn, sizeof(fn));
    comm_barrier(c);
    if (comm_rank(c) == 0)
        break_it(t->id);
    until_failed(t, c);
    dlclose(lib);
}

static void what_nccl_reports_fails_the_group(void **state)
{
    struct team t;

    (void)state;
    run(&t, first_breaks_the_network);
    assert_int_equal(t.n_told, N);
    assert_non_null(strstr(t.told, "fake: internal"));
}

static void one_gives_up(struct team *t, struct comm *c)
{
    struct status st;

    if (comm_rank(c) == 1) {
        comm_fail(c, "rank 1: device fault");
        comm_fail(c, "a later reason");
        expect(t, comm_check(c, &st) == ST_UNAVAILABLE);
        expect(t, strstr(st.msg, "rank 1: device fault") != NULL);
        return;
    }
    until_failed(t, c); /* the others hear of it through NCCL */
}

static void a_rank_that_gives_up_fails_the_group(void **state)
{
    struct team t;

    (void)state;
    run(&t, one_gives_up);
    assert_int_equal(t.n_told, N);
}

/* ---- opening ---- */

static void without_nccl_the_reason_is_told(void **state)
{
    uint8_t id[COMM_NCCL_ID_BYTES];
    struct status st;

    (void)state;
    assert_int_equal(comm_nccl_id("libnccl-that-is-not-there.so.2", id, &st), ST_UNAVAILABLE);
    assert_non_null(strstr(st.msg, "libnccl-that-is-not-there"));
    assert_non_null(strstr(st.msg, "--tp-size 1"));
    assert_int_equal(comm_nccl_id("libc.so.6", id, &st), ST_UNAVAILABLE);
    assert_non_null(strstr(st.msg, "ncclGetUniqueId"));
}

static void a_rank_that_is_left_alone_does_not_wait_for_ever(void **state)
{
    struct comm_options opt = {.n_ranks = 2, .init_ms = 100};
    struct comm_nccl_device device = {.enter = enter, .reached = reached};
    uint8_t id[COMM_NCCL_ID_BYTES];
    struct comm *c = NULL;
    struct status st;

    (void)state;
    assert_int_equal(comm_nccl_id(library, id, &st), ST_OK);
    assert_int_equal(comm_nccl_new(&opt, library, id, 2, &device, &c, &st), ST_INVALID);
    assert_int_equal(comm_nccl_new(&opt, library, id, 0, &device, &c, &st), ST_UNAVAILABLE);
    assert_non_null(strstr(st.msg, "rank 0 of 2 waits"));
    assert_null(c);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_collective_gives_what_its_comment_says),
        cmocka_unit_test(a_rank_that_comes_no_more_fails_the_group),
        cmocka_unit_test(what_nccl_reports_fails_the_group),
        cmocka_unit_test(a_rank_that_gives_up_fails_the_group),
        cmocka_unit_test(without_nccl_the_reason_is_told),
        cmocka_unit_test(a_rank_that_is_left_alone_does_not_wait_for_ever),
    };

    if (argc != 2)
        return 2;
    library = argv[1];
    /* Stays loaded: its groups outlive a handle's own loading of it. */
    if (dlopen(library, RTLD_NOW) == NULL)
        return 2;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
