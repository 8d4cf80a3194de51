#include "common/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* One table for every code: its name and what the two protocols call it. */
static const struct {
    const char *name;
    int http;
    int grpc;
} table[ST_N_CODES] = {
    [ST_OK] = {"ok", 200, 0},
    [ST_INVALID] = {"invalid", 400, 3},
    [ST_EXHAUSTED] = {"exhausted", 429, 8},
    [ST_UNAVAILABLE] = {"unavailable", 503, 14},
    [ST_CORRUPT] = {"corrupt", 500, 15},
    [ST_CANCELLED] = {"cancelled", 499, 1},
    [ST_TIMEOUT] = {"timeout", 504, 4},
    [ST_INTERNAL] = {"internal", 500, 13},
};

enum status_code status_set(struct status *st, enum status_code code, const char *fmt, ...)
{
    va_list ap;

    st->code = code;
    va_start(ap, fmt);
    vsnprintf(st->msg, sizeof(st->msg), fmt, ap);
    va_end(ap);
    return code;
}

enum status_code status_ok(struct status *st)
{
    st->code = ST_OK;
    st->msg[0] = '\0';
    return ST_OK;
}

enum status_code status_wrap(struct status *st, const char *fmt, ...)
{
    char inner[sizeof(st->msg)];
    size_t n, room = sizeof(st->msg);
    va_list ap;

    memcpy(inner, st->msg, sizeof(inner));
    va_start(ap, fmt);
    vsnprintf(st->msg, room, fmt, ap);
    va_end(ap);
    n = strlen(st->msg);
    /* Two bounded appends: a context that fills the message leaves no room for what it wraps. */
    for (const char *p = ": "; *p != '\0' && n + 1 < room; p++)
        st->msg[n++] = *p;
    for (const char *p = inner; *p != '\0' && n + 1 < room; p++)
        st->msg[n++] = *p;
    st->msg[n] = '\0';
    return st->code;
}

const char *status_name(enum status_code code)
{
    return (unsigned)code < ST_N_CODES ? table[code].name : "unknown";
}

int status_http(enum status_code code)
{
    return (unsigned)code < ST_N_CODES ? table[code].http : 500;
}

int status_to_grpc(enum status_code code)
{
    return (unsigned)code < ST_N_CODES ? table[code].grpc : 2;
}

enum status_code status_from_grpc(int grpc_code)
{
    for (int i = 0; i < ST_N_CODES; i++)
        if (table[i].grpc == grpc_code)
            return (enum status_code)i;
    return ST_INTERNAL;
}
