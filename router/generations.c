#include "router/generations.h"

#include <assert.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "router/pace.h"

enum {
    TICK_MS = 50,
    TABLE_MIN = 64,
    BACKOFF_MIN_MS = 25,
    BACKOFF_MAX_MS = 500,
    PUMP_MAX = 64,
    PREFILLS_AVOIDED = 4
};

enum generation_state { WAITING, QUEUED, RUNNING };

struct generation {
    struct generations *owner;
    struct generation *prev, *next; /* all of them, oldest first */
    enum generation_state state;
    struct admission_item item; /* WAITING */
    uint64_t id;           /* towards the worker: epoch << 32 | place in the table; new for each
                              attempt, so that late replies to an old one are recognised */
    struct worker *worker; /* RUNNING */
    struct workers_ticket ticket;
    uint64_t began_us; /* RUNNING: since */
    uint64_t first_us; /* of this attempt's first tokens */
    uint64_t due_us;   /* RUNNING: its end, as far as can be told */
    bool found_place;  /* it was begun while workers had a place free */
    bool served;       /* this attempt has given tokens */
    struct prompt_ids *prompt;
    int32_t *emitted; /* [n_emitted] of [cap_emitted] */
    uint32_t n_emitted, cap_emitted;
    int attempts;
    uint32_t n_avoid, avoid[POLICY_AVOID_MAX]; /* decode workers that failed it, by idx */
    uint32_t n_avoid_prefill, avoid_prefill[PREFILLS_AVOIDED]; /* prefill workers, the same */
    uint64_t deadline_us;   /* of the request; UINT64_MAX: none */
    uint64_t wait_until_us; /* QUEUED: give up */
    uint64_t next_try_us;   /* QUEUED: not before */
    struct status last_error;
    struct generation_params params;
    struct generation_callbacks callbacks;
};

struct generations {
    struct generations_config config;
    struct router_metrics *metrics;
    struct workers *workers;
    struct event *tick;
    struct event *overdue; /* at the oldest's deadline, or before */
    struct generation *first, *last;
    struct generation *cursor; /* of a walk: stays valid whatever its callbacks end */
    size_t n;
    size_t n_queued;
    size_t n_running; /* RUNNING */
    struct admission *admission;
    struct pace pace;
    struct event *pump;        /* room may have come */
    struct generation **table; /* [cap] by the low half of id; NULL: free */
    uint32_t cap, hint;
    uint32_t epoch;
    uint64_t *ends; /* [cap_ends]: scratch */
    size_t cap_ends;
};

/* ---- the table ------------------------------------------------------------------------------- */

static bool table_put(struct generations *g, struct generation *gen)
{
    uint32_t cap = g->cap == 0 ? TABLE_MIN : g->cap * 2;
    struct generation **bigger;

    for (uint32_t i = 0; i < g->cap; i++) {
        uint32_t at = (g->hint + i) % g->cap;

        if (g->table[at] == NULL) {
            g->table[at] = gen;
            g->hint = at + 1;
            gen->id = (uint64_t)++g->epoch << 32 | at;
            return true;
        }
    }
    bigger = realloc(g->table, cap * sizeof(struct generation *));
    if (bigger == NULL)
        return false;
    memset(bigger + g->cap, 0, (cap - g->cap) * sizeof(struct generation *));
    g->hint = g->cap;
    g->table = bigger;
    g->cap = cap;
    return table_put(g, gen);
}

static struct generation *table_find(const struct generations *g, uint64_t id)
{
    uint32_t at = (uint32_t)id;
    struct generation *gen = at < g->cap ? g->table[at] : NULL;

    return gen != NULL && gen->id == id ? gen : NULL;
}

static void table_take_out(struct generations *g, struct generation *gen)
{
    g->table[(uint32_t)gen->id] = NULL;
    gen->id = 0;
}

/* ---- one generation's states ----------------------------------------------------------------- */

