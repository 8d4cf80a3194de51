/* Seeded disorder: two senders write to one receiver, are cancelled, closed and killed at random.
 * Whatever was said to have arrived is there to the last byte; whatever else was written lies
 * inside what its put named; between the places nothing ever changes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "pair.h"

enum { SENDERS = 2, ROUNDS = 120, PLACE = 1 << 20, GAP = 4096, PIECES = 40 };

struct sender {
    struct node node;
    uint64_t place; /* of its puts in the receiver's slab 0 */
    uint64_t id;
};

static uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

/* Pieces of any length that lie in the sender's place, in order and apart. @return how many */
static size_t draw_pieces(const struct sender *s, uint64_t *seed, struct transfer_piece *pieces)
{
    size_t n = 1 + next_random(seed) % PIECES;

    for (size_t i = 0; i < n; i++) {
        uint64_t room = PLACE / n, bytes = next_random(seed) % (room - 64);

        pieces[i] = (struct transfer_piece){
            .local_off = next_random(seed) % (SLAB - PLACE),
            .remote_off = s->place + i * room + next_random(seed) % 64,
            .bytes = bytes,
            .group = (uint32_t)i,
        };
    }
    return n;
}

static void check_place(struct node *to, const struct sender *s,
                        const struct transfer_piece *pieces, size_t n, bool arrived)
{
    uint8_t *got = malloc(PLACE + 2 * GAP);
    uint8_t *named = calloc(1, PLACE + 2 * GAP);
    uint64_t first = s->place - GAP;

    node_read(to, 0, first, PLACE + 2 * GAP, got);
    for (size_t i = 0; i < n; i++)
        for (uint64_t k = 0; k < pieces[i].bytes; k++) {
            uint64_t at = pieces[i].remote_off - first + k;

            named[at] = 1;
            if (arrived && got[at] != node_byte(1000, pieces[i].local_off + k))
                fail_msg("piece %zu: byte %llu is wrong", i, (unsigned long long)k);
        }
    for (size_t at = 0; at < PLACE + 2 * GAP; at++)
        if (!named[at] && got[at] != CANARY)
            fail_msg("byte %zu: written, and nobody named it", at);
    free(got);
    free(named);
}

static void disorder(enum transfer_kind kind, uint64_t seed)
{
    struct node to = pair_receiver(kind, false);
    struct sender senders[SENDERS];
    int ended_well = 0;

    for (int i = 0; i < SENDERS; i++) {
        senders[i] =
            (struct sender){.node = pair_sender(kind), .place = GAP + (uint64_t)i * 4 * PLACE};
        pair_connect(&senders[i].node, &to);
    }
    for (int round = 0; round < ROUNDS; round++) {
        struct sender *s = &senders[next_random(&seed) % SENDERS];
        struct transfer_piece pieces[PIECES];
        size_t n = draw_pieces(s, &seed, pieces);
        uint64_t id = s->id++ % NODE_PUTS_MAX;
        uint32_t crc[PIECES], what = next_random(&seed) % 20;
        struct node_result r = {.status.code = ST_UNAVAILABLE};
        struct status st;

        node_fill_range(&to, 0, s->place - GAP, PLACE + 2 * GAP, CANARY);
        assert_int_equal(node_put(&s->node, id, pieces, n, (uint32_t)n, &st), ST_OK);
        if (what < 5)
            node_cancel(&s->node, id);
        if (what == 5 || id == NODE_PUTS_MAX - 1) {
            node_close(&s->node); /* the put has ended, one way or the other */
            r = node_peek(&s->node, id);
            assert_int_equal(r.calls, 1);
        } else if (what == 6) {
            node_kill(&s->node);
        } else {
            r = node_wait(&s->node, id, crc);
        }
        if (what >= 7 && id != NODE_PUTS_MAX - 1)
            assert_int_equal(r.status.code, ST_OK);
        if (what ==
            6) { /* its last bytes may be on their way: another one shows that they are read */
            s->node = pair_sender(kind);
            pair_connect(&s->node, &to);
            pair_check_small_put(&s->node, &to, 0);
            s->id = 1; /* an id is used once per connection */
        } else if (r.status.code == ST_OK && what != 5 && id != NODE_PUTS_MAX - 1) {
            struct transfer_piece own[PIECES];

            for (size_t i = 0; i < n; i++) {
                own[i] = pieces[i];
                own[i].local_off = pieces[i].remote_off;
            }
            assert_int_equal(node_verify(&to, own, n, crc, (uint32_t)n).status.code, ST_OK);
        }
        check_place(&to, s, pieces, n, r.status.code == ST_OK);
        ended_well += r.status.code == ST_OK;
        if (what == 5 || id == NODE_PUTS_MAX - 1) {
            pair_connect(&s->node, &to);
            s->id = 0;
        }
    }
    assert_true(ended_well > ROUNDS / 2);
    for (int i = 0; i < SENDERS; i++)
        node_end(&senders[i].node);
    node_end(&to);
}

static void disorder_over_shared_memory(void **state)
{
    (void)state;
    disorder(TRANSFER_SHM, 20261);
}

static void disorder_over_tcp(void **state)
{
    (void)state;
    disorder(TRANSFER_TCP, 20262);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(disorder_over_shared_memory),
        cmocka_unit_test(disorder_over_tcp),
    };

    return cmocka_run_group_tests_name("transfer chaos", tests, NULL, NULL);
}
