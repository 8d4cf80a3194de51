/* Bytes that arrive, where they should and nowhere else, over every transport of one machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/crc32c.h"
#include "node.h"

enum { SLAB = 24 << 20, CANARY = 0xA5, DESC_MAX = 1 << 16 };

struct pair {
    struct node from, to;
};

static struct pair pair_open(enum transfer_kind kind)
{
    struct transfer_options opt = {.transport = kind};
    struct pair p = {node_fork(), node_fork()};
    char desc[DESC_MAX];
    struct status st;
    size_t len;

    assert_int_equal(node_start(&p.from, &opt, &st), ST_OK);
    assert_int_equal(node_start(&p.to, &opt, &st), ST_OK);
    node_slab(&p.from, 0, SLAB, false);
    node_slab(&p.from, 1, SLAB / 8, false);
    node_slab(&p.to, 0, SLAB, false);
    node_slab(&p.to, 1, SLAB / 8, false);
    node_fill(&p.from, 0, 1000, false);
    node_fill(&p.from, 1, 1001, false);
    node_fill(&p.to, 0, CANARY, true);
    node_fill(&p.to, 1, CANARY, true);
    len = node_describe(&p.to, desc, sizeof(desc));
    if (node_open(&p.from, desc, len, &st) != ST_OK)
        fail_msg("%s", st.msg);
    return p;
}

static void pair_end(struct pair *p)
{
    node_end(&p->from);
    node_end(&p->to);
}

/* Scatters n pieces over slab 0 of both sides: unit i of one goes to a shuffled unit of the other;
 * lengths vary, so that every unit ends in canaries. */
static struct transfer_piece *scatter(size_t n, uint32_t n_groups)
{
    struct transfer_piece *pieces = calloc(n, sizeof(*pieces));
    uint64_t unit = SLAB / n;

    for (size_t i = 0; i < n; i++) {
        size_t j = (i * 7919 + 13) % n; /* a permutation: 7919 is prime and does not divide n */

        pieces[i] = (struct transfer_piece){
            .local_off = i * unit + i % 7,
            .remote_off = j * unit + i % 3,
            .bytes = 1 + (i * 2654435761u) % (unit - 8),
            .group = (uint32_t)(i * n_groups / n),
        };
    }
    return pieces;
}

static void check_arrived(struct pair *p, const struct transfer_piece *pieces, size_t n)
{
    uint8_t *want = malloc(SLAB), *got = malloc(SLAB);

    memset(want, CANARY, SLAB);
    for (size_t i = 0; i < n; i++)
        for (uint64_t k = 0; k < pieces[i].bytes; k++)
            want[pieces[i].remote_off + k] = node_byte(1000, pieces[i].local_off + k);
    node_read(&p->to, 0, 0, SLAB, got);
    for (size_t i = 0; i < SLAB; i++)
        if (want[i] != got[i])
            fail_msg("byte %zu: %02x arrived, %02x expected", i, got[i], want[i]);
    free(want);
    free(got);
}

static void check_groups(const struct transfer_piece *pieces, size_t n, const uint32_t *crc,
                         uint32_t n_groups)
{
    uint32_t *want = calloc(n_groups, sizeof(*want));

    for (size_t i = 0; i < n; i++) {
        uint8_t *bytes = malloc(pieces[i].bytes);

        for (uint64_t k = 0; k < pieces[i].bytes; k++)
            bytes[k] = node_byte(1000, pieces[i].local_off + k);
        want[pieces[i].group] = crc32c(want[pieces[i].group], bytes, pieces[i].bytes);
        free(bytes);
    }
    assert_memory_equal(want, crc, n_groups * sizeof(*want));
    free(want);
}

/* The pieces as the receiver verifies them: its own offsets. */
static struct transfer_piece *as_received(const struct transfer_piece *pieces, size_t n)
{
    struct transfer_piece *own = malloc(n * sizeof(*own));

    for (size_t i = 0; i < n; i++) {
        own[i] = pieces[i];
        own[i].local_off = pieces[i].remote_off;
    }
    return own;
}

static void scattered_pieces_arrive(enum transfer_kind kind, const char *transport)
{
    enum { N = 5000, GROUPS = 96 };
    struct pair p = pair_open(kind);
    struct transfer_piece *pieces = scatter(N, GROUPS), *own = as_received(pieces, N);
    struct node_result r;
    uint32_t crc[GROUPS];
    char name[128];
    struct status st;

    assert_int_equal(node_put(&p.from, 1, pieces, N, GROUPS, &st), ST_OK);
    r = node_wait(&p.from, 1, crc);
    assert_int_equal(r.status.code, ST_OK);
    assert_int_equal(r.calls, 1);
    assert_int_equal(r.n_groups, GROUPS);
    check_arrived(&p, pieces, N);
    check_groups(pieces, N, crc, GROUPS);
    assert_int_equal(node_verify(&p.to, own, N, crc, GROUPS).status.code, ST_OK);
    node_transport(&p.from, name, sizeof(name));
    if (strncmp(name, transport, strlen(transport)) != 0)
        fail_msg("transport is '%s', expected %s", name, transport);
    free(pieces);
    free(own);
    pair_end(&p);
}

static void scattered_pieces_arrive_over_shared_memory(void **state)
{
    (void)state;
    scattered_pieces_arrive(TRANSFER_SHM, "shm (");
}

static void scattered_pieces_arrive_over_tcp(void **state)
{
    (void)state;
    scattered_pieces_arrive(TRANSFER_TCP, "tcp (");
}

static void auto_takes_shared_memory_on_one_machine(void **state)
{
    (void)state;
    scattered_pieces_arrive(TRANSFER_AUTO, "shm (");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scattered_pieces_arrive_over_shared_memory),
        cmocka_unit_test(scattered_pieces_arrive_over_tcp),
        cmocka_unit_test(auto_takes_shared_memory_on_one_machine),
    };

    return cmocka_run_group_tests_name("transfer put", tests, NULL, NULL);
}
