#include "common/worker/publisher.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "baton/v1/admin.pb-c.h"
#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/rpc/rpc_message.h"

enum {
    QUEUE_MAX = 65536,    /* events between two turns of the thread */
    GATHER_MS = 2,        /* events leave so long after the first of them */
    LOAD_MS = 100,        /* between two loads while they change */
    LOAD_IDLE_MS = 1000,  /* while they do not */
    MESSAGE_PAGES = 4096, /* of one message: a router reads it in half a millisecond */
    RUNS_MAX = 4096,      /* of one message */
    STATE_BIT = 1 << 3,   /* beside a bit for each tier */
    TIER_BITS = STATE_BIT - 1,
    SHADOW_MIN = 1024
};

struct record {
    uint64_t block;
    uint8_t what, tier;
};

enum { WANT_HELLO = 1, WANT_ALL = 2, WANT_END = 4 };

/* A router's session. `wants` is guarded by the lock, the rest is the thread's. */
struct subscriber {
    struct publisher *owner;
    struct subscriber *next;
    struct rpc_session *session; /* a reference */
    unsigned wants;              /* said by the router since the thread looked */
    unsigned asked;              /* what the thread found there */
    bool greeted, current;       /* done */
    uint64_t seq;
};

struct shadow_entry {
    uint64_t block;
    uint8_t mask; /* 0: empty */
};

struct publisher {
    struct publisher_config config;
    pthread_t thread;
    /* Guards what follows up to `stop`, and the subscribers' wants; held for a few instructions and
     * one copy of the records. */
    pthread_mutex_t lock;
    pthread_cond_t work, room;
    struct record *records; /* [QUEUE_MAX] */
    struct record *taken;   /* [QUEUE_MAX]; the thread's */
    uint32_t n_records;
    struct publisher_figures figures;
    struct subscriber *incoming;
    bool asked; /* some subscriber wants something */
    bool stop;
    /* The thread's: */
    struct subscriber *subscribers;
    struct shadow_entry *shadow; /* [shadow_cap], open addressing */
    size_t shadow_cap, shadow_n;
    struct publisher_figures told;
    uint64_t told_us;
};

/* ---- what is held ---------------------------------------------------------------------------- */

