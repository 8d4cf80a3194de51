/*
 * job: one request for generated text, whatever API it came by: its choices, their generations and
 * answers, and the client's answer, streamed or whole. How the answer is written is the API's: a
 * struct job_format.
 *
 *   api_*.c: request ─▶ text_task ─▶ job_start()      generations ─▶ job ─▶ job_format ─▶ client
 *
 * Promises  a job ends itself: when its last choice is complete, when one fails, when the client
 * goes away or reads too slowly. An error before the first byte of the answer is a plain status;
 *           later it is an event.
 * Threads   the router thread.
 */
#ifndef BATON_ROUTER_JOB_H
#define BATON_ROUTER_JOB_H

#include "router/chat_sse.h"
#include "router/request_path.h"
#include "router/router_thread.h"

enum { JOB_REQUEST_ID_MAX = 63, JOB_CALL_ID_BYTES = 32 };

struct job;
struct text_task;

/* A tool call of a whole answer. */
struct job_call {
    char id[JOB_CALL_ID_BYTES];
    struct buf name, arguments;
};

struct job_choice {
    struct job *job;
    unsigned index;
    struct generation *generation; /* NULL: not started, or over */
    size_t n_prompt, n_cached;     /* tokens of its prompt, and those that a cache had */
    struct chat_answer answer;
    bool began; /* streamed: its first event is out */
    /* For formats whose streams are blocks, one after the other: */
    bool block_open;
    enum chat_delta_kind block_kind; /* of the latest */
    unsigned n_blocks;               /* so far, with the open one */
    struct prompt_ids *echo;         /* to be shown before the answer; NULL: not, or done */
    struct token_logprobs *logprobs; /* NULL: not asked for. Streamed: those that no event had */
    /* Whole answers gather here, and streams whose events repeat the text. */
    struct buf reasoning, content;
    struct buf logprobs_text; /* of content, where the format repeats it */
    struct token_list ids;    /* the tokens of content; kept where the format says so */
    size_t n_calls;
    struct job_call *calls;
};

/* How an API writes: each function appends to out. */
struct job_format {
    const char *id_prefix; /* "chatcmpl-" */
    enum token_logprobs_style logprobs_style;
    bool keeps_ids;        /* the answer names its tokens */
    bool content_logprobs; /* log probabilities are told of content alone */
    bool aborts; /* one that is aborted ends with finish reason "abort"; else with an error */
    /* Not to generate but to answer from the task alone; then the only member. */
    void (*at_once)(struct router_thread *t, struct http_exchange *x, const struct text_task *task);
    /* Streamed: */
    void (*begin_choice)(struct job *j, struct job_choice *c, struct buf *out);
    void (*delta)(struct job *j, struct job_choice *c, const struct chat_delta *d, struct buf *out);
    void (*end_choice)(struct job *j, struct job_choice *c, struct buf *out);
    void (*end)(struct job *j, struct buf *out);
    void (*error)(struct job *j, int http_status, const char *message, struct buf *out);
    const char *ping; /* what is sent when there is nothing to send for long; NULL: a comment */
    /* Whole: after a delta was kept; may be NULL. */
    void (*kept)(struct job *j, struct job_choice *c, const struct chat_delta *d);
    /* Whole: the JSON body. */
    void (*whole)(struct job *j, struct buf *out);
};

struct job {
    struct job *prev, *next; /* of the thread's */
    struct router_thread *thread;
    struct http_exchange *exchange;
    const struct job_format *format;
    char id[CHAT_ID_BYTES];
    char request_id[JOB_REQUEST_ID_MAX + 1];
    int64_t created;
    bool stream, include_usage, wants_path;
    bool many;      /* a list of prompts was asked */
    bool no_output; /* max_tokens 0: the prompt is all that is shown */
    bool started;   /* streamed: the head of the answer is out */
    bool echo;      /* the prompt's text is shown before the answer */
    bool omit_reasoning, logprob_text, logprob_tops; /* as asked */
    int64_t logprob_start; /* first prompt token whose logprob is told; -1: none */
    uint64_t n_events;     /* of formats that number them */
    struct buf repeated;   /* of formats whose answer repeats the request */
    struct chat_sse sse;
    size_t n_prompt;
    uint64_t begun_us, first_us, last_us; /* request, first tokens, latest tokens */
    uint64_t pinged_us;
    struct request_path path;
    unsigned n_choices, n_open;
    struct job_choice choices[];
};

/**
 * Names the request for logs and for the client: its x-request-id header when that is printable,
 * else `rid` (may be NULL), else a random name.
 * @param out  [JOB_REQUEST_ID_MAX + 1]
 */
void job_name_request(struct http_exchange *x, const char *rid, char *out);

/**
 * Answers a request by generating, or with an error; either way the exchange is taken care of.
 * @param task       ready to run; the caller frees it afterwards
 * @param begun_us   when the request was complete
 */
void job_start(struct router_thread *t, struct http_exchange *x, const struct job_format *format,
               const struct text_task *task, const char *request_id, uint64_t begun_us);

/**
 * Answers a request that could not become a task.
 * @param err  says why
 */
void job_refuse(struct router_thread *t, struct http_exchange *x, const struct chat_error *err);

/** Ends the running jobs of this name with finish reason "abort" or an error; all of them: NULL.
 * @return how many */
size_t jobs_abort(struct router_thread *t, const char *request_id);

/** Housekeeping, about every second: keeps silent streams alive. */
void jobs_tick(struct router_thread *t);

/** Streams whose events repeat what was said: adds d to the choice, as whole answers do. */
void job_keep_delta(struct job_choice *c, const struct chat_delta *d);

/** Tokens so far, over all choices. */
struct chat_usage job_usage(const struct job *j);

/** Appends the tail that streams of OpenAI's two APIs share: usage and path when asked for, [DONE].
 */
void job_put_stream_tail(struct job *j, struct buf *out);

/** Appends the members that whole answers of OpenAI's two APIs begin and end with. */
void job_put_head(const struct job *j, const char *object, struct buf *out);
void job_put_tail(const struct job *j, struct buf *out);

/** Appends the way of the request as a JSON object: workers, bytes moved, times. */
void job_put_path(const struct job *j, struct buf *out);

/** Appends what ended a choice: the stop string, the token's id, or null; SGLang's "matched_stop".
 */
void job_put_matched(const struct job_choice *c, struct buf *out);

/** Appends the value of a whole choice's "logprobs" in the format's style. */
void job_put_logprobs(const struct job_choice *c, struct buf *out);

#endif
