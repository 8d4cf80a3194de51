/*
 * workers: who there is, and who gets a request.
 */
#include "router/workers.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/kv/block_hash.h"
#include "router/workers_internal.h"

enum { TICK_MS = 50 };

const char *worker_state_name(enum worker_state state)
{
    static const char *const names[] = {"down", "opening", "ready"};

    return names[state];
}

const char *worker_role_name(enum worker_role role)
{
    return role == WORKER_PREFILL ? "prefill" : "decode";
}

/* ---- who there is ---------------------------------------------------------------------------- */

size_t workers_count(const struct workers *ws, enum worker_role role)
{
    return ws->n[role];
}

size_t workers_ready(const struct workers *ws, enum worker_role role)
{
    size_t n = 0;

    for (size_t i = 0; i < ws->n[role]; i++)
        n += ws->list[role][i]->state == WORKER_READY;
    return n;
}

struct worker *workers_at(struct workers *ws, enum worker_role role, size_t at)
{
    return ws->list[role][at];
}

uint64_t workers_context_length(const struct workers *ws)
{
    return ws->context_length;
}

static void settle_context(struct workers *ws)
{
    uint64_t least = 0;

    for (size_t i = 0; i < ws->n[WORKER_DECODE]; i++) {
        const struct worker *w = ws->list[WORKER_DECODE][i];

        if (w->state == WORKER_READY && w->context_length > 0 &&
            (least == 0 || w->context_length < least))
            least = w->context_length;
    }
    ws->context_length = least;
}

/* What ready decode workers run at once, and a little more so that none waits for the next request;
 * less what other routers have there. */
static void settle_room(struct workers *ws)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < ws->n[WORKER_DECODE]; i++) {
        const struct worker *w = ws->list[WORKER_DECODE][i];
        const struct worker_report *r = &w->report;
        uint64_t cap = r->max_running + r->max_running / 8 + 1u,
                 others = policy_others(ws->policy[WORKER_DECODE], w->idx);

        if (w->state != WORKER_READY)
            continue;
        if (r->max_running == 0) { /* it does not say */
            ws->room = UINT64_MAX;
            return;
        }
        sum += cap > others ? cap - others : 0;
    }
    ws->room = sum > 0 ? sum : UINT64_MAX; /* nobody there: say so, do not wait */
}

void workers_settle(struct workers *ws)
{
    settle_context(ws);
    settle_room(ws);
}

uint64_t workers_room(const struct workers *ws)
{
    return ws->room;
}

const struct policy *workers_policy(const struct workers *ws, enum worker_role role)
{
    return ws->policy[role];
}

bool worker_usable(const struct worker *w)
{
    return w->state == WORKER_READY && !w->draining && breaker_allows(&w->breaker);
}

void worker_refresh(struct worker *w)
{
    if (!w->removed)
        policy_set_eligible(w->workers->policy[w->role], w->idx, worker_usable(w));
}

/* ---- coming and going ------------------------------------------------------------------------ */

static void worker_free(struct worker *w)
{
    if (w->timer != NULL)
        event_free(w->timer);
    if (w->watch_timer != NULL)
        event_free(w->watch_timer);
    buf_deinit(&w->unsent);
    if (w->entry != NULL)
        registry_unref(w->workers->config.registry, w->entry);
    free(w);
}

static bool make_room(struct workers *ws, enum worker_role role)
{
    size_t cap = ws->cap[role] == 0 ? 16 : ws->cap[role] * 2;
    struct worker **list, **by_idx;

    if (ws->n[role] < ws->cap[role])
        return true;
    list = realloc(ws->list[role], cap * sizeof(struct worker *));
    ws->list[role] = list == NULL ? ws->list[role] : list;
    by_idx = realloc(ws->by_idx[role], cap * sizeof(struct worker *));
    ws->by_idx[role] = by_idx == NULL ? ws->by_idx[role] : by_idx;
    if (list == NULL || by_idx == NULL)
        return false;
    memset(by_idx + ws->cap[role], 0, (cap - ws->cap[role]) * sizeof(struct worker *));
    ws->cap[role] = cap;
    return true;
}

