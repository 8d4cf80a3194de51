/*
 * chat_answer: one choice of an answer: tokens in, deltas out.
 *
 *   tokens ─▶ detokenizer ─▶ parser (not for raw text) ─▶ stop strings (content only) ─▶ deltas
 *
 * Neighbouring pieces of one push and of one kind come as one delta.
 *
 * Promises  the deltas, joined by kind and call, do not depend on how the tokens were batched; a
 * delta is never empty (but CHAT_CALL may name a call ""), never half a character. Threads   one
 * owner.
 */
#ifndef BATON_ROUTER_CHAT_ANSWER_H
#define BATON_ROUTER_CHAT_ANSWER_H

#include "baton/v1/common.pb-c.h"
#include "common/text/parse.h"
#include "common/text/stop.h"
#include "router/text_task.h"

enum chat_delta_kind {
    CHAT_REASONING,
    CHAT_CONTENT,
    CHAT_CALL,     /* text: the function's name */
    CHAT_ARGUMENTS /* text: more of the arguments */
};

struct chat_delta {
    enum chat_delta_kind kind;
    unsigned call;    /* CHAT_CALL, CHAT_ARGUMENTS */
    const char *text; /* [len], borrowed until return */
    size_t len;
};

typedef void (*chat_delta_fn)(void *arg, const struct chat_delta *delta);

/* Buffers that answers of one thread share; empty between pushes. */
struct chat_answer_scratch {
    struct buf text, pending;
};

struct chat_answer {
    const struct router *router;
    struct chat_answer_scratch *scratch;
    struct detokenizer detokenizer;
    struct parse *parse; /* NULL: raw text */
    struct stop *stop;   /* NULL: no stop strings */
    chat_delta_fn emit;
    void *arg;
    bool separate_reasoning;
    bool single_call;    /* the answer ends with its first call */
    bool cut;            /* it has */
    bool hold_reasoning; /* it comes out in one piece, once it is complete */
    struct buf held;     /* such reasoning */
    bool in_reasoning;   /* not separate: </think> is still to be written */
    bool no_stop_trim;
    bool stopped; /* a stop string was found: nothing more comes out */
    enum chat_delta_kind pending_kind;
    unsigned pending_call;
    uint64_t n_completion, n_reasoning; /* tokens */
    const char *finish; /* NULL while it goes on; else "stop", "length", "tool_calls" */
    int32_t stop_id;    /* the token that ended it, else -1 */
};

/**
 * @param task  after chat_task_run(); what is needed of it is copied
 * @param emit  called inside push
 */
enum status_code chat_answer_init(struct chat_answer *a, const struct router *router,
                                  const struct text_task *task, struct chat_answer_scratch *scratch,
                                  chat_delta_fn emit, void *arg, struct status *st);
void chat_answer_deinit(struct chat_answer *a);

/** Whether the next token is the reasoning's, the one that ends it included. */
bool chat_answer_in_reasoning(const struct chat_answer *a);

/** The stop string that ended it, NULL when none did; borrowed as long as a. */
const char *chat_answer_stop_string(const struct chat_answer *a, size_t *len);

/**
 * Takes new tokens. Afterwards a->finish says whether the answer is complete, which may be so
 * before the engine has finished: the caller then cancels the generation.
 * @return ST_OK; ST_CORRUPT when the worker sent an id outside the vocabulary
 */
enum status_code chat_answer_push(struct chat_answer *a, const int32_t *ids, size_t n,
                                  Baton__V1__FinishReason engine_finish, struct status *st);

#endif
