#include "common/engine/engine.h"

#include <assert.h>
#include <stdlib.h>

#include "common/base/log.h"
#include "common/engine/engine_internal.h"

/* Longest-prefix-match looks at that many waiting sequences, and lets none be overtaken more often
 * than it has neighbours. */
enum { LPM_LOOK = 64 };

/* By priority, a sequence gains a level for each so many that came after it: none waits for ever.
 */
enum { PRIORITY_AGE = 256 };

/* ---- lists ---- */

/* By arrival; nearly always at the end. */
static void list_add(struct sequence_list *l, struct sequence *s)
{
    struct sequence *before = l->last;

    while (before != NULL && before->order > s->order)
        before = before->prev;
    s->prev = before;
    s->next = before != NULL ? before->next : l->first;
    *(before != NULL ? &before->next : &l->first) = s;
    *(s->next != NULL ? &s->next->prev : &l->last) = s;
    l->n++;
}

static void list_remove(struct sequence_list *l, struct sequence *s)
{
    *(s->prev != NULL ? &s->prev->next : &l->first) = s->next;
    *(s->next != NULL ? &s->next->prev : &l->last) = s->prev;
    s->next = s->prev = NULL;
    l->n--;
}

static void to_waiting(struct engine *e, struct sequence *s)
{
    list_remove(&e->active, s);
    s->state = SEQ_WAITING;
    s->n_drafts = 0;
    list_add(&e->waiting, s);
}

/* ---- states ---- */

/* Pages that the longest life of s takes must exist at all. */
static enum status_code check_fits(const struct engine *e, const struct sequence *s,
                                   struct status *st)
{
    uint32_t n = kv_pages_for(s->n_tokens);

    if (s->n_tokens > e->opt.context_length)
        return status_set(st, ST_INVALID, "%u tokens, the context length is %lld", s->n_tokens,
                          (long long)e->opt.context_length);
    if (n > slab_units(e->pages))
        return status_set(st, ST_INVALID,
                          "%u tokens need %u KV pages, this worker has %u: raise "
                          "--max-total-tokens",
                          s->n_tokens, n, slab_units(e->pages));
    for (uint32_t i = 0; i < s->n_tokens; i++)
        if (s->tokens[i] < 0 || s->tokens[i] >= e->vocab)
            return status_set(st, ST_INVALID, "token %u is %d, outside the vocabulary of %d", i,
                              s->tokens[i], e->vocab);
    return status_ok(st);
}

enum status_code engine_submit(struct engine *e, struct sequence *s, struct status *st)
{
    assert(s->state == SEQ_OUT);
    if (check_fits(e, s, st) != ST_OK)
        return st->code;
    s->order = ++e->next_order;
    s->state = SEQ_WAITING;
    s->draft_len = (uint32_t)e->opt.draft_tokens;
    list_add(&e->waiting, s);
    return status_ok(st);
}

void engine_run(struct engine *e, struct sequence *s, uint32_t n_computed)
{
    assert(s->state == SEQ_HELD && s->has_units && n_computed < s->n_tokens);
    s->state = SEQ_RUNNING;
    s->n_computed = n_computed;
    e->n_running++;
    if (n_computed > s->n_cached)
        units_arrived(e, s);
}

void engine_hold(struct engine *e, struct sequence *s)
{
    assert(s->state == SEQ_RUNNING);
    s->state = SEQ_HELD;
    e->n_running--;
}

void engine_disown(struct sequence *s)
{
    s->has_units = false;
    s->n_pages = s->n_hit_pages = 0;
    s->n_computed = s->n_cached = 0;
}

void engine_requeue(struct engine *e, struct sequence *s)
{
    assert(s->state == SEQ_HELD);
    units_give(e, s);
    to_waiting(e, s);
}

