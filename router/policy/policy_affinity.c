/*
 * policy_affinity: choices that keep like requests together by what the router itself knows.
 */
#include "common/base/hash.h"
#include "router/policy/policy_internal.h"

enum {
    PREFIX_TOKENS = 256, /* that prefix_hash looks at */
    BLOCK_TOKENS = 64,   /* of cache_aware's tree */
    BLOCKS_MAX = 4096,   /* of a prompt that it remembers */
    HOLDERS_SEEN = 8,    /* of a block that many got */
    BUSIER = 32          /* requests more than the least loaded, and */
};

static const double BUSIER_RATIO = 1.5, /* so many times more: affinity gives way */
    BOUND = 1.25,                       /* prefix_hash: of the mean */
    MATCH_MIN = 0.3;                    /* share of the prompt that is worth following */

struct fitting {
    const struct policy *p;
    const struct policy_request *r;
    double running_max;
};

static uint32_t running(const struct policy *p, uint32_t worker)
{
    return p->workers[worker].own_running + p->workers[worker].other_running +
           p->workers[worker].waiting;
}

static bool fits(void *arg, uint32_t worker)
{
    struct fitting *f = arg;

    return policy_fits(f->p, f->r, worker) && running(f->p, worker) + 1 <= f->running_max;
}

uint32_t policy_consistent(struct policy *p, const struct policy_request *r)
{
    struct fitting f = {p, r, 1e18};

    if (r->key_len == 0)
        return policy_least_load(p, r);
    return ring_find(&p->ring, ring_hash(r->key, r->key_len), fits, &f);
}

uint32_t policy_prefix_hash(struct policy *p, const struct policy_request *r)
{
    size_t n = r->n_ids < PREFIX_TOKENS ? r->n_ids : PREFIX_TOKENS;
    uint64_t key = ring_hash(r->ids, n * sizeof(r->ids[0]));
    struct fitting f = {p, r, 0};
    uint32_t worker;
    uint64_t sum = 0;
    /* The mean of a sample: a sum over all would cost with their number. */
    uint32_t sampled = p->n_dense < 64 ? p->n_dense : 64;

    for (uint32_t i = 0; i < sampled; i++)
        sum += running(p, p->dense[p->n_dense == sampled ? i : policy_draw(p) % p->n_dense]);
    f.running_max = BOUND * ((double)sum / sampled + 1) + 1;
    worker = ring_find(&p->ring, key, fits, &f);
    if (worker != POLICY_NONE)
        return worker;
    f.running_max = 1e18;
    return ring_find(&p->ring, key, fits, &f);
}

/* ---- cache_aware ----------------------------------------------------------------------------- */

/* Names the prompt's blocks. @return how many */
static size_t name_blocks(const struct policy_request *r, uint64_t *out)
{
    size_t n = r->n_ids / BLOCK_TOKENS;
    uint64_t h = 0;

    n = n < BLOCKS_MAX ? n : BLOCKS_MAX;
    for (size_t i = 0; i < n; i++) {
        h = hash_bytes(h ^ UINT64_C(0x3c6ef372fe94f82b), (const char *)(r->ids + i * BLOCK_TOKENS),
                       BLOCK_TOKENS * sizeof(r->ids[0]));
        out[i] = h;
    }
    return n;
}

/* The least loaded of some of those who got this block. */
static uint32_t best_holder(struct policy *p, const struct policy_request *r, uint64_t block)
{
    const uint16_t *holders;
    size_t n = kv_index_find(p->expected, block, &holders), start = policy_draw(p);
    uint32_t best = POLICY_NONE;

    for (size_t i = 0; i < n && i < HOLDERS_SEEN; i++) {
        uint16_t h = holders[(start + i) % n];
        uint32_t w = p->expected_by[h];

        if (kv_index_holder_lives(p->expected, h) && policy_fits(p, r, w) &&
            (best == POLICY_NONE || policy_wait_s(p, w) < policy_wait_s(p, best)))
            best = w;
    }
    return best;
}

static bool far_busier(struct policy *p, uint32_t worker, uint32_t than)
{
    uint32_t a = running(p, worker), b = running(p, than);

    return a > b + BUSIER && a > BUSIER_RATIO * b;
}

bool policy_cache_aware(struct policy *p, const struct policy_request *r, struct policy_choice *out)
{
    uint64_t blocks[BLOCKS_MAX];
    size_t n = name_blocks(r, blocks), lo = 0, hi = n;
    uint32_t least = policy_least_load(p, r), holder = POLICY_NONE;

    if (least == POLICY_NONE)
        return false;
    while (lo < hi) { /* the deepest block that somebody got: a prefix's blocks come together */
        size_t mid = lo + (hi - lo + 1) / 2;
        uint32_t w = best_holder(p, r, blocks[mid - 1]);

        if (w == POLICY_NONE) {
            hi = mid - 1;
        } else {
            lo = mid;
            holder = w;
        }
    }
    out->worker = least;
    if (lo > n * MATCH_MIN && holder != POLICY_NONE && !far_busier(p, holder, least)) {
        out->worker = holder;
        out->hit_tokens = (uint32_t)(lo * BLOCK_TOKENS);
    }
    for (size_t i = out->hit_tokens / BLOCK_TOKENS; i < n; i++)
        kv_index_insert(p->expected, blocks[i], p->workers[out->worker].expecting);
    return true;
}
