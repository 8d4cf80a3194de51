/*
 * request: one generation on the decode side.
 *
 *   WAITING ─▶ ASKING ─▶ RECEIVING ─▶ VERIFYING ─▶ RUNNING ─▶ DONE
 *      ▲  ▲       │          │  ▲         │           │
 *      │  └───────┘          │  └─────────┘ resend    │        ASKING: has units, its prefill
 * worker's │  └───────────────────┘ prefill lost          │        session is not ready yet
 *      └──────────────────────────────────────────────┘ retracted
 *   RECEIVING, VERIFYING ─▶ DRAINING ─▶ DONE: no longer wanted, but its pages are still written or
 * read
 *
 * Owns      tokens, block table and the strings in it; its pages and slot while has_units.
 * Threads   engine only.
 */
#ifndef BATON_DECODE_REQUEST_H
#define BATON_DECODE_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "baton/v1/decode.pb-c.h"
#include "baton/v1/prefill.pb-c.h"
#include "common/base/status.h"
#include "common/model/sampler.h"

struct router;
struct prefill_worker;

enum request_state {
    REQ_WAITING,   /* for pages, a slot, its turn */
    REQ_ASKING,    /* for a session with its prefill worker */
    REQ_RECEIVING, /* the prefill worker computes and writes into our pages */
    REQ_VERIFYING, /* the transfer thread compares checksums */
    REQ_RUNNING,   /* in the batch of every step */
    REQ_DRAINING,  /* over, but its pages may still be written or read */
    REQ_DONE,
    REQ_N_STATES
};

enum { REQUEST_PREFILLS_MAX = 8, REQUEST_STOP_IDS_MAX = 64 };

struct request {
    struct request *next; /* in the loop's list, oldest first */
    enum request_state state;
    struct router *router; /* NULL once its session has closed */
    uint64_t id;           /* the router's */
    uint64_t seq;          /* ours: order of arrival, and its name towards prefill workers */
    char rid[64];

    int32_t *tokens; /* [n_tokens] of [cap_tokens]: prompt, then generated */
    uint32_t n_tokens, cap_tokens;
    uint32_t n_prompt;  /* tokens that came with the request */
    uint32_t n_emitted; /* of those, output that the client already has */
    uint32_t max_new;   /* generated tokens at most, n_emitted included */
    uint32_t min_new;
    bool ignore_eos;
    int32_t stop_ids[REQUEST_STOP_IDS_MAX];
    uint32_t n_stop_ids;
    struct sampling_params sampling;

    uint32_t *pages; /* block table, [n_pages] of [cap_pages] */
    uint32_t n_pages, cap_pages;
    uint32_t slot;
    bool has_units;

    char *prefills[REQUEST_PREFILLS_MAX]; /* addresses, in order of preference */
    uint32_t n_prefills, prefill_idx;
    struct prefill_worker *prefill; /* asked now */
    bool resent;                    /* a checksum mismatch was already answered with a resend */
    bool peer_may_write;            /* DRAINING: until the prefill worker says stopped or done */
    bool verifying;                 /* DRAINING: until DM_VERIFIED */
    struct status last_error;       /* of the prefill workers tried */

    /* The handoff's message, kept until its checksums are verified. */
    int32_t first_token;
    uint32_t *crc; /* [n_crc] */
    uint32_t n_crc;
    Baton__V1__HandoffStats stats; /* strings below */
    char prefill_name[128], transport[128];
    bool stats_sent;
};

/** Moves to the next state; asserts that the move is legal. */
void request_enter(struct request *r, enum request_state next, const char *why);

/**
 * Makes a request of a submit message.
 * @param context_length  tokens of prompt and output together, at most
 * @param vocab           token ids are below
 * @return ST_OK; ST_INVALID naming what cannot be; ST_EXHAUSTED
 */
enum status_code request_new(const Baton__V1__DecodeSubmit *m, uint64_t seq, int64_t context_length,
                             int32_t vocab, struct request **out, struct status *st);
void request_free(struct request *r);

/** Appends a generated token. */
void request_append(struct request *r, int32_t token);

/** Whether the last token ends the generation, and how (FINISH_NONE: it goes on). */
Baton__V1__FinishReason request_finish(const struct request *r, int32_t eos,
                                       int64_t context_length);

/** Keeps what a done message brought. @return ST_OK; ST_CORRUPT when it contradicts the request */
enum status_code request_keep_done(struct request *r, const Baton__V1__PrefillDone *m,
                                   struct status *st);

#endif
