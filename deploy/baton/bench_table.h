/*
 * bench_table: figures of a benchmark beside the limits of the machine: printed as they come, as a
 * Markdown table or as JSON lines, and drawn at the end.
 *
 * Promises  one JSON object a line: name, shape, threads, value, unit, limit, fraction.
 * Threads   one caller.
 * Limits    BENCH_ROWS_MAX rows are drawn; all are printed.
 */
#ifndef BATON_DEPLOY_BATON_BENCH_TABLE_H
#define BATON_DEPLOY_BATON_BENCH_TABLE_H

#include <stdbool.h>

enum { BENCH_ROWS_MAX = 256, BENCH_ROUNDS_MAX = 15 };

struct bench_row {
    char name[32], shape[80], unit[16];
    int threads;
    double value, limit; /* in `unit` */
    double fraction;     /* of the limit; the median over rounds, so not always value / limit */
};

struct bench_table {
    bool json;
    int n;
    struct bench_row rows[BENCH_ROWS_MAX];
};

/** Prints the head of the Markdown table (nothing with json). */
void bench_table_begin(struct bench_table *t, bool json);

/** Prints a row and keeps it. */
void bench_table_add(struct bench_table *t, const struct bench_row *row);

/** Writes the rows as bars of their fractions. @return 0, or -1 with errno set */
int bench_table_svg(const struct bench_table *t, const char *title, const char *path);

/** Median of n <= BENCH_ROUNDS_MAX values; sorts them. */
double bench_median(double *x, int n);

#endif
