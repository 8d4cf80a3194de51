/*
 * chat_params: what a request for generated text asks for besides its prompt.
 *
 * Threads   any; no state.
 */
#ifndef BATON_ROUTER_CHAT_PARAMS_H
#define BATON_ROUTER_CHAT_PARAMS_H

#include "common/text/stop.h"
#include "router/fields.h"
#include "router/generations.h"

enum {
    CHAT_CHOICES_MAX = 64, /* n */
    CHAT_SALT_BYTES_MAX = 1024
};

struct chat_params {
    const char *model; /* as asked; NULL when absent */
    bool stream, include_usage, continuous_usage;
    int64_t n;
    int64_t max_tokens; /* max_tokens or max_completion_tokens; -1: as much as fits; 0: with echo */
    int64_t max_completion_tokens; /* -1: absent */
    int64_t min_tokens;
    double temperature, top_p, min_p;
    int64_t top_k; /* -1 and 0: off */
    int64_t priority;
    bool has_seed;
    uint64_t seed;
    double presence_penalty, frequency_penalty, repetition_penalty;
    const struct json *logit_bias; /* NULL: none; checked: an object of token ids and numbers */
    int64_t top_logprobs;
    bool echo;     /* completions: the answer begins with the prompt, logprobs with its */
    bool logprobs; /* of the tokens drawn, and of top_logprobs others for each */
    bool ignore_eos, no_stop_trim;
    bool separate_reasoning;  /* else it stands in the content */
    bool stream_reasoning;    /* else it comes in one piece, once it is complete */
    bool omit_reasoning;      /* Anthropic: its block is empty */
    bool parallel_tool_calls; /* else the answer ends with its first call */
    int64_t logprob_start; /* /generate: the first prompt token whose logprob is told; -1: none */
    bool logprob_text;     /* /generate: tokens are told with their text */
    const char *rid;
    const char *cache_salt, *extra_key; /* prefixes are shared among equal ones only; NULL: none */
    size_t n_stop;
    struct stop_string stop[STOP_STRINGS_MAX]; /* borrowed from the body */
    size_t n_stop_ids;
    int32_t stop_ids[GENERATION_STOP_IDS_MAX];
};

/**
 * Reads all members of a chat-completion body but those that make the prompt.
 * @param vocab  token ids are below
 * @return false with err filled (400)
 */
bool chat_params_read(const struct json *body, int32_t vocab, struct chat_params *out,
                      struct chat_error *err);

/** The same for a completion body (max_tokens: 16 when absent, as OpenAI has it). */
bool completion_params_read(const struct json *body, int32_t vocab, struct chat_params *out,
                            struct chat_error *err);

/** The same for a body of SGLang's /generate (max_new_tokens: 128 when absent). */
bool generate_params_read(const struct json *body, int32_t vocab, struct chat_params *out,
                          struct chat_error *err);

/* ---- for the tables of other APIs ---- */

/** What an empty body means. */
extern const struct chat_params chat_params_defaults;

/** Whether fields that were read fit together and fit the vocabulary. */
bool chat_params_check(struct chat_params *p, int32_t vocab, struct chat_error *err);

/* Rows' functions for FIELD_READ; out is a struct chat_params. */
bool chat_params_read_stop(const struct field *f, const struct json *v, void *out,
                           struct chat_error *err);

/** Reads an object by its own table, whose errors name it: "stream_options.include_usage". */
bool chat_params_read_inner(const struct field *f, const struct field *table, const struct json *v,
                            void *out, struct chat_error *err);

/** A member of a checked logit_bias: the token id that its key spells, or -1. */
int32_t chat_params_bias_id(const struct json_member *m, int32_t vocab);

/* The field tables: every OpenAI and SGLang field, and what becomes of it. A name stands in one of
 * an API's tables. For tests and docs. */
extern const struct field *const chat_params_tables[], *const completion_params_tables[],
                                                           *const generate_params_tables[];

#endif
