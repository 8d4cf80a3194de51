#include "router/policy/policy_internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/kv/block_hash.h"

enum {
    EXPECTED_BYTES_MAX = 16 << 20,
    SWEEP_TABLES = 8, /* of 1024, each tick: half a millisecond at 10 M pages */
    WORKERS_MIN = 64,
    AHEAD = 8 /* pages whose entries are fetched while others are looked at */
};

/* Until something is measured: a prefill of 10,000 tokens/s, a handoff of 1 M tokens/s. */
static const double PREFILL_TOKEN_S = 1e-4, HANDOFF_TOKEN_S = 1e-6;

/* What a decode worker's requests cost one more, in seconds: each running one makes its steps
 * longer, each waiting one stands for a place that must first come free; and KV that does not fit
 * waits for others to end. Only their relation to each other and to token_s matters. */
static const double RUNNING_S = 0.002, WAITING_S = 0.05, SHORT_TOKEN_S = 1e-4;

static const double LEARN = 0.1, /* share of a new measurement */
    UNLIKE = 1.5; /* a worker so much slower or faster than the mean is taken as such */

static const char *const names[POLICY_N_KINDS] = {
    "round_robin", "random",      "power_of_two", "least_load",
    "cache_aware", "prefix_hash", "consistent",   "kv_exact",
};

enum policy_kind policy_kind_of(const char *name)
{
    int kind = 0;

    while (kind < POLICY_N_KINDS && strcmp(names[kind], name) != 0)
        kind++;
    return (enum policy_kind)kind;
}

const char *policy_kind_name(enum policy_kind kind)
{
    return names[kind];
}

enum policy_kind policy_kind(const struct policy *p)
{
    return p->config.kind;
}

bool policy_wants_pages(const struct policy *p)
{
    return p->config.kind == POLICY_KV_EXACT;
}

