/*
 * keys: who may ask, and how much.
 *
 * Keys come from --api-key (one), --admin-api-key (one, for changes) and a file that is read again
 * when it changes, one key a line, '#' begins a comment:
 *
 *   SECRET|sha256:HEX [name=WORD] [rps=N] [burst=N] [tpm=N] [weight=N] [priority=N] [admin]
 *
 *   name      in logs and metrics; default: the beginning of its hash
 *   rps, burst   requests a second, and how many at once above that (default: rps, at least 1)
 *   tpm       prompt and completion tokens a minute
 *   weight    share of a full cluster, beside other keys (default 1)
 *   priority  added to a request's own
 *   admin     may also change workers
 *
 * Only hashes are kept; comparing takes the same time whatever the key.
 *
 * Threads   any; a lock guards all.
 */
#ifndef BATON_ROUTER_KEYS_H
#define BATON_ROUTER_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

enum { KEYS_MAX = 65536, KEY_NAME_MAX = 31 };

struct keys;

enum key_verdict {
    KEY_OK,
    KEY_MISSING,   /* none was given, and one is needed */
    KEY_UNKNOWN,   /* not one of ours */
    KEY_NOT_ADMIN, /* good, but not for this */
};

/* Who asks. */
struct key_who {
    uint32_t id; /* 0: nobody in particular; stays the key's over reloads */
    float weight;
    int priority;
    char name[KEY_NAME_MAX + 1];
};

/**
 * @param api_key, admin_key, file  NULL: none. Without any, everybody may do everything.
 * @return ST_OK; ST_INVALID naming the file and line
 */
enum status_code keys_new(const char *api_key, const char *admin_key, const char *file,
                          struct keys **out, struct status *st);
void keys_free(struct keys *k);

/** Looks whether the file has changed, at most every half second; a file that cannot be read, or
 * has an error, changes nothing and is told in the log once. */
void keys_refresh(struct keys *k, uint64_t now_us);

/** @param given  NULL: no key came with the request */
enum key_verdict keys_check(struct keys *k, const char *given, size_t len, bool admin,
                            struct key_who *who);

/**
 * Takes a request of n prompt tokens from a key's limits.
 * @param retry_s  out, with ST_EXHAUSTED: when it may be tried again
 * @return ST_OK; ST_EXHAUSTED naming the limit
 */
enum status_code keys_take(struct keys *k, const struct key_who *who, uint64_t tokens,
                           uint64_t now_us, unsigned *retry_s, struct status *st);

/** Tokens that were generated for it; a debt delays what comes next. */
void keys_charge(struct keys *k, const struct key_who *who, uint64_t tokens);

#endif
