/* Fuzzes the readers of requests that are not chat completions: any JSON is taken or refused with a
 * complete error; what Anthropic's and the Responses API's readers make of it renders, or is
 * refused likewise; and what a response repeats of its request is JSON. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "router/anthropic_request.h"
#include "router/responses_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VOCAB = 1000 };

static void check_error(const struct chat_error *err)
{
    if (err->status != 400 || err->code == NULL || err->message[0] == '\0')
        abort();
}

static void check_params(const struct chat_params *p)
{
    if (p->n < 1 || p->n > CHAT_CHOICES_MAX || p->n_stop > STOP_STRINGS_MAX ||
        p->n_stop_ids > GENERATION_STOP_IDS_MAX || !(p->temperature >= 0) || !(p->top_p > 0) ||
        p->top_logprobs > GENERATION_TOP_LOGPROBS_MAX || p->logprob_start < -1)
        abort();
}

static void check_rendered(const struct json *chat, struct chat_error *err)
{
    static const struct chat_options opt = {.profile = CHAT_GA, .default_thinking = true};
    struct chat_prompt out = {0};

    if (chat_request_render(chat, &opt, &out, err) != ST_OK)
        check_error(err);
    else if (out.prompt.text.len == 0)
        abort();
    chat_prompt_deinit(&out);
}

static void check_echo(const struct buf *echo)
{
    struct buf object = {0};
    struct json_doc *doc;
    struct status st;

    buf_puts(&object, "{");
    buf_append(&object, echo->data, echo->len);
    buf_puts(&object, "}");
    if (json_parse(object.data, object.len, 0, &doc, &st) != ST_OK)
        abort();
    json_free(doc);
    buf_deinit(&object);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf echo = {0};

    for (int api = 0; api < 5; api++) {
        struct chat_error err = {0};
        const struct json *chat = NULL;
        struct chat_params p;
        struct json_doc *doc;
        struct status st;
        bool ok = false;

        if (json_parse((const char *)data, size, CHAT_JSON_FLAGS, &doc, &st) != ST_OK)
            return 0;
        switch (api) {
        case 0:
        case 1:
            ok = anthropic_request_read(doc, api == 1, VOCAB, &p, &chat, &err);
            break;
        case 2:
            ok = responses_request_read(doc, VOCAB, &p, &chat, &echo, &err);
            break;
        case 3:
            ok = completion_params_read(json_root(doc), VOCAB, &p, &err);
            break;
        case 4:
            ok = generate_params_read(json_root(doc), VOCAB, &p, &err);
            break;
        }
        if (ok)
            check_params(&p);
        else
            check_error(&err);
        if (ok && chat != NULL)
            check_rendered(chat, &err);
        if (ok && api == 2)
            check_echo(&echo);
        json_free(doc);
    }
    buf_deinit(&echo);
    return 0;
}
