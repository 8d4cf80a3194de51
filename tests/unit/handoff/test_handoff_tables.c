/* The tables of both sides: every pair is defined, and whatever the order in which messages,
 * transfers, failures and cancels come, no page is given back while it may be written or read, and
 * nobody waits for what never comes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "decode/receive_table.h"
#include "prefill/handoff_state.h"

static void every_pair_has_an_action(void **state)
{
    (void)state;
    for (int s = 0; s < REQ_N_STATES; s++)
        for (int e = 0; e < HE_N_EVENTS; e++) {
            int a = receive_action((enum request_state)s, (enum receive_event)e);

            assert_true(a > HA_UNDEFINED && a < HA_N_ACTIONS);
        }
    for (int s = 0; s < HANDOFF_N_STATES; s++)
        for (int e = 0; e < HANDOFF_N_EVENTS; e++) {
            int a = handoff_action((enum handoff_state)s, (enum handoff_event)e);

            assert_true(a > HANDOFF_UNDEFINED && a < HANDOFF_N_ACTIONS);
        }
}

static void no_message_of_a_peer_is_called_our_bug(void **state)
{
    static const enum receive_event to_decode[] = {HE_READY,   HE_WRITTEN, HE_DONE,    HE_STOPPED,
                                                   HE_REFUSED, HE_LOST,    HE_UNWANTED};
    static const enum handoff_event to_prefill[] = {HANDOFF_CANCEL, HANDOFF_RESEND, HANDOFF_RELEASE,
                                                    HANDOFF_FAILED};

    (void)state;
    for (int s = 0; s < REQ_N_STATES; s++)
        for (size_t e = 0; e < sizeof(to_decode) / sizeof(to_decode[0]); e++)
            assert_int_not_equal(receive_action((enum request_state)s, to_decode[e]), HA_BUG);
    for (int s = 0; s < HANDOFF_N_STATES; s++)
        for (size_t e = 0; e < sizeof(to_prefill) / sizeof(to_prefill[0]); e++)
            assert_int_not_equal(handoff_action((enum handoff_state)s, to_prefill[e]), HANDOFF_BUG);
}

/* ---- both sides and the wires between them, in every order ---- */

enum { WIRE = 4, WORLDS_MAX = 1 << 20 };
enum { SUBMIT = 1, CANCEL, RESEND, RELEASE }; /* decode to prefill */
enum { WRITTEN = 1, DONE, STOPPED, REFUSED }; /* prefill to decode */

struct world {
    uint8_t d, p; /* states; p is GONE before the submit */
    uint8_t puts; /* 0 or 1 */
    uint8_t told; /* the part that was written before the rest */
    uint8_t d_to_p[WIRE], p_to_d[WIRE];
    uint8_t verifying; /* comparisons that d waits for, or will; each holds its units itself */
    uint8_t differs;   /* one of them did */
    uint8_t resent, cut, units_ours, twice;
};

static struct world *worlds;
static size_t n_worlds;

static void say(uint8_t *wire, int what)
{
    int i = 0;

    while (i < WIRE && wire[i] != 0)
        i++;
    assert_true(i < WIRE);
    wire[i] = (uint8_t)what;
}

static int hear(uint8_t *wire)
{
    int what = wire[0];

    memmove(wire, wire + 1, WIRE - 1);
    wire[WIRE - 1] = 0;
    return what;
}

/* The units are given to others, or run: nobody may write them any more. */
static void units_go(struct world *w)
{
    /* A cut ends the prefill side's transfers by proof or quarantine; one that was asked twice
     * writes pages twice, of the worker that asked. */
    bool excused = w->cut || w->twice;

    if (!excused && (w->puts > 0 || (w->p != HANDOFF_SENT && w->p != HANDOFF_GONE)))
        fail_msg("units of decode state %d go while prefill is in %d with %d puts; resent %d", w->d,
                 w->p, w->puts, w->resent);
    w->units_ours = 0;
    w->verifying = w->differs = 0; /* what comes of comparisons is nobody's any more */
}

static void tell_prefill(struct world *w, int what)
{
    if (!w->cut)
        say(w->d_to_p, what);
}