static void enter_queued(struct generation *gen, uint64_t wait_until_us)
{
    gen->state = QUEUED;
    gen->wait_until_us = wait_until_us;
    gen->owner->n_queued++;
}

static const struct status nothing_said = {ST_OK, ""};

/* why, blame: as for workers_ended() */
static void leave_state(struct generation *gen, const struct status *why, const char *blame)
{
    if (gen->state == RUNNING) {
        workers_ended(gen->owner->workers, &gen->ticket, why, blame);
        gen->worker = NULL;
        table_take_out(gen->owner, gen);
        gen->owner->n_running--;
        if (admission_n(gen->owner->admission) > 0)
            event_active(gen->owner->pump, EV_TIMEOUT, 0);
    } else if (gen->state == QUEUED) {
        gen->owner->n_queued--;
    } else {
        admission_leave(gen->owner->admission, &gen->item);
        metric_set(gen->owner->metrics->queued, (double)admission_n(gen->owner->admission));
    }
}

static void destroy(struct generation *gen)
{
    struct generations *g = gen->owner;

    leave_state(gen, &nothing_said, NULL);
    if (g->cursor == gen)
        g->cursor = gen->next;
    *(gen->prev == NULL ? &g->first : &gen->prev->next) = gen->next;
    *(gen->next == NULL ? &g->last : &gen->next->prev) = gen->prev;
    g->n--;
    metric_add(g->metrics->running, -1);
    prompt_ids_unref(gen->prompt);
    token_bias_unref(gen->params.bias);
    free(gen->emitted);
    free(gen);
}

static void fail(struct generation *gen, const struct status *why)
{
    struct generation_callbacks callbacks = gen->callbacks;
    struct status copy = *why;

    log_debug("%s: failed after %d attempts and %u tokens: %s", gen->params.rid, gen->attempts,
              gen->n_emitted, why->msg);
    destroy(gen);
    callbacks.on_failed(callbacks.arg, &copy);
}

static bool remember(struct generation *gen, const int32_t *ids, size_t n)
{
    if (gen->cap_emitted - gen->n_emitted < n) {
        uint32_t cap = gen->cap_emitted + gen->cap_emitted / 2 + (uint32_t)n + 30;
        int32_t *more = realloc(gen->emitted, cap * sizeof(*more));

        if (more == NULL)
            return false;
        gen->emitted = more;
        gen->cap_emitted = cap;
    }
    memcpy(gen->emitted + gen->n_emitted, ids, n * sizeof(*ids));
    gen->n_emitted += (uint32_t)n;
    return true;
}

/* ---- submitting ------------------------------------------------------------------------------ */

/* The prompt and what it has given so far. @return NULL without memory */
static const int32_t *all_ids(const struct generation *gen, int32_t **joined)
{
    size_t n_prompt = gen->prompt->n;

    *joined = NULL;
    if (gen->n_emitted == 0)
        return gen->prompt->ids;
    *joined = malloc((n_prompt + gen->n_emitted) * sizeof(**joined));
    if (*joined == NULL)
        return NULL;
    memcpy(*joined, gen->prompt->ids, n_prompt * sizeof(**joined));
    memcpy(*joined + n_prompt, gen->emitted, gen->n_emitted * sizeof(**joined));
    return *joined;
}

static enum status_code send_submit(struct generation *gen, const struct workers_request *r,
                                    struct workers_choice *c, struct status *st)
{
    Baton__V1__DecodeRequest request = BATON__V1__DECODE_REQUEST__INIT;
    Baton__V1__DecodeSubmit submit = BATON__V1__DECODE_SUBMIT__INIT, *submits[] = {&submit};
    Baton__V1__Sampling sampling;

