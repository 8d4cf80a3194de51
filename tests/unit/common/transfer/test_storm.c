/* Handoffs in a storm: three senders write pages that a receiver hands out, and are cancelled,
 * frozen, killed and cut off at drawn moments, while the receiver restarts with another geometry.
 *
 * A page is FREE (full of canaries), HELD (named for a handoff: somebody may write it) or DOUBTFUL
 * (its handoff was lost, and nothing proves yet that its writer has stopped). A page is looked at
 * when it is taken: a byte that came while it was free shows in its canaries. What a handoff was
 * said to have brought is compared byte by byte, and so is what lies between.
 *
 * BATON_TEST_FULL: 10,000 handoffs in all; else some hundreds. BATON_TEST_SEED draws another storm.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/crc32c.h"
#include "network.h"
#include "pair.h"

enum {
    SENDERS = 3,
    PAGES = 96,
    LIVE_MAX = 4,      /* handoffs of one sender at a time */
    HANDOFF_PAGES = 8, /* at most */
    PAGE_PIECES = 3,   /* at most */
    SOURCE = 4 << 20,  /* bytes of a sender's slab */
    WAIT_MAX_S = 14,   /* the lane's longest bound is 10 s */
    ID_MAX = NODE_PUTS_MAX - 4,
};

static const uint32_t geometries[] = {16 << 10, 48 << 10, 128 << 10}; /* bytes of a page */

enum page_state { FREE, HELD, DOUBTFUL };

struct handoff {
    bool live, cancelled;
    uint64_t id;
    uint32_t n_pages, pages[HANDOFF_PAGES];
    size_t n_pieces;
    struct transfer_piece
        pieces[HANDOFF_PAGES * PAGE_PIECES]; /* group: the page's place in pages */
};

struct sender {
    struct node node;
    bool frozen;
    bool came; /* a handoff of this connection has ended well */
    uint64_t writer, next_id;
    uint64_t doubted; /* the writer that its doubtful pages wait for; 0: none */
    int flips;        /* asked for and not seen */
    struct handoff handoffs[LIVE_MAX];
    uint32_t n_doubtful, doubtful[LIVE_MAX * HANDOFF_PAGES];
};

struct storm {
    enum transfer_kind kind;
    const struct network *net; /* NULL: all on one host */
    uint64_t seed;
    struct node to;
    uint32_t page_bytes;
    uint32_t canary_crc;
    enum page_state pages[PAGES];
    struct sender senders[SENDERS];
    uint32_t n_started, n_ok, n_cancelled, n_lost, n_corrupt, n_kills, n_freezes, n_restarts,
        n_cuts, n_weathers, n_proofs, n_doubts;
    uint64_t longest_us;
};

static uint32_t draw(struct storm *s, uint32_t below)
{
    s->seed = s->seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(s->seed >> 33) % below;
}

/* ---- pages ---- */

static void page_free(struct storm *s, uint32_t page)
{
    assert_int_not_equal(s->pages[page], FREE);
    node_fill_range(&s->to, 0, (uint64_t)page * s->page_bytes, s->page_bytes, CANARY);
    s->pages[page] = FREE;
}

static void check_canaries(struct storm *s, const uint32_t *pages, uint32_t n)
{
    struct transfer_piece pieces[PAGES];
    uint32_t crc[PAGES];
    struct node_result r;

    for (uint32_t i = 0; i < n; i++) {
        pieces[i] = (struct transfer_piece){
            .local_off = (uint64_t)pages[i] * s->page_bytes, .bytes = s->page_bytes, .group = i};
        crc[i] = s->canary_crc;
    }
    r = node_verify(&s->to, pieces, n, crc, n);
    if (r.status.code != ST_OK)
        fail_msg("a free page was written: %s", r.status.msg);
}

/* Draws n free pages, all or none. */
static bool pages_take(struct storm *s, uint32_t n, uint32_t *pages)
{
    uint32_t got = 0, start = draw(s, PAGES);

    for (uint32_t i = 0; i < PAGES && got < n; i++)
        if (s->pages[(start + 7 * i) % PAGES] == FREE)
            pages[got++] = (start + 7 * i) % PAGES;
    if (got < n)
        return false;
    check_canaries(s, pages, n);
    for (uint32_t i = 0; i < n; i++)
        s->pages[pages[i]] = HELD;
    return true;
}

