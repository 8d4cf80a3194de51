/*
 * policy_load: choices that look at no prompt.
 */
#include "router/policy/policy_internal.h"

enum { TRIES = 8 };

uint32_t policy_round_robin(struct policy *p, const struct policy_request *r)
{
    for (uint32_t i = 1; i <= p->n_workers; i++) {
        uint32_t worker = (p->turn + i) % p->n_workers;

        if (policy_fits(p, r, worker)) {
            p->turn = worker;
            return worker;
        }
    }
    return POLICY_NONE;
}

uint32_t policy_random(struct policy *p, const struct policy_request *r)
{
    uint32_t start;

    for (int i = 0; i < TRIES; i++) {
        uint32_t worker = p->dense[policy_draw(p) % p->n_dense];

        if (policy_fits(p, r, worker))
            return worker;
    }
    start = (uint32_t)(policy_draw(p) % p->n_dense);
    for (uint32_t i = 0; i < p->n_dense; i++)
        if (policy_fits(p, r, p->dense[(start + i) % p->n_dense]))
            return p->dense[(start + i) % p->n_dense];
    return POLICY_NONE;
}

static bool less_loaded(const struct policy *p, uint32_t a, uint32_t b)
{
    struct load_key ka = {policy_wait_s(p, a), p->workers[a].n_given},
                    kb = {policy_wait_s(p, b), p->workers[b].n_given};

    return load_key_less(ka, kb);
}

uint32_t policy_power_of_two(struct policy *p, const struct policy_request *r)
{
    uint32_t a = policy_random(p, r), b = a;

    for (int i = 0; i < TRIES && b == a && p->n_dense > 1; i++)
        b = policy_random(p, r);
    return a != POLICY_NONE && b != POLICY_NONE && less_loaded(p, b, a) ? b : a;
}

uint32_t policy_least_load(struct policy *p, const struct policy_request *r)
{
    uint32_t least[LOAD_HEAP_LEAST_MAX], best = POLICY_NONE,
                                         n = load_heap_least(&p->heap, LOAD_HEAP_LEAST_MAX, least);

    for (uint32_t i = 0; i < n; i++)
        if (policy_fits(p, r, least[i]))
            return least[i];
    /* All of those failed it. */
    for (uint32_t i = 0; i < p->n_dense; i++)
        if (policy_fits(p, r, p->dense[i]) &&
            (best == POLICY_NONE || less_loaded(p, p->dense[i], best)))
            best = p->dense[i];
    return best;
}