    submit.request_id = gen->id;
    submit.n_token_ids = r->n_ids;
    submit.token_ids = (int32_t *)r->ids;
    submit.has_n_emitted = gen->n_emitted > 0;
    submit.n_emitted = gen->n_emitted;
    generation_params_sampling(&gen->params, &sampling);
    submit.sampling = &sampling;
    submit.n_prefill = c->n_prefill;
    submit.prefill = c->prefill;
    submit.rid = gen->params.rid;
    submit.traceparent = gen->params.traceparent[0] != '\0' ? gen->params.traceparent : NULL;
    submit.has_cache_salt = gen->params.cache_salt != 0;
    submit.cache_salt = gen->params.cache_salt;
    submit.has_priority = gen->params.priority != 0;
    submit.priority = gen->params.priority;
    request.n_submit = 1;
    request.submit = submits;
    return workers_send(c->decode, &request, st);
}

static void tell_cancel(struct generation *gen)
{
    Baton__V1__DecodeRequest request = BATON__V1__DECODE_REQUEST__INIT;
    Baton__V1__DecodeCancel cancel = BATON__V1__DECODE_CANCEL__INIT, *cancels[] = {&cancel};
    struct status st;

    if (gen->state != RUNNING)
        return;
    cancel.request_id = gen->id;
    request.n_cancel = 1;
    request.cancel = cancels;
    workers_send(gen->worker, &request, &st); /* a session that is gone cancels by itself */
}

static void avoid(struct generation *gen, uint32_t idx)
{
    if (gen->n_avoid < POLICY_AVOID_MAX)
        gen->avoid[gen->n_avoid++] = idx;
}

/* How many the workers run at once: workers_room() is a little more, so that none is idle. */
static uint64_t places(const struct generations *g)
{
    uint64_t room = workers_room(g->workers);

    return room == UINT64_MAX ? UINT64_MAX : room - room / 8 - (room > 1);
}

/* When a place comes free for one that has `ahead` before it; now when there is one. Ends come in
 * bursts where requests were begun together: a mean rate alone would let in who waits for the whole
 * of the next burst. */
static uint64_t place_free_us(struct generations *g, uint64_t ahead, uint64_t now)
{
    uint64_t n_places = places(g), k = ahead + 1 - n_places, end;
    size_t n = 0;

    if (ahead < n_places || k > g->n_running)
        return now;
    if (g->n_running > g->cap_ends) {
        uint64_t *more = realloc(g->ends, 2 * g->n_running * sizeof(*more));

        if (more == NULL)
            return now;
        g->ends = more;
        g->cap_ends = 2 * g->n_running;
    }
    for (const struct generation *gen = g->first; gen != NULL && n < g->n_running; gen = gen->next)
        if (gen->state == RUNNING)
            g->ends[n++] = gen->due_us;
    end = n < k ? now : pace_kth(g->ends, n, k);
    return end > now ? end : now;
}

/* QUEUED -> RUNNING where the policies say, but for workers that have failed it. */
static enum status_code start_somewhere(struct generation *gen, struct workers_request *r,
                                        struct status *st)
{
    struct generations *g = gen->owner;
    struct workers_choice c;

    r->n_avoid_prefill = gen->n_avoid_prefill;
    r->avoid_prefill = gen->avoid_prefill;
    while (r->n_avoid = gen->n_avoid, workers_choose(g->workers, r, &c)) {
        if (!table_put(g, gen))
            return status_set(st, ST_EXHAUSTED, "no memory for another request");
        if (send_submit(gen, r, &c, st) == ST_OK) {
            workers_began(g->workers, r, &c, &gen->ticket);
            gen->began_us = clock_now_us();
            gen->found_place = g->n_running < places(g);
            if (g->config.queue_ttft_percent > 0) /* else nobody asks */
                gen->due_us = place_free_us(g, g->n_running, gen->began_us) +
                              (uint64_t)pace_lifetime_us(&g->pace);
            g->n_queued--;
            g->n_running++;
            gen->state = RUNNING;
            gen->worker = c.decode;
            gen->served = false;
            gen->attempts++;
            return ST_OK;
        }
        table_take_out(g, gen);
        if (st->code == ST_INVALID || gen->n_avoid == POLICY_AVOID_MAX)
            return st->code;
        avoid(gen, c.decode->idx);
    }
    return status_set(st, ST_UNAVAILABLE, "no decode worker is ready");
}