static void handoff_pages_free(struct storm *s, struct handoff *h)
{
    for (uint32_t i = 0; i < h->n_pages; i++)
        page_free(s, h->pages[i]);
    h->live = false;
}

/* ---- nodes ---- */

static struct node node_of(struct storm *s, bool receiver)
{
    struct transfer_options opt = {.transport = s->kind};
    struct node n = node_fork_in(s->net == NULL ? NULL
                                 : receiver     ? s->net->to_ns
                                                : s->net->from_ns);
    struct status st;

    if (node_start(&n, &opt, &st) != ST_OK)
        fail_msg("%s", st.msg);
    node_slab(&n, 0, receiver ? (uint64_t)PAGES * s->page_bytes : SOURCE, false);
    node_fill(&n, 0, receiver ? CANARY : 1000, receiver);
    return n;
}

static void receiver_start(struct storm *s)
{
    uint8_t *page;

    s->page_bytes = geometries[draw(s, sizeof(geometries) / sizeof(geometries[0]))];
    page = malloc(s->page_bytes);
    memset(page, CANARY, s->page_bytes);
    s->canary_crc = crc32c(0, page, s->page_bytes);
    free(page);
    memset(s->pages, 0, sizeof(s->pages));
    s->to = node_of(s, true);
}

static void connect_sender(struct storm *s, struct sender *f)
{
    char desc[DESC_MAX];
    struct status st;
    size_t len = node_describe_to(&s->to, &f->writer, desc, sizeof(desc));

    if (node_open(&f->node, desc, len, &st) != ST_OK)
        fail_msg("%s", st.msg);
    f->next_id = 0;
    f->came = false;
}

/* ---- handoffs ---- */

static void handoff_draw(struct storm *s, struct handoff *h)
{
    h->n_pieces = 0;
    for (uint32_t i = 0; i < h->n_pages; i++) {
        uint32_t n = 1 + draw(s, PAGE_PIECES), room = s->page_bytes / n;

        for (uint32_t k = 0; k < n; k++) {
            uint32_t skip = draw(s, 64), bytes = draw(s, 4) == 0 ? draw(s, room - 64) : room - 64;

            h->pieces[h->n_pieces++] = (struct transfer_piece){
                .local_off = draw(s, SOURCE - room),
                .remote_off = (uint64_t)h->pages[i] * s->page_bytes + k * room + skip,
                .bytes = bytes,
                .group = i,
            };
        }
    }
}

static void handoff_put(struct storm *s, struct sender *f, struct handoff *h)
{
    struct status st;

    (void)s;
    h->id = f->next_id++;
    if (node_put(&f->node, h->id, h->pieces, h->n_pieces, h->n_pages, &st) != ST_OK)
        fail_msg("%s", st.msg);
}

/* Is page i of h to the last byte what its pieces say, with canaries between them? */
static void page_compare(struct storm *s, const struct handoff *h, uint32_t i)
{
    uint64_t first = (uint64_t)h->pages[i] * s->page_bytes;
    uint8_t *got = malloc(s->page_bytes), *want = malloc(s->page_bytes);

    memset(want, CANARY, s->page_bytes);
    for (size_t k = 0; k < h->n_pieces; k++)
        for (uint64_t b = 0; h->pieces[k].group == i && b < h->pieces[k].bytes; b++)
            want[h->pieces[k].remote_off - first + b] = node_byte(1000, h->pieces[k].local_off + b);
    node_read(&s->to, 0, first, s->page_bytes, got);
    if (memcmp(got, want, s->page_bytes) != 0)
        fail_msg("page %u holds wrong bytes", h->pages[i]);
    free(got);
    free(want);
}

static struct node_result timed_wait(struct storm *s, struct sender *f, struct handoff *h,
                                     uint32_t *crc)
{
    uint64_t start = clock_now_us(), us;
    struct node_result r = node_wait(&f->node, h->id, crc);

    us = clock_now_us() - start;
    if (us > s->longest_us)
        s->longest_us = us;
    assert_true(us < WAIT_MAX_S * 1000000ull);
    assert_int_equal(r.calls, 1);
    return r;
}

