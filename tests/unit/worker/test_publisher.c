/* A publisher behind a real server, and routers that listen to it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "baton/v1/admin.pb-c.h"
#include "common/base/mailbox.h"
#include "common/rpc/rpc_message.h"
#include "common/worker/publisher.h"

enum { PAGES = 20000, WAIT_MS = 20000 };

struct got {
    struct msg base;
    Baton__V1__WatchReply *reply; /* NULL: closed */
};

/* What one router knows. */
struct listener {
    struct mailbox *mailbox;
    struct rpc_session *session;
    uint8_t *held; /* [PAGES] bits: 1 page, 2 state */
    uint64_t seq, resets;
    bool hello, needs_state, loaded;
    Baton__V1__WorkerLoad load;
};

static struct rpc *rpc;
static struct rpc_server *server;
static struct rpc_client *client;
static struct publisher *publisher;
static struct rpc_method method;

static void identity(void *arg, Baton__V1__Identity *out)
{
    (void)arg;
    baton__v1__identity__init(out);
    out->role = "prefill";
    out->incarnation = 7;
    out->protocol = 1;
}

static int start(void **state)
{
    struct publisher_config c = {.identity = identity, .needs_state = true};
    struct status st;
    char address[32];

    (void)state;
    assert_int_equal(rpc_start(&rpc, &st), ST_OK);
    assert_int_equal(publisher_start(&c, &publisher, &st), ST_OK);
    method = publisher_method(publisher);
    assert_int_equal(rpc_server_start(rpc, "127.0.0.1:0", &method, 1, &server, &st), ST_OK);
    snprintf(address, sizeof(address), "127.0.0.1:%d", rpc_server_port(server));
    assert_int_equal(rpc_client_new(rpc, address, &client, &st), ST_OK);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    rpc_client_free(client);
    rpc_server_free(server);
    rpc_stop(rpc);
    publisher_stop(publisher);
    return 0;
}

static void push(struct listener *l, Baton__V1__WatchReply *reply)
{
    struct got *g = calloc(1, sizeof(*g));

    g->reply = reply;
    mailbox_push(l->mailbox, &g->base);
}

static void on_message(void *arg, struct rpc_session *s, const void *data, size_t len)
{
    Baton__V1__WatchReply *reply = baton__v1__watch_reply__unpack(NULL, len, data);

    (void)s;
    assert_non_null(reply);
    push(arg, reply);
}

static void on_close(void *arg, struct rpc_session *s, const struct status *why)
{
    (void)s, (void)why;
    push(arg, NULL);
}

static void ask(struct listener *l, bool hello, bool snapshot)
{
    Baton__V1__WatchRequest m = BATON__V1__WATCH_REQUEST__INIT;
    Baton__V1__Identity me = BATON__V1__IDENTITY__INIT;
    struct status st;

    me.role = "router";
    me.incarnation = me.protocol = 1;
    m.hello = hello ? &me : NULL;
    m.has_snapshot = m.snapshot = snapshot;
    assert_int_equal(rpc_session_send_message(l->session, &m.base, &st), ST_OK);
}

static void listen_in(struct listener *l)
{
    static const struct rpc_session_callbacks callbacks = {on_message, on_close};
    struct status st;

    *l = (struct listener){.held = calloc(PAGES, 1)};
    assert_int_equal(mailbox_new(&l->mailbox, &st), ST_OK);
    assert_int_equal(
        rpc_client_open(client, "/baton.v1.Admin/Watch", WAIT_MS, &callbacks, l, &l->session, &st),
        ST_OK);
    ask(l, true, false);
}

static void take(struct listener *l, const Baton__V1__CacheEvents *e)
{
    assert_int_equal(e->seq, ++l->seq);
    if (e->reset) {
        memset(l->held, 0, PAGES);
        l->resets++;
        l->needs_state = e->needs_state;
    }
    for (size_t i = 0; i < e->n_run; i++)
        for (size_t k = 0; k < e->run[i]->n_page; k++) {
            uint8_t *h = &l->held[e->run[i]->page[k] - 1];

            switch (e->run[i]->kind) {
            case BATON__V1__CACHE_EVENT_KIND__PAGE_IN:
                *h |= 1;
                break;
            case BATON__V1__CACHE_EVENT_KIND__PAGE_OUT:
                *h = 0;
                break;
            case BATON__V1__CACHE_EVENT_KIND__STATE_IN:
                assert_int_equal(*h, 1);
                *h |= 2;
                break;
            default:
                *h &= (uint8_t)~2;
            }
        }
}

/* @return false once the session has closed */
static bool hear(struct listener *l)
{
    struct got *g;

    while ((g = (struct got *)mailbox_pop(l->mailbox)) == NULL)
        mailbox_wait(l->mailbox, WAIT_MS);
    if (g->reply == NULL) {
        free(g);
        return false;
    }
    l->hello |= g->reply->hello != NULL;
    if (g->reply->cache != NULL)
        take(l, g->reply->cache);
    if (g->reply->load != NULL) {
        l->loaded = true;
        l->load = *g->reply->load;
    }
    baton__v1__watch_reply__free_unpacked(g->reply, NULL);
    free(g);
    return true;
}

