#include "router/text_task.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

void text_scratch_deinit(struct text_scratch *s)
{
    token_list_deinit(&s->ids);
    chat_prompt_deinit(&s->prompt);
}

void text_task_forget_body(struct text_task *task)
{
    json_free(task->doc);
    task->doc = NULL;
    task->params.model = task->params.rid = NULL;
    task->params.n_stop = 0;
}

void text_task_deinit(struct text_task *task)
{
    text_task_forget_body(task);
    prompt_ids_unref(task->prompt);
    task->prompt = NULL;
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
static bool fit_context(struct chat_params *p, size_t n_prompt, uint64_t context,
                        struct chat_error *err)
{
    if (context == 0)
        context = (uint64_t)INT32_MAX;
    if (n_prompt >= context)
        return field_fail(err, "messages", "context_length_exceeded",
                          "the prompt has %zu tokens, the model's context length is %llu and must "
                          "hold at least one more: shorten the messages",
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
    return true;
}

static void fill_generation(struct text_task *task)
{
    const struct chat_params *p = &task->params;
    struct generation_params *g = &task->generation;

    *g = (struct generation_params){
        .temperature = (float)p->temperature,
        .top_p = (float)p->top_p,
        .min_p = (float)p->min_p,
        .top_k = p->top_k < 0 ? 0 : (int32_t)p->top_k,
        .seed = p->seed,
        .max_new_tokens = (uint32_t)p->max_tokens,
        .min_new_tokens = (uint32_t)p->min_tokens,
        .ignore_eos = p->ignore_eos,
        .n_stop_ids = (uint32_t)p->n_stop_ids,
    };
    memcpy(g->stop_ids, p->stop_ids, p->n_stop_ids * sizeof(*p->stop_ids));
    if (!p->has_seed && getrandom(&g->seed, sizeof(g->seed), 0) < 0)
        g->seed = (uint64_t)rand(); /* no entropy: better some seed than no answer */
}

bool chat_task_run(struct text_task *task, const struct router *router, const char *body,
                   size_t len, uint64_t context_length, struct text_scratch *scratch,
                   struct chat_error *err)
{
    struct status st;

    scratch->ids.n = 0;
    if (!parse(task, body, len, err) ||
        !chat_params_read(json_root(task->doc), tokenizer_vocab(router->tokenizer), &task->params,
                          err))
        return false;
    if (chat_request_render(json_root(task->doc), &router->chat, &scratch->prompt, err) != ST_OK)
        return false;
    if (tokenizer_encode_prompt(router->tokenizer, scratch->cache, &scratch->prompt.prompt,
                                &scratch->ids, &st) != ST_OK)
        return field_fail(err, "messages", "invalid_value", "the prompt cannot be tokenized: %s",
                          st.msg);
    if (!fit_context(&task->params, scratch->ids.n, context_length, err))
        return false;
    task->prompt = prompt_ids_new(scratch->ids.ids, scratch->ids.n);
    if (task->prompt == NULL)
        return fail_memory(err);
    task->start = scratch->prompt.start;
    task->tools = scratch->prompt.tools;
    fill_generation(task);
    return true;
}