static enum status_code add(struct workers *ws, struct registry_entry *e, struct status *st)
{
    enum worker_role role = e->role;
    struct worker *w = calloc(1, sizeof(*w));

    if (w == NULL || !make_room(ws, role)) {
        free(w);
        return status_set(st, ST_EXHAUSTED, "no memory for worker %s", e->address);
    }
    while (ws->by_idx[role][w->idx] != NULL) /* as many numbers as room in the list: one is free */
        w->idx++;
    w->workers = ws;
    w->entry = e;
    registry_ref(ws->config.registry, e);
    w->role = role;
    w->client = e->client;
    w->address = e->address;
    w->since_us = clock_now_us();
    w->timer = evtimer_new(ws->base, worker_on_timer, w);
    w->watch_timer = evtimer_new(ws->base, worker_on_watch_timer, w);
    if (w->timer == NULL || w->watch_timer == NULL) {
        worker_free(w);
        return status_set(st, ST_EXHAUSTED, "no memory for a timer");
    }
    if (policy_join(ws->policy[role], w->idx, w->address, st) != ST_OK) {
        worker_free(w);
        return st->code;
    }
    ws->by_idx[role][w->idx] = w;
    ws->list[role][ws->n[role]++] = w;
    worker_open(w);
    return status_ok(st);
}

/* Out of sight at once; freed when its requests are over. */
static void begin_remove(struct workers *ws, struct worker *w)
{
    size_t at = 0;

    while (ws->list[w->role][at] != w)
        at++;
    ws->list[w->role][at] = ws->list[w->role][--ws->n[w->role]];
    policy_leave(ws->policy[w->role], w->idx);
    ws->by_idx[w->role][w->idx] = NULL;
    w->removed = w->draining = true;
    w->next_removed = ws->removed;
    ws->removed = w;
}

static void end_removed(struct workers *ws)
{
    static const struct status why = {ST_CANCELLED, "removed"};
    struct worker **at = &ws->removed, *w;

    workers_flush(ws);
    while ((w = *at) != NULL) {
        if (w->n_running > 0) {
            at = &w->next_removed;
            continue;
        }
        *at = w->next_removed;
        log_info("%s %s is removed", worker_role_name(w->role), w->address);
        worker_forget(&w->watch, &why);
        worker_forget(&w->link, &why);
        worker_free(w);
    }
}

static struct worker *find(struct workers *ws, const struct registry_entry *e)
{
    for (size_t i = 0; i < ws->n[e->role]; i++)
        if (ws->list[e->role][i]->entry == e)
            return ws->list[e->role][i];
    return NULL;
}

static void change(struct workers *ws, const struct msg_worker *m)
{
    struct worker *w = find(ws, m->entry);
    struct status st;

    if (m->change == WORKER_ADD) {
        if (w == NULL && !ws->stopping && add(ws, m->entry, &st) != ST_OK)
            log_error("%s: %s", m->entry->address, st.msg);
        return;
    }
    if (w == NULL)
        return;
    log_info("%s %s: %s", worker_role_name(w->role), w->address,
             m->change == WORKER_DRAIN     ? "takes no more requests"
             : m->change == WORKER_UNDRAIN ? "takes requests again"
                                           : "will be removed");
    w->draining = m->change != WORKER_UNDRAIN;
    worker_refresh(w);
    if (m->change == WORKER_REMOVE)
        begin_remove(ws, w);
}

void workers_handle(struct workers *ws, struct msg *m)
{
    if (m->type == RM_WORKER)
        change(ws, (struct msg_worker *)m);
    else if (m->type == RM_SESSION_DATA || m->type == RM_SESSION_CLOSED)
        worker_session_message(ws, m);
}

static void on_flush(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    workers_flush(arg);
}

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
    struct workers *ws = arg;
    uint64_t now = clock_now_us();
    struct status st;

    (void)fd, (void)what;
    for (int role = 0; role < 2; role++) {
        for (size_t i = 0; i < ws->n[role]; i++) {
            struct worker *w = ws->list[role][i];

            if (breaker_tick(&w->breaker, now))
                worker_refresh(w);
            if (worker_stalled(w, now, &st))
                worker_down(w, &st);
        }
        policy_tick(ws->policy[role]);
    }
    end_removed(ws);
    workers_settle(ws);
}