static size_t shadow_place(const struct publisher *p, uint64_t block)
{
    size_t at = (size_t)(block * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (p->shadow_cap - 1);

    while (p->shadow[at].mask != 0 && p->shadow[at].block != block)
        at = (at + 1) & (p->shadow_cap - 1);
    return at;
}

static bool shadow_grow(struct publisher *p)
{
    struct publisher bigger = {.shadow_cap = p->shadow_cap == 0 ? SHADOW_MIN : p->shadow_cap * 2};

    bigger.shadow = calloc(bigger.shadow_cap, sizeof(*bigger.shadow));
    if (bigger.shadow == NULL)
        return false;
    for (size_t i = 0; i < p->shadow_cap; i++)
        if (p->shadow[i].mask != 0)
            bigger.shadow[shadow_place(&bigger, p->shadow[i].block)] = p->shadow[i];
    free(p->shadow);
    p->shadow = bigger.shadow;
    p->shadow_cap = bigger.shadow_cap;
    return true;
}

static void shadow_remove(struct publisher *p, size_t hole)
{
    size_t cap = p->shadow_cap, i = hole;

    p->shadow_n--;
    for (;;) {
        size_t home;

        p->shadow[hole].mask = 0;
        do {
            i = (i + 1) & (cap - 1);
            if (p->shadow[i].mask == 0)
                return;
            home = (size_t)(p->shadow[i].block * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (cap - 1);
        } while (hole <= i ? hole < home && home <= i : hole < home || home <= i);
        p->shadow[hole] = p->shadow[i];
        hole = i;
    }
}

static uint8_t shadow_get(const struct publisher *p, uint64_t block)
{
    return p->shadow_cap == 0 ? 0 : p->shadow[shadow_place(p, block)].mask;
}

/* @return false without memory */
static bool shadow_set(struct publisher *p, uint64_t block, uint8_t mask)
{
    size_t at;

    if (p->shadow_n * 2 >= p->shadow_cap && !shadow_grow(p))
        return false;
    at = shadow_place(p, block);
    if (mask == 0 && p->shadow[at].mask != 0)
        shadow_remove(p, at);
    if (mask == 0)
        return true;
    p->shadow_n += p->shadow[at].mask == 0;
    p->shadow[at] = (struct shadow_entry){block, mask};
    return true;
}

static Baton__V1__CacheTier fastest(uint8_t mask)
{
    return mask & 1 << PUBLISH_DEVICE ? BATON__V1__CACHE_TIER__TIER_DEVICE
           : mask & 1 << PUBLISH_HOST ? BATON__V1__CACHE_TIER__TIER_HOST
                                      : BATON__V1__CACHE_TIER__TIER_STORAGE;
}

/* ---- messages -------------------------------------------------------------------------------- */

/* Gathers events into runs of one kind and tier. */
struct batch {
    Baton__V1__CacheEvents events;
    size_t n_runs, n_pages;
    Baton__V1__CacheRun runs[RUNS_MAX], *pointers[RUNS_MAX];
    uint64_t pages[MESSAGE_PAGES];
};

static void batch_clear(struct batch *b, bool reset)
{
    baton__v1__cache_events__init(&b->events);
    b->events.has_reset = b->events.reset = reset;
    b->n_runs = b->n_pages = 0;
}

static bool batch_full(const struct batch *b)
{
    return b->n_runs == RUNS_MAX || b->n_pages == MESSAGE_PAGES;
}

static void batch_add(struct batch *b, Baton__V1__CacheEventKind kind, Baton__V1__CacheTier tier,
                      uint64_t page)
{
    Baton__V1__CacheRun *run = b->n_runs == 0 ? NULL : &b->runs[b->n_runs - 1];

    if (run == NULL || run->kind != kind || run->tier != tier) {
        run = &b->runs[b->n_runs];
        baton__v1__cache_run__init(run);
        run->kind = kind;
        run->has_tier = kind == BATON__V1__CACHE_EVENT_KIND__PAGE_IN;
        run->tier = tier;
        run->page = b->pages + b->n_pages;
        b->pointers[b->n_runs++] = run;
    }
    b->pages[b->n_pages++] = page;
    run->n_page++;
}

/* Whatever goes wrong, the next turn tells this subscriber everything again. */
static void send_batch(struct publisher *p, struct subscriber *s, struct batch *b)
{
    Baton__V1__WatchReply reply = BATON__V1__WATCH_REPLY__INIT;
    struct status st;

    b->events.seq = s->seq + 1;
    b->events.n_run = b->n_runs;
    b->events.run = b->pointers;
    b->events.has_needs_state = b->events.has_reset;
    b->events.needs_state = p->config.needs_state;
    reply.cache = &b->events;
    if (rpc_session_send_message(s->session, &reply.base, &st) == ST_OK)
        s->seq++;
    else
        s->current = false;
}

static void send_to_all(struct publisher *p, struct batch *b)
{
    if (b->n_runs > 0)
        for (struct subscriber *s = p->subscribers; s != NULL; s = s->next)
            if (s->current)
                send_batch(p, s, b);
    batch_clear(b, false);
}

static void send_everything(struct publisher *p, struct subscriber *s, struct batch *b)
{
    s->current = true;
    batch_clear(b, true);
    for (size_t i = 0; i < p->shadow_cap && s->current; i++) {
        const struct shadow_entry *e = &p->shadow[i];

        if (e->mask & TIER_BITS)
            batch_add(b, BATON__V1__CACHE_EVENT_KIND__PAGE_IN, fastest(e->mask), e->block);
        if (batch_full(b)) {
            send_batch(p, s, b);
            batch_clear(b, false);
        }
        if (e->mask & STATE_BIT)
            batch_add(b, BATON__V1__CACHE_EVENT_KIND__STATE_IN, 0, e->block);
        if (batch_full(b)) {
            send_batch(p, s, b);
            batch_clear(b, false);
        }
    }
    if (s->current && (b->n_runs > 0 || b->events.reset))
        send_batch(p, s, b);
    batch_clear(b, false);
}

static void send_hello(struct publisher *p, struct subscriber *s)
{
    Baton__V1__WatchReply reply = BATON__V1__WATCH_REPLY__INIT;
    Baton__V1__Identity me = BATON__V1__IDENTITY__INIT;
    struct status st;

    p->config.identity(p->config.arg, &me);
    reply.hello = &me;
    s->greeted = rpc_session_send_message(s->session, &reply.base, &st) == ST_OK;
}

static void send_load(struct publisher *p, struct subscriber *only,
                      const struct publisher_figures *f)
{
    Baton__V1__WatchReply reply = BATON__V1__WATCH_REPLY__INIT;
    Baton__V1__WorkerLoad load = BATON__V1__WORKER_LOAD__INIT;
    struct status st;

    load.has_running = load.has_waiting = load.has_queued_tokens = load.has_free_pages = 1;
    load.has_total_pages = load.has_steps = load.has_max_running = 1;
    load.running = f->running;
    load.waiting = f->waiting;
    load.queued_tokens = f->queued_tokens;
    load.free_pages = f->free_pages;
    load.total_pages = f->total_pages;
    load.steps = f->steps;
    load.max_running = f->max_running;
    reply.load = &load;
    for (struct subscriber *s = p->subscribers; s != NULL; s = s->next)
        if (s->greeted && (only == NULL || s == only))
            rpc_session_send_message(s->session, &reply.base, &st); /* the next one comes soon */
}

/* ---- the thread ------------------------------------------------------------------------------ */

static void apply(struct publisher *p, const struct record *r, struct batch *b)
{
    uint8_t old = shadow_get(p, r->block), mask = old;

    switch ((enum publisher_event)r->what) {
    case PUBLISH_PAGE_IN:
        mask |= (uint8_t)(1 << r->tier);
        break;
    case PUBLISH_PAGE_OUT:
        mask &= (uint8_t) ~(1 << r->tier);
        mask = mask & TIER_BITS ? mask : 0;
        break;
    case PUBLISH_STATE_IN:
        mask |= old & TIER_BITS ? STATE_BIT : 0; /* a state without its page is of no use */
        break;
    case PUBLISH_STATE_OUT:
        mask &= (uint8_t)~STATE_BIT;
        break;
    case PUBLISH_ALL_OUT:
        memset(p->shadow, 0, p->shadow_cap * sizeof(*p->shadow));
        p->shadow_n = 0;
        batch_clear(b, false);
        for (struct subscriber *s = p->subscribers; s != NULL; s = s->next)
            s->current = false; /* and gets what follows as everything */
        return;
    }
    if (mask == old || !shadow_set(p, r->block, mask))
        return;
    if ((mask & TIER_BITS) == 0)
        batch_add(b, BATON__V1__CACHE_EVENT_KIND__PAGE_OUT, 0, r->block);
    else if ((old & TIER_BITS) == 0 || fastest(mask) != fastest(old))
        batch_add(b, BATON__V1__CACHE_EVENT_KIND__PAGE_IN, fastest(mask), r->block);
    else if ((mask ^ old) & STATE_BIT)
        batch_add(b,
                  mask & STATE_BIT ? BATON__V1__CACHE_EVENT_KIND__STATE_IN
                                   : BATON__V1__CACHE_EVENT_KIND__STATE_OUT,
                  0, r->block);
    if (batch_full(b))
        send_to_all(p, b);
}

/* Takes over who came and what they want; lets go of who has ended. Locked. */
static void hear_subscribers(struct publisher *p)
{
    struct subscriber **at = &p->subscribers, *s;

    while (*at != NULL)
        at = &(*at)->next;
    *at = p->incoming;
    p->incoming = NULL;
    p->asked = false;
    for (at = &p->subscribers; (s = *at) != NULL;) {
        s->asked = s->wants;
        s->wants = 0;
        if (s->asked & WANT_END) {
            *at = s->next;
            rpc_session_unref(s->session);
            free(s);
        } else {
            at = &s->next;
        }
    }
}

/* Waits for something to do. Locked before and after. */
static void wait_for_work(struct publisher *p)
{
    struct timespec until;

    if (p->stop || p->asked || p->n_records > 0)
        return;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += LOAD_MS * 1000000l;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&p->work, &p->lock, &until);
}

static void serve_subscribers(struct publisher *p, struct batch *b,
                              const struct publisher_figures *f)
{
    bool changed = memcmp(f, &p->told, sizeof(*f)) != 0;
    uint64_t now = clock_now_us();

    for (struct subscriber *s = p->subscribers; s != NULL; s = s->next) {
        bool first = (s->asked & WANT_HELLO) && !s->greeted;

        if (first)
            send_hello(p, s);
        if (s->greeted && (!s->current || s->asked & WANT_ALL))
            send_everything(p, s, b);
        if (first)
            send_load(p, s, f);
    }
    if (now - p->told_us < (changed ? LOAD_MS : LOAD_IDLE_MS) * 1000ull)
        return;
    send_load(p, NULL, f);
    p->told = *f;
    p->told_us = now;
}

static void *run(void *arg)
{
    struct publisher *p = arg;
    struct batch *b = malloc(sizeof(*b));
    bool more = true;

    if (b == NULL)
        abort(); /* at start */
    batch_clear(b, false);
    while (more) {
        struct publisher_figures f;
        uint32_t n;

        pthread_mutex_lock(&p->lock);
        wait_for_work(p);
        if (p->n_records > 0 && p->n_records < QUEUE_MAX / 2 && !p->stop) {
            pthread_mutex_unlock(&p->lock);
            (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){0, GATHER_MS * 1000000l},
                                  NULL);
            pthread_mutex_lock(&p->lock);
        }
        n = p->n_records;
        memcpy(p->taken, p->records, n * sizeof(*p->taken));
        p->n_records = 0;
        pthread_cond_signal(&p->room);
        f = p->figures;
        hear_subscribers(p);
        more = !p->stop;
        pthread_mutex_unlock(&p->lock);
        for (uint32_t i = 0; i < n; i++)
            apply(p, &p->taken[i], b);
        send_to_all(p, b);
        serve_subscribers(p, b, &f);
    }
    free(b);
    return NULL;
}

