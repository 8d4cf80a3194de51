/*
 * flags: the command line of a binary, from one table.
 *
 * A table row names the flag, its type, its bounds and the field it fills; --help, the parser and
 * the docs test all read the same row. "--name value" and "--name=value" are the same; a bool also
 * takes no value. A repeatable string appends to a struct flag_list.
 *
 * Threads   start-up only.
 */
#ifndef BATON_COMMON_BASE_FLAGS_H
#define BATON_COMMON_BASE_FLAGS_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum flag_type {
    FLAG_STRING, /* const char *: points into argv */
    FLAG_INT,    /* int64_t within [min, max] */
    FLAG_FLOAT,  /* double within [min, max] */
    FLAG_BOOL,   /* bool */
    FLAG_CHOICE, /* const char *: one of the words of `choices`, separated by '|' */
    FLAG_LIST    /* struct flag_list: may be given many times */
};

enum { FLAG_LIST_MAX = 64 };

struct flag_list {
    size_t n;
    const char *items[FLAG_LIST_MAX]; /* point into argv */
};

struct flag {
    const char *name; /* with dashes, without the leading two: "model-path" */
    enum flag_type type;
    void *field;         /* of the type above; holds the default beforehand */
    double min, max;     /* numbers; min == max == 0 means unbounded */
    const char *choices; /* FLAG_CHOICE: "auto|rdma|tcp" */
    const char *arg;     /* what --help prints for the value: "DIR", "HOST:PORT" */
    const char *help;    /* one sentence */
};

/**
 * Parses argv[1..] by the table (ended by a row with name NULL).
 * @param n_positional  in: how many positional arguments fit; out: how many came
 * @param positional    out, those arguments; may be NULL when none are allowed
 * @return ST_OK; ST_INVALID naming the flag, what was given and what is allowed; ST_CANCELLED when
 *         --help was given (the caller prints flags_help() and exits 0)
 */
enum status_code flags_parse(const struct flag *table, int argc, char **argv, size_t *n_positional,
                             const char **positional, struct status *st);

/** Prints usage: a heading of the caller, then a line or two per flag with its default. */
void flags_help(const struct flag *table, const char *heading);

#endif