void engine_remove(struct engine *e, struct sequence *s)
{
    switch (s->state) {
    case SEQ_OUT:
        return;
    case SEQ_WAITING:
        list_remove(&e->waiting, s);
        break;
    case SEQ_RUNNING:
        e->n_running--;
        /* fall through */
    case SEQ_HELD:
        units_give(e, s);
        list_remove(&e->active, s);
        break;
    }
    s->state = SEQ_OUT;
}

void engine_retract_youngest(struct engine *e)
{
    struct sequence *s = e->active.last;

    while (s->state != SEQ_RUNNING)
        s = s->prev;
    log_info("%s: retracted at %u tokens: no free KV page", s->rid, s->n_tokens);
    e->stats.retractions++;
    e->n_running--;
    units_give(e, s);
    to_waiting(e, s);
    e->events.retracted(e->events.arg, s);
}

/* ---- admission ---- */

/* Pages of s that need not be computed. */
static uint32_t cached_pages(struct engine *e, const struct sequence *s)
{
    struct prefix_hit hit = {0};

    if (e->cache != NULL)
        prefix_cache_peek(e->cache, s->salt, s->tokens, s->n_tokens / KV_PAGE_TOKENS,
                          (s->n_tokens - 1) / KV_PAGE_TOKENS, &hit);
    return hit.n_state_pages;
}

/* Whether a prompt that computes now comes by a boundary that s could go on from: s had better wait
 * for it than compute the same again beside it. The other is asked to leave its state there. */
static bool better_later(struct engine *e, const struct sequence *s)
{
    uint32_t have;

    if (e->snapshots == NULL || !e->opt.snapshot_prompts || s->n_tokens <= KV_PAGE_TOKENS)
        return false;
    have = cached_pages(e, s);
    for (struct sequence *o = e->active.first; o != NULL; o = o->next) {
        uint32_t both = o->n_tokens < s->n_tokens ? o->n_tokens : s->n_tokens - 1;
        uint32_t i = 0;

        if (o->salt != s->salt || o->state != SEQ_RUNNING || o->n_computed >= o->n_prompt)
            continue;
        while (i < both && o->tokens[i] == s->tokens[i])
            i++;
        i = i / KV_PAGE_TOKENS * KV_PAGE_TOKENS;
        if (i <= have * KV_PAGE_TOKENS || i <= o->n_computed)
            continue;
        o->branch = i;
        return true;
    }
    return false;
}

static int64_t priority_now(const struct engine *e, const struct sequence *s)
{
    return s->priority + (int64_t)((e->next_order - s->order) / PRIORITY_AGE);
}

/* Who is next, by the policy. */
static struct sequence *candidate(struct engine *e)
{
    struct sequence *best = e->waiting.first;
    uint32_t best_pages = 0, looked = 0;

    if (e->opt.policy == SCHEDULE_FCFS || best == NULL)
        return best;
    if (e->opt.policy == SCHEDULE_PRIORITY) {
        for (struct sequence *s = best->next; s != NULL; s = s->next)
            if (priority_now(e, s) > priority_now(e, best))
                best = s;
        return best;
    }
    if (e->next_order - best->order > LPM_LOOK)
        return best; /* overtaken often enough */
    for (struct sequence *s = best; s != NULL && looked < LPM_LOOK; s = s->next, looked++) {
        uint32_t pages = cached_pages(e, s);

        if (pages > best_pages) {
            best_pages = pages;
            best = s;
        }
    }
    return best;
}

/* One page stays free for each running sequence to grow into: without that margin an admission
 * would retract somebody a few steps later. */
void engine_admit(struct engine *e)
{
    units_advance(e);
    while (e->active.n < (uint32_t)e->opt.max_running) {
        struct sequence *s = candidate(e);

        if (s == NULL || better_later(e, s) || !units_take(e, s, e->opt.grow ? e->n_running : 0))
            return; /* what comes after must not starve it */
        list_remove(&e->waiting, s);
        s->state = SEQ_HELD;
        list_add(&e->active, s);
        e->stats.prompt_tokens += s->n_tokens;
        e->stats.hit_tokens += s->n_cached;
        e->events.admitted(e->events.arg, s);
    }
}

