/*
 * status: how a function says that it failed, and why.
 *
 * A function that can fail returns the code and fills the caller's struct; nothing allocates to
 * report an error, so it works when memory is what ran out. The function that decides which error
 * it is writes the message; callers on the way up put their context in front with status_wrap().
 *
 * Threads   a struct status belongs to the thread that passes it; no sharing.
 */
#ifndef BATON_COMMON_BASE_STATUS_H
#define BATON_COMMON_BASE_STATUS_H

enum status_code {
    ST_OK = 0,
    ST_INVALID,     /* the caller or the input is wrong: do not retry */
    ST_EXHAUSTED,   /* pages, memory, queue: retry later */
    ST_UNAVAILABLE, /* a peer or device is gone: try another */
    ST_CORRUPT,     /* a checksum or a format did not hold */
    ST_CANCELLED,   /* the one who asked no longer wants it */
    ST_TIMEOUT,     /* a named bound passed */
    ST_INTERNAL,    /* our bug: this request fails, the process lives */
    ST_N_CODES
};

struct status {
    enum status_code code;
    char msg[512]; /* NUL-terminated, cut at the end when too long */
};

/**
 * Sets code and printf-style message; returns the code, so that `return status_set(...)` reads
 * well.
 * @param st  never NULL
 */
enum status_code status_set(struct status *st, enum status_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/** Sets ST_OK with an empty message; returns ST_OK. */
enum status_code status_ok(struct status *st);

/** Puts "<context>: " in front of the message of a failed status; returns its code. */
enum status_code status_wrap(struct status *st, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/** "invalid", "exhausted", ...: lower case, stable, for logs and metrics. */
const char *status_name(enum status_code code);

/** The HTTP status that a client sees for this code: 400, 429, 503, 500, 499, 504. */
int status_http(enum status_code code);

/** The grpc_status_code number for this code, and back (unknown numbers become ST_INTERNAL). */
int status_to_grpc(enum status_code code);
enum status_code status_from_grpc(int grpc_code);

#endif
