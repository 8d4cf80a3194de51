#include "router/text_task.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <openssl/sha.h>

#include "router/anthropic_request.h"
#include "router/ids.h"
#include "router/responses_request.h"

/* What the releases ask for where the most effort is wanted. */
enum { THINK_MAX_CONTEXT = 384 << 10 };

void text_scratch_deinit(struct text_scratch *s)
{
    token_list_deinit(&s->ids);
    chat_prompt_deinit(&s->prompt);
}

void text_task_deinit(struct text_task *task)
{
    json_free(task->doc);
    task->doc = NULL;
    for (size_t i = 0; i < task->n_prompts; i++)
        prompt_ids_unref(task->prompts[i]);
    task->n_prompts = 0;
    token_bias_unref(task->generation.bias);
    task->generation.bias = NULL;
    buf_deinit(&task->echo);
}

static bool fail_memory(struct chat_error *err)
{
    field_fail(err, "", "overloaded", "the router is out of memory: try again later");
    err->status = 503;
    return false;
}

static bool parse(struct text_task *task, const char *body, size_t len, struct chat_error *err)
{
    struct status st;

    if (json_parse(body, len, CHAT_JSON_FLAGS, &task->doc, &st) == ST_OK)
        return true;
    task->doc = NULL;
    return field_fail(err, "", "invalid_json", "the request body is no valid JSON: %s", st.msg);
}

/* Prompt and answer must fit together; an answer without a bound gets all that is left. */
static bool fit_context(struct chat_params *p, const char *param, size_t n_prompt, uint64_t context,
                        struct chat_error *err)
{
    if (context == 0)
        context = (uint64_t)INT32_MAX;
    if (n_prompt >= context)
        return field_fail(err, param, "context_length_exceeded",
                          "the prompt has %zu tokens, the model's context length is %llu and must "
                          "hold at least one more: shorten the prompt",
                          n_prompt, (unsigned long long)context);
    if (p->max_tokens < 0)
        p->max_tokens = (int64_t)(context - n_prompt);
    if (n_prompt + (uint64_t)p->max_tokens > context)
        return field_fail(err, "max_tokens", "context_length_exceeded",
                          "%zu prompt tokens and max_tokens %lld are %llu together, the model's "
                          "context length is %llu: ask for %llu at most",
                          n_prompt, (long long)p->max_tokens,
                          (unsigned long long)(n_prompt + (uint64_t)p->max_tokens),
                          (unsigned long long)context, (unsigned long long)(context - n_prompt));
    if (p->min_tokens > p->max_tokens)
        return field_fail(err, "min_tokens", "invalid_value",
                          "min_tokens is %lld, the answer has %lld tokens at most",
                          (long long)p->min_tokens, (long long)p->max_tokens);
    return true;
}

/* chat_params has checked it. */
static bool fill_bias(struct text_task *task, int32_t vocab, struct chat_error *err)
{
    const struct json *bias = task->params.logit_bias;
    struct token_bias *b;

    if (bias == NULL)
        return true;
    b = token_bias_new(bias->len);
    if (b == NULL)
        return fail_memory(err);
    for (uint32_t i = 0; i < bias->len; i++) {
        double value = 0;

        json_double(&bias->members[i].value, &value);
        b->ids[i] = chat_params_bias_id(&bias->members[i], vocab);
        b->values[i] = (float)value;
    }
    task->generation.bias = b;
    return true;
}

/* The worker's name for what a prefix must not be shared across; 0: shared with all that say
 * nothing. Cryptographic, since a tenant who found a collision would see whether another has sent a
 * prefix. */
static uint64_t salt_of(const struct chat_params *p)
{
    const char *parts[] = {p->cache_salt, p->extra_key};
    unsigned char digest[SHA256_DIGEST_LENGTH];
    struct buf text = {0};
    uint64_t salt = 0;

    for (size_t i = 0; i < 2; i++)
        if (parts[i] != NULL && *parts[i] != '\0') {
            buf_printf(&text, "%zu:", i);
            buf_append(&text, parts[i], strlen(parts[i]) + 1);
        }
    if (text.len > 0) {
        SHA256((const unsigned char *)text.data, text.len, digest);
        memcpy(&salt, digest, sizeof(salt));
        salt |= salt == 0;
    }
    buf_deinit(&text);
    return salt;
}

static bool fill_generation(struct text_task *task, const struct router *router,
                            struct chat_error *err)
{
    const struct chat_params *p = &task->params;
    struct generation_params *g = &task->generation;