/* ---- the engine's side ----------------------------------------------------------------------- */

void publisher_page(struct publisher *p, enum publisher_event what, enum publisher_tier tier,
                    uint64_t block)
{
    if (p == NULL)
        return;
    pthread_mutex_lock(&p->lock);
    while (p->n_records == QUEUE_MAX && !p->stop)
        pthread_cond_wait(&p->room, &p->lock);
    if (!p->stop)
        p->records[p->n_records++] = (struct record){block, (uint8_t)what, (uint8_t)tier};
    if (p->n_records == 1)
        pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
}

void publisher_load(struct publisher *p, const struct publisher_figures *f)
{
    if (p == NULL)
        return;
    pthread_mutex_lock(&p->lock);
    p->figures = *f; /* the thread looks within LOAD_IDLE_MS */
    pthread_mutex_unlock(&p->lock);
}

/* ---- the rpc thread's side ------------------------------------------------------------------- */

static void want(struct subscriber *s, unsigned what)
{
    struct publisher *p = s->owner;

    pthread_mutex_lock(&p->lock);
    s->wants |= what;
    p->asked = true;
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
}

static void *on_open(void *arg, struct rpc_session *session, struct status *st)
{
    struct publisher *p = arg;
    struct subscriber *s = calloc(1, sizeof(*s));

    if (s == NULL) {
        status_set(st, ST_EXHAUSTED, "no memory for a subscriber");
        return NULL;
    }
    s->owner = p;
    s->session = rpc_session_ref(session);
    pthread_mutex_lock(&p->lock);
    s->next = p->incoming;
    p->incoming = s;
    pthread_mutex_unlock(&p->lock);
    status_ok(st);
    return s;
}