/* ---- choosing -------------------------------------------------------------------------------- */

/* Names the whole pages of a prompt in ws->pages; fewer when nobody wants them or without memory.
 */
static void name_pages(struct workers *ws, const struct workers_request *r)
{
    size_t n = r->n_ids / PREFIX_BLOCK_TOKENS;
    uint64_t h = 0;

    ws->n_pages = 0;
    if (!policy_wants_pages(ws->policy[WORKER_PREFILL]) &&
        !policy_wants_pages(ws->policy[WORKER_DECODE]))
        return;
    if (n > ws->cap_pages) {
        uint64_t *more = realloc(ws->pages, n * sizeof(*more));

        if (more == NULL)
            return;
        ws->pages = more;
        ws->cap_pages = n;
    }
    for (size_t i = 0; i < n; i++)
        ws->pages[i] = h = prefix_block_hash(h, r->salt, r->ids + i * PREFIX_BLOCK_TOKENS);
    ws->n_pages = n;
}

static bool avoided(const struct workers_request *r, uint32_t idx)
{
    for (uint32_t i = 0; i < r->n_avoid; i++)
        if (r->avoid[i] == idx)
            return true;
    return false;
}

/* Nobody is usable: one whose breaker is open is better than none. */
static struct worker *last_resort(struct workers *ws, const struct workers_request *r)
{
    size_t n = ws->n[WORKER_DECODE];

    for (size_t i = 0; i < n; i++) {
        struct worker *w = ws->list[WORKER_DECODE][(ws->turn + i) % n];

        if (w->state == WORKER_READY && !w->draining && !avoided(r, w->idx)) {
            ws->turn++;
            return w;
        }
    }
    return NULL;
}

static void choose_prefill(struct workers *ws, const struct policy_request *pr,
                           struct workers_choice *out)
{
    struct policy *p = ws->policy[WORKER_PREFILL];
    uint32_t spares[WORKERS_PREFILL_CHOICES];
    size_t n = ws->n[WORKER_PREFILL], n_spares;
    struct policy_request any = *pr;

    any.n_avoid = 0;

    if (policy_pick(p, pr, &out->prefill_choice) || policy_pick(p, &any, &out->prefill_choice)) {
        out->prefill_worker = ws->by_idx[WORKER_PREFILL][out->prefill_choice.worker];
        out->prefill[out->n_prefill++] = (char *)out->prefill_worker->address;
        n_spares =
            policy_spares(p, pr, out->prefill_choice.worker, WORKERS_PREFILL_CHOICES - 1, spares);
        for (size_t i = 0; i < n_spares; i++)
            out->prefill[out->n_prefill++] = (char *)ws->by_idx[WORKER_PREFILL][spares[i]]->address;
    }
    /* Those that are not usable now may be when the decode worker comes to them. */
    for (size_t i = 0; i < n && out->n_prefill < WORKERS_PREFILL_CHOICES; i++) {
        struct worker *w = ws->list[WORKER_PREFILL][i];

        if (!worker_usable(w) && !w->draining)
            out->prefill[out->n_prefill++] = (char *)w->address;
    }
}

bool workers_choose(struct workers *ws, const struct workers_request *r, struct workers_choice *out)
{
    struct policy_request pr = {
        .n_ids = r->n_ids,
        .ids = r->ids,
        .key_len = r->key_len,
        .key = r->key,
        .n_avoid = r->n_avoid,
        .avoid = r->avoid,
    };

    *out = (struct workers_choice){0};
    name_pages(ws, r);
    pr.n_pages = ws->n_pages;
    pr.pages = ws->pages;
    if (policy_pick(ws->policy[WORKER_DECODE], &pr, &out->decode_choice))
        out->decode = ws->by_idx[WORKER_DECODE][out->decode_choice.worker];
    else
        out->decode = last_resort(ws, r);
    if (out->decode == NULL)
        return false;
    out->decode_choice.worker = out->decode->idx;
    pr.n_avoid = r->n_avoid_prefill;
    pr.avoid = r->avoid_prefill;
    choose_prefill(ws, &pr, out);
    return true;
}

