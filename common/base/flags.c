#include "common/base/flags.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct flag *find(const struct flag *table, const char *name, size_t len)
{
    for (const struct flag *f = table; f->name != NULL; f++)
        if (strlen(f->name) == len && memcmp(f->name, name, len) == 0)
            return f;
    return NULL;
}

static bool in_bounds(const struct flag *f, double v)
{
    return (f->min == 0 && f->max == 0) || (v >= f->min && v <= f->max);
}

static bool is_choice(const char *choices, const char *value)
{
    size_t len = strlen(value);

    for (const char *p = choices; *p != '\0';) {
        size_t n = strcspn(p, "|");

        if (n == len && memcmp(p, value, n) == 0)
            return true;
        p += n + (p[n] == '|');
    }
    return false;
}

static enum status_code set_number(const struct flag *f, const char *value, struct status *st)
{
    char *end;
    double v;
    long long i = 0;

    errno = 0;
    if (f->type == FLAG_INT) {
        i = strtoll(value, &end, 10);
        v = (double)i;
    } else {
        v = strtod(value, &end);
    }
    if (end == value || *end != '\0' || errno == ERANGE || isnan(v))
        return status_set(st, ST_INVALID, "--%s: '%s' is not %s", f->name, value,
                          f->type == FLAG_INT ? "a whole number" : "a number");
    if (!in_bounds(f, v))
        return status_set(st, ST_INVALID, "--%s: %s is outside %.15g..%.15g", f->name, value,
                          f->min, f->max);
    if (f->type == FLAG_INT)
        *(int64_t *)f->field = i;
    else
        *(double *)f->field = v;
    return status_ok(st);
}

static enum status_code set_bool(const struct flag *f, const char *value, struct status *st)
{
    bool on = value == NULL || strcmp(value, "on") == 0 || strcmp(value, "true") == 0;

    if (!on && strcmp(value, "off") != 0 && strcmp(value, "false") != 0)
        return status_set(st, ST_INVALID, "--%s: '%s' is not on, off, true or false", f->name,
                          value);
    *(bool *)f->field = on;
    return status_ok(st);
}

static enum status_code set(const struct flag *f, const char *value, struct status *st)
{
    struct flag_list *list = f->field;

    switch (f->type) {
    case FLAG_INT:
    case FLAG_FLOAT:
        return set_number(f, value, st);
    case FLAG_BOOL:
        return set_bool(f, value, st);
    case FLAG_CHOICE:
        if (!is_choice(f->choices, value))
            return status_set(st, ST_INVALID, "--%s: '%s' is not one of %s", f->name, value,
                              f->choices);
        *(const char **)f->field = value;
        return status_ok(st);
    case FLAG_STRING:
        *(const char **)f->field = value;
        return status_ok(st);
    case FLAG_LIST:
        if (list->n == FLAG_LIST_MAX)
            return status_set(st, ST_INVALID, "--%s: given more than %d times", f->name,
                              FLAG_LIST_MAX);
        list->items[list->n++] = value;
        return status_ok(st);
    }
    return status_set(st, ST_INTERNAL, "--%s: unknown flag type", f->name);
}

enum status_code flags_parse(const struct flag *table, int argc, char **argv, size_t *n_positional,
                             const char **positional, struct status *st)
{
    size_t room = n_positional == NULL ? 0 : *n_positional, n = 0;

    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *name = a + 2, *value = NULL;
        const struct flag *f;
        size_t len;

        if (strcmp(a, "--help") == 0 || strcmp(a, "-h") == 0)
            return status_set(st, ST_CANCELLED, "help");
        if (strncmp(a, "--", 2) != 0) {
            if (n == room)
                return status_set(st, ST_INVALID, "unexpected argument '%s' (see --help)", a);
            positional[n++] = a;
            continue;
        }
        len = strcspn(name, "=");
        f = find(table, name, len);
        if (f == NULL)
            return status_set(st, ST_INVALID, "unknown flag '%s' (see --help)", a);
        if (name[len] == '=')
            value = name + len + 1;
        else if (f->type != FLAG_BOOL) {
            if (i + 1 == argc)
                return status_set(st, ST_INVALID, "--%s needs a value", f->name);
            value = argv[++i];
        }
        if (set(f, value, st) != ST_OK)
            return st->code;
    }
    if (n_positional != NULL)
        *n_positional = n;
    return status_ok(st);
}

static void print_default(const struct flag *f)
{
    const char *s;

    switch (f->type) {
    case FLAG_INT:
        printf(" (default %lld)", (long long)*(const int64_t *)f->field);
        break;
    case FLAG_FLOAT:
        printf(" (default %g)", *(const double *)f->field);
        break;
    case FLAG_BOOL:
        printf(" (default %s)", *(const bool *)f->field ? "on" : "off");
        break;
    case FLAG_STRING:
    case FLAG_CHOICE:
        s = *(const char *const *)f->field;
        if (s != NULL && *s != '\0')
            printf(" (default %s)", s);
        break;
    case FLAG_LIST:
        printf(" (may be repeated)");
        break;
    }
}

void flags_help(const struct flag *table, const char *heading)
{
    printf("%s\n", heading);
    for (const struct flag *f = table; f->name != NULL; f++) {
        const char *arg = f->type == FLAG_CHOICE ? f->choices : f->arg;

        printf("  --%s %s\n        %s", f->name, arg == NULL ? "" : arg, f->help);
        print_default(f);
        printf("\n");
    }
}
