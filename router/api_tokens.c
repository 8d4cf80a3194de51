/*
 * api_tokens: POST /tokenize and /detokenize, as SGLang and vLLM have them.
 */
#include <string.h>

#include "common/base/json.h"
#include "router/fields.h"
#include "router/routes.h"

/* ---- /tokenize ------------------------------------------------------------------------------- */

static void put_ids(struct buf *out, const int32_t *ids, size_t n)
{
    buf_puts(out, "[");
    for (size_t i = 0; i < n; i++)
        buf_printf(out, i > 0 ? ",%d" : "%d", ids[i]);
    buf_puts(out, "]");
}

static bool encode_text(struct router_thread *t, const struct json *text, struct chat_error *err)
{
    struct status st;

    t->scratch.ids.n = 0;
    if (text->type != JSON_STRING)
        return field_fail(err, "prompt", "invalid_type",
                          "prompt must be a string or a list of them");
    if (tokenizer_encode(t->router->tokenizer, t->scratch.cache, text->text, text->len,
                         TOKENIZE_ADDED, &t->scratch.ids, &st) != ST_OK)
        return field_fail(err, "prompt", "invalid_value", "prompt: %s", st.msg);
    return true;
}

/* A list of prompts gives lists of tokens and of counts. */
static bool put_prompts(struct router_thread *t, const struct json *list, struct buf *out,
                        struct chat_error *err)
{
    struct buf counts = {0};
    bool ok = true;

    buf_puts(out, "{\"tokens\":[");
    for (uint32_t i = 0; ok && i < list->len; i++) {
        ok = encode_text(t, &list->items[i], err);
        buf_puts(out, i > 0 ? "," : "");
        put_ids(out, t->scratch.ids.ids, t->scratch.ids.n);
        buf_printf(&counts, i > 0 ? ",%zu" : "%zu", t->scratch.ids.n);
    }
    buf_puts(out, "],\"count\":[");
    buf_append(out, counts.data, counts.len);
    buf_puts(out, "]");
    buf_deinit(&counts);
    return ok;
}

/* The prompt that a chat request would make. */
static bool encode_chat(struct router_thread *t, const struct json *body, struct chat_error *err)
{
    struct text_scratch *s = &t->scratch;
    struct status st;

    s->ids.n = 0;
    if (chat_request_render(body, &t->router->chat, &s->prompt, err) != ST_OK)
        return false;
    if (tokenizer_encode_prompt(t->router->tokenizer, s->cache, &s->prompt.prompt, &s->ids, &st) !=
        ST_OK)
        return field_fail(err, "messages", "invalid_value", "%s", st.msg);
    return true;
}

static bool tokenize(struct router_thread *t, const struct json *body, struct buf *out,
                     struct chat_error *err)
{
    const struct json *prompt = json_get(body, "prompt");
    bool ok;

    if (prompt == NULL)
        prompt = json_get(body, "text");
    if (prompt != NULL && prompt->type == JSON_ARRAY) {
        ok = put_prompts(t, prompt, out, err);
    } else {
        if (prompt != NULL)
            ok = encode_text(t, prompt, err);
        else if (json_get(body, "messages") != NULL)
            ok = encode_chat(t, body, err);
        else
            return field_fail(err, "prompt", "missing_required_parameter",
                              "prompt or messages is needed");
        buf_puts(out, "{\"tokens\":");
        put_ids(out, t->scratch.ids.ids, t->scratch.ids.n);
        buf_printf(out, ",\"count\":%zu", t->scratch.ids.n);
    }
    buf_printf(out, ",\"max_model_len\":%llu}",
               (unsigned long long)workers_context_length(t->workers));
    return ok;
}

/* ---- /detokenize ----------------------------------------------------------------------------- */

static bool put_text(struct router_thread *t, const struct json *ids, struct buf *out,
                     struct chat_error *err)
{
    struct detokenizer d = {0};
    struct buf text = {0};
    struct status st;
    bool ok = true;

    for (uint32_t i = 0; ok && i < ids->len; i++) {
        int64_t id;

        ok = json_int(&ids->items[i], &id) && id >= 0 && id <= INT32_MAX &&
             detokenizer_push(&d, t->router->tokenizer, (int32_t)id, &text, &st) == ST_OK;
        if (!ok)
            field_fail(err, "tokens", "invalid_value", "tokens: element %u is no token id below %d",
                       i, tokenizer_vocab(t->router->tokenizer));
    }
    detokenizer_finish(&d, &text);
    json_write_string(out, text.data, text.len);
    buf_deinit(&text);
    return ok;
}

static bool detokenize(struct router_thread *t, const struct json *body, struct buf *out,
                       struct chat_error *err)
{
    const struct json *tokens = json_get(body, "tokens");
    bool ok = true, many;

    if (tokens == NULL || tokens->type != JSON_ARRAY)
        return field_fail(err, "tokens",
                          tokens == NULL ? "missing_required_parameter" : "invalid_type",
                          "tokens must be a list of token ids, or a list of those");
    many = tokens->len > 0 && tokens->items[0].type == JSON_ARRAY;
    buf_puts(out, "{\"text\":");
    if (!many) {
        ok = put_text(t, tokens, out, err);
    } else {
        for (uint32_t i = 0; ok && i < tokens->len; i++) {
            buf_puts(out, i > 0 ? "," : "[");
            ok = tokens->items[i].type == JSON_ARRAY
                     ? put_text(t, &tokens->items[i], out, err)
                     : field_fail(err, "tokens", "invalid_type", "tokens[%u] must be a list", i);
        }
        buf_puts(out, "]");
    }
    buf_puts(out, "}");
    return ok;
}

/* ---- requests -------------------------------------------------------------------------------- */

static void answer(struct router_thread *t, struct http_exchange *x,
                   bool (*make)(struct router_thread *, const struct json *, struct buf *,
                                struct chat_error *))
{
    const struct http_request *r = http_exchange_request(x);
    struct chat_error err = {0};
    struct json_doc *doc = NULL;
    struct buf out = {0};
    struct status st;

    if (json_parse(r->body.data, r->body.len, CHAT_JSON_FLAGS, &doc, &st) != ST_OK)
        field_fail(&err, "", "invalid_json", "the request body is no valid JSON: %s", st.msg);
    else if (make(t, json_root(doc), &out, &err))
        err.status = 0;
    if (err.status == 0)
        reply_json(t, x, 200, &out);
    else
        reply_error(t, x, err.status, err.param, err.code, err.message);
    if (st.code == ST_OK)
        json_free(doc);
    buf_deinit(&out);
}

void api_tokenize(struct router_thread *t, struct http_exchange *x)
{
    answer(t, x, tokenize);
}

void api_detokenize(struct router_thread *t, struct http_exchange *x)
{
    answer(t, x, detokenize);
}