static void decode_on(struct world *w, enum receive_event e)
{
    switch (receive_action((enum request_state)w->d, e)) {
    case HA_SUBMIT:
        tell_prefill(w, SUBMIT);
        w->d = REQ_RECEIVING;
        break;
    case HA_VERIFY_PART:
        w->verifying++;
        break;
    case HA_VERIFY:
        w->verifying++;
        w->d = REQ_VERIFYING;
        break;
    case HA_NEXT: /* to another one, which may write the same units */
    case HA_FAIL:
    case HA_FREE:
        units_go(w);
        w->d = REQ_DONE;
        break;
    case HA_RUN:
        assert_int_equal(w->verifying, 0);
        assert_int_equal(w->differs, 0);
        tell_prefill(w, RELEASE);
        units_go(w);
        w->d = REQ_RUNNING;
        break;
    case HA_RESEND:
        assert_int_equal(w->verifying, 0);
        w->differs = 0;
        if (w->resent || w->cut) {
            decode_on(w, HE_UNWANTED);
            break;
        }
        w->resent = 1;
        w->d = REQ_RECEIVING;
        tell_prefill(w, RESEND);
        break;
    case HA_REQUEUE: /* into quarantine */
    case HA_QUARANTINE:
        w->units_ours = w->verifying = w->differs = 0;
        w->d = REQ_DONE;
        break;
    case HA_CANCEL:
        w->d = REQ_DRAINING;
        tell_prefill(w, CANCEL);
        break;
    case HA_RELEASE:
        tell_prefill(w, RELEASE);
        units_go(w);
        w->d = REQ_DONE;
        break;
    case HA_STOPPED:
        units_go(w);
        w->d = REQ_DONE;
        break;
    case HA_IGNORE:
        break;
    default:
        fail_msg("decode: event %d in state %d", e, w->d);
    }
}

/* One comparison has ended. It is of this attempt: the code tells others by their number. */
static void decode_compared(struct world *w, bool well)
{
    w->verifying--;
    w->differs |= !well;
    if (w->d == REQ_VERIFYING && w->verifying == 0)
        decode_on(w, w->differs ? HE_DIFFERS : HE_VERIFIED);
}

static void prefill_on(struct world *w, enum handoff_event e, int stopped)
{
    switch (handoff_action((enum handoff_state)w->p, e)) {
    case HANDOFF_COMPUTE:
        w->p = HANDOFF_COMPUTING;
        break;
    case HANDOFF_SEND_AGAIN:
    case HANDOFF_FLUSH:
        w->p = HANDOFF_FLUSHING;
        w->puts = 1;
        break;
    case HANDOFF_TELL_WRITTEN: /* once a world, so that they are finite */
        if (!w->cut && !w->told)
            say(w->p_to_d, WRITTEN);
        w->told = 1;
        break;
    case HANDOFF_TELL_DONE:
        w->p = HANDOFF_SENT;
        if (!w->cut)
            say(w->p_to_d, DONE);
        break;
    case HANDOFF_STOP:
        w->p = HANDOFF_STOPPING;
        if (w->puts > 0)
            break;
        /* fall through */
    case HANDOFF_TELL_STOPPED:
        if (!w->cut)
            say(w->p_to_d, stopped);
        /* fall through */
    case HANDOFF_END:
        assert_int_equal(w->puts, 0);
        w->p = HANDOFF_GONE;
        break;
    case HANDOFF_IGNORE:
        break;
    default:
        fail_msg("prefill: event %d in state %d", e, w->p);
    }
}

static void prefill_hears(struct world *w)
{
    int what = hear(w->d_to_p);

    if (what == SUBMIT)
        w->p = HANDOFF_WAITING;
    else if (w->p == HANDOFF_GONE && (what == CANCEL || what == RESEND))
        say(w->p_to_d, STOPPED); /* over: says so */
    else
        prefill_on(w,
                   what == CANCEL   ? HANDOFF_CANCEL
                   : what == RESEND ? HANDOFF_RESEND
                                    : HANDOFF_RELEASE,
                   STOPPED);
}

static void put_ends(struct world *w, bool well)
{
    w->puts = 0;
    if (!well)
        prefill_on(w, HANDOFF_FAILED, STOPPED);
    if (well || w->p == HANDOFF_STOPPING)
        prefill_on(w, HANDOFF_PUTS_ENDED, STOPPED);
}

static void cut(struct world *w)
{
    w->cut = 1;
    memset(w->d_to_p, 0, WIRE);
    memset(w->p_to_d, 0, WIRE);
    prefill_on(w, HANDOFF_FAILED, STOPPED);
    decode_on(w, HE_LOST);
}

/* What can happen next; the first ones happen by themselves, the rest may never. */
enum {
    GETS_READY,
    PREFILL_HEARS,
    DECODE_HEARS,
    ADMITTED,
    COMPUTED,
    PUT_WELL,
    VERIFIED,
    N_SURE,
    PUT_STARTS = N_SURE,
    PUT_FAILS,
    STEP_FAILS,
    REFUSES,
    DIFFERS,
    UNWANTED,
    RESEND_TWICE,
    CUT,
    N_MOVES
};