/* Verifies what came; a flipped bit that was asked for is answered with one resend. */
static void handoff_verify(struct storm *s, struct sender *f, struct handoff *h, uint32_t *crc)
{
    struct transfer_piece own[HANDOFF_PAGES * PAGE_PIECES];
    struct node_result r;

    for (size_t i = 0; i < h->n_pieces; i++) {
        own[i] = h->pieces[i];
        own[i].local_off = own[i].remote_off;
    }
    r = node_verify(&s->to, own, h->n_pieces, crc, h->n_pages);
    for (; r.status.code == ST_CORRUPT && f->flips > 0; f->flips--, s->n_corrupt++) {
        handoff_put(s, f, h);
        r = timed_wait(s, f, h, crc);
        assert_int_equal(r.status.code, ST_OK);
        r = node_verify(&s->to, own, h->n_pieces, crc, h->n_pages);
    }
    if (r.status.code != ST_OK)
        fail_msg("%s", r.status.msg);
    for (uint32_t i = 0; i < h->n_pages; i++)
        page_compare(s, h, i);
}

/* Waits for the end of h, whose peer lives and is connected: it is right, or was cancelled. */
static void handoff_settle(struct storm *s, struct sender *f, struct handoff *h)
{
    uint32_t crc[HANDOFF_PAGES];
    struct node_result r = timed_wait(s, f, h, crc);

    if (r.status.code == ST_OK) {
        f->came = true;
        handoff_verify(s, f, h, crc);
        s->n_ok++;
    } else if (h->cancelled && r.status.code == ST_CANCELLED) {
        s->n_cancelled++;
    } else {
        fail_msg("%s", r.status.msg);
    }
    handoff_pages_free(s, h); /* its sender has said that it stopped */
}

static void sender_settle(struct storm *s, struct sender *f)
{
    for (int i = 0; i < LIVE_MAX; i++)
        if (f->handoffs[i].live)
            handoff_settle(s, f, &f->handoffs[i]);
}

static void sender_reconnect(struct storm *s, struct sender *f)
{
    sender_settle(s, f);
    node_close(&f->node);
    node_revoke(&s->to, f->writer);
    connect_sender(s, f);
}

static void start_one(struct storm *s, struct sender *f)
{
    struct handoff *h = NULL;

    for (int i = 0; i < LIVE_MAX && h == NULL; i++)
        if (!f->handoffs[i].live)
            h = &f->handoffs[i];
    if (h == NULL) {
        h = &f->handoffs[draw(s, LIVE_MAX)];
        handoff_settle(s, f, h);
    }
    if (f->next_id >= ID_MAX)
        sender_reconnect(s, f);
    *h = (struct handoff){.n_pages = 1 + draw(s, HANDOFF_PAGES)};
    if (!pages_take(s, h->n_pages, h->pages))
        return;
    handoff_draw(s, h);
    if (draw(s, 25) == 0) {
        node_flips(&f->node, 1);
        f->flips++;
    }
    h->live = true;
    s->n_started++;
    handoff_put(s, f, h);
    if (draw(s, 6) == 0) {
        h->cancelled = true;
        node_cancel(&f->node, h->id);
    }
}

/* ---- what goes wrong ---- */

/* f's session is lost with handoffs under way: what is proven is free, the rest is doubtful. */
static void session_lost(struct storm *s, struct sender *f)
{
    bool proven = node_revoke(&s->to, f->writer);

    if (s->kind == TRANSFER_TCP && f->came)
        assert_true(proven);
    if (!proven && !f->frozen) { /* it has died, or hears that it is to stop */
        node_writer_wait(&s->to, f->writer, true);
        proven = true;
    }
    f->doubted = proven ? 0 : f->writer;
    for (int i = 0; i < LIVE_MAX; i++) {
        struct handoff *h = &f->handoffs[i];

        if (!h->live)
            continue;
        s->n_lost++;
        if (proven) {
            s->n_proofs++;
            handoff_pages_free(s, h);
            continue;
        }
        s->n_doubts++;
        for (uint32_t k = 0; k < h->n_pages; k++) {
            s->pages[h->pages[k]] = DOUBTFUL;
            f->doubtful[f->n_doubtful++] = h->pages[k];
        }
        h->live = false;
    }
}

/* f connects again. What was in doubt is so until its end is proven, which needs no word of f's. */
static void session_again(struct storm *s, struct sender *f)
{
    if (f->doubted != 0)
        node_writer_wait(&s->to, f->doubted, true);
    f->doubted = 0;
    for (uint32_t i = 0; i < f->n_doubtful; i++)
        page_free(s, f->doubtful[i]);
    f->n_doubtful = 0;
    connect_sender(s, f);
}