static enum status_code try_start(struct generation *gen, struct status *st)
{
    int32_t *joined;
    struct workers_request r = {
        .n_ids = gen->prompt->n + gen->n_emitted,
        .ids = all_ids(gen, &joined),
        .key_len = strlen(gen->params.routing_key),
        .key = gen->params.routing_key,
        .salt = gen->params.cache_salt,
        .avoid = gen->avoid,
    };

    if (r.ids == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for %zu tokens", r.n_ids);
    start_somewhere(gen, &r, st);
    free(joined);
    return st->code;
}

static bool worth_another_try(enum status_code code)
{
    return code == ST_UNAVAILABLE || code == ST_EXHAUSTED || code == ST_CORRUPT ||
           code == ST_INTERNAL;
}

/* Full jitter: clients that failed together do not come back together. */
static uint64_t backoff_us(const struct generation *gen)
{
    uint64_t cap_ms = BACKOFF_MIN_MS << (gen->attempts < 6 ? gen->attempts : 6);

    cap_ms = cap_ms < BACKOFF_MAX_MS ? cap_ms : BACKOFF_MAX_MS;
    return (cap_ms / 2 + (uint64_t)rand() % (cap_ms / 2 + 1)) * 1000;
}

/* Its worker failed it: elsewhere at once, or later, or not at all. blame: the prefill worker at
 * fault, or NULL. */
static void retry(struct generation *gen, const struct status *why, const char *blame,
                  bool worker_lost)
{
    struct generations *g = gen->owner;
    uint32_t idx = gen->worker->idx;
    uint64_t now = clock_now_us(), wait_us = (uint64_t)g->config.worker_wait_ms * 1000;
    struct status st;

    gen->last_error = *why;
    if (blame == NULL)
        avoid(gen, idx);
    else if (gen->ticket.prefill != NULL && gen->n_avoid_prefill < PREFILLS_AVOIDED)
        gen->avoid_prefill[gen->n_avoid_prefill++] = gen->ticket.prefill->idx;
    if (!worth_another_try(why->code) || gen->attempts > g->config.retries_max) {
        if (worth_another_try(why->code))
            workers_ended(g->workers, &gen->ticket, why, blame);
        fail(gen, why);
        return;
    }
    leave_state(gen, why, blame);
    enter_queued(gen, gen->wait_until_us > now ? gen->wait_until_us : now + wait_us);
    if (try_start(gen, &st) == ST_OK) {
        metric_add(gen->n_emitted > 0 ? g->metrics->resumes : g->metrics->retries, 1);
        log_info("%s: goes on at %s after %u tokens: %s", gen->params.rid, gen->worker->address,
                 gen->n_emitted, why->msg);
    } else if (worker_lost && wait_us > 0) {
        gen->n_avoid = 0; /* whoever comes (back) first may have it */
        gen->next_try_us = now + backoff_us(gen);
    } else {
        fail(gen, why);
    }
}

/* ---- what workers say ------------------------------------------------------------------------ */

static void note_stats(struct generation *gen, const Baton__V1__HandoffStats *s)
{
    struct worker *w = gen->worker;

    metric_add(gen->owner->metrics->kv_bytes, (double)s->kv_bytes);
    if (s->has_transfer_us && s->kv_bytes > 0)
        metric_observe(gen->owner->metrics->kv_s, (double)s->transfer_us / 1e6);
    if (s->transport != NULL)
        snprintf(w->transport, sizeof(w->transport), "%s", s->transport);
}

static void on_batch(struct generations *g, const Baton__V1__TokenBatch *b)
{
    struct generation *gen = table_find(g, b->request_id);
    Baton__V1__FinishReason finish =
        b->has_finish ? b->finish : BATON__V1__FINISH_REASON__FINISH_NONE;
    struct generation_callbacks callbacks;
    struct generation_extras extras = {
        .logprobs = b->logprobs,
        .prompt_logprobs = b->prompt_logprobs,
    };
    Baton__V1__HandoffStats stats;

    if (gen == NULL)
        return; /* cancelled meanwhile */
    callbacks = gen->callbacks;
    if (b->stats != NULL) {
        note_stats(gen, b->stats);
        stats = *b->stats;
        stats.decode =
            (char *)gen->worker->address; /* it does not know by which name it is reached */
        extras.stats = &stats;
    }
    if (b->prompt_logprobs != NULL)
        gen->params.prompt_logprobs = false; /* another worker need not tell them again */
    if (finish == BATON__V1__FINISH_REASON__FINISH_ABORT) {
        /* Not our doing, for then it would not be in the table: the worker is draining. */
        retry(gen, &(struct status){ST_UNAVAILABLE, "the decode worker aborted the request"}, NULL,
              true);
        return;
    }
    if (!gen->served) {
        gen->served = true;
        gen->wait_until_us = 0;
        gen->first_us = clock_now_us();
        pace_first_token(&g->pace, gen->first_us - gen->began_us, gen->found_place);
        gen->due_us = gen->first_us + (uint64_t)g->pace.rest_us;
        workers_served(g->workers, &gen->ticket, b->stats);
    }
    if (finish != BATON__V1__FINISH_REASON__FINISH_NONE) {
        pace_end(&g->pace, clock_now_us() - gen->first_us);
        destroy(gen);
    } else if (!remember(gen, b->token_ids, b->n_token_ids)) {
        tell_cancel(gen);
        fail(gen, &(struct status){ST_EXHAUSTED, "no memory for the tokens of a request"});
        return;
    }
    callbacks.on_tokens(callbacks.arg, b->token_ids, b->n_token_ids, finish, &extras);
}

static void on_reply(void *arg, struct worker *w, const Baton__V1__DecodeReply *reply)
{
    struct generations *g = arg;

    (void)w;
    for (size_t i = 0; i < reply->n_batch; i++)
        on_batch(g, reply->batch[i]);
    for (size_t i = 0; i < reply->n_failed; i++) {
        const Baton__V1__DecodeFailed *f = reply->failed[i];
        struct generation *gen = table_find(g, f->request_id);
        struct status st;

        if (gen == NULL)
            continue;
        status_set(&st,
                   f->error->code > ST_OK && f->error->code < ST_N_CODES
                       ? (enum status_code)f->error->code
                       : ST_INTERNAL,
                   "%s", f->error->message);
        retry(gen, &st, f->prefill, false);
    }
}

static void on_lost(void *arg, struct worker *w, const struct status *why)
{
    struct generations *g = arg;
    struct generation *gen;
    struct status st;

    if (w->role != WORKER_DECODE)
        return; /* its decode workers tell what became of the requests */
    status_set(&st, ST_UNAVAILABLE, "decode %s is lost: %s", w->address, why->msg);
    for (g->cursor = g->first; (gen = g->cursor) != NULL;) {
        g->cursor = gen->next;
        if (gen->state == RUNNING && gen->worker == w)
            retry(gen, &st, NULL, true);
    }
}

/* Starts what waits, oldest first; fails what has waited too long. */
static void serve_queue(struct generations *g, uint64_t now)
{
    struct generation *gen;
    struct status st;

    for (g->cursor = g->first; (gen = g->cursor) != NULL && g->n_queued > 0;) {
        g->cursor = gen->next;
        if (gen->state != QUEUED || (now > 0 && now < gen->next_try_us))
            continue;
        if (try_start(gen, &st) == ST_OK) {
            metric_add(gen->n_emitted > 0 ? g->metrics->resumes : g->metrics->retries, 1);
            log_info("%s: goes on at %s after %u tokens", gen->params.rid, gen->worker->address,
                     gen->n_emitted);
            continue;
        }
        gen->n_avoid = 0;
        gen->next_try_us = now + backoff_us(gen);
        if (now >= gen->wait_until_us)
            fail(gen, &gen->last_error);
    }
}

static void on_ready(void *arg, struct worker *w)
{
    if (w->role == WORKER_DECODE)
        serve_queue(arg, 0);
}

/* ---- waiting for room ------------------------------------------------------------------------ */

static bool has_room(const struct generations *g)
{
    return g->n_running + g->n_queued < workers_room(g->workers);
}

static struct generation *of_item(struct admission_item *item)
{
    return (struct generation *)((char *)item - offsetof(struct generation, item));
}

/* Starts who waits while there is room, at most some at once so that others get their turn. */
static void on_pump(evutil_socket_t fd, short what, void *arg)
{
    struct generations *g = arg;
    struct admission_item *item;
    int n = 0;

    (void)fd, (void)what;
    while (has_room(g) && (item = admission_next(g->admission)) != NULL && n++ < PUMP_MAX) {
        struct generation *gen = of_item(item);
        uint64_t now = clock_now_us();
        struct status st;

        metric_observe(g->metrics->queue_s, (double)(now - item->since_us) / 1e6);
        admission_take(g->admission, item, now);
        enter_queued(gen, 0);
        if (try_start(gen, &st) != ST_OK)
            fail(gen, &st);
    }
    metric_set(g->metrics->queued, (double)admission_n(g->admission));
    if (n > PUMP_MAX)
        event_active(g->pump, EV_TIMEOUT, 0);
}

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
    struct generations *g = arg;
    uint64_t now = clock_now_us();

