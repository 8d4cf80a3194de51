#include "router/admission.h"

#include <stdlib.h>

enum { CLASSES = ADMISSION_PRIORITY_MAX - ADMISSION_PRIORITY_MIN + 1 };

static const double LEARN = 0.05; /* share of a new interval */

/* What one key has waiting in one class. */
struct line {
    struct admission_item *first, *last;
    struct line *prev, *next; /* those of the class that are not empty */
};

struct admission_share {
    double had; /* tokens over weight, so far */
    double weight;
    uint32_t n_waiting;
    struct line lines[CLASSES];
};

struct admission {
    struct admission_config config;
    struct admission_share **shares; /* [n_shares]; NULL: not seen */
    uint32_t n_shares;
    struct line *classes[CLASSES]; /* lines that are not empty */
    size_t n;
    uint64_t tokens;
    double level;       /* what the least served of those who wait has had */
    double interval_us; /* between two that go while others wait */
    uint64_t last_us;   /* 0: the queue was empty since */
};

static struct admission_share *share_of_line(struct line *l, int class)
{
    return (struct admission_share *)((char *)(l - class) -
                                      offsetof(struct admission_share, lines));
}

static struct admission_share *share_of(struct admission *a, uint32_t i)
{
    if (i >= ADMISSION_SHARES_MAX)
        i = 0;
    if (i >= a->n_shares) {
        uint32_t n = a->n_shares == 0 ? 16 : a->n_shares;
        struct admission_share **more;

        while (n <= i)
            n *= 2;
        more = realloc(a->shares, n * sizeof(struct admission_share *));
        if (more == NULL)
            return NULL;
        for (uint32_t k = a->n_shares; k < n; k++)
            more[k] = NULL;
        a->shares = more;
        a->n_shares = n;
    }
    if (a->shares[i] == NULL)
        a->shares[i] = calloc(1, sizeof(struct admission_share));
    return a->shares[i];
}

static void charge(struct admission *a, struct admission_share *s, uint32_t tokens)
{
    if (s->n_waiting == 0 && s->had < a->level)
        s->had = a->level; /* it was away: what it did not use is gone */
    s->had += (tokens + 1) / s->weight;
}

void admission_passed(struct admission *a, const struct admission_want *want)
{
    struct admission_share *s = share_of(a, want->share);

    if (s == NULL)
        return;
    s->weight = want->weight;
    charge(a, s, want->tokens);
}

uint64_t admission_estimate_us(const struct admission *a)
{
    return (uint64_t)((double)(a->n + 1) * a->interval_us);
}

static enum status_code check(const struct admission *a, uint32_t tokens, struct status *st)
{
    if (a->n >= a->config.requests_max)
        return status_set(st, ST_EXHAUSTED, "the workers are full and %zu requests wait, the limit",
                          a->n);
    if (a->config.tokens_max > 0 && a->tokens + tokens > a->config.tokens_max)
        return status_set(
            st, ST_EXHAUSTED,
            "the workers are full and requests of %llu tokens wait, the limit is %llu",
            (unsigned long long)a->tokens, (unsigned long long)a->config.tokens_max);
    if (a->config.wait_us_max > 0 && admission_estimate_us(a) > a->config.wait_us_max)
        return status_set(st, ST_EXHAUSTED,
                          "the workers are full: this request would wait about %.1f s",
                          (double)admission_estimate_us(a) / 1e6);
    return status_ok(st);
}

enum status_code admission_wait(struct admission *a, struct admission_item *item,
                                const struct admission_want *want, uint64_t now_us,
                                struct status *st)
{
    int priority = want->priority < ADMISSION_PRIORITY_MIN   ? ADMISSION_PRIORITY_MIN
                   : want->priority > ADMISSION_PRIORITY_MAX ? ADMISSION_PRIORITY_MAX
                                                             : want->priority;
    int class = ADMISSION_PRIORITY_MAX - priority;
    struct admission_share *s;
    struct line *l;

    if (check(a, want->tokens, st) != ST_OK)
        return st->code;
    s = share_of(a, want->share);
    if (s == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for another waiting request");
    if (s->n_waiting == 0 && s->had < a->level)
        s->had = a->level;
    s->weight = want->weight;
    l = &s->lines[class];
    *item = (struct admission_item){.prev = l->last,
                                    .share = s,
                                    .tokens = want->tokens,
                                    .class = (int8_t) class,
                                    .since_us = now_us};
    if (l->first == NULL) {
        l->prev = NULL;
        l->next = a->classes[class];
        if (l->next != NULL)
            l->next->prev = l;
        a->classes[class] = l;
    }
    *(l->last == NULL ? &l->first : &l->last->next) = item;
    l->last = item;
    s->n_waiting++;
    a->n++;
    a->tokens += want->tokens;
    return status_ok(st);
}

struct admission_item *admission_next(struct admission *a)
{
    for (int class = 0; class < CLASSES; class ++) {
        struct line *best = a->classes[class];

        for (struct line *l = best; l != NULL; l = l->next)
            if (share_of_line(l, class)->had < share_of_line(best, class)->had)
                best = l;
        if (best != NULL)
            return best->first;
    }
    return NULL;
}

void admission_leave(struct admission *a, struct admission_item *item)
{
    struct admission_share *s = item->share;
    struct line *l;

    if (s == NULL)
        return;
    l = &s->lines[item->class];
    *(item->prev == NULL ? &l->first : &item->prev->next) = item->next;
    *(item->next == NULL ? &l->last : &item->next->prev) = item->prev;
    if (l->first == NULL) {
        *(l->prev == NULL ? &a->classes[item->class] : &l->prev->next) = l->next;
        if (l->next != NULL)
            l->next->prev = l->prev;
    }
    s->n_waiting--;
    a->n--;
    a->tokens -= item->tokens;
    item->share = NULL;
    if (a->n == 0)
        a->last_us = 0;
}

void admission_take(struct admission *a, struct admission_item *item, uint64_t now_us)
{
    struct admission_share *s = item->share;

    if (a->last_us != 0 && now_us >= a->last_us) {
        double us = (double)(now_us - a->last_us);

        a->interval_us = a->interval_us == 0 ? us : a->interval_us + LEARN * (us - a->interval_us);
    }
    a->last_us = now_us;
    if (s->had > a->level)
        a->level = s->had;
    charge(a, s, item->tokens);
    admission_leave(a, item);
}

size_t admission_n(const struct admission *a)
{
    return a->n;
}

uint64_t admission_tokens(const struct admission *a)
{
    return a->tokens;
}

enum status_code admission_new(const struct admission_config *config, struct admission **out,
                               struct status *st)
{
    struct admission *a = calloc(1, sizeof(*a));

    if (a == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the queue");
    a->config = *config;
    *out = a;
    return status_ok(st);
}

void admission_free(struct admission *a)
{
    if (a == NULL)
        return;
    for (uint32_t i = 0; i < a->n_shares; i++)
        free(a->shares[i]);
    free(a->shares);
    free(a);
}
