/*
 * bench_trace: how much of a multi-turn agent trace the prefix cache of a prefill worker saves,
 * with the default number of states, against a cache of the same pages that has a state at every
 * boundary.
 *
 * The trace, made from a seed: agents with system prompts of 1,500 to 9,000 tokens that all their
 * sessions share; sessions of up to 30 turns, many at once; a turn adds a user's words or a tool's
 * result (30 to 3,000 tokens, mostly short) and the answer of the turn before (40 to 800 tokens,
 * generated elsewhere, so the prefill worker meets it in the next prompt); one turn in twelve goes
 * back to an earlier one and takes another way. What is done with a prompt is what common/engine
 * does: match, compute from the state, keep states where prompts end, part and sparsely.
 *
 * usage: bench_trace [--json] [--seed N]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/kv/geometry.h"
#include "common/kv/prefix_cache.h"

enum {
    AGENTS = 12,
    SESSIONS = 60, /* at once */
    REQUESTS = 12000,
    TURNS_MAX = 30,
    PROMPT_MAX = 65536,
    PAGES = 8192,          /* 2M tokens, 8 GB of Flash's KV */
    PAGE_BYTES = 899648,   /* V4-Flash */
    STATE_BYTES = 4154112, /* kv_snapshot_bytes() of V4-Flash */
    DEFAULT_SHARE = 4      /* states have a fourth of the pages' bytes: common/worker/worker.c */
};

static uint64_t random_state;

static uint32_t below(uint32_t n)
{
    random_state += 0x9E3779B97F4A7C15u;
    uint64_t z = random_state;

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    return (uint32_t)((z ^ (z >> 31)) >> 16) % n;
}

/* ---- the trace ---- */

struct session {
    int32_t tokens[PROMPT_MAX];
    uint32_t n, ends[TURNS_MAX]; /* prompts of its turns */
    uint32_t n_turns, last_turn;
};

static struct session sessions[SESSIONS];

static void say(struct session *s, uint32_t n)
{
    for (uint32_t i = 0; i < n && s->n < PROMPT_MAX; i++)
        s->tokens[s->n++] = (int32_t)below(120000) + 10;
}

static void begin(struct session *s)
{
    uint32_t agent = below(4) == 0 ? below(AGENTS) : below(3); /* three of them are popular */
    uint64_t keep = random_state;

    s->n = s->n_turns = 0;
    s->last_turn = 2 + below(TURNS_MAX - 2);
    random_state = agent * 7777 + 1;
    say(s, 1500 + below(7500));
    random_state = keep;
}

/* The next prompt of some session. */
static const struct session *next_prompt(void)
{
    struct session *s = &sessions[below(SESSIONS)];

    if (s->n == 0 || s->n_turns == s->last_turn || s->n + 4000 > PROMPT_MAX)
        begin(s);
    if (s->n_turns > 1 && below(12) == 0) { /* another way from an earlier turn */
        s->n_turns = 1 + below(s->n_turns - 1);
        s->n = s->ends[s->n_turns - 1];
    }
    if (s->n_turns > 0)
        say(s, 40 + below(760)); /* what the decode worker answered */
    say(s, below(8) == 0 ? 300 + below(2700) : 30 + below(270));
    s->ends[s->n_turns++] = s->n;
    return s;
}

/* ---- the cache, used as the engine uses it ---- */

struct result {
    uint64_t prompt_tokens, hit_tokens;
    struct prefix_cache_stats stats;
};

static void keep_state(struct prefix_cache *c, const struct session *s, const uint32_t *pages,
                       uint32_t n_pages)
{
    uint32_t unit;

    prefix_cache_insert(c, 0, s->tokens, pages, n_pages);
    prefix_cache_put_snapshot(c, 0, s->tokens, n_pages, &unit);
}

static void run_prompt(struct prefix_cache *c, struct slab *slab, const struct session *s,
                       bool every_boundary, struct result *out)
{
    static uint32_t pages[PROMPT_MAX / KV_PAGE_TOKENS + 1];
    uint32_t n_pages = kv_pages_for(s->n), branch;
    struct prefix_hit hit;
    struct status st;

    prefix_cache_match(c, 0, s->tokens, s->n / KV_PAGE_TOKENS, (s->n - 1) / KV_PAGE_TOKENS, pages,
                       &hit);
    branch = hit.n_pages;
    slab_give(slab, pages + hit.n_state_pages, hit.n_pages - hit.n_state_pages);
    n_pages -= hit.n_state_pages;
    if (slab_n_free(slab) < n_pages)
        prefix_cache_evict_pages(c, n_pages - slab_n_free(slab));
    if (slab_take(slab, n_pages, pages + hit.n_state_pages, &st) != ST_OK)
        abort();
    for (uint32_t i = hit.n_state_pages + 1; i <= s->n / KV_PAGE_TOKENS; i++)
        if (every_boundary || i == branch || prefix_snapshot_wanted(i * KV_PAGE_TOKENS, s->n))
            keep_state(c, s, pages, i);
    prefix_cache_insert(c, 0, s->tokens, pages, s->n / KV_PAGE_TOKENS);
    slab_give(slab, pages, kv_pages_for(s->n));
    out->prompt_tokens += s->n;
    out->hit_tokens += hit.n_state_pages * KV_PAGE_TOKENS;
}

static struct result run(uint64_t seed, uint32_t n_states, bool every_boundary)
{
    struct result r = {0};
    struct slab *pages, *states;
    struct prefix_cache *c;
    struct status st;

    if (slab_new("page", PAGES, &pages, &st) != ST_OK ||
        slab_new("state", n_states, &states, &st) != ST_OK ||
        prefix_cache_new(&(struct prefix_cache_options){.pages = pages, .snapshots = states}, &c,
                         &st) != ST_OK) {
        fprintf(stderr, "bench_trace: %s\n", st.msg);
        exit(1);
    }
    random_state = seed;
    memset(sessions, 0, sizeof(sessions));
    for (int i = 0; i < REQUESTS; i++)
        run_prompt(c, pages, next_prompt(), every_boundary, &r);
    prefix_cache_get_stats(c, &r.stats);
    prefix_cache_free(c);
    slab_free(pages);
    slab_free(states);
    return r;
}

int main(int argc, char **argv)
{
    uint32_t n_default = (uint32_t)((uint64_t)PAGES * PAGE_BYTES / DEFAULT_SHARE / STATE_BYTES) + 4;
    bool json = false;
    uint64_t seed = 1;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0)
            json = true;
        else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc)
            seed = strtoull(argv[++i], NULL, 10);
    }
    struct result bound = run(seed, PAGES, true);
    double best = (double)bound.hit_tokens / (double)bound.prompt_tokens;
    const uint32_t budgets[] = {n_default, n_default / 2, n_default / 4};

    for (int i = 0; i < 3; i++) {
        struct result r = run(seed, budgets[i], false);
        double share = (double)r.hit_tokens / (double)r.prompt_tokens;

        if (json)
            printf(
                "{\"name\": \"prefix_hits_%u_states\", \"value\": %.4f, \"unit\": \"share\", "
                "\"peer\": \"state at every boundary\", \"peer_value\": %.4f, \"ratio\": %.4f}\n",
                budgets[i], share, best, share / best);
        else
            printf(
                "%u states%s: %.2f %% of %llu prompt tokens hit, upper bound %.2f %%: %.4f of it "
                "(%llu states evicted)\n",
                budgets[i], i == 0 ? " (default)" : "", 100 * share,
                (unsigned long long)r.prompt_tokens, 100 * best, share / best,
                (unsigned long long)r.stats.snapshots_evicted);
    }
    return 0;
}