static void kill_sender(struct storm *s, struct sender *f)
{
    s->n_kills++;
    node_kill(&f->node);
    session_lost(s, f);
    f->node = node_of(s, false);
    f->flips = 0;
    session_again(s, f);
}

static void freeze_sender(struct storm *s, struct sender *f)
{
    s->n_freezes++;
    node_freeze(&f->node);
    f->frozen = true;
    session_lost(s, f);
}

/* Whatever it was doing fails or has long ended. Now and then it dies before it thaws. */
static void thaw_sender(struct storm *s, struct sender *f)
{
    f->frozen = false;
    if (draw(s, 4) == 0) {
        s->n_kills++;
        node_kill(&f->node);
        f->node = node_of(s, false);
        f->flips = 0;
        session_again(s, f);
        return;
    }
    node_thaw(&f->node);
    if (draw(s, 2) == 0 && f->doubted != 0) /* it stops because it is told to */
        node_writer_wait(&s->to, f->doubted, true);
    node_close(&f->node);
    node_flips(&f->node, -f->flips); /* what is armed might have been used up, unseen */
    f->flips = 0;
    session_again(s, f);
}

static void freeze_receiver_a_moment(struct storm *s)
{
    s->n_freezes++;
    node_freeze(&s->to);
    for (int i = 0; i < SENDERS; i++)
        for (int k = 0; k < LIVE_MAX && !s->senders[i].frozen; k++)
            if (s->senders[i].handoffs[k].live && draw(s, 3) == 0) {
                s->senders[i].handoffs[k].cancelled = true;
                node_cancel(&s->senders[i].node, s->senders[i].handoffs[k].id);
            }
    node_thaw(&s->to);
}

/* The receiver dies; another one with another geometry takes its place. Old names lead nowhere. */
static void restart_receiver(struct storm *s)
{
    char stale[DESC_MAX];
    size_t len = node_describe(&s->to, stale, sizeof(stale));
    struct status st;

    s->n_restarts++;
    node_kill(&s->to);
    for (int i = 0; i < SENDERS; i++) {
        struct sender *f = &s->senders[i];

        if (f->frozen)
            node_thaw(&f->node);
        f->frozen = false;
        node_close(&f->node); /* every put ends, once */
        for (int k = 0; k < LIVE_MAX; k++) {
            if (!f->handoffs[k].live)
                continue;
            assert_int_equal(node_peek(&f->node, f->handoffs[k].id).calls, 1);
            f->handoffs[k].live = false;
            s->n_lost++;
        }
        node_flips(&f->node, -f->flips);
        f->flips = 0;
        f->n_doubtful = 0;
        f->doubted = 0;
    }
    receiver_start(s);
    for (int i = 0; i < SENDERS; i++) {
        struct sender *f = &s->senders[i];
        struct transfer_piece piece = {.bytes = 4096};

        if (node_open(&f->node, stale, len, &st) == ST_OK) {
            assert_int_equal(node_put(&f->node, 0, &piece, 1, 1, &st), ST_OK);
            assert_int_not_equal(node_wait(&f->node, 0, NULL).status.code, ST_OK);
            node_close(&f->node);
        }
        connect_sender(s, f);
    }
    assert_int_equal(node_count_other(&s->to, 0, CANARY), 0);
}

/* The cable is pulled while handoffs are under way; both sides give up, and it comes back. */
static void cut_cable(struct storm *s)
{
    const struct network *n = s->net;

    s->n_cuts++;
    for (int i = 0; i < SENDERS; i++) /* room for one more each */
        if (!s->senders[i].frozen && s->senders[i].handoffs[0].live)
            handoff_settle(s, &s->senders[i], &s->senders[i].handoffs[0]);
    assert_true(network_shell("ip -n %s link set %s down", n->to_ns, n->to_if));
    for (int i = 0; i < SENDERS; i++) {
        struct sender *f = &s->senders[i];

        for (int k = 0; k < LIVE_MAX && !f->frozen; k++) {
            struct handoff *h = &f->handoffs[k];

            if (h->live || f->next_id >= ID_MAX)
                continue;
            h->n_pages = 1; /* what is posted now finds no cable */
            if (pages_take(s, 1, h->pages)) {
                handoff_draw(s, h);
                h->live = true;
                s->n_started++;
                handoff_put(s, f, h);
            }
        }
        for (int k = 0; k < LIVE_MAX && !f->frozen; k++)
            if (f->handoffs[k].live)
                timed_wait(s, f, &f->handoffs[k], NULL);
        if (!f->frozen)
            session_lost(s, f);
    }
    assert_true(network_shell("ip -n %s link set %s up", n->to_ns, n->to_if));
    assert_true(network_shell("ip -n %s neigh flush all", n->from_ns));
    for (int i = 0; i < SENDERS; i++)
        if (!s->senders[i].frozen) {
            node_close(&s->senders[i].node);
            node_flips(&s->senders[i].node, -s->senders[i].flips);
            s->senders[i].flips = 0;
            session_again(s, &s->senders[i]);
        }
}