    *g = (struct generation_params){
        .temperature = (float)p->temperature,
        .top_p = (float)p->top_p,
        .min_p = (float)p->min_p,
        .presence_penalty = (float)p->presence_penalty,
        .frequency_penalty = (float)p->frequency_penalty,
        .repetition_penalty = (float)p->repetition_penalty,
        .logprobs = p->logprobs,
        .prompt_logprobs = p->logprobs && (p->echo || p->logprob_start >= 0),
        .n_top_logprobs = (uint32_t)p->top_logprobs,
        .top_k = p->top_k < 0 ? 0 : (int32_t)p->top_k,
        .priority = (int32_t)p->priority,
        .cache_salt = salt_of(p),
        .seed = p->seed,
        .max_new_tokens = p->max_tokens > 0 ? (uint32_t)p->max_tokens : 1, /* 1: not shown */
        .min_new_tokens = (uint32_t)p->min_tokens,
        .ignore_eos = p->ignore_eos,
        .n_stop_ids = (uint32_t)p->n_stop_ids,
    };
    memcpy(g->stop_ids, p->stop_ids, p->n_stop_ids * sizeof(*p->stop_ids));
    if (!p->has_seed)
        g->seed = ids_seed();
    return fill_bias(task, tokenizer_vocab(router->tokenizer), err);
}

/* @param param  the field it came from, for errors */
static bool add_prompt(struct text_task *task, const char *param, const struct token_list *ids,
                       uint64_t context_length, struct chat_error *err)
{
    struct prompt_ids *prompt;

    if (!task->counting && !fit_context(&task->params, param, ids->n, context_length, err))
        return false;
    if (task->params.logprob_start >= (int64_t)ids->n)
        return field_fail(err, "logprob_start_len", "invalid_value",
                          "logprob_start_len is %lld, the prompt has %zu tokens",
                          (long long)task->params.logprob_start, ids->n);
    prompt = prompt_ids_new(ids->ids, ids->n);
    if (prompt == NULL)
        return fail_memory(err);
    task->prompts[task->n_prompts++] = prompt;
    task->n_prompt_tokens += ids->n;
    return true;
}

/* From a chat-completion body to tokens: the one way that all chat-like APIs take. params are read.
 * @param list  what the request calls its messages */
static bool run_chat(struct text_task *task, const struct router *router, const struct json *chat,
                     const char *list, uint64_t context_length, struct text_scratch *scratch,
                     struct chat_error *err)
{
    struct status st;

    scratch->ids.n = 0;
    if (chat_request_render(chat, &router->chat, &scratch->prompt, err) != ST_OK) {
        if (strcmp(err->param, "messages") == 0)
            snprintf(err->param, sizeof(err->param), "%s", list);
        return false;
    }
    if (scratch->prompt.think_max && context_length > 0 && context_length < THINK_MAX_CONTEXT &&
        !router->options->allow_think_max)
        return field_fail(err, "reasoning_effort", "unsupported_value",
                          "reasoning effort max needs a context of %d tokens, this model is served "
                          "with %llu: ask for high, or let the router --allow-think-max",
                          THINK_MAX_CONTEXT, (unsigned long long)context_length);
    if (prefix_tokens_encode(router->prefixes, scratch->cache, &scratch->prompt.prompt,
                             &scratch->ids, NULL, &st) != ST_OK)
        return field_fail(err, list, "invalid_value", "the prompt cannot be tokenized: %s", st.msg);
    if (!add_prompt(task, list, &scratch->ids, context_length, err))
        return false;
    task->start = scratch->prompt.start;
    task->tools = scratch->prompt.tools;
    return fill_generation(task, router, err);
}

bool chat_task_run(struct text_task *task, const struct router *router, const char *body,
                   size_t len, uint64_t context_length, struct text_scratch *scratch,
                   struct chat_error *err)
{
    return parse(task, body, len, err) &&
           chat_params_read(json_root(task->doc), tokenizer_vocab(router->tokenizer), &task->params,
                            err) &&
           run_chat(task, router, json_root(task->doc), "messages", context_length, scratch, err);
}

static bool run_anthropic(struct text_task *task, const struct router *router, const char *body,
                          size_t len, uint64_t context_length, struct text_scratch *scratch,
                          struct chat_error *err)
{
    const struct json *chat;

    return parse(task, body, len, err) &&
           anthropic_request_read(task->doc, task->counting, tokenizer_vocab(router->tokenizer),
                                  &task->params, &chat, err) &&
           run_chat(task, router, chat, "messages", context_length, scratch, err);
}

bool anthropic_task_run(struct text_task *task, const struct router *router, const char *body,
                        size_t len, uint64_t context_length, struct text_scratch *scratch,
                        struct chat_error *err)
{
    return run_anthropic(task, router, body, len, context_length, scratch, err);
}

bool anthropic_count_task_run(struct text_task *task, const struct router *router, const char *body,
                              size_t len, uint64_t context_length, struct text_scratch *scratch,
                              struct chat_error *err)
{
    task->counting = true;
    return run_anthropic(task, router, body, len, context_length, scratch, err);
}

bool responses_task_run(struct text_task *task, const struct router *router, const char *body,
                        size_t len, uint64_t context_length, struct text_scratch *scratch,
                        struct chat_error *err)
{
    const struct json *chat;