uint64_t policy_draw(struct policy *p)
{
    uint64_t z = p->random += UINT64_C(0x9e3779b97f4a7c15); /* splitmix64 */

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

bool policy_fits(const struct policy *p, const struct policy_request *r, uint32_t worker)
{
    if (worker >= p->n_workers || !p->workers[worker].eligible)
        return false;
    for (uint32_t i = 0; i < r->n_avoid; i++)
        if (r->avoid[i] == worker)
            return false;
    return true;
}

/* ---- load ------------------------------------------------------------------------------------ */

double policy_token_s(const struct policy *p, uint32_t worker)
{
    double mean = p->token_s > 0      ? p->token_s
                  : p->config.prefill ? PREFILL_TOKEN_S
                                      : HANDOFF_TOKEN_S,
           own = p->workers[worker].token_s;

    /* Small differences are noise; following them would send all idle traffic to one worker. */
    return own > 0 && (own > mean * UNLIKE || own * UNLIKE < mean) ? own : mean;
}

double policy_wait_s(const struct policy *p, uint32_t worker)
{
    const struct policy_worker *w = &p->workers[worker];
    double s = (double)(w->own_queued + w->other_queued) * policy_token_s(p, worker);

    if (!p->config.prefill) {
        s += (w->own_running + w->other_running) * RUNNING_S + w->waiting * WAITING_S;
        if (w->total_tokens > 0 && w->free_tokens < w->total_tokens / 10)
            s += (double)(w->total_tokens / 10 - w->free_tokens) * SHORT_TOKEN_S;
    }
    return s;
}

double policy_load_seconds(const struct policy *p, uint32_t worker)
{
    return worker < p->n_workers && p->workers[worker].joined ? policy_wait_s(p, worker) : 0;
}

void policy_reorder(struct policy *p, uint32_t worker)
{
    struct load_key key = {policy_wait_s(p, worker), p->workers[worker].n_given};

    if (p->workers[worker].eligible)
        load_heap_set(&p->heap, worker, key);
}

void policy_report(struct policy *p, uint32_t worker, const struct policy_load *load)
{
    struct policy_worker *w = &p->workers[worker];

    if (worker >= p->n_workers || !w->joined)
        return;
    /* Ours are in its figures too, also those that have ended on the report's way; what is left
     * came by other routers. */
    w->other_running = load->running + load->waiting > w->peak_running
                           ? load->running + load->waiting - w->peak_running
                           : 0;
    w->other_queued =
        load->queued_tokens > w->peak_queued ? load->queued_tokens - w->peak_queued : 0;
    w->peak_running = w->own_running;
    w->peak_queued = w->own_queued;
    w->waiting = load->waiting;
    w->free_tokens = load->free_tokens;
    w->total_tokens = load->total_tokens;
    w->reported = true;
    policy_reorder(p, worker);
}

void policy_measure(struct policy *p, uint32_t worker, uint64_t tokens, double seconds)
{
    struct policy_worker *w = &p->workers[worker];
    double s;

    if (worker >= p->n_workers || !w->joined || tokens == 0 || !(seconds > 0))
        return;
    s = seconds / (double)tokens;
    w->token_s = w->token_s > 0 ? w->token_s + LEARN * (s - w->token_s) : s;
    p->token_s = p->token_s > 0 ? p->token_s + LEARN * (s - p->token_s) : s;
}

/* ---- who is there ---------------------------------------------------------------------------- */

static enum status_code make_room(struct policy *p, uint32_t worker, struct status *st)
{
    uint32_t n = p->n_workers < WORKERS_MIN ? WORKERS_MIN : p->n_workers;
    struct policy_worker *workers;
    uint32_t *dense;

    if (worker < p->n_workers)
        return status_ok(st);
    while (n <= worker)
        n *= 2;
    workers = realloc(p->workers, n * sizeof(*workers));
    p->workers = workers == NULL ? p->workers : workers;
    dense = realloc(p->dense, n * sizeof(*dense));
    p->dense = dense == NULL ? p->dense : dense;
    if (workers == NULL || dense == NULL || !load_heap_reserve(&p->heap, n))
        return status_set(st, ST_EXHAUSTED, "no memory for %u workers", n);
    memset(workers + p->n_workers, 0, (n - p->n_workers) * sizeof(*workers));
    p->n_workers = n;
    return status_ok(st);
}

static bool uses_ring(const struct policy *p)
{
    return p->config.kind == POLICY_CONSISTENT || p->config.kind == POLICY_PREFIX_HASH;
}

static void take_holder(struct kv_index *ix, uint16_t *by, uint32_t worker, uint32_t *holder)
{
    *holder = ix == NULL ? KV_INDEX_NO_HOLDER : kv_index_holder_new(ix);
    if (*holder != KV_INDEX_NO_HOLDER)
        by[*holder] = (uint16_t)worker;
}

enum status_code policy_join(struct policy *p, uint32_t worker, const char *address,
                             struct status *st)
{
    struct policy_worker *w;

    if (worker >= POLICY_WORKERS_MAX)
        return status_set(st, ST_EXHAUSTED, "more than %d workers", POLICY_WORKERS_MAX);
    if (make_room(p, worker, st) != ST_OK)
        return st->code;
    w = &p->workers[worker];
    assert(!w->joined);
    *w = (struct policy_worker){
        .joined = true, .holder = KV_INDEX_NO_HOLDER, .expecting = KV_INDEX_NO_HOLDER};
    if (uses_ring(p) && !ring_add(&p->ring, worker, address)) {
        w->joined = false;
        return status_set(st, ST_EXHAUSTED, "no memory for another worker");
    }
    take_holder(p->told, p->told_by, worker, &w->holder);
    take_holder(p->expected, p->expected_by, worker, &w->expecting);
    return status_ok(st);
}

static void drop_holder(struct kv_index *ix, uint32_t *holder)
{
    if (*holder != KV_INDEX_NO_HOLDER)
        kv_index_holder_drop(ix, *holder);
    *holder = KV_INDEX_NO_HOLDER;
}

void policy_leave(struct policy *p, uint32_t worker)
{
    struct policy_worker *w = &p->workers[worker];

    if (worker >= p->n_workers || !w->joined)
        return;
    policy_set_eligible(p, worker, false);
    ring_remove(&p->ring, worker);
    drop_holder(p->told, &w->holder);
    drop_holder(p->expected, &w->expecting);
    *w = (struct policy_worker){.holder = KV_INDEX_NO_HOLDER, .expecting = KV_INDEX_NO_HOLDER};
}

void policy_set_eligible(struct policy *p, uint32_t worker, bool eligible)
{
    struct policy_worker *w = &p->workers[worker];

    if (worker >= p->n_workers || !w->joined || w->eligible == eligible)
        return;
    w->eligible = eligible;
    if (eligible) {
        w->dense_at = p->n_dense;
        p->dense[p->n_dense++] = worker;
        policy_reorder(p, worker);
    } else {
        uint32_t last = p->dense[--p->n_dense];

        p->dense[w->dense_at] = last;
        p->workers[last].dense_at = w->dense_at;
        load_heap_remove(&p->heap, worker);
    }
}

/* ---- one request ----------------------------------------------------------------------------- */

bool policy_pick(struct policy *p, const struct policy_request *r, struct policy_choice *out)
{
    static uint32_t (*const simple[POLICY_N_KINDS])(struct policy *,
                                                    const struct policy_request *) = {
        [POLICY_ROUND_ROBIN] = policy_round_robin,   [POLICY_RANDOM] = policy_random,
        [POLICY_POWER_OF_TWO] = policy_power_of_two, [POLICY_LEAST_LOAD] = policy_least_load,
        [POLICY_PREFIX_HASH] = policy_prefix_hash,   [POLICY_CONSISTENT] = policy_consistent,
    };

    *out = (struct policy_choice){POLICY_NONE, 0};
    if (p->n_dense == 0)
        return false;
    if (p->config.kind == POLICY_KV_EXACT)
        return policy_exact(p, r, out);
    if (p->config.kind == POLICY_CACHE_AWARE)
        return policy_cache_aware(p, r, out);
    out->worker = simple[p->config.kind](p, r);
    return out->worker != POLICY_NONE;
}

uint32_t policy_spares(struct policy *p, const struct policy_request *r, uint32_t chosen,
                       uint32_t k, uint32_t *out)
{
    uint32_t least[LOAD_HEAP_LEAST_MAX], n = 0,
                                         m = load_heap_least(&p->heap, LOAD_HEAP_LEAST_MAX, least);

    for (uint32_t i = 0; i < m && n < k; i++)
        if (least[i] != chosen && policy_fits(p, r, least[i]))
            out[n++] = least[i];
    return n;
}

/* The pages that it will hold once this prompt is there, so that the next request of the same
 * prefix need not wait for the worker to tell. */
static void expect_pages(struct policy *p, const struct policy_request *r,
                         const struct policy_choice *c, struct policy_ticket *t)
{
    uint32_t holder = p->workers[c->worker].expecting;
    size_t from = c->hit_tokens / PREFIX_BLOCK_TOKENS;

    if (p->config.kind != POLICY_KV_EXACT || holder == KV_INDEX_NO_HOLDER || from >= r->n_pages)
        return;
    t->pages = malloc((r->n_pages - from) * sizeof(*t->pages));
    if (t->pages == NULL)
        return; /* a hint less */
    for (size_t i = from; i < r->n_pages; i++) {
        if (i + AHEAD < r->n_pages)
            kv_index_prefetch(p->expected, r->pages[i + AHEAD]);
        t->pages[t->n_pages++] = r->pages[i];
        kv_index_insert(p->expected, r->pages[i], holder);
    }
}

/* Whether the worker is still the one that the ticket was given for. */
static bool is_of(const struct policy_worker *w, const struct policy_ticket *t)
{
    return w->joined && w->serial == t->serial;
}

static void forget_expected(struct policy *p, struct policy_ticket *t)
{
    const struct policy_worker *w = &p->workers[t->worker];

    if (is_of(w, t) && w->expecting != KV_INDEX_NO_HOLDER)
        for (uint32_t i = 0; i < t->n_pages; i++) {
            if (i + AHEAD < t->n_pages)
                kv_index_prefetch(p->expected, t->pages[i + AHEAD]);
            kv_index_remove(p->expected, t->pages[i], w->expecting);
        }
    free(t->pages);
    t->pages = NULL;
    t->n_pages = 0;
}

void policy_began(struct policy *p, const struct policy_request *r,
                  const struct policy_choice *choice, struct policy_ticket *out)
{
    struct policy_worker *w = &p->workers[choice->worker];

    *out = (struct policy_ticket){
        .open = true, .queued = true, .worker = choice->worker, .serial = w->serial};
    out->tokens = r->n_ids > choice->hit_tokens ? (uint32_t)(r->n_ids - choice->hit_tokens) : 0;
    w->own_running++;
    w->own_queued += out->tokens;
    w->peak_running = w->own_running > w->peak_running ? w->own_running : w->peak_running;
    w->peak_queued = w->own_queued > w->peak_queued ? w->own_queued : w->peak_queued;
    w->n_given++;
    expect_pages(p, r, choice, out);
    policy_reorder(p, choice->worker);
}

void policy_served(struct policy *p, struct policy_ticket *t)
{
    struct policy_worker *w = &p->workers[t->worker];

    if (!t->open || !t->queued)
        return;
    t->queued = false;
    forget_expected(p, t);
    if (!is_of(w, t))
        return;
    w->own_queued -= t->tokens < w->own_queued ? t->tokens : w->own_queued;
    policy_reorder(p, t->worker);
}

void policy_ended(struct policy *p, struct policy_ticket *t)
{
    struct policy_worker *w = &p->workers[t->worker];

    if (!t->open)
        return;
    policy_served(p, t);
    t->open = false;
    if (!is_of(w, t))
        return;
    w->own_running -= w->own_running > 0;
    policy_reorder(p, t->worker);
}

/* ---- pages ----------------------------------------------------------------------------------- */

/* A state's name in the same index. */
static uint64_t state_of(uint64_t page)
{
    return ~page == 0 ? 1 : ~page;
}

void policy_pages_reset(struct policy *p, uint32_t worker, bool needs_state)
{
    struct policy_worker *w = &p->workers[worker];

    if (p->told == NULL || worker >= p->n_workers || !w->joined)
        return;
    w->needs_state = needs_state;
    p->needs_state |= needs_state;
    drop_holder(p->told, &w->holder);
    take_holder(p->told, p->told_by, worker, &w->holder);
}

void policy_page(struct policy *p, uint32_t worker, enum policy_page_event what, uint64_t page)
{
    struct policy_worker *w = &p->workers[worker];

    if (p->told == NULL || worker >= p->n_workers || !w->joined || w->holder == KV_INDEX_NO_HOLDER)
        return;
    switch (what) {
    case POLICY_PAGE_IN:
        kv_index_insert(p->told, page, w->holder);
        break;
    case POLICY_PAGE_OUT:
        kv_index_remove(p->told, page, w->holder);
        break;
    case POLICY_STATE_IN:
        kv_index_insert(p->told, state_of(page), w->holder);
        break;
    case POLICY_STATE_OUT:
        kv_index_remove(p->told, state_of(page), w->holder);
        break;
    }
}

void policy_tick(struct policy *p)
{
    if (p->told != NULL)
        kv_index_sweep(p->told, SWEEP_TABLES);
    if (p->expected != NULL)
        kv_index_sweep(p->expected, SWEEP_TABLES);
}

/* ---- life ------------------------------------------------------------------------------------ */

enum status_code policy_new(const struct policy_config *config, struct policy **out,
                            struct status *st)
{
    struct policy *p = calloc(1, sizeof(*p));

    if (p == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for a policy");
    p->config = *config;
    p->random = config->seed;
    p->told_by = calloc(2 * KV_INDEX_HOLDERS_MAX, sizeof(*p->told_by));
    if (p->told_by == NULL) {
        policy_free(p);
        return status_set(st, ST_EXHAUSTED, "no memory for a policy");
    }
    p->expected_by = p->told_by + KV_INDEX_HOLDERS_MAX;
    status_ok(st);
    if (config->kind == POLICY_KV_EXACT &&
        kv_index_new(config->index_bytes_max, config->seed, &p->told, st) == ST_OK)
        kv_index_new(EXPECTED_BYTES_MAX, config->seed, &p->expected, st);
    if (config->kind == POLICY_CACHE_AWARE)
        kv_index_new(config->tree_bytes_max, config->seed, &p->expected, st);
    if (st->code != ST_OK) {
        policy_free(p);
        return st->code;
    }
    *out = p;
    return ST_OK;
}

void policy_free(struct policy *p)
{
    if (p == NULL)
        return;
    kv_index_free(p->told);
    kv_index_free(p->expected);
    ring_deinit(&p->ring);
    load_heap_deinit(&p->heap);
    free(p->workers);
    free(p->dense);
    free(p->told_by);
    free(p);
}

uint32_t policy_others(const struct policy *p, uint32_t worker)
{
    return worker < p->n_workers ? p->workers[worker].other_running : 0;
}

void policy_stats(const struct policy *p, struct policy_stats *out)
{
    struct kv_index_stats s = {0};

    *out = (struct policy_stats){0};
    if (p->told != NULL) {
        kv_index_stats(p->told, &s);
        out->index_bytes = s.bytes;
        out->index_pages = s.n_pages;
        out->index_dropped_total = s.dropped_total;
    }
    if (p->expected != NULL) {
        kv_index_stats(p->expected, &s);
        out->tree_bytes = s.bytes;
    }
}
