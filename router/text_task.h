/*
 * text_task: from the bytes of a request to token ids and sampling parameters.
 *
 * All text work of a request stands here, free of sockets and of the loop's state, so that it can
 * run on another thread when a body is large.
 *
 * Lifetime  *_task_run() on a zero-initialised struct, text_task_deinit() at the end.
 * Threads   any one; the scratch is the runner's.
 */
#ifndef BATON_ROUTER_TEXT_TASK_H
#define BATON_ROUTER_TEXT_TASK_H

#include "router/chat_params.h"
#include "router/generation_params.h"
#include "router/router.h"

/* Reused from one request to the next. */
struct text_scratch {
    struct tokenizer_cache *cache; /* may be NULL */
    struct token_list ids;
    struct chat_prompt prompt;
};
void text_scratch_deinit(struct text_scratch *s); /* all but the cache */

enum { TEXT_PROMPTS_MAX = 64, TEXT_CHOICES_MAX = 128 };

struct text_task {
    struct json_doc *doc; /* params point into it */
    struct chat_params params;
    struct generation_params generation; /* of choice 0; others differ in the seed */
    size_t n_prompts;
    struct prompt_ids *prompts[TEXT_PROMPTS_MAX]; /* params.n choices for each */
    size_t n_prompt_tokens;                       /* of all */
    bool many;                                    /* a list of prompts, even if of one */
    bool raw;                                     /* the output is text and nothing else */
    enum turn_start start;                        /* not raw: where the parser begins */
    bool tools;                                   /* not raw: whether it looks for calls */
    bool counting;                                /* nothing is generated: any length will do */
    struct buf echo; /* /v1/responses: what the answer repeats of the request */
};

/**
 * Reads a chat-completion body.
 * @param context_length  of the model, in tokens; 0: not known
 * @return false with err filled: what is wrong with the request, by name and with numbers
 */
bool chat_task_run(struct text_task *task, const struct router *router, const char *body,
                   size_t len, uint64_t context_length, struct text_scratch *scratch,
                   struct chat_error *err);

/** The same for a body of Anthropic's Messages API, and of its count_tokens. */
bool anthropic_task_run(struct text_task *task, const struct router *router, const char *body,
                        size_t len, uint64_t context_length, struct text_scratch *scratch,
                        struct chat_error *err);
bool anthropic_count_task_run(struct text_task *task, const struct router *router, const char *body,
                              size_t len, uint64_t context_length, struct text_scratch *scratch,
                              struct chat_error *err);

/** The same for a body of OpenAI's Responses API. */
bool responses_task_run(struct text_task *task, const struct router *router, const char *body,
                        size_t len, uint64_t context_length, struct text_scratch *scratch,
                        struct chat_error *err);

/** The same for a completion body: prompt is a string, a list of token ids, or a list of either. */
bool completion_task_run(struct text_task *task, const struct router *router, const char *body,
                         size_t len, uint64_t context_length, struct text_scratch *scratch,
                         struct chat_error *err);

/** The same for a body of SGLang's /generate: text (a string or a list) or input_ids. */
bool generate_task_run(struct text_task *task, const struct router *router, const char *body,
                       size_t len, uint64_t context_length, struct text_scratch *scratch,
                       struct chat_error *err);

void text_task_deinit(struct text_task *task);

#endif