    return parse(task, body, len, err) &&
           responses_request_read(task->doc, tokenizer_vocab(router->tokenizer), &task->params,
                                  &chat, &task->echo, err) &&
           run_chat(task, router, chat, "input", context_length, scratch, err);
}

/* ---- completions ----------------------------------------------------------------------------- */

static bool read_ids(const char *name, const struct json *v, int32_t vocab, struct token_list *out,
                     struct chat_error *err)
{
    for (uint32_t i = 0; i < v->len; i++) {
        int64_t id;

        if (!json_int(&v->items[i], &id) || id < 0 || id >= vocab)
            return field_fail(err, name, "invalid_value", "%s: element %u is no token id below %d",
                              name, i, vocab);
        token_list_push(out, (int32_t)id);
    }
    return true;
}

/* One prompt: a string or a list of ids. @param name  the field's */
static bool read_prompt(struct text_task *task, const struct router *router, const char *name,
                        const struct json *v, uint64_t context_length, struct text_scratch *scratch,
                        struct chat_error *err)
{
    struct status st;

    scratch->ids.n = 0;
    if (v->type == JSON_STRING) {
        if (tokenizer_encode(router->tokenizer, scratch->cache, v->text, v->len, TOKENIZE_ADDED,
                             &scratch->ids, &st) != ST_OK)
            return field_fail(err, name, "invalid_value", "%s: %s", name, st.msg);
    } else if (v->type != JSON_ARRAY) {
        return field_fail(err, name, "invalid_type",
                          "%s must be a string, a list of token ids, or a list of those", name);
    } else if (!read_ids(name, v, tokenizer_vocab(router->tokenizer), &scratch->ids, err)) {
        return false;
    }
    if (scratch->ids.n == 0)
        return field_fail(err, name, "invalid_value", "%s must not be empty", name);
    return add_prompt(task, name, &scratch->ids, context_length, err);
}

/* One prompt or a list of them. */
static bool read_prompts(struct text_task *task, const struct router *router, const char *name,
                         const struct json *v, uint64_t context_length,
                         struct text_scratch *scratch, struct chat_error *err)
{
    task->many = v->type == JSON_ARRAY && v->len > 0 && v->items[0].type != JSON_NUMBER;
    if (task->many &&
        (v->len > TEXT_PROMPTS_MAX || v->len * (uint64_t)task->params.n > TEXT_CHOICES_MAX))
        return field_fail(err, name, "invalid_value",
                          "%s: at most %d prompts, and %d answers together", name, TEXT_PROMPTS_MAX,
                          TEXT_CHOICES_MAX);
    for (uint32_t i = 0; task->many && i < v->len; i++)
        if (!read_prompt(task, router, name, &v->items[i], context_length, scratch, err))
            return false;
    return task->many || read_prompt(task, router, name, v, context_length, scratch, err);
}

bool completion_task_run(struct text_task *task, const struct router *router, const char *body,
                         size_t len, uint64_t context_length, struct text_scratch *scratch,
                         struct chat_error *err)
{
    const struct json *prompt;

    task->raw = true;
    if (!parse(task, body, len, err) ||
        !completion_params_read(json_root(task->doc), tokenizer_vocab(router->tokenizer),
                                &task->params, err))
        return false;
    prompt = json_get(json_root(task->doc), "prompt");
    if (prompt == NULL || prompt->type == JSON_NULL)
        return field_fail(err, "prompt", "missing_required_parameter", "prompt is needed");
    return read_prompts(task, router, "prompt", prompt, context_length, scratch, err) &&
           fill_generation(task, router, err);
}

/* ---- SGLang's /generate ---------------------------------------------------------------------- */

static const struct json *given(const struct json *body, const char *name)
{
    const struct json *v = json_get(body, name);

    return v != NULL && v->type == JSON_NULL ? NULL : v;
}

bool generate_task_run(struct text_task *task, const struct router *router, const char *body,
                       size_t len, uint64_t context_length, struct text_scratch *scratch,
                       struct chat_error *err)
{
    const struct json *text, *ids;

    task->raw = true;
    if (!parse(task, body, len, err) ||
        !generate_params_read(json_root(task->doc), tokenizer_vocab(router->tokenizer),
                              &task->params, err))
        return false;
    text = given(json_root(task->doc), "text");
    ids = given(json_root(task->doc), "input_ids");
    if ((text == NULL) == (ids == NULL))
        return field_fail(err, "text", "missing_required_parameter",
                          "either text or input_ids is needed, and not both");
    if (ids != NULL && ids->type != JSON_ARRAY)
        return field_fail(err, "input_ids", "invalid_type",
                          "input_ids must be a list of token ids, or a list of such lists");
    return read_prompts(task, router, text != NULL ? "text" : "input_ids",
                        text != NULL ? text : ids, context_length, scratch, err) &&
           fill_generation(task, router, err);
}