    (void)fd, (void)what;
    if (g->n_queued > 0)
        serve_queue(g, now);
    if (admission_n(g->admission) > 0)
        on_pump(-1, 0, g);
}

static void arm_overdue(struct generations *g)
{
    uint64_t now = clock_now_us(), at, left;
    struct timeval tv;

    if (g->first == NULL || g->config.request_timeout_ms == 0)
        return;
    at = g->first->deadline_us;
    left = at > now ? at - now : 0;
    tv = (struct timeval){(time_t)(left / 1000000), (suseconds_t)(left % 1000000)};
    event_add(g->overdue, &tv);
}

static void on_overdue(evutil_socket_t fd, short what, void *arg)
{
    struct generations *g = arg;
    struct generation *gen;
    uint64_t now = clock_now_us();

    (void)fd, (void)what;
    /* Oldest first, all with the same allowance: the first that has time left ends the walk. */
    for (g->cursor = g->first; (gen = g->cursor) != NULL && gen->deadline_us <= now;) {
        struct status st;

        g->cursor = gen->next;
        status_set(&st, ST_TIMEOUT, "the request took longer than %d s",
                   g->config.request_timeout_ms / 1000);
        tell_cancel(gen);
        fail(gen, &st);
    }
    arm_overdue(g);
}

/* ---- public ---------------------------------------------------------------------------------- */