void workers_began(struct workers *ws, const struct workers_request *r,
                   const struct workers_choice *c, struct workers_ticket *out)
{
    struct policy_request pr = {.n_ids = r->n_ids, .ids = r->ids};

    pr.n_pages = ws->n_pages;
    pr.pages = ws->pages;
    *out = (struct workers_ticket){
        .decode = c->decode, .prefill = c->prefill_worker, .n_ids = (uint32_t)r->n_ids};
    out->probe = breaker_began(&c->decode->breaker);
    if (out->probe)
        worker_refresh(c->decode);
    c->decode->n_running++;
    c->decode->n_submitted++;
    policy_began(ws->policy[WORKER_DECODE], &pr, &c->decode_choice, &out->on_decode);
    if (c->prefill_worker == NULL)
        return;
    c->prefill_worker->n_running++;
    c->prefill_worker->n_submitted++;
    (void)breaker_began(&c->prefill_worker->breaker);
    worker_refresh(c->prefill_worker);
    policy_began(ws->policy[WORKER_PREFILL], &pr, &c->prefill_choice, &out->on_prefill);
}

/* The prefill worker has no more to do with it. */
static void end_prefill(struct workers *ws, struct workers_ticket *t)
{
    if (t->prefill == NULL)
        return;
    policy_ended(ws->policy[WORKER_PREFILL], &t->on_prefill);
    t->prefill->n_running--;
    breaker_unsaid(&t->prefill->breaker, true);
    worker_refresh(t->prefill);
    t->prefill = NULL;
}

static struct worker *by_address(struct workers *ws, const struct worker *hint, const char *address)
{
    if (hint != NULL && strcmp(hint->address, address) == 0)
        return (struct worker *)hint;
    for (size_t i = 0; i < ws->n[WORKER_PREFILL]; i++)
        if (strcmp(ws->list[WORKER_PREFILL][i]->address, address) == 0)
            return ws->list[WORKER_PREFILL][i];
    return NULL;
}

static void failed(struct worker *w, const struct status *why)
{
    bool was = breaker_allows(&w->breaker);

    w->n_failed++;
    w->last_error = *why;
    breaker_bad(&w->breaker, clock_now_us());
    if (was && !breaker_allows(&w->breaker))
        log_warn("%s %s fails requests: it gets none for %u ms: %s", worker_role_name(w->role),
                 w->address, w->breaker.wait_ms, why->msg);
    worker_refresh(w);
}

/* Who really computed the prompt, and how fast; the chosen one failed if it was another. */
static void measure(struct workers *ws, const struct workers_ticket *t,
                    const Baton__V1__HandoffStats *s)
{
    struct worker *by = s->prefill == NULL ? NULL : by_address(ws, t->prefill, s->prefill);
    uint64_t computed;

    if (by != NULL) {
        breaker_good(&by->breaker);
        worker_refresh(by);
        computed = t->n_ids > s->cached_tokens ? t->n_ids - s->cached_tokens : 0;
        if (s->has_prefill_us)
            policy_measure(ws->policy[WORKER_PREFILL], by->idx, computed,
                           (double)s->prefill_us / 1e6);
    }
    if (by != NULL && t->prefill != NULL && by != t->prefill)
        failed(t->prefill,
               &(struct status){ST_UNAVAILABLE, "a decode worker had to go to another"});
    if (s->has_transfer_us && s->kv_pages > 0)
        policy_measure(ws->policy[WORKER_DECODE], t->decode->idx,
                       (uint64_t)s->kv_pages * PREFIX_BLOCK_TOKENS, (double)s->transfer_us / 1e6);
}

