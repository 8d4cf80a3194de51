#include "router/breaker.h"

bool breaker_counts(enum status_code code)
{
    return code == ST_UNAVAILABLE || code == ST_CORRUPT || code == ST_INTERNAL;
}

bool breaker_allows(const struct breaker *b)
{
    return b->state == BREAKER_CLOSED || (b->state == BREAKER_PROBING && !b->probe_out);
}

bool breaker_tick(struct breaker *b, uint64_t now_us)
{
    if (b->state != BREAKER_OPEN || now_us < b->until_us)
        return false;
    b->state = BREAKER_PROBING;
    b->probe_out = false;
    return true;
}

bool breaker_began(struct breaker *b)
{
    if (b->state != BREAKER_PROBING || b->probe_out)
        return false;
    return b->probe_out = true;
}

void breaker_good(struct breaker *b)
{
    b->state = BREAKER_CLOSED;
    b->fails = 0;
    b->wait_ms = 0;
    b->probe_out = false;
}

void breaker_bad(struct breaker *b, uint64_t now_us)
{
    b->fails++;
    if (b->state == BREAKER_OPEN || (b->state == BREAKER_CLOSED && b->fails < BREAKER_FAILS))
        return;
    b->wait_ms = b->wait_ms == 0 ? BREAKER_MIN_MS : b->wait_ms * 2;
    b->wait_ms = b->wait_ms < BREAKER_MAX_MS ? b->wait_ms : BREAKER_MAX_MS;
    b->state = BREAKER_OPEN;
    b->until_us = now_us + b->wait_ms * 1000ull;
    b->probe_out = false;
    b->opened_total++;
}

void breaker_unsaid(struct breaker *b, bool was_probe)
{
    if (was_probe && b->state == BREAKER_PROBING)
        b->probe_out = false; /* the next one finds out */
}

const char *breaker_state_name(enum breaker_state state)
{
    static const char *const names[] = {"closed", "open", "probing"};

    return names[state];
}