static bool can(const struct world *w, int move)
{
    bool computing = w->p == HANDOFF_COMPUTING, waiting = w->p == HANDOFF_WAITING;

    switch (move) {
    case GETS_READY:
        return w->d == REQ_ASKING && !w->cut;
    case PREFILL_HEARS:
        return w->d_to_p[0] != 0;
    case DECODE_HEARS:
        return w->p_to_d[0] != 0;
    case ADMITTED:
        return waiting;
    case COMPUTED:
        return computing && w->puts == 0;
    case PUT_STARTS:
        return computing && w->puts == 0;
    case PUT_WELL:
    case PUT_FAILS:
        return w->puts > 0;
    case VERIFIED:
    case DIFFERS:
        return w->verifying;
    case STEP_FAILS:
        return computing || waiting;
    case REFUSES:
        return waiting;
    case UNWANTED:
        return w->d != REQ_DONE && w->d != REQ_RUNNING;
    case RESEND_TWICE: /* a decode worker that errs: it hurts nobody's pages but its own */
        return !w->twice && w->d == REQ_RECEIVING && w->resent && !w->cut && w->d_to_p[2] == 0;
    default:
        return !w->cut;
    }
}

static void make(struct world *w, int move)
{
    static const enum receive_event heard[] = {
        [WRITTEN] = HE_WRITTEN, [DONE] = HE_DONE, [STOPPED] = HE_STOPPED, [REFUSED] = HE_REFUSED};

    if (move == GETS_READY)
        decode_on(w, HE_READY);
    else if (move == PREFILL_HEARS)
        prefill_hears(w);
    else if (move == DECODE_HEARS)
        decode_on(w, heard[hear(w->p_to_d)]);
    else if (move == ADMITTED)
        prefill_on(w, HANDOFF_ADMITTED, STOPPED);
    else if (move == COMPUTED)
        prefill_on(w, HANDOFF_COMPUTED, STOPPED);
    else if (move == PUT_STARTS)
        w->puts = 1;
    else if (move == PUT_WELL || move == PUT_FAILS)
        put_ends(w, move == PUT_WELL);
    else if (move == STEP_FAILS || move == REFUSES)
        prefill_on(w, HANDOFF_FAILED, move == REFUSES ? REFUSED : STOPPED);
    else if (move == VERIFIED || move == DIFFERS)
        decode_compared(w, move == VERIFIED);
    else if (move == UNWANTED)
        decode_on(w, HE_UNWANTED);
    else if (move == CUT)
        cut(w);
    else {
        w->twice = 1;
        say(w->d_to_p, RESEND);
    }
}

static void reach(const struct world *w)
{
    for (size_t i = 0; i < n_worlds; i++)
        if (memcmp(&worlds[i], w, sizeof(*w)) == 0)
            return;
    assert_true(n_worlds < WORLDS_MAX);
    worlds[n_worlds++] = *w;
}

static void in_every_order_pages_are_safe_and_nobody_waits_for_ever(void **state)
{
    struct world start = {.d = REQ_ASKING, .p = HANDOFF_GONE, .units_ours = 1};

    (void)state;
    worlds = malloc(WORLDS_MAX * sizeof(*worlds));
    n_worlds = 0;
    reach(&start);
    for (size_t at = 0; at < n_worlds; at++) {
        bool ends = true;

        for (int move = 0; move < N_MOVES; move++) {
            struct world w = worlds[at];

            if (!can(&w, move))
                continue;
            ends &= move >= N_SURE;
            make(&w, move);
            reach(&w);
        }
        /* Nothing more comes by itself: all must be over, on both sides. */
        if (ends && !worlds[at].cut) {
            assert_true(worlds[at].d == REQ_DONE || worlds[at].d == REQ_RUNNING);
            if (!worlds[at].twice)
                assert_true(worlds[at].p == HANDOFF_GONE);
        }
        if (ends && worlds[at].cut)
            assert_true(worlds[at].p == HANDOFF_GONE && worlds[at].d != REQ_DRAINING);
    }
    printf("%zu worlds\n", n_worlds);
    free(worlds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_pair_has_an_action),
        cmocka_unit_test(no_message_of_a_peer_is_called_our_bug),
        cmocka_unit_test(in_every_order_pages_are_safe_and_nobody_waits_for_ever),
    };

    return cmocka_run_group_tests_name("handoff tables", tests, NULL, NULL);
}
