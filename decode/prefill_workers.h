/*
 * prefill_workers: the sessions that this decode worker keeps with prefill workers, by address;
 * opened when first asked for, and again after a loss.
 *
 *   CLOSED ─▶ GREETING ─▶ READY ─▶ CLOSED (lost, or refused by either side)
 *
 * Also holds the units that a lost prefill worker may still write. It is shut out when its session
 * ends (transfer_revoke): one that wrote over a socket is so at once, which frees its units; those
 * of another stay in quarantine until the transfer has proof that it has stopped or died, however
 * long it may be frozen. A prefill worker whose end the transfer notices first has its session
 * ended.
 *
 * Threads   engine only.
 */
#ifndef BATON_DECODE_PREFILL_WORKERS_H
#define BATON_DECODE_PREFILL_WORKERS_H

#include "decode/request.h"
#include "decode/sessions.h"

struct prefill_workers;
struct worker;

enum prefill_worker_state { PREFILL_CLOSED, PREFILL_GREETING, PREFILL_READY };

struct prefill_worker_events {
    /* The session is READY: requests in ASKING can be submitted. */
    void (*ready)(void *arg, struct prefill_worker *p);
    /* The session has ended, or could not be opened: `why` says so. */
    void (*lost)(void *arg, struct prefill_worker *p, const struct status *why);
    void *arg;
};

enum status_code prefill_workers_new(struct worker *w, const struct prefill_worker_events *events,
                                     struct prefill_workers **out, struct status *st);
/** Frees; every session has ended (prefill_workers_close, then prefill_workers_all_closed). */
void prefill_workers_free(struct prefill_workers *l);

/**
 * The worker at an address; opens a session when there is none.
 * @return ST_OK: its state is GREETING or READY; ST_UNAVAILABLE, ST_EXHAUSTED: no session can be
 * opened
 */
enum status_code prefill_workers_get(struct prefill_workers *l, const char *address,
                                     struct prefill_worker **out, struct status *st);

enum prefill_worker_state prefill_worker_state(const struct prefill_worker *p);
const char *prefill_worker_address(const struct prefill_worker *p);

/** Sends; dropped with ST_UNAVAILABLE when the session is not READY. */
enum status_code prefill_worker_send(struct prefill_worker *p, const Baton__V1__PrefillRequest *m,
                                     struct status *st);

/** A hello came. */
void prefill_worker_hello(struct prefill_workers *l, struct prefill_worker *p,
                          const Baton__V1__Identity *identity);

/** DM_PREFILL_CLOSED: frees the link, calls `lost`. */
void prefill_worker_closed(struct prefill_workers *l, struct session_link *link,
                           const struct status *why);

/**
 * The peer may still write these units: gives them up into quarantine (our reference included).
 */
void prefill_worker_quarantine(struct prefill_workers *l, struct prefill_worker *p,
                               const uint32_t *pages, uint32_t n_pages, uint32_t slot);

/** DM_WRITER_ENDED: frees what it held, or ends its session. */
void prefill_workers_writer_ended(struct prefill_workers *l, uint64_t writer, bool proven);

/** Ends all sessions (tear-down). */
void prefill_workers_close(struct prefill_workers *l);
bool prefill_workers_all_closed(const struct prefill_workers *l);

#endif