static void change_weather(struct storm *s)
{
    static const char *const weather[] = {"",
                                          "delay 2ms 1ms",
                                          "loss 1%",
                                          "loss 3% delay 1ms",
                                          "rate 400mbit",
                                          "duplicate 2% reorder 10% delay 1ms",
                                          "flip 0.5%"};

    if (network_weather(weather[draw(s, sizeof(weather) / sizeof(weather[0]))]))
        s->n_weathers++;
}

static void step(struct storm *s)
{
    struct sender *f = &s->senders[draw(s, SENDERS)];
    uint32_t what = draw(s, 1000);

    if (f->frozen) {
        if (what < 300)
            thaw_sender(s, f);
    } else if (what < 12) {
        kill_sender(s, f);
    } else if (what < 30) {
        freeze_sender(s, f);
    } else if (what < 45) {
        freeze_receiver_a_moment(s);
    } else if (what < 50) {
        restart_receiver(s);
    } else if (what < 60) {
        sender_reconnect(s, f);
    } else if (what < 80 && s->net != NULL) {
        change_weather(s);
    } else if (what < 83 && s->net != NULL) {
        cut_cable(s);
    } else {
        start_one(s, f);
    }
}

static void end_all(struct storm *s)
{
    for (int i = 0; i < SENDERS; i++) {
        struct sender *f = &s->senders[i];

        if (f->frozen)
            thaw_sender(s, f);
        sender_settle(s, f);
        node_end(&f->node);
    }
    for (uint32_t i = 0; i < PAGES; i++)
        assert_int_equal(s->pages[i], FREE);
    assert_int_equal(node_count_other(&s->to, 0, CANARY), 0);
    node_end(&s->to);
}

static void storm(enum transfer_kind kind, const struct network *net, uint32_t few, uint32_t many)
{
    const char *seed = getenv("BATON_TEST_SEED");
    uint32_t n = getenv("BATON_TEST_FULL") != NULL ? many : few;
    struct storm s = {.kind = kind, .net = net};

    s.seed = seed != NULL ? strtoull(seed, NULL, 10) : 20263;
    receiver_start(&s);
    for (int i = 0; i < SENDERS; i++) {
        s.senders[i].node = node_of(&s, false);
        connect_sender(&s, &s.senders[i]);
    }
    while (s.n_started < n)
        step(&s);
    end_all(&s);
    printf("%u handoffs: %u right (%u after a flipped bit), %u cancelled, %u lost; %u kills, %u "
           "freezes, %u restarts, %u cuts, %u weathers; lost ones proven %u, in doubt %u; longest "
           "wait %llu ms\n",
           s.n_started, s.n_ok, s.n_corrupt, s.n_cancelled, s.n_lost, s.n_kills, s.n_freezes,
           s.n_restarts, s.n_cuts, s.n_weathers, s.n_proofs, s.n_doubts,
           (unsigned long long)(s.longest_us / 1000));
    assert_int_equal(s.n_ok + s.n_cancelled + s.n_lost, s.n_started);
}

static void a_storm_over_shared_memory_spoils_no_page(void **state)
{
    (void)state;
    storm(TRANSFER_SHM, NULL, 250, 4000);
}

static void a_storm_over_tcp_spoils_no_page(void **state)
{
    (void)state;
    storm(TRANSFER_TCP, NULL, 250, 4000);
}

static void a_storm_over_a_bad_network_spoils_no_page(void **state)
{
    (void)state;
    if (network_get()->from_ns[0] == '\0')
        skip();
    storm(TRANSFER_TCP, network_get(), 150, 2000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_storm_over_shared_memory_spoils_no_page),
        cmocka_unit_test(a_storm_over_tcp_spoils_no_page),
        cmocka_unit_test(a_storm_over_a_bad_network_spoils_no_page),
    };

    return cmocka_run_group_tests_name("transfer storm", tests, network_make_with_weather,
                                       network_drop);
}