enum status_code generations_new(struct event_base *base, const struct generations_config *config,
                                 struct router_metrics *metrics, struct generations **out,
                                 struct status *st)
{
    struct generations *g = calloc(1, sizeof(*g));
    struct timeval tick = {0, TICK_MS * 1000};

    if (g == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the request table");
    g->config = *config;
    g->metrics = metrics;
    if (admission_new(&config->admission, &g->admission, st) != ST_OK) {
        free(g);
        return st->code;
    }
    g->pump = event_new(base, -1, 0, on_pump, g);
    g->tick = event_new(base, -1, EV_PERSIST, on_tick, g);
    g->overdue = evtimer_new(base, on_overdue, g);
    if (g->pump == NULL || g->overdue == NULL || g->tick == NULL ||
        event_add(g->tick, &tick) != 0) {
        generations_free(g);
        return status_set(st, ST_EXHAUSTED, "no memory for a timer");
    }
    *out = g;
    return status_ok(st);
}

void generations_free(struct generations *g)
{
    if (g == NULL)
        return;
    while (g->first != NULL)
        generation_cancel(g->first);
    if (g->tick != NULL)
        event_free(g->tick);
    if (g->pump != NULL)
        event_free(g->pump);
    if (g->overdue != NULL)
        event_free(g->overdue);
    admission_free(g->admission);
    free(g->table);
    free(g->ends);
    free(g);
}

struct workers_callbacks generations_worker_callbacks(struct generations *g)
{
    return (struct workers_callbacks){on_ready, on_reply, on_lost, g};
}

void generations_set_workers(struct generations *g, struct workers *workers)
{
    g->workers = workers;
}

/* Whether its wait would spoil its time to first token. */
static enum status_code check_wait(struct generations *g, struct status *st)
{
    uint64_t n = places(g), ahead = g->n_running + g->n_queued + admission_n(g->admission);
    double limit_us = g->pace.ttft_us * g->config.queue_ttft_percent / 100, wait_us;
    uint64_t now = clock_now_us(), due_us;