void workers_served(struct workers *ws, struct workers_ticket *t,
                    const Baton__V1__HandoffStats *stats)
{
    breaker_good(&t->decode->breaker);
    t->probe = false;
    if (stats != NULL)
        measure(ws, t, stats);
    policy_served(ws->policy[WORKER_DECODE], &t->on_decode);
    end_prefill(ws, t);
    worker_refresh(t->decode);
}

void workers_ended(struct workers *ws, struct workers_ticket *t, const struct status *why,
                   const char *blame)
{
    struct worker *d = t->decode, *p = blame == NULL ? NULL : by_address(ws, t->prefill, blame);

    if (d == NULL)
        return;
    if (p != NULL && breaker_counts(why->code))
        failed(p, why);
    else if (blame == NULL && breaker_counts(why->code) && d->state == WORKER_READY)
        failed(d, why); /* a lost session was counted once, for all its requests */
    else
        breaker_unsaid(&d->breaker, t->probe);
    end_prefill(ws, t);
    policy_ended(ws->policy[WORKER_DECODE], &t->on_decode);
    d->n_running--;
    worker_refresh(d);
    t->decode = NULL;
}

/* ---- life ------------------------------------------------------------------------------------ */

enum status_code workers_new(struct event_base *base, struct mailbox *mailbox,
                             const struct workers_config *config,
                             const struct workers_callbacks *callbacks, struct workers **out,
                             struct status *st)
{
    struct workers *ws = calloc(1, sizeof(*ws));
    struct timeval every = {0, TICK_MS * 1000};

    if (ws == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the workers");
    ws->base = base;
    ws->mailbox = mailbox;
    rpc_arena_init(&ws->replies);
    ws->callbacks = *callbacks;
    ws->config = *config;
    ws->room = UINT64_MAX;
    for (int role = 0; role < 2; role++) {
        struct policy_config c = {.kind = config->policy[role],
                                  .prefill = role == WORKER_PREFILL,
                                  .tree_bytes_max = config->index_bytes_max,
                                  .index_bytes_max = config->index_bytes_max,
                                  .seed = config->seed + (uint64_t)role};

        if (policy_new(&c, &ws->policy[role], st) != ST_OK) {
            workers_free(ws);
            return st->code;
        }
    }
    ws->tick = event_new(base, -1, EV_PERSIST, on_tick, ws);
    ws->flush = event_new(base, -1, 0, on_flush, ws);
    if (ws->tick == NULL || ws->flush == NULL || event_add(ws->tick, &every) != 0 ||
        !make_room(ws, WORKER_PREFILL) || !make_room(ws, WORKER_DECODE)) {
        workers_free(ws);
        return status_set(st, ST_EXHAUSTED, "no memory for the workers");
    }
    *out = ws;
    return status_ok(st);
}

static void end_sessions(struct worker *w)
{
    static const struct status bye = {ST_OK, ""};

    event_del(w->timer);
    event_del(w->watch_timer);
    worker_forget(&w->watch, &bye);
    worker_forget(&w->link, &bye);
    w->state = WORKER_DOWN;
}

void workers_stop(struct workers *ws)
{
    if (ws == NULL)
        return;
    workers_flush(ws);
    ws->stopping = true;
    event_del(ws->tick);
    for (int role = 0; role < 2; role++)
        for (size_t i = 0; i < ws->n[role]; i++)
            end_sessions(ws->list[role][i]);
    for (struct worker *w = ws->removed; w != NULL; w = w->next_removed)
        end_sessions(w);
}

void workers_free(struct workers *ws)
{
    struct worker *next;

    if (ws == NULL)
        return;
    for (int role = 0; role < 2; role++) {
        for (size_t i = 0; i < ws->n[role]; i++)
            worker_free(ws->list[role][i]);
        free(ws->list[role]);
        free(ws->by_idx[role]);
        policy_free(ws->policy[role]);
    }
    for (struct worker *w = ws->removed; w != NULL; w = next) {
        next = w->next_removed;
        worker_free(w);
    }
    if (ws->tick != NULL)
        event_free(ws->tick);
    if (ws->flush != NULL)
        event_free(ws->flush);
    free(ws->pages);
    rpc_arena_deinit(&ws->replies);
    free(ws);
}
