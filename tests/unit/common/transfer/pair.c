#include "pair.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

static struct node with_slabs(struct transfer_options opt, bool heap)
{
    struct node n = node_fork();
    struct status st;

    if (node_start(&n, &opt, &st) != ST_OK)
        fail_msg("%s", st.msg);
    node_slab(&n, 0, SLAB, heap);
    node_slab(&n, 1, SLAB / 8, heap);
    return n;
}

static struct node sender(struct transfer_options opt)
{
    struct node n = with_slabs(opt, false);

    node_fill(&n, 0, 1000, false);
    node_fill(&n, 1, 1001, false);
    return n;
}

struct node pair_sender(enum transfer_kind kind)
{
    return sender((struct transfer_options){.transport = kind});
}

struct node pair_receiver(enum transfer_kind kind, bool heap)
{
    struct node n = with_slabs((struct transfer_options){.transport = kind}, heap);

    node_fill(&n, 0, CANARY, true);
    node_fill(&n, 1, CANARY, true);
    return n;
}

void pair_connect(struct node *from, struct node *to)
{
    char desc[DESC_MAX];
    struct status st;
    size_t len = node_describe(to, desc, sizeof(desc));

    if (node_open(from, desc, len, &st) != ST_OK)
        fail_msg("%s", st.msg);
}

uint64_t pair_connect_as_writer(struct node *from, struct node *to)
{
    char desc[DESC_MAX];
    struct status st;
    uint64_t writer = 0;
    size_t len = node_describe_to(to, &writer, desc, sizeof(desc));

    if (node_open(from, desc, len, &st) != ST_OK)
        fail_msg("%s", st.msg);
    return writer;
}

struct pair pair_open_with(enum transfer_kind kind, bool to_heap)
{
    struct pair p = {pair_sender(kind), pair_receiver(kind, to_heap)};

    pair_connect(&p.from, &p.to);
    return p;
}

struct pair pair_open_limited(enum transfer_kind kind, uint64_t rate)
{
    struct transfer_options opt = {.transport = kind, .rate_limit = rate};
    struct pair p = {sender(opt), pair_receiver(kind, false)};

    pair_connect(&p.from, &p.to);
    return p;
}

struct pair pair_open(enum transfer_kind kind)
{
    return pair_open_with(kind, false);
}

void pair_check_small_put(struct node *from, struct node *to, uint64_t id)
{
    struct transfer_piece piece = {.slab = 1, .local_off = 50, .remote_off = 4000, .bytes = 100};
    struct node_result r;
    struct status st;
    uint8_t got[100];

    node_fill(to, 1, CANARY, true);
    assert_int_equal(node_put(from, id, &piece, 1, 1, &st), ST_OK);
    r = node_wait(from, id, NULL);
    if (r.status.code != ST_OK)
        fail_msg("%s", r.status.msg);
    node_read(to, 1, piece.remote_off, sizeof(got), got);
    for (size_t i = 0; i < sizeof(got); i++)
        assert_int_equal(got[i], node_byte(1001, piece.local_off + i));
    assert_true(node_count_other(to, 1, CANARY) <= sizeof(got));
}

void pair_endless_put(struct pair *p, uint64_t id)
{
    enum { AGAIN = 20000 };
    struct transfer_piece *pieces = calloc(AGAIN, sizeof(*pieces));
    struct status st;

    for (int i = 0; i < AGAIN; i++)
        pieces[i].bytes = SLAB;
    assert_int_equal(node_put(&p->from, id, pieces, AGAIN, 1, &st), ST_OK);
    free(pieces);
}

void pair_end(struct pair *p)
{
    node_end(&p->from);
    node_end(&p->to);
}
