#include "common/base/metrics.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind { COUNTER, GAUGE, HISTOGRAM };

struct metric {
    struct metric *next;
    enum kind kind;
    char *name, *help, *labels; /* labels "" when there are none */
    _Atomic double value;       /* histogram: sum */
    int n_buckets;
    double bounds[METRIC_BUCKETS_MAX];
    _Atomic unsigned long buckets[METRIC_BUCKETS_MAX + 1]; /* not cumulative; last: +Inf */
};

struct metrics {
    struct metric *first, *last;
};

const double metrics_ttft_bounds[METRICS_N_TTFT] = {
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100};
const double metrics_step_bounds[METRICS_N_STEP] = {
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10};

struct metrics *metrics_new(void)
{
    return calloc(1, sizeof(struct metrics));
}

void metrics_free(struct metrics *m)
{
    if (m == NULL)
        return;
    while (m->first != NULL) {
        struct metric *x = m->first;

        m->first = x->next;
        free(x->name);
        free(x->help);
        free(x->labels);
        free(x);
    }
    free(m);
}

static struct metric *add(struct metrics *m, enum kind kind, const char *name, const char *help,
                          const char *labels)
{
    struct metric *x = calloc(1, sizeof(*x));

    if (x == NULL)
        abort();
    x->kind = kind;
    x->name = strdup(name);
    x->help = strdup(help);
    x->labels = strdup(labels != NULL ? labels : "");
    if (x->name == NULL || x->help == NULL || x->labels == NULL)
        abort();
    if (m->last == NULL)
        m->first = x;
    else
        m->last->next = x;
    m->last = x;
    return x;
}

struct metric *metrics_counter(struct metrics *m, const char *name, const char *help,
                               const char *labels)
{
    return add(m, COUNTER, name, help, labels);
}

struct metric *metrics_gauge(struct metrics *m, const char *name, const char *help,
                             const char *labels)
{
    return add(m, GAUGE, name, help, labels);
}

struct metric *metrics_histogram(struct metrics *m, const char *name, const char *help,
                                 const char *labels, const double *bounds, int n)
{
    struct metric *x = add(m, HISTOGRAM, name, help, labels);

    x->n_buckets = n < METRIC_BUCKETS_MAX ? n : METRIC_BUCKETS_MAX;
    memcpy(x->bounds, bounds, (size_t)x->n_buckets * sizeof(*bounds));
    return x;
}

void metric_add(struct metric *m, double v)
{
    double old = atomic_load_explicit(&m->value, memory_order_relaxed);

    while (!atomic_compare_exchange_weak_explicit(&m->value, &old, old + v, memory_order_relaxed,
                                                  memory_order_relaxed))
        ;
}

void metric_set(struct metric *m, double v)
{
    atomic_store_explicit(&m->value, v, memory_order_relaxed);
}

void metric_observe(struct metric *m, double v)
{
    int i = 0;

    while (i < m->n_buckets && v > m->bounds[i])
        i++;
    atomic_fetch_add_explicit(&m->buckets[i], 1, memory_order_relaxed);
    metric_add(m, v);
}

static unsigned long observations(const struct metric *m)
{
    unsigned long n = 0;

    for (int i = 0; i <= m->n_buckets; i++)
        n += atomic_load_explicit(&m->buckets[i], memory_order_relaxed);
    return n;
}

double metric_value(const struct metric *m)
{
    if (m->kind == HISTOGRAM)
        return (double)observations(m);
    return atomic_load_explicit(&m->value, memory_order_relaxed);
}

static void write_histogram(const struct metric *m, struct buf *out)
{
    const char *comma = m->labels[0] != '\0' ? "," : "";
    unsigned long n = 0;

    for (int i = 0; i <= m->n_buckets; i++) {
        n += atomic_load_explicit(&m->buckets[i], memory_order_relaxed);
        buf_printf(out, "%s_bucket{%s%sle=\"", m->name, m->labels, comma);
        if (i < m->n_buckets)
            buf_printf(out, "%g\"} %lu\n", m->bounds[i], n);
        else
            buf_printf(out, "+Inf\"} %lu\n", n);
    }
    buf_printf(out, "%s_sum{%s} %.9g\n", m->name, m->labels,
               atomic_load_explicit(&m->value, memory_order_relaxed));
    buf_printf(out, "%s_count{%s} %lu\n", m->name, m->labels, n);
}

void metrics_write(const struct metrics *m, struct buf *out)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    const char *last = "";

    for (const struct metric *x = m->first; x != NULL; x = x->next) {
        if (strcmp(last, x->name) != 0)
            buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", x->name, x->help, x->name,
                       kinds[x->kind]);
        last = x->name;
        if (x->kind == HISTOGRAM)
            write_histogram(x, out);
        else if (x->labels[0] != '\0')
            buf_printf(out, "%s{%s} %.15g\n", x->name, x->labels, metric_value(x));
        else
            buf_printf(out, "%s %.15g\n", x->name, metric_value(x));
    }
}

void metrics_each(const struct metrics *m, void (*fn)(void *arg, const char *name, double value),
                  void *arg)
{
    char name[256];

    for (const struct metric *x = m->first; x != NULL; x = x->next) {
        snprintf(name, sizeof(name), x->labels[0] != '\0' ? "%s{%s}" : "%s", x->name, x->labels);
        fn(arg, name, metric_value(x));
    }
}
