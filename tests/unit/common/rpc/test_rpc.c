/*
 * Sessions over loopback: order, both ends' closes, refusals, dead peers, queue bounds, unary
 * calls. Servers in another process are forked before gRPC starts.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "baton/v1/decode.pb-c.h"
#include "common/rpc/rpc.h"
#include "common/rpc/rpc_message.h"
#include "grpc/health/v1/health.pb-c.h"

enum { WAIT_S = 30 };

/* What one end of a session has seen. */
struct end {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct rpc_session *session; /* server side: a reference */
    int n_messages, n_closes;
    size_t bytes;
    int last_value;
    int in_order;
    struct status why;
};

static void end_init(struct end *e)
{
    memset(e, 0, sizeof(*e));
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->changed, NULL);
    e->last_value = -1;
    e->in_order = 1;
}

static void end_message(void *arg, struct rpc_session *s, const void *data, size_t len)
{
    struct end *e = arg;
    int value = -1;

    (void)s;
    if (len >= sizeof(value))
        memcpy(&value, data, sizeof(value));
    pthread_mutex_lock(&e->lock);
    e->n_messages++;
    e->bytes += len;
    e->in_order &= value == e->last_value + 1;
    e->last_value = value;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

static void end_close(void *arg, struct rpc_session *s, const struct status *why)
{
    struct end *e = arg;

    (void)s;
    pthread_mutex_lock(&e->lock);
    e->n_closes++;
    e->why = *why;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

/* Waits until *field >= n, with a bound. */
static void wait_for(struct end *e, const int *field, int n)
{
    struct timespec until;
    int rc = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_S;
    pthread_mutex_lock(&e->lock);
    while (*field < n && rc == 0)
        rc = pthread_cond_timedwait(&e->changed, &e->lock, &until);
    pthread_mutex_unlock(&e->lock);
    assert_int_equal(rc, 0);
}

static const struct rpc_session_callbacks callbacks = {end_message, end_close};

/* A server whose sessions fill one struct end; "refuse" makes it refuse. */
struct fixture {
    struct rpc *rpc;
    struct rpc_server *server;
    struct rpc_client *client;
    struct end at_server, at_client;
    int n_opened;
    int refuse;
};

static void *on_open(void *arg, struct rpc_session *s, struct status *st)
{
    struct fixture *f = arg;

    if (f->refuse) {
        status_set(st, ST_EXHAUSTED, "no room for you");
        return NULL;
    }
    pthread_mutex_lock(&f->at_server.lock);
    f->at_server.session = rpc_session_ref(s);
    f->n_opened++;
    pthread_cond_broadcast(&f->at_server.changed);
    pthread_mutex_unlock(&f->at_server.lock);
    return &f->at_server;
}

static enum status_code unary(void *arg, const void *request, size_t len, void **reply,
                              size_t *reply_len, struct status *st)
{
    (void)arg;
    if (len == 3 && memcmp(request, "bad", 3) == 0)
        return status_set(st, ST_INVALID, "bad is not good");
    *reply = malloc(len);
    memcpy(*reply, request, len);
    *reply_len = len;
    return status_ok(st);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct rpc_method methods[] = {
        {.path = "/t/Session", .on_open = on_open, .callbacks = callbacks, .arg = f},
        {.path = "/t/Echo", .unary = unary},
    };
    struct status st;
    char address[32];

    end_init(&f->at_server);
    end_init(&f->at_client);
    assert_int_equal(rpc_start(&f->rpc, &st), ST_OK);
    assert_int_equal(rpc_server_start(f->rpc, "127.0.0.1:0", methods, 2, &f->server, &st), ST_OK);
    snprintf(address, sizeof(address), "127.0.0.1:%d", rpc_server_port(f->server));
    assert_int_equal(rpc_client_new(f->rpc, address, &f->client, &st), ST_OK);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    rpc_client_free(f->client);
    rpc_server_free(f->server);
    rpc_stop(f->rpc);
    rpc_session_unref(f->at_server.session);
    free(f);
    return 0;
}

static struct rpc_session *open_session(struct fixture *f)
{
    struct rpc_session *s = NULL;
    struct status st;

    assert_int_equal(
        rpc_client_open(f->client, "/t/Session", 5000, &callbacks, &f->at_client, &s, &st), ST_OK);
    return s;
}

static void messages_arrive_in_order_both_ways(void **state)
{
    enum { N = 2000 };
    struct fixture *f = *state;
    struct rpc_session *s = open_session(f);
    struct status st;

    for (int i = 0; i < N; i++)
        assert_int_equal(rpc_session_send(s, &i, sizeof(i), &st), ST_OK);
    wait_for(&f->at_server, &f->at_server.n_messages, N);
    assert_true(f->at_server.in_order);
    for (int i = 0; i < N; i++)
        assert_int_equal(rpc_session_send(f->at_server.session, &i, sizeof(i), &st), ST_OK);
    wait_for(&f->at_client, &f->at_client.n_messages, N);
    assert_true(f->at_client.in_order);
    rpc_session_close(s, (status_ok(&st), &st));
    wait_for(&f->at_client, &f->at_client.n_closes, 1);
    wait_for(&f->at_server, &f->at_server.n_closes, 1);
    assert_int_equal(f->at_client.why.code, ST_OK);
    assert_int_equal(f->at_server.why.code, ST_OK);
    assert_int_equal(rpc_session_send(s, "x", 1, &st), ST_UNAVAILABLE);
    rpc_session_unref(s);
}

static void a_large_message_arrives_whole(void **state)
{
    enum { BYTES = 40 << 20 };
    struct fixture *f = *state;
    struct rpc_session *s = open_session(f);
    char *data = calloc(1, BYTES);
    struct status st;

    assert_int_equal(rpc_session_send(s, data, BYTES, &st), ST_OK);
    free(data);
    wait_for(&f->at_server, &f->at_server.n_messages, 1);
    assert_int_equal(f->at_server.bytes, BYTES);
    rpc_session_unref(s);
}

static void a_server_ends_a_session_with_its_reason(void **state)
{
    struct fixture *f = *state;
    struct rpc_session *s = open_session(f);
    struct status st;
    int zero = 0;

    wait_for(&f->at_server, &f->n_opened, 1);
    assert_int_equal(rpc_session_send(f->at_server.session, &zero, sizeof(zero), &st), ST_OK);
    wait_for(&f->at_client, &f->at_client.n_messages, 1);
    status_set(&st, ST_CORRUPT, "your pages are torn");
    rpc_session_close(f->at_server.session, &st);
    wait_for(&f->at_client, &f->at_client.n_closes, 1);
    assert_int_equal(f->at_client.why.code, ST_CORRUPT);
    assert_string_equal(f->at_client.why.msg, "your pages are torn");
    wait_for(&f->at_server, &f->at_server.n_closes, 1);
    rpc_session_unref(s);
}

static void a_cancelling_client_closes_the_servers_end(void **state)
{
    struct fixture *f = *state;
    struct rpc_session *s = open_session(f);
    struct status st;

    wait_for(&f->at_server, &f->n_opened, 1);
    status_set(&st, ST_CANCELLED, "enough");
    rpc_session_close(s, &st);
    wait_for(&f->at_server, &f->at_server.n_closes, 1);
    assert_int_equal(f->at_server.why.code, ST_UNAVAILABLE);
    wait_for(&f->at_client, &f->at_client.n_closes, 1);
    assert_int_equal(f->at_client.why.code, ST_CANCELLED);
    rpc_session_unref(s);
}

static void a_refused_session_says_why(void **state)
{
    struct fixture *f = *state;
    struct rpc_session *s;

    f->refuse = 1;
    s = open_session(f);
    wait_for(&f->at_client, &f->at_client.n_closes, 1);
    assert_int_equal(f->at_client.why.code, ST_EXHAUSTED);
    assert_string_equal(f->at_client.why.msg, "no room for you");
    rpc_session_unref(s);
}

static void an_unknown_method_is_named(void **state)
{
    struct fixture *f = *state;
    struct rpc_session *s;
    struct status st;

    assert_int_equal(
        rpc_client_open(f->client, "/t/Nothing", 5000, &callbacks, &f->at_client, &s, &st), ST_OK);
    wait_for(&f->at_client, &f->at_client.n_closes, 1);
    assert_non_null(strstr(f->at_client.why.msg, "/t/Nothing"));
    rpc_session_unref(s);
}

static void freeing_the_server_closes_open_sessions(void **state)
{
    struct fixture *f = *state;
    struct rpc_session *s = open_session(f);

    wait_for(&f->at_server, &f->n_opened, 1);
    rpc_server_free(f->server);
    f->server = NULL;
    assert_int_equal(f->at_server.n_closes, 1);
    wait_for(&f->at_client, &f->at_client.n_closes, 1);
    rpc_session_unref(s);
}

static void freeing_the_client_closes_open_sessions(void **state)
{
    struct fixture *f = *state;
    struct rpc_session *s = open_session(f);
    struct status st;

    wait_for(&f->at_server, &f->n_opened, 1);
    rpc_client_free(f->client);
    f->client = NULL;
    assert_int_equal(f->at_client.n_closes, 1);
    assert_int_equal(rpc_session_send(s, "x", 1, &st), ST_UNAVAILABLE);
    wait_for(&f->at_server, &f->at_server.n_closes, 1);
    rpc_session_unref(s);
}

static void nobody_listening_is_unavailable(void **state)
{
    struct fixture *f = *state;
    struct rpc_client *c;
    struct rpc_session *s;
    struct status st;

    assert_int_equal(rpc_client_new(f->rpc, "127.0.0.1:1", &c, &st), ST_OK);
    assert_int_equal(rpc_client_open(c, "/t/Session", 2000, &callbacks, &f->at_client, &s, &st),
                     ST_OK);
    wait_for(&f->at_client, &f->at_client.n_closes, 1);
    assert_int_equal(f->at_client.why.code, ST_UNAVAILABLE);
    rpc_session_unref(s);
    rpc_client_free(c);
}

static void two_servers_do_not_share_a_port(void **state)
{
    struct fixture *f = *state;
    struct rpc_server *second = NULL;
    struct status st;
    char address[32];

    snprintf(address, sizeof(address), "127.0.0.1:%d", rpc_server_port(f->server));
    assert_int_equal(rpc_server_start(f->rpc, address, NULL, 0, &second, &st), ST_UNAVAILABLE);
    assert_non_null(strstr(st.msg, address));
}

static void unary_calls_answer_or_fail_with_the_reason(void **state)
{
    struct fixture *f = *state;
    struct status st;
    void *reply;
    size_t len;

    assert_int_equal(rpc_client_call(f->client, "/t/Echo", 5000, "hello", 5, &reply, &len, &st),
                     ST_OK);
    assert_int_equal(len, 5);
    assert_memory_equal(reply, "hello", 5);
    free(reply);
    assert_int_equal(rpc_client_call(f->client, "/t/Echo", 5000, "bad", 3, &reply, &len, &st),
                     ST_INVALID);
    assert_non_null(strstr(st.msg, "bad is not good"));
}

static void a_unary_call_has_a_deadline(void **state)
{
    struct fixture *f = *state;
    struct status st;
    void *reply;
    size_t len;

    /* A session method never answers a half-closed call with a message. */
    assert_int_equal(rpc_client_call(f->client, "/t/Session", 200, "", 0, &reply, &len, &st),
                     ST_INTERNAL);
}

static int health(struct fixture *f)
{
    Grpc__Health__V1__HealthCheckRequest m = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    Grpc__Health__V1__HealthCheckResponse *r;
    struct status st;
    void *request, *reply;
    size_t n, len;
    int status;

    assert_int_equal(rpc_message_pack(&m.base, &request, &n, &st), ST_OK);
    assert_int_equal(rpc_client_call(f->client, "/grpc.health.v1.Health/Check", 5000, request, n,
                                     &reply, &len, &st),
                     ST_OK);
    r = grpc__health__v1__health_check_response__unpack(NULL, len, reply);
    status = (int)r->status;
    grpc__health__v1__health_check_response__free_unpacked(r, NULL);
    free(request);
    free(reply);
    return status;
}

static void health_follows_the_serving_state(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(health(f), 2);
    rpc_server_set_serving(f->server, 1);
    assert_int_equal(health(f), 1);
}

static void a_peer_that_does_not_read_fills_the_queue_not_the_memory(void **state)
{
    struct fixture *f = *state;
    struct rpc_session *s = open_session(f);
    char *chunk = calloc(1, 32 << 20);
    struct status st;
    int n = 0;

    wait_for(&f->at_server, &f->n_opened, 1);
    pthread_mutex_lock(&f->at_client.lock); /* the rpc thread will stand in on_message */
    while (n < 64 && rpc_session_send(f->at_server.session, chunk, 32 << 20, &st) == ST_OK)
        n++;
    pthread_mutex_unlock(&f->at_client.lock);
    free(chunk);
    assert_true(n < 64);
    assert_int_equal(st.code, ST_EXHAUSTED);
    rpc_session_unref(s);
}

/* ---- a server that dies ---- */

static pid_t server_pid;
static int server_port;

/* Runs in a child: serves until it is killed. */
static void serve_for_ever(int fd)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct rpc_method m = {
        .path = "/t/Session", .on_open = on_open, .callbacks = callbacks, .arg = f};
    struct status st;
    int port;

    prctl(PR_SET_PDEATHSIG, SIGKILL); /* never outlives a test that failed */
    end_init(&f->at_server);
    if (rpc_start(&f->rpc, &st) != ST_OK ||
        rpc_server_start(f->rpc, "127.0.0.1:0", &m, 1, &f->server, &st) != ST_OK)
        _exit(1);
    port = rpc_server_port(f->server);
    if (write(fd, &port, sizeof(port)) != sizeof(port))
        _exit(1);
    for (;;)
        pause();
}

static void a_killed_server_closes_the_session(void **state)
{
    struct fixture *f = *state;
    struct rpc_client *c;
    struct rpc_session *s;
    struct status st;
    char address[32];

    snprintf(address, sizeof(address), "127.0.0.1:%d", server_port);
    assert_int_equal(rpc_client_new(f->rpc, address, &c, &st), ST_OK);
    assert_int_equal(rpc_client_open(c, "/t/Session", 5000, &callbacks, &f->at_client, &s, &st),
                     ST_OK);
    assert_int_equal(rpc_session_send(s, "x", 1, &st), ST_OK);
    kill(server_pid, SIGKILL);
    waitpid(server_pid, NULL, 0);
    wait_for(&f->at_client, &f->at_client.n_closes, 1);
    assert_int_equal(f->at_client.why.code, ST_UNAVAILABLE);
    rpc_session_unref(s);
    rpc_client_free(c);
}

/* A reply of n batches, as a step's. */
static void unpack_batches(struct rpc_arena *a, size_t n)
{
    Baton__V1__DecodeReply reply = BATON__V1__DECODE_REPLY__INIT, *got;
    Baton__V1__TokenBatch *batches = calloc(n, sizeof(*batches)), **list = calloc(n, sizeof(*list));
    int32_t ids[2] = {7, 0};
    struct status st;
    void *bytes;
    size_t len;

    for (size_t i = 0; i < n; i++) {
        baton__v1__token_batch__init(&batches[i]);
        batches[i].request_id = i;
        batches[i].n_token_ids = 2;
        batches[i].token_ids = ids;
        list[i] = &batches[i];
    }
    reply.n_batch = n;
    reply.batch = list;
    assert_int_equal(rpc_message_pack(&reply.base, &bytes, &len, &st), ST_OK);
    got = baton__v1__decode_reply__unpack(&a->allocator, len, bytes);
    assert_non_null(got);
    assert_int_equal(got->n_batch, n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(got->batch[i]->request_id, i);
        assert_int_equal(got->batch[i]->token_ids[0], 7);
    }
    rpc_arena_drop(a, &got->base);
    assert_null(baton__v1__decode_reply__unpack(&a->allocator, len - 1, bytes));
    rpc_arena_drop(a, NULL);
    free(bytes);
    free(list);
    free(batches);
}

static void an_arena_holds_one_message_after_another(void **state)
{
    static const size_t sizes[] = {1, 3, 200, 5, 2000, 100000, 2000, 1};
    struct rpc_arena a;

    (void)state;
    rpc_arena_init(&a);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        unpack_batches(&a, sizes[i]);
    assert_true(a.cap > 0 && a.cap <= 1 << 20);
    rpc_arena_deinit(&a);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(messages_arrive_in_order_both_ways),
        T(a_large_message_arrives_whole),
        T(a_server_ends_a_session_with_its_reason),
        T(a_cancelling_client_closes_the_servers_end),
        T(a_refused_session_says_why),
        T(an_unknown_method_is_named),
        T(freeing_the_server_closes_open_sessions),
        T(freeing_the_client_closes_open_sessions),
        T(nobody_listening_is_unavailable),
        T(two_servers_do_not_share_a_port),
        T(unary_calls_answer_or_fail_with_the_reason),
        T(a_unary_call_has_a_deadline),
        T(health_follows_the_serving_state),
        T(a_peer_that_does_not_read_fills_the_queue_not_the_memory),
        T(a_killed_server_closes_the_session),
        cmocka_unit_test(an_arena_holds_one_message_after_another),
    };
    int fds[2];

    if (pipe(fds) != 0)
        return 1;
    server_pid = fork();
    if (server_pid == 0)
        serve_for_ever(fds[1]);
    if (read(fds[0], &server_port, sizeof(server_port)) != sizeof(server_port))
        return 1;
    return cmocka_run_group_tests_name("rpc", tests, NULL, NULL);
}
