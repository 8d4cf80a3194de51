/*
 * metrics: counters, gauges and histograms of one process, and their Prometheus text.
 *
 * Names end in the unit (_seconds, _bytes, _total); labels are fixed at registration and come from
 * bounded sets. Registration happens at start, before other threads; updates are atomic and
 * allocate nothing.
 *
 * Threads   metrics_add*: one at a time, at start. metric_*, metrics_write: any.
 * Source    Prometheus text exposition format 0.0.4.
 */
#ifndef BATON_COMMON_BASE_METRICS_H
#define BATON_COMMON_BASE_METRICS_H

#include "common/base/buf.h"
#include "common/base/status.h"

struct metrics;
struct metric; /* lives as long as its registry */

/** An empty registry, or NULL without memory. */
struct metrics *metrics_new(void);
void metrics_free(struct metrics *m);

/*
 * A metric of a name (shared by metrics that differ in labels: register these one after the other),
 * its help text and labels such as `code="ok"` (NULL: none). Strings are copied. Out of memory
 * aborts: this is start-up.
 */
struct metric *metrics_counter(struct metrics *m, const char *name, const char *help,
                               const char *labels);
struct metric *metrics_gauge(struct metrics *m, const char *name, const char *help,
                             const char *labels);
/** @param bounds  ascending upper bounds, [n] with n <= METRIC_BUCKETS_MAX; +Inf is added */
struct metric *metrics_histogram(struct metrics *m, const char *name, const char *help,
                                 const char *labels, const double *bounds, int n);
enum { METRIC_BUCKETS_MAX = 24 };

/** Counter, gauge: adds v. */
void metric_add(struct metric *m, double v);
/** Gauge: sets v. */
void metric_set(struct metric *m, double v);
/** Histogram: counts one observation. */
void metric_observe(struct metric *m, double v);
/** Counter, gauge: the present value; histogram: the number of observations. */
double metric_value(const struct metric *m);

/** Appends all metrics as Prometheus text. */
void metrics_write(const struct metrics *m, struct buf *out);

/** Calls fn for every counter and gauge, and for the sum and count of every histogram. */
void metrics_each(const struct metrics *m, void (*fn)(void *arg, const char *name, double value),
                  void *arg);

/* Upper bounds in seconds that fit TTFT and step times: 1 ms .. 100 s; 0.1 ms .. 10 s. */
enum { METRICS_N_TTFT = 16, METRICS_N_STEP = 16 };
extern const double metrics_ttft_bounds[METRICS_N_TTFT];
extern const double metrics_step_bounds[METRICS_N_STEP];

#endif