    if (g->config.queue_ttft_percent == 0 || ahead < n)
        return status_ok(st);
    wait_us = pace_wait_us(&g->pace, ahead, n);
    if (wait_us <= limit_us && (due_us = place_free_us(g, ahead, now)) - now > wait_us)
        wait_us = (double)(due_us - now);
    if (wait_us <= limit_us)
        return status_ok(st);
    return status_set(
        st, ST_EXHAUSTED,
        "the workers are full: this request would wait about %.0f ms, the limit is %.0f "
        "(%u %% of their time to first token: --max-queue-ttft-percent)",
        wait_us / 1e3, limit_us / 1e3, g->config.queue_ttft_percent);
}

static enum status_code start_or_wait(struct generation *gen, struct status *st)
{
    struct generations *g = gen->owner;
    struct admission_want want = {
        .share = gen->params.share,
        .weight = gen->params.weight > 0 ? gen->params.weight : 1,
        .priority = gen->params.priority,
        .tokens = (uint32_t)gen->prompt->n,
    };

    if (check_wait(g, st) != ST_OK) {
        metric_add(g->metrics->refused, 1);
        return st->code;
    }
    if (admission_n(g->admission) == 0 && has_room(g)) {
        admission_passed(g->admission, &want);
        enter_queued(gen, 0);
        return try_start(gen, st);
    }
    if (admission_wait(g->admission, &gen->item, &want, clock_now_us(), st) != ST_OK)
        metric_add(g->metrics->refused, 1);
    else
        metric_set(g->metrics->queued, (double)admission_n(g->admission));
    return st->code;
}

enum status_code generations_submit(struct generations *g, struct prompt_ids *prompt,
                                    const struct generation_params *params,
                                    const struct generation_callbacks *callbacks,
                                    struct generation **out, struct status *st)
{
    struct generation *gen;

    if (g->n >= g->config.running_max)
        return status_set(st, ST_EXHAUSTED, "%zu requests are running, the limit", g->n);
    if (workers_count(g->workers, WORKER_PREFILL) == 0)
        return status_set(st, ST_UNAVAILABLE, "no prefill worker is known");
    gen = calloc(1, sizeof(*gen));
    if (gen == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for another request");
    gen->owner = g;
    gen->prompt = prompt;
    prompt->refs++;
    gen->params = *params;
    if (params->bias != NULL)
        params->bias->refs++;
    gen->callbacks = *callbacks;
    gen->deadline_us = g->config.request_timeout_ms == 0
                           ? UINT64_MAX
                           : clock_now_us() + (uint64_t)g->config.request_timeout_ms * 1000;
    gen->prev = g->last;
    *(g->last == NULL ? &g->first : &g->last->next) = gen;
    g->last = gen;
    g->n++;
    if (g->n == 1)
        arm_overdue(g);
    metric_add(g->metrics->running, 1);
    if (start_or_wait(gen, st) != ST_OK) {
        destroy(gen);
        return st->code;
    }
    *out = gen;
    return ST_OK;
}

void generation_cancel(struct generation *gen)
{
    if (gen == NULL)
        return;
    tell_cancel(gen);
    destroy(gen);
}

size_t generations_running(const struct generations *g)
{
    return g->n;
}