/* ---- start and end ---- */

void engine_batch_bounds(const struct engine_options *o, int *tokens, int *seqs, int *logit_rows)
{
    int drafting = o->draft_max_batch < o->max_running ? o->draft_max_batch : o->max_running;
    int drafts = o->draft_tokens > 0 ? drafting * o->draft_tokens : 0;

    *seqs = o->max_running;
    *tokens = o->max_running + drafts + o->chunk_tokens;
    *logit_rows = o->max_running + drafts + SCORE_ROWS;
}

enum status_code engine_new(const struct engine_options *o, struct model *m,
                            const struct kv_memory *kv, struct slab *pages, struct slab *slots,
                            const struct engine_events *events, struct engine **out,
                            struct status *st)
{
    struct engine *e = calloc(1, sizeof(*e));

    if (e == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for an engine");
    e->opt = *o;
    e->events = *events;
    e->model = m;
    e->kv = *kv;
    e->geometry = model_get_geometry(m);
    e->vocab = model_get_config(m)->vocab_size;
    e->pages = pages;
    e->slots = slots;
    if (o->draft_tokens > SEQ_DRAFTS_MAX ||
        ((o->draft_tokens > 0 || o->keep_mtp) && !model_has_mtp(m)))
        status_set(st, ST_INVALID,
                   "speculation with %d draft tokens: at most %d, and the checkpoint %s an MTP "
                   "block",
                   o->draft_tokens, SEQ_DRAFTS_MAX, model_has_mtp(m) ? "has" : "does not have");
    else if (batch_init(e, st) == ST_OK)
        units_init(e, st);
    if (st->code != ST_OK)
        engine_free(e);
    else
        *out = e;
    return st->code;
}

void engine_free(struct engine *e)
{
    if (e == NULL)
        return;
    assert(e->waiting.n == 0 && e->active.n == 0);
    units_deinit(e);
    batch_deinit(e);
    free(e);
}

uint32_t engine_flush_cache(struct engine *e)
{
    return e->cache != NULL ? prefix_cache_flush(e->cache) : 0;
}

/* Tokens still to be computed for first tokens. */
static uint64_t waiting_tokens(const struct engine *e)
{
    uint64_t n = 0;

    for (const struct sequence *s = e->waiting.first; s != NULL; s = s->next)
        n += s->n_tokens;
    for (const struct sequence *s = e->active.first; s != NULL; s = s->next)
        n += s->n_tokens - s->n_computed;
    return n;
}

/* Of the pages taken, those that are not just cached; where sequences share pages, or use pinned
 * ones, a few more. */
static uint32_t pages_busy(const struct engine *e, uint32_t taken, uint32_t pinned)
{
    uint32_t held = slab_n_quarantined(e->pages) + pinned;

    for (const struct sequence *s = e->active.first; s != NULL; s = s->next)
        held += s->n_pages;
    return e->cache == NULL || held > taken ? taken : held;
}

void engine_get_stats(const struct engine *e, struct engine_stats *out)
{
    *out = e->stats;
    out->n_waiting = e->waiting.n;
    out->n_running = e->n_running;
    out->n_held = e->active.n - e->n_running;
    out->pages_free = slab_n_free(e->pages);
    out->pages_used = slab_units(e->pages) - out->pages_free;
    out->slots_used = slab_units(e->slots) - slab_n_free(e->slots);
    if (e->cache != NULL) {
        struct prefix_cache_stats cache;

        prefix_cache_get_stats(e->cache, &cache);
        out->pages_cached = cache.n_pages;
        out->pages_pinned = cache.pages_pinned;
        out->pins = cache.pins;
        out->pins_refused = cache.pins_refused;
    }
    out->pages_busy = pages_busy(e, out->pages_used, out->pages_pinned);
    out->snapshots =
        e->snapshots != NULL ? slab_units(e->snapshots) - slab_n_free(e->snapshots) : 0;
    out->waiting_tokens = waiting_tokens(e);
}
