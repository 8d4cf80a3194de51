#include "deploy/baton/bench_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/json.h"

void bench_table_begin(struct bench_table *t, bool json)
{
    memset(t, 0, sizeof(*t));
    t->json = json;
    if (!json)
        printf("| %-14s | %-52s | threads | %-17s | %7s | %7s |\n"
               "| --- | --- | ---: | ---: | ---: | ---: |\n",
               "operation", "shape", "reached", "limit", "share");
    fflush(stdout);
}

static void print_json(const struct bench_row *r)
{
    struct buf line = {0};

    buf_puts(&line, "{\"name\": ");
    json_write_string(&line, r->name, strlen(r->name));
    buf_puts(&line, ", \"shape\": ");
    json_write_string(&line, r->shape, strlen(r->shape));
    printf("%s, \"threads\": %d, \"value\": %.4g, \"unit\": \"%s\", \"limit\": %.4g, "
           "\"fraction\": %.3f}\n",
           buf_cstr(&line), r->threads, r->value, r->unit, r->limit, r->fraction);
    buf_deinit(&line);
}

void bench_table_add(struct bench_table *t, const struct bench_row *r)
{
    if (t->json)
        print_json(r);
    else
        printf("| %-14s | %-52s | %7d | %9.4g %-7s | %7.4g | %5.1f %% |\n", r->name, r->shape,
               r->threads, r->value, r->unit, r->limit, 100 * r->fraction);
    fflush(stdout);
    if (t->n < BENCH_ROWS_MAX)
        t->rows[t->n++] = *r;
}

/* ---- the picture ---- */

enum { ROW_PX = 22, LEFT_PX = 440, BAR_PX = 400, RIGHT_PX = 200, TOP_PX = 60 };

static void put_text(FILE *f, const char *s)
{
    for (; *s != '\0'; s++) {
        if (*s == '&')
            fputs("&amp;", f);
        else if (*s == '<')
            fputs("&lt;", f);
        else
            fputc(*s, f);
    }
}

static void put_row(FILE *f, const struct bench_row *r, int i)
{
    /* A cache that holds the data can be quicker than the limit: the bar ends at the edge. */
    double share = r->fraction < 1.25 ? r->fraction : 1.25;
    int y = TOP_PX + i * ROW_PX;

    fprintf(f, "<text x='%d' y='%d' text-anchor='end'>", LEFT_PX - 8, y + 15);
    put_text(f, r->name);
    fputs(", ", f);
    put_text(f, r->shape);
    fprintf(f, ", %d thread%s</text>\n", r->threads, r->threads == 1 ? "" : "s");
    fprintf(f, "<rect x='%d' y='%d' width='%.1f' height='%d' fill='#4477aa'/>\n", LEFT_PX, y + 3,
            share * BAR_PX / 1.25, ROW_PX - 6);
    fprintf(f, "<text x='%d' y='%d'>%.0f %% (%.4g %s)</text>\n", LEFT_PX + BAR_PX + 8, y + 15,
            100 * r->fraction, r->value, r->unit);
}

int bench_table_svg(const struct bench_table *t, const char *title, const char *path)
{
    int height = TOP_PX + t->n * ROW_PX + 20, width = LEFT_PX + BAR_PX + RIGHT_PX;
    int full = LEFT_PX + BAR_PX * 4 / 5;
    FILE *f = fopen(path, "w");

    if (f == NULL)
        return -1;
    fprintf(f,
            "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' "
            "font-family='sans-serif' font-size='12'>\n<rect width='%d' height='%d' "
            "fill='white'/>\n<text x='16' y='24' font-size='16'>",
            width, height, width, height);
    put_text(f, title);
    fprintf(f, "</text>\n<text x='%d' y='48' text-anchor='middle'>limit</text>\n", full);
    for (int i = 0; i < t->n; i++)
        put_row(f, &t->rows[i], i);
    fprintf(f, "<line x1='%d' y1='52' x2='%d' y2='%d' stroke='#cc3311'/>\n</svg>\n", full, full,
            height - 14);
    bool bad = ferror(f) != 0;

    return fclose(f) != 0 || bad ? -1 : 0;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

double bench_median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof(*x), by_value);
    return x[n / 2];
}