static void leave(struct listener *l)
{
    rpc_session_close(l->session, &(struct status){ST_CANCELLED, "enough"});
    while (hear(l)) {
    }
    rpc_session_unref(l->session);
    mailbox_free(l->mailbox, NULL);
    free(l->held);
}

static void event(enum publisher_event what, uint32_t page)
{
    publisher_page(publisher, what, PUBLISH_DEVICE, page + 1);
}

/* Until the last page is held or not, as told. */
static void hear_until(struct listener *l, uint32_t page, uint8_t held)
{
    while (l->held[page] != held)
        assert_true(hear(l));
}

static void who_comes_late_gets_everything_and_then_what_changes(void **state)
{
    struct listener a, b;

    (void)state;
    listen_in(&a);
    while (a.resets == 0)
        assert_true(hear(&a));
    assert_true(a.hello && a.needs_state);
    for (uint32_t i = 0; i + 1 < PAGES; i++) {
        event(PUBLISH_PAGE_IN, i);
        if (i % 16 == 0)
            event(PUBLISH_STATE_IN, i);
        if (i % 3 == 0)
            event(PUBLISH_PAGE_OUT, i);
    }
    event(PUBLISH_PAGE_IN, PAGES - 1);
    hear_until(&a, PAGES - 1, 1);
    listen_in(&b);
    while (b.resets == 0)
        assert_true(hear(&b));
    hear_until(&b, PAGES - 1, 1); /* a snapshot has no order: its last part may come later */
    event(PUBLISH_STATE_IN, PAGES - 1);
    hear_until(&a, PAGES - 1, 3);
    hear_until(&b, PAGES - 1, 3);
    for (uint32_t i = 0; i + 1 < PAGES; i++) {
        uint8_t want = i % 3 == 0 ? 0 : i % 16 == 0 ? 3 : 1;

        assert_int_equal(a.held[i], want);
        assert_int_equal(b.held[i], want);
    }
    leave(&a);
    leave(&b);
}

static void a_router_that_missed_something_asks_again(void **state)
{
    struct listener l;
    uint64_t n;

    (void)state;
    listen_in(&l);
    event(PUBLISH_PAGE_IN, 5);
    hear_until(&l, 5, 1);
    n = l.resets;
    l.held[5] = 0; /* as if a message had been lost */
    ask(&l, false, true);
    hear_until(&l, 5, 1);
    assert_int_equal(l.resets, n + 1);
    leave(&l);
}

static void tiers_are_one_page_and_a_flush_forgets_all(void **state)
{
    struct listener l;
    uint64_t n;

    (void)state;
    listen_in(&l);
    event(PUBLISH_PAGE_IN, 6);
    publisher_page(publisher, PUBLISH_PAGE_IN, PUBLISH_HOST, 7);
    event(PUBLISH_PAGE_OUT, 6); /* still on the host */
    event(PUBLISH_PAGE_IN, 7);
    hear_until(&l, 7, 1);
    assert_int_equal(l.held[6], 1);
    publisher_page(publisher, PUBLISH_PAGE_OUT, PUBLISH_HOST, 7);
    hear_until(&l, 6, 0);
    n = l.resets;
    event(PUBLISH_ALL_OUT, 0);
    event(PUBLISH_PAGE_IN, 8);
    hear_until(&l, 8, 1);
    while (l.resets == n || l.held[7] != 0)
        assert_true(hear(&l));
    leave(&l);
}

static void load_is_told_at_once_and_when_it_changes(void **state)
{
    struct publisher_figures f = {.running = 3, .waiting = 1, .queued_tokens = 900, .steps = 12};
    struct listener l;

    (void)state;
    listen_in(&l);
    while (!l.loaded)
        assert_true(hear(&l));
    publisher_load(publisher, &f);
    while (l.load.steps != 12)
        assert_true(hear(&l));
    assert_int_equal(l.load.running, 3);
    assert_int_equal(l.load.waiting, 1);
    assert_int_equal(l.load.queued_tokens, 900);
    leave(&l);
}

static void nonsense_ends_the_session(void **state)
{
    struct listener l;
    struct status st;

    (void)state;
    listen_in(&l);
    assert_int_equal(rpc_session_send(l.session, "\xff\xff\xff", 3, &st), ST_OK);
    while (hear(&l)) {
    }
    rpc_session_unref(l.session);
    mailbox_free(l.mailbox, NULL);
    free(l.held);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(who_comes_late_gets_everything_and_then_what_changes, start,
                                        stop),
        cmocka_unit_test_setup_teardown(a_router_that_missed_something_asks_again, start, stop),
        cmocka_unit_test_setup_teardown(tiers_are_one_page_and_a_flush_forgets_all, start, stop),
        cmocka_unit_test_setup_teardown(load_is_told_at_once_and_when_it_changes, start, stop),
        cmocka_unit_test_setup_teardown(nonsense_ends_the_session, start, stop),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