static void on_message(void *arg, struct rpc_session *session, const void *data, size_t len)
{
    Baton__V1__WatchRequest *m = baton__v1__watch_request__unpack(NULL, len, data);
    struct status st;

    if (m == NULL) {
        status_set(&st, ST_INVALID, "a watch request of %zu bytes cannot be read", len);
        rpc_session_close(session, &st);
        return;
    }
    want(arg, (m->hello != NULL ? WANT_HELLO : 0) | (m->snapshot ? WANT_ALL : 0));
    baton__v1__watch_request__free_unpacked(m, NULL);
}

static void on_close(void *arg, struct rpc_session *session, const struct status *why)
{
    (void)session, (void)why;
    want(arg, WANT_END); /* the thread frees it: nothing may touch it after this */
}

struct rpc_method publisher_method(struct publisher *p)
{
    return (struct rpc_method){
        .path = "/baton.v1.Admin/Watch",
        .on_open = on_open,
        .callbacks = {on_message, on_close},
        .arg = p,
    };
}

/* ---- life ------------------------------------------------------------------------------------ */

static void publisher_free(struct publisher *p)
{
    hear_subscribers(p);
    while (p->subscribers != NULL) {
        struct subscriber *s = p->subscribers;

        p->subscribers = s->next;
        rpc_session_unref(s->session);
        free(s);
    }
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->work);
    pthread_cond_destroy(&p->room);
    free(p->records);
    free(p->taken);
    free(p->shadow);
    free(p);
}

enum status_code publisher_start(const struct publisher_config *config, struct publisher **out,
                                 struct status *st)
{
    struct publisher *p = calloc(1, sizeof(*p));
    pthread_condattr_t attr;

    if (p == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the publisher");
    p->config = *config;
    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&p->work, &attr);
    pthread_cond_init(&p->room, NULL);
    pthread_condattr_destroy(&attr);
    p->records = malloc(QUEUE_MAX * sizeof(*p->records));
    p->taken = malloc(QUEUE_MAX * sizeof(*p->taken));
    if (p->records == NULL || p->taken == NULL || !shadow_grow(p)) {
        publisher_free(p);
        return status_set(st, ST_EXHAUSTED, "no memory for the publisher");
    }
    if (pthread_create(&p->thread, NULL, run, p) != 0) {
        publisher_free(p);
        return status_set(st, ST_EXHAUSTED, "cannot start the publisher's thread");
    }
    *out = p;
    return status_ok(st);
}

void publisher_stop(struct publisher *p)
{
    if (p == NULL)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->work);
    pthread_cond_broadcast(&p->room);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
    publisher_free(p);
}
