/*
 * request: one generation on the decode side.
 *
 *   WAITING ─▶ ASKING ─▶ RECEIVING ─▶ VERIFYING ─▶ RUNNING ─▶ DONE     WAITING ─▶ RUNNING: what
 *      │  │                                                              the prefix cache lacks is
 *      │  │                                                              short and computed here
 *      ▲  ▲       │          │  ▲         │           │
 *      │  └───────┘          │  └─────────┘ resend    │        ASKING: has units, its prefill
 * worker's │  └───────────────────┘ prefill lost          │        session is not ready yet
 *      └──────────────────────────────────────────────┘ retracted
 *   RECEIVING ─▶ DRAINING ─▶ DONE: no longer wanted, but its prefill worker may still write
 *
 * Owns      its sequence and the strings in it.
 * Threads   engine only.
 */
#ifndef BATON_DECODE_REQUEST_H
#define BATON_DECODE_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "baton/v1/decode.pb-c.h"
#include "baton/v1/prefill.pb-c.h"
#include "common/base/status.h"
#include "common/engine/sequence.h"
#include "common/worker/sampling.h"

struct router;
struct prefill_worker;

enum request_state {
    REQ_WAITING,   /* for pages, a slot, its turn */
    REQ_ASKING,    /* for a session with its prefill worker */
    REQ_RECEIVING, /* the prefill worker computes and writes into our pages; those that are there
                      are compared with their checksums meanwhile */
    REQ_VERIFYING, /* all is written; what has not been compared yet is */
    REQ_RUNNING,   /* in the batch of every step */
    REQ_DRAINING,  /* over, but its prefill worker may still write its pages */
    REQ_DONE,
    REQ_N_STATES
};

enum { REQUEST_PREFILLS_MAX = 8 };

struct request {
    struct request *next; /* in the loop's list, oldest first */
    enum request_state state;
    struct router *router; /* NULL once its session has closed */
    uint64_t id;           /* the router's */
    uint64_t name;         /* ours, towards prefill workers */
    char rid[64];

    struct sampling_params sampling; /* with its lists */
    struct sequence seq;             /* tokens, sampling, KV; the engine steps it */

    char *prefills[REQUEST_PREFILLS_MAX]; /* addresses, in order of preference */
    uint32_t n_prefills, prefill_idx;
    struct prefill_worker *prefill; /* asked now */
    bool resent;                    /* a checksum mismatch was already answered with a resend */
    uint64_t done_us;               /* when the peer said that all bytes are written */
    uint32_t attempt;         /* counts submits: results of earlier ones are told from these */
    struct status last_error; /* of the prefill workers tried */

    /* What came with the handoff's messages, kept until its checksums are verified. */
    int32_t first_token;
    uint32_t *crc; /* of groups (common/worker/handoff.h) from page n_hit_pages on: room for all */
    uint32_t n_told;               /* of crc that came before done; their comparison has begun */
    uint32_t n_verifying;          /* comparisons of this attempt that are under way */
    struct status differs;         /* ST_OK: none so far has found a difference */
    Baton__V1__HandoffStats stats; /* strings below */
    char prefill_name[128], transport[128];
    bool stats_sent;

    struct logprobs news;            /* of the tokens to be emitted next */
    struct logprobs prompt_logprobs; /* sent with the first token */
};

/** Moves to the next state; asserts that the move is legal. */
void request_enter(struct request *r, enum request_state next, const char *why);

/**
 * Makes a request of a submit message.
 * @param context_length  tokens of prompt and output together, at most
 * @param vocab           token ids are below
 * @param eos             ends a generation unless the request ignores it
 * @return ST_OK; ST_INVALID naming what cannot be; ST_EXHAUSTED
 */
enum status_code request_new(const Baton__V1__DecodeSubmit *m, uint64_t name,
                             int64_t context_length, int32_t vocab, int32_t eos,
                             struct request **out, struct status *st);
void request_free(struct request *r);

/** What the router hears of a request whose prompt was computed here. */
void request_note_local(struct request *r);

/** Keeps what a written message brought, of n_crc checksums in all. @return ST_OK; ST_CORRUPT when
 * it is not the next part */
enum status_code request_keep_written(struct request *r, const Baton__V1__PrefillWritten *m,
                                      uint32_t n_crc, struct status *st);

/** Keeps what a done message brought. @return ST_OK; ST_CORRUPT when it contradicts the request */
enum status_code request_keep_done(struct request *r, const Baton__V1__PrefillDone *m,
                                   uint32_t n_crc, struct status *st);

#endif
